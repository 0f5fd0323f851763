"""Storage for `torch.distributed.checkpoint` (DCP): each rank writes its pieces of the tensors into one packed file.

A checkpoint is a folder:

- ``rank00000-<random>.tt``: one packed file a rank. A tensor's piece is the entry ``name[0:64, 0:32]``, called after
  the part of the whole tensor that it is; any other object is the entry ``name[json]``, text of `trimtab.values`;
- ``checkpoint.tt``: a packed file with one entry, ``index``, the JSON text of `_Index`. It is written last and appears
  in one step; a folder without it is no checkpoint. Saving into a folder that holds a checkpoint leaves the old one
  whole until the new index takes its place.

Texts are arrays of uint8, UTF-8, of codec "raw".

Nothing is pickled, and no pickle is read. Every piece is checked against its checksum when it is loaded.
"""

from __future__ import annotations

import io
import math
import os
import random
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from torch.distributed.checkpoint import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    LoadPlan,
    LoadPlanner,
    Metadata,
    ReadItem,
    SavePlan,
    SavePlanner,
    StorageReader,
    StorageWriter,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import LoadItemType, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from trimtab import files, store, values
from trimtab.arrays import as_numpy, as_torch
from trimtab.bounds import Bound, Lossless
from trimtab.codecs import Codec, Raw
from trimtab.dtypes import NAMES, numpy_dtype
from trimtab.errors import Corrupt, TrimtabError, UsageError
from trimtab.packed import Count, Packed

INDEX = "checkpoint.tt"
_FILE = r"^rank\d{5,}-[0-9a-f]{16}\.tt\Z"
_PRIME = 2**61 - 1

Shape = Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]
Keys = Annotated[tuple[str | Count, ...], msgspec.Meta(min_length=1)]


class _Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a tensor, and the position in `_Index.files` of the file where it is."""

    file: Count
    offsets: Shape
    shape: Shape


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole tensor. Its pieces cover each element once; an empty tensor has none."""

    dtype: str
    shape: Shape
    pieces: list[_Piece]


class _Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``checkpoint.tt`` says. `objects` maps a name to a position in `files`.

    `paths` gives the keys that lead to each name in the nested state dict, where DCP's planner told them.
    """

    version: Literal[1]
    files: list[Annotated[str, msgspec.Meta(pattern=_FILE)]]
    tensors: dict[str, _Tensor]
    objects: dict[str, Count]
    paths: dict[str, Keys] | None = None


class _Home(NamedTuple):
    """Where a piece or an object is: file and entry, and for a piece what the entry must be."""

    file: str
    entry: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None


class _Folder:
    """What writer and reader share: the folder, which DCP calls the id of a checkpoint."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.folder = Path(folder)

    @property
    def checkpoint_id(self) -> Path:
        return self.folder

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self.folder = Path(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return "://" not in os.fspath(checkpoint_id)


class Writer(_Folder, StorageWriter):
    """Writes packed checkpoints: the `storage_writer` of ``torch.distributed.checkpoint.save`` and ``async_save``.

    `folder` must be one that all ranks see. `bound`, `codec` and `level` are those of `trimtab.save`; a bound and a
    codec apply to real floating-point tensors, those of optimizers included, piece by piece.

    DCP tells what went wrong in the ``failures`` of a ``CheckpointException``, by rank: UsageError for an object that
    `trimtab.values` cannot store and for a folder with an ordinary DCP checkpoint, ShapeError for a tensor that is not
    dense.

    Raises:
        UsageError, BoundError: the settings are not those of `trimtab.save`.

    >>> import torch.distributed.checkpoint as dcp, trimtab.dcp
    >>> dcp.save({"model": model}, storage_writer=trimtab.dcp.Writer("step-1000"))  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        bound: Bound = Lossless(),
        *,
        codec: Codec | None = None,
        level: store.Level | None = None,
    ) -> None:
        super().__init__(folder)
        self._settings = bound, codec, level
        store.encode(np.empty(0, np.float32), *self._settings)  # a wrong setting is told now

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("use_collectives", True):
            raise UsageError("one index tells the files of all ranks: leave use_collectives=True")

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        if (self.folder / ".metadata").exists():
            raise UsageError(f"{self.folder} holds an ordinary DCP checkpoint; choose another folder, or remove it")
        self.folder.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        file = f"rank{rank:05}-{secrets.token_hex(8)}.tt"  # never one of an earlier save
        items = [item for item in plan.items if item.tensor_data is None or math.prod(item.tensor_data.chunk.sizes)]
        results = []
        if items:
            with files.Writer(self.folder / file) as writer:
                for item in items:
                    results.append(WriteResult(item.index, self._write(writer, item, planner), file))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _write(self, writer: files.Writer, item: WriteItem, planner: SavePlanner) -> int:
        """Write a piece or an object and return its size in bytes."""
        name, data = item.index.fqn, planner.resolve_data(item)
        try:
            if isinstance(data, torch.Tensor):
                assert item.tensor_data is not None
                chunk, dtype = item.tensor_data.chunk, item.tensor_data.properties.dtype
                if data.shape != chunk.sizes or data.dtype != dtype:
                    raise UsageError(
                        f"the planner gave {data.dtype} of shape {list(data.shape)}, and had said {dtype} of shape "
                        f"{list(chunk.sizes)}"
                    )
                entry, x = _entry(name, chunk.offsets, chunk.sizes), as_numpy(data)
                packed = store.encode(x, *store.for_dtype(x.dtype, *self._settings))
            else:
                data.seek(0)
                value = torch.load(data, weights_only=False)  # the planner pickled it in this process, just now
                entry, packed = f"{name}[json]", _packed_text(values.dumps(value))
        except TrimtabError as error:
            raise type(error)(f"{name!r}: {error}") from None
        writer.add(entry, *packed)
        return packed[0].num_bytes

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        homes = {result.index: result.storage_data for of_rank in results for result in of_rank}
        index = _make_index(metadata, homes)
        try:
            _check(index)
        except Corrupt as error:
            raise UsageError(f"{error}; save from all ranks that hold a part of the state") from None
        with files.Writer(self.folder / INDEX) as writer:
            writer.add("index", *_packed_text(msgspec.json.encode(index)))
        for file in list(self.folder.iterdir()):  # of the checkpoint before, and of saves that were cut off
            if re.match(_FILE, file.name) and file.name not in index.files:
                file.unlink(missing_ok=True)


class Reader(_Folder, StorageReader):
    """Reads packed checkpoints: the `storage_reader` of ``torch.distributed.checkpoint.load``, on any number of ranks.

    A piece that fits is decoded straight into the tensor that waits for it.

    DCP tells what went wrong in the ``failures`` of a ``CheckpointException``, by rank: FormatError for a file that is
    damaged, missing or contradicts another; UsageError for a folder that holds no packed checkpoint.

    >>> import torch.distributed.checkpoint as dcp, trimtab.dcp
    >>> dcp.load(state, storage_reader=trimtab.dcp.Reader("step-1000"))  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._homes: dict[MetadataIndex, _Home] = {}

    def read_metadata(self, *_args: Any, **_options: Any) -> Metadata:
        """Return what the index says; an error is handed over as `storage_data`, since DCP swallows what is raised."""
        try:
            index = _read_index(self.folder)
        except (TrimtabError, OSError) as error:
            return Metadata({}, planner_data={}, storage_data=error)
        return _make_metadata(index)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if isinstance(metadata.storage_data, Exception):
            raise metadata.storage_data
        self._homes = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        wanted: dict[str, dict[_Home, list[ReadItem]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            home = self._homes[item.storage_index]
            wanted[home.file][home].append(item)
        for file, homes in wanted.items():
            try:
                reader = files.Reader(self.folder / file)
            except FileNotFoundError:
                raise Corrupt(f"{self.folder / INDEX} names {file}, which does not exist") from None
            for home, items in homes.items():
                if items[0].type == LoadItemType.BYTE_IO:
                    _load_object(reader, home, items, planner)
                else:
                    _load_piece(reader, home, items, planner)
                reader.release()
        future: Future[None] = Future()
        future.set_result(None)
        return future


def _load_object(reader: files.Reader, home: _Home, items: list[ReadItem], planner: LoadPlanner) -> None:
    """Hand an object to the planner as it expects it: pickled, but by this process, from plain values."""
    value = values.loads(_text(reader, home.entry))
    for item in items:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        planner.load_bytes(item, buffer)


def _load_piece(reader: files.Reader, home: _Home, items: list[ReadItem], planner: LoadPlanner) -> None:
    """Decode a piece, once, and copy what is wanted of it to where it is wanted."""
    if home.entry not in reader:
        raise Corrupt(f"{home.file} has no entry {home.entry!r}")
    header = reader.header(home.entry)
    if (header.dtype, header.shape) != (home.dtype, home.shape):
        raise Corrupt(
            f"{home.file}: {home.entry!r} is {header.dtype} of shape {list(header.shape)}; the index says {home.dtype} "
            f"of shape {list(home.shape or ())}"
        )
    piece = None
    for item in items:
        target = planner.resolve_tensor(item).detach()
        if len(items) == 1 and _takes(target, home):
            store.decode(reader, home.entry, out=as_numpy(target))
        else:
            if piece is None:
                piece = as_torch(store.decode(reader, home.entry))
            spans = zip(item.storage_offsets, item.lengths, strict=True)
            part = piece[tuple(slice(start, start + length) for start, length in spans)]
            if part.shape != target.shape:
                raise UsageError(f"{home.entry!r}: the planner wants {list(target.shape)} of {list(part.shape)}")
            target.copy_(part)
        planner.commit_tensor(item, target)


def _takes(target: torch.Tensor, home: _Home) -> bool:
    """Whether the whole piece can be decoded into the memory of `target`."""
    return (
        target.device.type == "cpu"
        and target.is_contiguous()
        and not (target.is_conj() or target.is_neg())
        and target.dtype == getattr(torch, str(home.dtype))
        and target.shape == home.shape
    )


def _entry(name: str, offsets: Iterable[int], shape: Iterable[int]) -> str:
    """Name of a piece: that of its tensor, and the part of it that the piece is, as in NumPy."""
    parts = ", ".join(f"{start}:{start + size}" for start, size in zip(offsets, shape, strict=True))
    return f"{name}[{parts}]"


def _make_index(metadata: Metadata, homes: dict[MetadataIndex, str]) -> _Index:
    names = sorted(set(homes.values()))
    position = {name: number for number, name in enumerate(names)}
    tensors, objects = {}, {}
    for name, stored in metadata.state_dict_metadata.items():
        if isinstance(stored, BytesStorageMetadata):
            objects[name] = position[homes[MetadataIndex(name)]]
            continue
        pieces = [
            _Piece(position[homes[MetadataIndex(name, chunk.offsets)]], tuple(chunk.offsets), tuple(chunk.sizes))
            for chunk in stored.chunks
            if math.prod(chunk.sizes)
        ]
        dtype = str(stored.properties.dtype).removeprefix("torch.")
        tensors[name] = _Tensor(dtype, tuple(stored.size), pieces)
    try:
        paths = msgspec.convert(metadata.planner_data, dict[str, Keys] | None)
    except msgspec.ValidationError as error:
        raise UsageError(f"the planner's own data cannot be stored: {error}") from None
    return _Index(1, names, tensors, objects, paths)


def _make_metadata(index: _Index) -> Metadata:
    stored: dict[str, Any] = {name: BytesStorageMetadata() for name in index.objects}
    homes = {
        MetadataIndex(name): _Home(index.files[position], f"{name}[json]") for name, position in index.objects.items()
    }
    for name, tensor in index.tensors.items():
        properties = TensorProperties(dtype=getattr(torch, tensor.dtype))
        chunks = [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.shape)) for p in tensor.pieces]
        stored[name] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
        for piece in tensor.pieces:
            entry = _entry(name, piece.offsets, piece.shape)
            homes[MetadataIndex(name, piece.offsets)] = _Home(index.files[piece.file], entry, tensor.dtype, piece.shape)
    return Metadata(stored, planner_data=index.paths, storage_data=homes)


def _read_index(folder: Path) -> _Index:
    """Read and check the index of a checkpoint."""
    try:
        reader = files.Reader(folder / INDEX)
    except FileNotFoundError:
        if (folder / ".metadata").exists():
            raise UsageError(f"{folder} holds an ordinary DCP checkpoint; read it with FileSystemReader") from None
        raise UsageError(f"{folder} holds no packed checkpoint: there is no {INDEX}") from None
    try:
        index = msgspec.json.decode(_text(reader, "index"), type=_Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{folder / INDEX} is not the index of a checkpoint: {error}") from None
    _check(index)
    return index


def _packed_text(text: bytes) -> tuple[Packed, str]:
    return store.encode(np.frombuffer(text, np.uint8), codec=Raw())


def _text(reader: files.Reader, entry: str) -> bytes:
    """Return the bytes of an entry that holds a text as it is."""
    if entry not in reader:
        raise Corrupt(f"there is no entry {entry!r}")
    header = reader.header(entry)
    if header.dtype != "uint8" or header.codec.get("id") != "raw":  # raw: no longer than the file
        raise Corrupt(f"entry {entry!r} is {header.dtype} of codec {header.codec.get('id')!r}; expected a plain text")
    return store.decode(reader, entry).tobytes()


def _check(index: _Index) -> None:
    """Check what the types leave open.

    Raises:
        Corrupt: a number is out of its range, or the pieces of a tensor do not make it up.
    """
    num_files = len(index.files)
    if any(position >= num_files for position in index.objects.values()):
        raise Corrupt("an object is in a file that is not listed")
    if both := index.tensors.keys() & index.objects.keys():
        raise Corrupt(f"{sorted(both)[0]!r} is both a tensor and another object")
    for name, tensor in index.tensors.items():
        if tensor.dtype not in NAMES or not hasattr(torch, tensor.dtype):
            raise Corrupt(f"{name!r} has unknown dtype {tensor.dtype!r}")
        if math.prod(n for n in tensor.shape if n) * numpy_dtype(tensor.dtype).itemsize > 2**62:
            raise Corrupt(f"{name!r} has a shape that does not fit in memory: {list(tensor.shape)}")
        if any(piece.file >= num_files for piece in tensor.pieces):
            raise Corrupt(f"a piece of {name!r} is in a file that is not listed")
        if not _fill(tensor.shape, tensor.pieces):
            raise Corrupt(f"the pieces of {name!r} do not cover each of its elements once")
    if index.paths is None:
        return
    if missing := (index.tensors.keys() | index.objects.keys()) - index.paths.keys():
        raise Corrupt(f"the path of {sorted(missing)[0]!r} is missing")
    lengths: dict[tuple[str | int, ...], int] = {}  # of the lists that the paths lead through
    for path in index.paths.values():
        for depth, key in enumerate(path):
            if isinstance(key, int):
                lengths[path[:depth]] = max(lengths.get(path[:depth], 0), key + 1)
    if sum(lengths.values()) > len(index.paths) + 2**20:
        raise Corrupt("the paths lead through lists that are too long")


def _fill(shape: tuple[int, ...], pieces: list[_Piece]) -> bool:
    """Whether the pieces are parts of the shape, none empty, that cover each element once.

    Every place between elements of an axis gets a random number; the measure of a box is the product, over its axes,
    of the difference between its two ends. Boxes that cover all once add up to the measure of the whole; others do so
    with a probability of at most ``len(shape) / 2**61`` (Schwartz 1980, Zippel 1979). Comparing boxes pair by pair
    would let a small file cost hours.
    """
    for piece in pieces:
        if not len(piece.offsets) == len(piece.shape) == len(shape) or not all(piece.shape):
            return False
        if any(start + size > n for start, size, n in zip(piece.offsets, piece.shape, shape, strict=True)):
            return False
    source = random.Random()
    places = [defaultdict(lambda: source.randrange(_PRIME)) for _ in shape]

    def measure(offsets: Iterable[int], sizes: Iterable[int]) -> int:
        product = 1
        for place, start, size in zip(places, offsets, sizes, strict=True):
            product = product * (place[start + size] - place[start]) % _PRIME
        return product

    total = sum(measure(piece.offsets, piece.shape) for piece in pieces)
    return (total - measure([0] * len(shape), shape)) % _PRIME == 0
