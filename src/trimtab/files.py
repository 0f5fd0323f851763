"""The file format: an ordinary safetensors file whose metadata says how each entry is packed.

Layout (all numbers little-endian, all sizes 64-bit; ``docs/format.md`` is the full description)::

    u64 length of the header | header, JSON | buffers, back to back

The header is that of safetensors: one ``{"dtype", "shape", "data_offsets"}`` a buffer, and ``__metadata__`` with
``trimtab`` (a JSON text: `Manifest`, packed by zstd where it is long), ``trimtab.checksum`` and whatever text metadata
the user gave.
Nothing is read before it is checked; nothing but `FormatError` comes out of a damaged file.
"""

from __future__ import annotations

import base64
import binascii
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np
import xxhash
import zstandard

from trimtab.blob import join
from trimtab.bounds import Bound
from trimtab.dtypes import SAFETENSORS_NAMES, dtype_name, numpy_dtype
from trimtab.errors import Corrupt, FormatError, NewerVersion, Truncated, UsageError
from trimtab.packed import Count, Header, Packed

FORMAT_VERSION = 1
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_LONG = 512  # bytes of a manifest from which it is packed
_PACKED = "zstd:"  # what a packed manifest starts with, where a plain one starts with a brace
_MAX_EXPANSION = 64
_DTYPES = {stored: name for name, stored in SAFETENSORS_NAMES.items()}


Checksum = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One array of the file. `codec` and `bound` are positions in the manifest's lists; `base` as in `Header`."""

    codec: Count
    bound: Count
    dtype: str
    shape: tuple[Count, ...]
    params: dict[str, Any] = {}
    buffers: tuple[str, ...]
    checksum: Checksum
    base: Checksum | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What ``__metadata__["trimtab"]`` holds. `base` is the name of the file that entries are differences from."""

    version: Annotated[int, msgspec.Meta(ge=1)]
    codecs: list[dict[str, Any]]
    bounds: list[Bound]
    entries: dict[str, Entry]
    base: str = ""


class _Version(msgspec.Struct):
    version: Count


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the safetensors header."""

    dtype: str
    shape: tuple[Count, ...]
    data_offsets: tuple[Count, Count]


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXTS = msgspec.json.Decoder(dict[str, str])
_SPAN = msgspec.json.Decoder(Span)
_VERSION = msgspec.json.Decoder(_Version)
_MANIFEST = msgspec.json.Decoder(Manifest)


def checksum(digests: Sequence[int]) -> str:
    """Return the checksum of an entry, in hex: the digest of its one piece, or the digest of its pieces' digests."""
    if len(digests) == 1:
        return f"{digests[0]:016x}"
    return xxhash.xxh3_64_hexdigest(np.array(digests, "<u8"))


class _Layout:
    """The header of a file in the making: where each buffer goes, and what the manifest will say."""

    def __init__(self, base: str = "") -> None:
        self.num_bytes = 0
        self._spans: dict[str, Span] = {}
        self._manifest = Manifest(version=FORMAT_VERSION, codecs=[], bounds=[], entries={}, base=base)

    def add(self, name: str, packed: Packed, checksum: str) -> Iterator[memoryview]:
        """Place an entry behind the others and return the bytes of its buffers."""
        header, manifest = packed.header, self._manifest
        _check_text(name, "an entry's name")
        if name in manifest.entries:
            raise UsageError(f"two entries are called {name!r}; rename one")
        stored = {role: SAFETENSORS_NAMES[dtype_name(buffer.dtype)] for role, buffer in packed.buffers.items()}
        for role in stored:  # all checks come first: a caller may go on after an error
            key = _buffer_key(name, role)
            if key in self._spans or key == "__metadata__":
                raise UsageError(f"the name {key!r} is taken by another buffer, or reserved; rename the entry {name!r}")
        for role, buffer in packed.buffers.items():
            shape = header.shape if role == "data" and buffer.size == header.num_elements else buffer.shape
            end = self.num_bytes + buffer.nbytes
            self._spans[_buffer_key(name, role)] = Span(stored[role], shape, (self.num_bytes, end))
            self.num_bytes = end
        manifest.entries[name] = Entry(
            codec=_position(manifest.codecs, header.codec),
            bound=_position(manifest.bounds, header.bound),
            dtype=header.dtype,
            shape=header.shape,
            params=header.params,
            buffers=tuple(packed.buffers),
            checksum=checksum,
            base=header.base,
        )
        return (np.ascontiguousarray(buffer).view(np.uint8).data for buffer in packed.buffers.values())

    def header_bytes(self, metadata: Mapping[str, str]) -> bytes:
        """Return the length and the header, padded with spaces so that the buffers start at a multiple of 8."""
        metadata = {**metadata, "trimtab": _manifest_text(msgspec.json.encode(self._manifest))}
        metadata["trimtab.checksum"] = _metadata_checksum(metadata)
        text = msgspec.json.encode({"__metadata__": metadata, **self._spans})
        text += b" " * (-len(text) % 8)
        if len(text) > _MAX_HEADER:
            raise UsageError(f"the header has {len(text)} bytes; at most {_MAX_HEADER} are allowed. Use several files")
        return len(text).to_bytes(8, "little") + text


class Writer:
    """Write a packed file entry by entry; memory holds one entry at a time.

    The file appears under its name only when all is written. Entries gather in an unnamed temporary file of the
    same folder; at the end a file with a temporary name is put together and renamed. `base` is the name of the file
    that entries are differences from.

    >>> with Writer("weights.tt") as writer:  # doctest: +SKIP
    ...     writer.add("w", packed, checksum([digest(w)]))
    """

    def __init__(
        self, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None, base: str = ""
    ) -> None:
        self.path = Path(path)
        self._metadata = dict(metadata or {})
        for key, text in self._metadata.items():
            _check_text(key, "a metadata key")
            _check_text(text, f"metadata {key!r}")
            if key.startswith("trimtab"):
                raise UsageError(f"metadata key {key!r} is reserved; choose one that does not start with 'trimtab'")
        if self.path.is_dir():
            raise UsageError(f"{self.path} is a directory; expected the name of a file")
        _check_text(base, "the name of the base")
        self._layout = _Layout(base)
        self._body: BinaryIO = tempfile.TemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.")

    def add(self, name: str, packed: Packed, checksum: str) -> None:
        """Append an entry; `checksum` is that of the decoded elements.

        Raises:
            UsageError: the name, or that of one of its buffers, is taken or reserved.
        """
        for data in self._layout.add(name, packed, checksum):
            self._body.write(data)

    @property
    def num_bytes(self) -> int:
        """Bytes of buffers written so far."""
        return self._layout.num_bytes

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._body:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        """Put header and body together under a temporary name, then rename."""
        file = tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", delete=False)
        with ExitStack() as stack:
            stack.callback(Path(file.name).unlink, missing_ok=True)  # nothing to remove once renamed
            with file:
                file.write(self._layout.header_bytes(self._metadata))
                self._body.seek(0)
                shutil.copyfileobj(self._body, file, 1 << 22)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~umask())
            os.replace(file.name, self.path)


def to_bytes(packed: Packed, checksum: str) -> bytes:
    """Return a packed file in memory with one entry, whose name is empty: what `trimtab.compress` returns."""
    layout = _Layout()
    buffers = list(layout.add("", packed, checksum))
    return join([layout.header_bytes({}), *buffers])


def file_size(entries: Mapping[str, tuple[Packed, str]], metadata: Mapping[str, str] | None = None) -> int:
    """Return the bytes of the file that `Writer` makes of entries: each a `Packed` and its checksum."""
    layout = _Layout()
    for name, (packed, text) in entries.items():
        layout.add(name, packed, text)
    return len(layout.header_bytes(metadata or {})) + layout.num_bytes


class Reader:
    """Read a packed file lazily: opening checks the header, and a buffer is mapped, not copied.

    The file stays mapped until the reader and all arrays that came out of it are gone; it may be replaced meanwhile
    (as `Writer` does), but must not be cut short in place.

    Raises:
        FormatError: this is not a packed file, or its header contradicts itself or the file's length.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray) -> None:
        if isinstance(source, (bytes, bytearray, memoryview, np.ndarray)):
            view = memoryview(source)
            self._view = view.cast("B") if view.nbytes else memoryview(b"")
        else:
            self._view = map_file(Path(source))
        self._spans, self._start, self.metadata = read_header(self._view)
        self.manifest = _read_manifest(self.metadata)
        self.metadata = {key: text for key, text in self.metadata.items() if not key.startswith("trimtab")}
        self._headers = {name: self._header(name, entry) for name, entry in self.manifest.entries.items()}
        expected = {_buffer_key(name, role) for name, entry in self.manifest.entries.items() for role in entry.buffers}
        if expected != self._spans.keys():
            odd = sorted(expected ^ self._spans.keys())[0]
            raise Corrupt(f"buffer {odd!r} is not in both the manifest and the header")

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def __contains__(self, name: object) -> bool:
        return name in self._headers

    def header(self, name: str) -> Header:
        """Return what a decoder has to know about an entry.

        Raises:
            KeyError: there is no such entry.
        """
        return self._headers[name]

    def checksum(self, name: str) -> str:
        """Return the stored checksum of the decoded elements of an entry."""
        return self.manifest.entries[name].checksum

    def packed(self, name: str) -> Packed:
        """Return an entry whose buffers are views of the file."""
        roles = self.manifest.entries[name].buffers
        return Packed(self._headers[name], {role: self._buffer(_buffer_key(name, role)) for role in roles})

    @property
    def num_bytes(self) -> int:
        """Size of the whole file in bytes."""
        return self._view.nbytes

    def release(self) -> None:
        """Let the system take back the memory of pages read so far; they are read again if they are needed."""
        if isinstance(self._view.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._view.obj.madvise(mmap.MADV_DONTNEED)

    def _header(self, name: str, entry: Entry) -> Header:
        try:
            return Header(
                codec=self.manifest.codecs[entry.codec],
                bound=self.manifest.bounds[entry.bound],
                dtype=entry.dtype,
                shape=entry.shape,
                params=entry.params,
                base=entry.base,
            )
        except (IndexError, ValueError) as error:
            raise Corrupt(f"bad entry {name!r}: {error}") from None

    def _buffer(self, key: str) -> np.ndarray:
        span = self._spans[key]
        start, end = span.data_offsets
        dtype = numpy_dtype(_DTYPES[span.dtype])
        if start == end:  # NumPy takes no view of nothing at the very end
            return np.empty(0, dtype)
        return np.frombuffer(self._view, dtype, (end - start) // dtype.itemsize, self._start + start)


def map_file(path: Path) -> memoryview:
    """Return the bytes of a file, mapped read-only."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory; expected a packed file (.tt)")
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # an empty file cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def read_header(view: memoryview) -> tuple[dict[str, Span], int, dict[str, str]]:
    """Parse and check the safetensors header: its spans, where the buffers start, and the metadata."""
    if view.nbytes < 8:
        raise Truncated(f"the file has {view.nbytes} bytes; a packed file has at least 8")
    length = int.from_bytes(view[:8], "little")
    if length > _MAX_HEADER:
        raise Corrupt(f"not a packed file: its header would have {length} bytes; at most {_MAX_HEADER} are allowed")
    if 8 + length > view.nbytes:
        raise Truncated(f"the header needs {length} bytes, the file has {view.nbytes - 8} after the first 8")
    try:
        fields = _FIELDS.decode(view[8 : 8 + length])
        metadata = _TEXTS.decode(fields.pop("__metadata__", b"{}"))
        spans = {name: _SPAN.decode(raw) for name, raw in fields.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not a packed file: its header is not that of safetensors: {error}") from None
    end = 0
    for name, span in sorted(spans.items(), key=_span_order):
        if span.dtype not in _DTYPES:
            raise Corrupt(f"buffer {name!r} has unknown dtype {span.dtype!r}")
        start, stop = span.data_offsets
        size = math.prod(span.shape) * numpy_dtype(_DTYPES[span.dtype]).itemsize
        if start != end or stop - start != size:
            raise Corrupt(f"buffer {name!r} spans bytes {start} to {stop}; expected {end} to {end + size}")
        end = stop
    have = view.nbytes - 8 - length
    if have < end:
        raise Truncated(f"the buffers need {end} bytes, the file has {have}")
    if have > end:
        raise Corrupt(f"{have - end} bytes follow the last buffer")
    return spans, 8 + length, metadata


def _span_order(item: tuple[str, Span]) -> tuple[int, int]:
    return item[1].data_offsets


def _read_manifest(metadata: Mapping[str, str]) -> Manifest:
    text = metadata.get("trimtab")
    if text is None:
        raise FormatError("an ordinary safetensors file: nothing in it is packed; read it with the safetensors library")
    try:
        manifest = _manifest_json(text)
        if (version := _VERSION.decode(manifest).version) > FORMAT_VERSION:
            raise NewerVersion(
                f"written in format version {version}; this trimtab reads up to {FORMAT_VERSION}. Upgrade trimtab"
            )
        if metadata.get("trimtab.checksum") != _metadata_checksum(metadata):
            raise Corrupt("the checksum of the metadata does not match: the file was damaged or edited")
        return _MANIFEST.decode(manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"bad manifest: {error}") from None


def _manifest_text(manifest: bytes) -> str:
    """Return a manifest's JSON as text, packed where it is long: most of it is names and the same words."""
    frame = zstandard.ZstdCompressor(level=9).compress(manifest) if len(manifest) > _LONG else b""
    if not frame or len(manifest) > _MAX_EXPANSION * len(frame):
        return manifest.decode()
    return _PACKED + base64.b64encode(frame).decode()


def _manifest_json(text: str) -> bytes:
    """Return the JSON of a manifest: the inverse of `_manifest_text`."""
    if not text.startswith(_PACKED):
        return text.encode()
    try:
        frame = base64.b64decode(text[len(_PACKED) :], validate=True)
        # the size is compared first: the library would allocate what the frame claims
        if not 0 <= zstandard.frame_content_size(frame) <= _MAX_EXPANSION * len(frame):
            raise Corrupt(f"bad manifest: its {len(frame)} packed bytes claim to be too many")
        return zstandard.ZstdDecompressor().decompress(frame)
    except (binascii.Error, ValueError, zstandard.ZstdError) as error:
        if isinstance(error, Corrupt):
            raise
        raise Corrupt(f"bad manifest: {error}") from None


def _metadata_checksum(metadata: Mapping[str, str]) -> str:
    """Return the XXH3-64 digest of the canonical JSON of all metadata but the checksum itself."""
    covered = {key: metadata[key] for key in sorted(metadata) if key != "trimtab.checksum"}
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(covered))


def _buffer_key(name: str, role: str) -> str:
    """Name of a buffer in the safetensors header. Plain elements stand under the entry's own name."""
    return name if role == "data" else f"{name}:{role}"


def _check_text(text: object, what: str) -> None:
    """Refuse what JSON could not give back: other types, and lone surrogates."""
    if not isinstance(text, str):
        raise UsageError(f"{what} must be a text, got {text!r} ({type(text).__name__}); convert it with str()")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} must be valid Unicode, got {text!r}") from None


def _position(items: list, item: Any) -> int:
    """Return where `item` stands in `items`; it is appended if it does not yet."""
    if item not in items:
        items.append(item)
    return items.index(item)


def umask() -> int:
    """Return the process's umask, which only setting it can tell."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
