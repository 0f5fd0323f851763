"""Stores in Zarr folders, formats 2 and 3: a chunk or a shard is a file, which is read and decoded here.

What is not known here (other codecs, transposed chunks, other grids) zarr itself reads; `Zarr.report` says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from trimtab.data.arrays import Array, Arrays, Layout, Sliced, is_number, named
from trimtab.data.chunk_files import MOST_INDEX, ChunkFiles, Key, Shards
from trimtab.data.chunks import MOST_CUTS, Grid
from trimtab.data.decoders import zarr_decoder
from trimtab.data.reading import Costs, File, Identity, Reader
from trimtab.data.throttle import Throttle
from trimtab.errors import Corrupt, ShapeError, UsageError
from trimtab.sources.source import damage_told

_RESERVED = {3: "zarr.json", 2: ".zarray"}


class Zarr(Arrays):
    """The rows of one Zarr array as the field ``x``, or of arrays of a group by their names.

    Chunks may hold one sample or several, or parts of them; shards may hold chunks. Codecs ``gzip``, ``zlib``,
    ``zstd``, ``crc32c``, those of trimtab, and ``blosc`` are undone in the threads that read. `fields` are names of
    arrays, or field -> path in the group; without them, all arrays of numbers that have as many rows as the one with
    the most bytes. `num_threads` requests are in flight at a time; `costs` of a request are measured where they are not
    given; `throttle` makes the store slower. For what the methods do, see `Store`.

    Raises:
        UsageError: there is no such array, or they differ in their number of rows.
        ShapeError: an array is not of numbers, or has no axes.
        FormatError: the metadata is damaged.
        OSError: the folder cannot be opened.

    >>> store = Zarr("scans.zarr", {"x": "diffraction", "y": "phase"})  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: str | Mapping[str, str] | tuple[str, ...] | list[str] | None = None,
        *,
        num_threads: int = 4,
        costs: Costs | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self.path = Path(path)
        self._given = fields
        self._identities: dict[str, Identity] = {}
        super().__init__(num_threads, costs, throttle)

    def __repr__(self) -> str:
        return f"Zarr({self.path})"

    def _open(self) -> dict[str, Array]:
        if not self.path.is_dir():
            raise UsageError(f"{self.path} is not a folder; a Zarr array or group is one")
        with damage_told(self.path):
            root = zarr.open(str(self.path), mode="r")
            if isinstance(root, zarr.Array):
                if self._given not in (None, "x", ("x",), ["x"]):
                    raise UsageError(f"{self.path} is one array, which has no name; its field is 'x'")
                return {"x": self._array("", root)}
            names = named(self._given, _largest(root) if self._given is None else ())
            return {field: self._array(name, self._member(root, name)) for field, name in names.items()}

    def _member(self, root: zarr.Group, name: str) -> zarr.Array:
        found = root.get(name)
        if not isinstance(found, zarr.Array):
            have = ", ".join(sorted(key for key, _ in root.arrays())) or "none"
            raise UsageError(f"{self.path} has no array {name!r}; it has {have}")
        return found

    def _array(self, name: str, array: zarr.Array) -> Array:
        where = self.path / name.strip("/")
        if not _is_array(array):
            raise ShapeError(
                f"{where} holds {array.dtype} of shape {array.shape}; expected numbers, with samples along axis 0"
            )
        shape = tuple(int(n) for n in array.shape)
        if math.prod(n for n in shape if n) * array.dtype.itemsize > 2**62:
            raise Corrupt(f"{where} cannot have the shape {shape}")
        told = File(where / _RESERVED[array.metadata.zarr_format], self._identities.get(name))
        self._identities[name] = told.identity
        told.close()
        plan = array.metadata.to_dict()
        dtype = _stored_dtype(plan, np.dtype(array.dtype))
        return Array(shape, dtype, _layout(self._reader, where, array, plan, shape, dtype))


def _is_array(array: zarr.Array) -> bool:
    return bool(array.shape) and is_number(np.dtype(array.dtype))


def _largest(root: zarr.Group) -> list[str]:
    found = {name: item for name, item in root.members(max_depth=None) if isinstance(item, zarr.Array)}
    sizes = {name: math.prod(item.shape) * item.dtype.itemsize for name, item in found.items() if _is_array(item)}
    if not sizes:
        return []
    num = found[max(sizes, key=lambda name: sizes[name])].shape[0]
    return [name for name in sizes if found[name].shape[0] == num]


def _stored_dtype(plan: Mapping[str, Any], dtype: np.dtype) -> np.dtype:
    """Return the dtype of elements in chunks: format 3 says their byte order beside their type."""
    if plan["zarr_format"] == 2:
        return dtype
    return dtype.newbyteorder(_byte_order(plan["codecs"]))


def _byte_order(codecs: Any) -> Literal["<", ">"]:
    for codec in codecs:
        settings = codec.get("configuration") or {}
        if codec["name"] == "sharding_indexed":
            return _byte_order(settings["codecs"])
        if codec["name"] == "bytes":
            return ">" if settings.get("endian") == "big" else "<"
    return "<"


def _layout(
    reader: Reader, where: Path, array: zarr.Array, plan: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype
) -> Layout:
    """Return how an array is read: from the files of its chunks, if that can be."""
    fill = np.zeros((), dtype.newbyteorder("="))
    if array.fill_value is not None:
        fill[...] = array.fill_value
    found = _files(where, plan, shape, dtype)
    if not isinstance(found, str):
        chunks, key, codecs = found
        grid = Grid(shape, chunks, dtype)
        if grid.num_cuts > MOST_CUTS:
            found = f"each sample is cut into {grid.num_cuts} chunks"
        elif codecs and codecs[0]["name"] == "sharding_indexed":
            found = _sharded(reader, grid, key, fill[()], codecs)
        else:
            decode = zarr_decoder(codecs, grid.chunk_bytes)
            if decode is not None and not isinstance(decode, str):
                _check_chunks(where, grid)
            if not isinstance(decode, str):
                how = "".join(f", {codec['name']}" for codec in codecs)
                return ChunkFiles(reader, grid, key, fill[()], decode, f"in files of {chunks}{how}, read as they are")
            found = decode
        if not isinstance(found, str):
            return found

    def get(first: int, last: int) -> np.ndarray:
        with damage_told(where):
            return np.asarray(array[first:last])

    return Sliced(reader, str(where), get, lambda: None, f"read by zarr: {found}")


def _files(
    where: Path, plan: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype
) -> tuple[tuple[int, ...], Key, list[dict[str, Any]]] | str:
    """Return the shape of chunks, which file a chunk is in, and its codecs; or words for what is not known here."""
    root = str(where)
    if plan["zarr_format"] == 2:
        if plan["order"] != "C" and len(shape) > 1:
            return "chunks are in Fortran's order"
        packer = plan["compressor"]
        if plan["filters"] or (packer and packer["id"].startswith("trimtab.") and not dtype.isnative):
            return "there are filters of format 2"
        mark = plan["dimension_separator"]
        codecs = [{"name": packer["id"]}] if packer else []
        return tuple(plan["chunks"]), lambda corner: f"{root}/{mark.join(map(str, corner))}", codecs
    grid, keys = plan["chunk_grid"], plan["chunk_key_encoding"]
    if grid["name"] != "regular" or keys["name"] not in ("default", "v2") or plan.get("storage_transformers"):
        return f"grid {grid['name']}, keys {keys['name']}"
    is_default = keys["name"] == "default"
    mark = (keys.get("configuration") or {}).get("separator", "/" if is_default else ".")
    start = f"{root}/c{mark}" if is_default else f"{root}/"
    chunks = tuple(grid["configuration"]["chunk_shape"])
    return chunks, lambda corner: start + mark.join(map(str, corner)), list(plan["codecs"])


def _check_chunks(where: Path, grid: Grid) -> None:
    if not grid.fits():
        raise UsageError(
            f"{where} has {grid.array_bytes} bytes in chunks of {grid.chunk_bytes}; write it with smaller chunks"
        )


def _sharded(reader: Reader, grid: Grid, key: Key, fill: Any, codecs: list[dict[str, Any]]) -> Layout | str:
    """Return how shards are read, or words for what is not known here."""
    settings = codecs[0]["configuration"]
    inner = tuple(settings["chunk_shape"])
    names = [codec["name"] for codec in settings["index_codecs"]]
    endian = (settings["index_codecs"][0].get("configuration") or {}).get("endian", "little")
    if len(codecs) > 1 or names not in (["bytes"], ["bytes", "crc32c"]) or endian != "little":
        return "shards or their indices are packed again"
    if grid.num_cuts > 1 or grid.chunks[1:] != grid.shape[1:]:
        return "samples are cut over shards"
    shard = Grid(grid.chunks, inner, grid.dtype)
    decode = zarr_decoder(settings["codecs"], shard.chunk_bytes)
    if isinstance(decode, str):
        return decode
    if shard.num_cuts > MOST_CUTS or not shard.fits() or shard.num_chunks > MOST_INDEX:
        return "shards have too many chunks, or too large ones"
    how = "".join(f", {codec['name']}" for codec in settings["codecs"])
    note = f"in shards of {grid.chunks} with chunks of {inner}{how}, read at their own offsets"
    at_end = settings.get("index_location", "end") == "end"
    return Shards(reader, grid, shard, key, fill, decode, note, is_checked=len(names) == 2, at_end=at_end)
