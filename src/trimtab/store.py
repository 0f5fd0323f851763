"""compress, decompress, save, load: codecs and files together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from trimtab.arrays import Array, as_numpy, as_torch, dtype_of, is_torch, torch_device
from trimtab.bounds import Bound, Lossless
from trimtab.codecs import ENEC, Codec, make_codec
from trimtab.codecs.enec_device import tensor_digests
from trimtab.dtypes import FLOATS, INTEGERS, REALS, dtype_name
from trimtab.errors import BaseError, BoundError, Corrupt, NewerVersion, UnknownCodec, UsageError
from trimtab.files import Reader, Writer, checksum, to_bytes
from trimtab.kernels import for_each
from trimtab.packed import Header, Packed, digest
from trimtab.plain import Plain

if TYPE_CHECKING:
    import torch

_LOSSLESS = ("raw", "enec")
"""Codecs that lose nothing, whatever the bound."""

_PIECES_A_THREAD = 8  # pieces that one thread digests at a time: some hundred microseconds of work

Framework = Literal["np", "pt"]
"""What comes back: NumPy arrays or PyTorch tensors, in the words of the safetensors library."""

BaseLike = str | os.PathLike[str] | Mapping[str, Array]
"""A base as users give it: the path of a file, or arrays by name."""

Level = Literal["fast", "balanced", "ratio"]
"""How much time packing and unpacking may take for a better ratio; all that is packed is unpacked alike."""


def compress(
    x: Array,
    bound: Bound = Lossless(),
    *,
    codec: Codec | None = None,
    level: Level | None = None,
    base: Array | None = None,
) -> bytes:
    """Return `x` packed within `bound`, as the bytes of a packed file.

    Takes NumPy arrays and torch tensors of any shape, strides and storable dtype. Without `codec`, lossless packing
    uses ENEC and lossy packing SZ, at `level` "fast", "balanced" (the default) or "ratio". A lossy bound applies to
    floats and integers; arrays of other dtypes (bool, complex, float8) are packed losslessly.

    With `base`, an array like `x`, the difference of the two is packed where that is smaller, losslessly: `decompress`
    then needs the same base.

    Raises:
        ShapeError: the dtype cannot be stored, or the codec does not take it.
        BoundError: the codec cannot promise this bound.
        UsageError: both a codec and a level are given, or there is no such level, or a base and a lossy bound.

    >>> import numpy as np, trimtab as tt
    >>> x = np.sin(np.linspace(0, 6, 10_000, dtype="float32"))
    >>> blob = tt.compress(x, tt.Rel(1e-3))
    >>> tt.Rel(1e-3).allows(x, tt.decompress(blob))
    True
    """
    return to_bytes(*encode(x, bound, codec, level, base))


def decompress(
    blob: bytes | bytearray | memoryview | np.ndarray,
    *,
    out: np.ndarray | None = None,
    framework: Framework = "np",
    device: str | torch.device | None = None,
    base: Array | None = None,
) -> Array:
    """Return the array that `compress` packed; `out`, a C-contiguous NumPy array, receives it where given.

    With `device`, it is a torch tensor there: bfloat16 weights are unpacked on a CUDA device, the rest on the host.
    `base` is what `compress` was given.

    Raises:
        BackendUnavailable: there is no such device.
        BaseError: the array was packed against a base, and none or another one is given.
        FormatError: the bytes are damaged, or not what `compress` returns.
        ShapeError: `out` does not fit.
    """
    reader = Reader(blob)
    if len(reader) != 1:
        raise UsageError(f"the file has {len(reader)} entries; read it with trimtab.load(path)")
    name = next(iter(reader))
    bases = {} if base is None else {name: base}
    if device is not None:
        if out is not None:
            raise UsageError("out is a NumPy array and device asks for a tensor there; give one of them")
        return decode_to(reader, name, torch_device(device), bases)
    return as_framework(decode(reader, name, bases, out=out), framework)


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    bound: Bound = Lossless(),
    *,
    codec: Codec | None = None,
    level: Level | None = None,
    integers: bool = False,
    metadata: Mapping[str, str] | None = None,
    base: BaseLike | None = None,
) -> None:
    """Write named arrays to a packed file, replacing it in one step when all is written.

    A lossy `bound` and a `codec` apply to real floating-point arrays, and to those of integers only where `integers` is
    set: among them may be indices and counters. All others are packed losslessly. `level` as in `compress`.

    `base` is a checkpoint like this one, such as that it was tuned from: the path of a safetensors or packed file,
    or a mapping. Arrays that have its names, dtypes and shapes are packed as their differences where that is smaller,
    without loss, and `load` needs the same base.

    Raises:
        UsageError: `tensors` is not a mapping, a name is reserved, or as in `compress`.
        ShapeError, BoundError: as in `compress`.
        BaseError, FormatError: the base cannot be read.

    >>> import trimtab as tt, numpy as np
    >>> tt.save("weights.tt", {"w": np.ones((3, 4), "float32")})  # doctest: +SKIP
    >>> tt.load("weights.tt")["w"].shape  # doctest: +SKIP
    (3, 4)
    >>> tt.save("tuned.tt", {"w": np.ones((3, 4), "float32")}, base="weights.tt")  # doctest: +SKIP
    >>> tt.load("tuned.tt", base="weights.tt")["w"].shape  # doctest: +SKIP
    (3, 4)
    """
    if not isinstance(tensors, Mapping):
        raise UsageError(f"save takes a mapping of names to arrays, got {type(tensors).__name__}; pass {{'x': array}}")
    check_base(base, bound, codec)
    bases = open_base(base)
    with Writer(path, metadata=metadata, base=base_name(base)) as writer:
        for name, x in tensors.items():
            chosen = for_dtype(dtype_of(x), bound, codec, level, integers=integers)
            writer.add(name, *encode(x, *chosen, base=bases.get(name)))


def load(
    path: str | os.PathLike[str],
    *,
    framework: Framework = "np",
    device: str | torch.device | None = None,
    base: BaseLike | None = None,
) -> Tensors:
    """Open a packed file as a mapping whose arrays are decoded when they are asked for.

    With `device`, they are torch tensors there, as from `decompress`. `base` as in `save`; if that was packed against a
    base itself, open it first: ``load("second.tt", base=load("first.tt", base="base.safetensors"))``.

    Raises:
        BackendUnavailable: there is no such device.
        FormatError: it is not a packed file, or its header is damaged.
        FileNotFoundError: there is no such file.
        BaseError: the base needs a base itself. Looking up an array raises it if no base, or another one, is given.
    """
    return Tensors(Reader(path), framework, None if device is None else torch_device(device), open_base(base))


def open_base(base: BaseLike | None) -> Mapping[str, Array]:
    """Return the arrays of a base by name: those of a safetensors or packed file, read when they are asked for.

    Raises:
        BaseError: the file was packed against a base itself.
        FormatError: it is neither a safetensors nor a packed file, or damaged.
        FileNotFoundError: there is no such file.
    """
    if base is None or isinstance(base, Mapping):
        return base or {}
    plain = Plain(base)
    if "trimtab" not in plain.metadata:
        return plain
    reader = Reader(base)
    if any(reader.header(name).base for name in reader):
        raise BaseError(
            f"{base} was packed against a base itself, {_named(reader)}; unpack it first, "
            "or give what trimtab.load(path, base=...) returns"
        )
    return Tensors(reader)


def base_name(base: BaseLike | None) -> str:
    """Return the name that a packed file remembers its base by, without folders; empty where it is no file."""
    return "" if base is None or isinstance(base, Mapping) else Path(base).name


class Tensors(Mapping[str, Array]):
    """The arrays of a packed file, by name. Each look-up decodes anew; nothing is kept.

    A model's ``load_state_dict`` takes it as it is.
    """

    def __init__(
        self,
        reader: Reader,
        framework: Framework = "np",
        device: torch.device | None = None,
        bases: Mapping[str, Array] | None = None,
    ) -> None:
        self.reader = reader
        self.framework = _checked(framework)
        self.device = device
        self.bases = bases or {}

    def __getitem__(self, name: str) -> Array:
        if self.device is not None:
            return decode_to(self.reader, name, self.device, self.bases)
        return as_framework(decode(self.reader, name, self.bases), self.framework)

    def __iter__(self) -> Iterator[str]:
        return iter(self.reader)

    def __len__(self) -> int:
        return len(self.reader)

    def __contains__(self, name: object) -> bool:
        return name in self.reader

    def __repr__(self) -> str:
        report = self.report
        return (
            f"Tensors({len(self)} arrays, {report['decoded_bytes']} -> {report['file_bytes']} bytes, "
            f"ratio {report['ratio']:.3f})"
        )

    @property
    def report(self) -> dict[str, Any]:
        """Sizes in bytes and the ratio, in all and for each array."""
        arrays = {name: _entry_report(self.reader.packed(name)) for name in self.reader}
        decoded = sum(entry["decoded_bytes"] for entry in arrays.values())
        return {
            "decoded_bytes": decoded,
            "file_bytes": self.reader.num_bytes,
            "ratio": decoded / self.reader.num_bytes,
            "metadata": self.reader.metadata,
            "arrays": arrays,
        }


def encode(
    x: Array,
    bound: Bound = Lossless(),
    codec: Codec | None = None,
    level: Level | None = None,
    base: Array | None = None,
) -> tuple[Packed, str]:
    """Return `x` packed and the checksum of what a decoder will return; parameters and errors as in `compress`.

    A `base` of another dtype or shape is left alone.
    """
    if not isinstance(bound, Bound):
        raise BoundError(f"expected a bound such as Rel(1e-3), Abs(0.1) or Lossless(), got {bound!r}")
    _check_choice(codec, level)
    check_base(base, bound, codec)
    codec = codec or codec_for(dtype_of(x), bound, level)
    if base is not None and not _alike(x, base):
        base = None
    if isinstance(codec, ENEC) and is_torch(x) and base is None:
        there = codec.encode_tensor(x, bound)
        if there is not None:
            return there, checksum(tensor_digests(x))
    array = as_numpy(x)
    if isinstance(codec, ENEC) and base is not None:
        packed = codec.encode_difference(array, as_numpy(base))
    else:
        packed = codec.encode(array, bound)
    return packed, checksum(packed.digests or _decoded_digests(packed, array))


def decode(
    reader: Reader, name: str, bases: Mapping[str, Array] | None = None, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Decode one entry of a packed file and check it against its checksum.

    Where it is the difference from a base, the array of its name in `bases` is that base.

    Raises:
        Corrupt: the buffers or the decoded elements are not those that were written.
        NewerVersion: this version has no such codec.
        BaseError: it is the difference from a base, and `bases` has none or another one.
    """
    packed, codec = _entry(reader, name)
    if packed.header.base is None:
        y = codec.decode(packed, out=out)
    elif isinstance(codec, ENEC):
        base = _base(reader, name, bases or {})
        try:
            y = codec.decode_difference(packed, base, out=out)
        except BaseError as error:
            raise BaseError(f"this is not the base: {_needed(reader, name)}; {error}") from None
    else:
        raise Corrupt(f"entry {name!r} of codec {codec.id!r} claims to be a difference; only 'enec' packs them")
    _check(_digests(codec.pieces(y)), reader, name)
    return y


def decode_to(
    reader: Reader, name: str, device: torch.device, bases: Mapping[str, Array] | None = None
) -> torch.Tensor:
    """Decode one entry of a packed file into a tensor on `device`, there if its codec can, and check it as `decode`."""
    packed, codec = _entry(reader, name)
    y = codec.decode_tensor(packed, device) if isinstance(codec, ENEC) else None
    if y is None:
        return as_torch(decode(reader, name, bases)).to(device)
    _check(tensor_digests(y), reader, name)
    return y


def _entry(reader: Reader, name: str) -> tuple[Packed, Codec]:
    packed = reader.packed(name)
    try:
        return packed, make_codec(packed.header.codec)
    except UnknownCodec as error:
        raise NewerVersion(str(error)) from None


def _base(reader: Reader, name: str, bases: Mapping[str, Array]) -> np.ndarray:
    """Return the array of a base that an entry is the difference from.

    Raises:
        BaseError: there is none of its name.
    """
    if name not in bases:
        what = "the base that is given has no such array" if bases else "a base is needed"
        raise BaseError(f"{what}: {_needed(reader, name)}")
    return as_numpy(bases[name])


def _needed(reader: Reader, name: str) -> str:
    checksum = reader.header(name).base
    return f"{name!r} is packed as its difference from the array of {_named(reader)} with checksum {checksum}"


def _named(reader: Reader) -> str:
    """Return what a file says about its base, in words."""
    return repr(reader.manifest.base) if reader.manifest.base else "a base in memory"


def _alike(x: Array, base: Array) -> bool:
    return dtype_name(dtype_of(x)) == dtype_name(dtype_of(base)) and tuple(x.shape) == tuple(base.shape)


def _decoded_digests(packed: Packed, x: np.ndarray) -> list[int]:
    """Return the digests of what a decoder makes of `packed`, which is `x` itself unless its codec loses something."""
    codec = make_codec(packed.header.codec)
    lossless = isinstance(packed.header.bound, Lossless) or codec.id in _LOSSLESS
    return _digests(codec.pieces(x if lossless else codec.decode(packed)))


def _digests(pieces: Iterable[np.ndarray]) -> list[int]:
    """Return the digest of each piece, made in threads where there are many."""
    parts = list(pieces)
    digests = [0] * len(parts)

    def digest_group(group: int) -> None:
        for i in range(group * _PIECES_A_THREAD, min((group + 1) * _PIECES_A_THREAD, len(parts))):
            digests[i] = digest(parts[i])

    for_each(digest_group, -(-len(parts) // _PIECES_A_THREAD))
    return digests


def _check(digests: list[int], reader: Reader, name: str) -> None:
    if checksum(digests) != reader.checksum(name):
        raise Corrupt(f"the checksum of entry {name!r} does not match: the file was damaged")


def codec_for(dtype: np.dtype, bound: Bound = Lossless(), level: Level | None = None) -> Codec:
    """Return the codec that packs arrays of `dtype` within `bound` at `level`, "balanced" by default.

    Raises:
        UsageError: there is no such level.
    """
    return codec_named("enec" if isinstance(bound, Lossless) or dtype_name(dtype) not in REALS else "sz", level)


def codec_named(id: str, level: Level | None = None) -> Codec:
    """Return the codec of an id, set to a level, "balanced" by default.

    Raises:
        UsageError: there is no such level.
        UnknownCodec: there is no such codec.
    """
    level = level or "balanced"
    if level not in get_args(Level):
        raise UsageError(f"unknown level {level!r}; expected one of {', '.join(get_args(Level))}")
    settings = {
        "enec": {"mode": "ratio" if level == "ratio" else "fast"},
        "sz": {"level": level},
        "gwlz": {"base": {"id": "sz", "level": level}},
    }
    return make_codec({"id": id, **settings.get(id, {})})


def for_dtype(
    dtype: np.dtype, bound: Bound, codec: Codec | None, level: Level | None = None, *, integers: bool = False
) -> tuple[Bound, Codec]:
    """Return the bound and codec for one array of a collection: those asked for, or lossless where they do not apply.

    They apply to real floats, and to integers where `integers` is set.

    Raises:
        UsageError: both a codec and a level are given, or there is no such level.
    """
    _check_choice(codec, level)
    if not bound_applies(dtype_name(dtype), integers=integers):
        bound, codec = Lossless(), None
    return bound, codec or codec_for(dtype, bound, level)


def check_base(base: object, bound: Bound, codec: Codec | None) -> None:
    """Check that arrays may be packed as differences from a base, where there is one.

    Raises:
        UsageError: the bound is lossy, or the codec packs no differences.
    """
    if base is None:
        return
    if not isinstance(bound, Lossless):
        raise UsageError("a difference from a base is packed losslessly; leave out the bound, or the base")
    if codec is not None and not (isinstance(codec, ENEC) and codec.mode != "paper"):
        raise UsageError(
            "only ENEC packs differences, in its modes 'fast' and 'ratio'; leave out the codec, or the base"
        )


def bound_applies(name: str, *, integers: bool) -> bool:
    """Return whether a lossy bound applies to arrays of dtype `name` in a collection."""
    return name in FLOATS or (integers and name in INTEGERS)


def as_framework(x: np.ndarray, framework: Framework) -> Array:
    """Return `x` as the framework's own array.

    Raises:
        UsageError: the framework is not ``"np"`` or ``"pt"``.
    """
    return as_torch(x) if _checked(framework) == "pt" else x


def _checked(framework: Framework) -> Framework:
    if framework not in ("np", "pt"):
        raise UsageError(f"unknown framework {framework!r}; expected 'np' (NumPy) or 'pt' (PyTorch)")
    return framework


@cache
def _is_codec_class(kind: type) -> bool:
    """Whether objects of a class are codecs: asking the protocol itself takes longer than packing a small array."""
    return all(hasattr(kind, name) for name in ("id", "fixed_size", "encode", "decode", "pieces"))


def _check_choice(codec: Codec | None, level: Level | None) -> None:
    if codec is not None and not _is_codec_class(type(codec)):
        raise UsageError(f"expected a codec object such as trimtab.codecs.SZ(), got {codec!r}")
    if codec is not None and level is not None:
        raise UsageError(f"a codec has its own settings; leave out level={level!r} beside codec={codec!r}")


def _entry_report(packed: Packed) -> dict[str, Any]:
    header: Header = packed.header
    return {
        "dtype": header.dtype,
        "shape": list(header.shape),
        "codec": header.codec,
        "bound": header.bound,
        "decoded_bytes": header.num_bytes,
        "packed_bytes": packed.num_bytes,
        "base": header.base,
    }
