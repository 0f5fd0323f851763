"""What a codec is, and the table of those that exist."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import msgspec
import numpy as np

from trimtab.bounds import Bound, Lossless
from trimtab.errors import Corrupt, UnknownCodec
from trimtab.packed import Packed


@runtime_checkable
class Codec(Protocol):
    """A frozen struct: at once the configuration, the registry entry and what a file's header stores."""

    id: ClassVar[str]
    fixed_size: ClassVar[bool]
    """Whether the encoded size depends on shape and dtype alone."""

    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed: ...

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray: ...

    def pieces(self, y: np.ndarray) -> Iterable[np.ndarray]:
        """Return the parts of a decoded array that were packed on their own, in order: checksums are made over them."""
        ...


_CLASSES = {
    "raw": "trimtab.codecs.raw:Raw",
    "enec": "trimtab.codecs.enec:ENEC",
    "sz": "trimtab.codecs.sz:SZ",
    "aesz": "trimtab.codecs.aesz:AESZ",
    "gwlz": "trimtab.codecs.gwlz:GWLZ",
    "sparse": "trimtab.codecs.sparse:Sparse",
    "embedding": "trimtab.codecs.embedding:Embedding",
    "blocks": "trimtab.codecs.blocks:Blocks",
}


def codec_ids() -> list[str]:
    """Return the ids of all codecs."""
    return list(_CLASSES)


def codec_class(id: str) -> type[Codec]:
    """Return the class of a codec.

    Raises:
        UnknownCodec: there is none of that id.
    """
    target = _CLASSES.get(id)
    if target is None:
        raise UnknownCodec(f"unknown codec {id!r}; this version has {', '.join(_CLASSES)}. Try a newer trimtab")
    module, name = target.split(":")
    return cast("type[Codec]", getattr(importlib.import_module(module), name))


def make_codec(settings: Mapping[str, Any]) -> Codec:
    """Return the codec that a file header describes: ``{"id": ..., setting: value, ...}``.

    Raises:
        UnknownCodec: there is none of that id.
        Corrupt: a setting is unknown or out of its range.
    """
    id = settings.get("id")
    if not isinstance(id, str):
        raise Corrupt(f"a codec needs a text id, got {id!r} at $.codec.id")
    try:
        return msgspec.convert(settings, type=codec_class(id))
    except msgspec.ValidationError as error:
        raise Corrupt(f"bad settings of codec {id!r}: {error}") from None


def describe(codec: Codec) -> dict[str, Any]:
    """Return the settings of a codec as plain data, the inverse of `make_codec`; a setting that is None is left out."""
    return {name: value for name, value in msgspec.to_builtins(codec).items() if value is not None}
