"""Packed files taken apart and put together again with lies in them: the tools of the hostile tests."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash
import zstandard

LIES = [-1, 0, 1, 2, 255, 2**16, 2**31 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 0.5, 1e308]
OTHER_TYPES = [None, True, "", "lie", "é\u0000", [], [1], {}, {"id": "raw"}]


@dataclass
class Forged:
    """The parts of a packed file: safetensors spans, text metadata, the manifest inside it, and the body."""

    spans: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    manifest: dict[str, Any]
    body: bytes

    @classmethod
    def of(cls, blob: bytes) -> Forged:
        length = int.from_bytes(blob[:8], "little")
        spans = json.loads(blob[8 : 8 + length])
        metadata = spans.pop("__metadata__")
        text = metadata.pop("trimtab")
        if text.startswith("zstd:"):
            text = zstandard.decompress(base64.b64decode(text.removeprefix("zstd:")))
        manifest = json.loads(text)
        metadata.pop("trimtab.checksum")
        return cls(spans, metadata, manifest, blob[8 + length :])

    def bytes(self) -> bytes:
        """Return the file with the metadata's checksum made right again, so that only the lie is wrong."""
        metadata = {**self.metadata, "trimtab": json.dumps(self.manifest)}
        covered = {key: metadata[key] for key in sorted(metadata)}
        metadata["trimtab.checksum"] = xxhash.xxh3_64_hexdigest(msgspec.json.encode(covered))
        return assembled({"__metadata__": metadata, **self.spans}, self.body)

    def copy(self) -> Forged:
        return copy.deepcopy(self)


def assembled(header: Any, body: bytes = b"") -> bytes:
    """Return a safetensors file with this header, given as data or as raw JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def lies(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield one file for each lie in each field of the manifest and of the spans, named by what it does."""
    truth = Forged.of(blob)
    for part in ("manifest", "spans"):
        for path, value in _fields(getattr(truth, part)):
            for lie in _lies_about(value):
                forged = truth.copy()
                _set(getattr(forged, part), path, lie)
                yield f"{part}{path}={lie!r}", forged.bytes()
            if path:
                forged = truth.copy()
                _set(getattr(forged, part), path, None, delete=True)
                yield f"{part}{path} deleted", forged.bytes()


def _fields(data: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    yield path, data
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _fields(value, (*path, key))


def _lies_about(value: Any) -> list[Any]:
    """Return other values for a field: near the truth first, then far from it, then of other types."""
    if isinstance(value, bool):
        return [not value, *LIES, *OTHER_TYPES]
    if isinstance(value, int | float):
        return [value + 1, value - 1, value * 2, value * 4096, *LIES, *OTHER_TYPES]
    if isinstance(value, str):
        names = ["float32", "float64", "uint8", "bfloat16", "complex128", "BF16", "F64", "raw", "enec", "sz", "huge"]
        return [value[:-1], value + "0", "0" * len(value), *names, *LIES[:4], *OTHER_TYPES]
    if isinstance(value, list):
        return [value[::-1], value[1:], value + value[:1], value * 65, *OTHER_TYPES, *LIES[:4]]
    return [{**value, "more": 1}, *OTHER_TYPES, *LIES[:4]]


def _set(data: Any, path: tuple, value: Any, *, delete: bool = False) -> None:
    if not path:
        data.clear()
        data.update(value if isinstance(value, dict) else {"lie": value})
        return
    for key in path[:-1]:
        data = data[key]
    if delete:
        del data[path[-1]]
    else:
        data[path[-1]] = value
