"""Models of Hugging Face transformers in packed folders: companions of its `save_pretrained` and `from_pretrained`.

A folder holds what transformers would write, with ``model.tt`` in place of ``model.safetensors``; a large model is cut
into ``model-00001-of-0000N.tt`` with ``model.tt.index.json``, whose ``weight_map`` names the file of each tensor. Each
file is an ordinary packed file. Tied weights are stored once.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import GENERATION_CONFIG_NAME

from trimtab import store
from trimtab.arrays import as_torch
from trimtab.bounds import Bound, Lossless
from trimtab.codecs import Codec
from trimtab.errors import Corrupt, UsageError
from trimtab.files import Reader, Writer
from trimtab.sources.safetensors import SafetensorsSource, SafetensorsTarget
from trimtab.sources.source import Spec

_PACKED, _PLAIN = ".tt", ".safetensors"
_SHARD = r"^model-\d{5}-of-\d{5}\.(tt|safetensors)\Z"
_NOT_COPIED = shutil.ignore_patterns(
    *("*.safetensors", "*.tt", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.gguf"),
    *("*.index.json", ".*"),
)


class _Index(msgspec.Struct):
    """``model.tt.index.json``, with the fields of transformers' own index."""

    weight_map: dict[str, Annotated[str, msgspec.Meta(pattern=_SHARD)]]
    metadata: dict[str, Any] = {}

    def write(self, path: Path) -> None:
        text = msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2)
        path.write_bytes(text + b"\n")


def save_pretrained(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    bound: Bound = Lossless(),
    *,
    codec: Codec | None = None,
    level: store.Level | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a model's configuration and packed weights into a folder, which is made if need be.

    `bound`, `codec` and `level` are those of `trimtab.save`. A file holds at most `max_shard_size` of weights, counted
    in bytes before packing, or one tensor. What the folder held of an earlier packed save is replaced once all is
    written; tokenizer files stay as they are.

    Raises:
        UsageError: this is no transformers model, or one that is quantised, sharded, offloaded or has adapters.
        ShapeError, BoundError: as in `trimtab.save`.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UsageError(f"{folder} is a file; expected the name of a folder")
    state = _state_dict(model)
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.tt", max_shard_size=max_shard_size
    )
    config = copy.deepcopy(model.config)
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    with _replaced(folder) as partial:
        for file, names in split.filename_to_tensors.items():
            tensors = {name: state[name] for name in names}
            store.save(partial / file, tensors, bound, codec=codec, level=level, metadata={"format": "pt"})
        if split.is_sharded:
            metadata = {"total_parameters": model.num_parameters(), **split.metadata}
            _Index(split.tensor_to_filename, metadata).write(partial / _index_name(_PACKED))
        config.save_pretrained(partial)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)


def from_pretrained(
    model_class: Any,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> Any:
    """Return a model from a packed folder, in evaluation mode; each tensor is decoded as it takes its place.

    `model_class` is a class of transformers, or an auto class such as ``AutoModelForCausalLM``; its
    ``from_pretrained`` makes the model, with these `kwargs`, and reports missing and unexpected weights. `dtype` is
    that of the configuration unless given. The model is made on the CPU and then moved to `device`; where accelerate is
    installed, ``device_map=`` puts each tensor in its place at once.

    Raises:
        UsageError: the folder holds no packed weights, or they do not fit the configuration.
        FormatError: a file is damaged, or the files contradict each other.
    """
    folder = Path(folder)
    weights = _weights(folder)
    if kwargs.pop("trust_remote_code", None):
        raise UsageError("code that comes with a model is not run; import its class and pass that as model_class")
    config = kwargs.pop("config", None)
    if config is None:
        config, kwargs = _config(model_class, folder, kwargs)
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(f"{folder}: the configuration is that of a quantised model, which is not supported")
    if not issubclass(model_class, PreTrainedModel):
        model_class, config = _concrete(model_class, config)
    if "generation_config" not in kwargs and (folder / GENERATION_CONFIG_NAME).exists():
        kwargs["generation_config"] = GenerationConfig.from_pretrained(folder)
    wants_info = kwargs.pop("output_loading_info", False)
    may_mismatch = kwargs.pop("ignore_mismatched_sizes", False)
    loaded: Any = model_class.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype="auto" if dtype is None else dtype,
        ignore_mismatched_sizes=True,  # told below, in an error of ours
        output_loading_info=True,
        **kwargs,
    )
    model, info = loaded
    if info["mismatched_keys"] and not may_mismatch:
        name, stored, expected = sorted(info["mismatched_keys"])[0]
        raise UsageError(
            f"{folder}: {name!r} has shape {list(stored)}, where the configuration says {list(expected)}; "
            "pass ignore_mismatched_sizes=True to start from new weights there"
        )
    model.name_or_path = model.config.name_or_path = str(folder)
    if device is not None:
        model = model.to(device)
    return (model, info) if wants_info else model


def pack(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    bound: Bound = Lossless(),
    *,
    codec: Codec | None = None,
    level: store.Level | None = None,
) -> None:
    """Turn a folder with ordinary safetensors files into a packed one, one tensor at a time, without making the model.

    `out` is a new folder: configuration, tokenizer and what else there is in `folder` is copied, but hidden files and
    weights in other formats. `bound`, `codec` and `level` are those of `trimtab.save`.

    Raises:
        UsageError: `folder` has no safetensors weights, or `out` exists.
        FormatError: a file is damaged, or the files contradict each other.
        ShapeError, BoundError: as in `trimtab.save`.
    """
    folder, out = Path(folder), Path(out)
    homes = _homes(folder, _PLAIN)
    with _converted(folder, out, _PLAIN, _PACKED) as partial:
        for file, names in homes.items():
            target = partial / (file.removesuffix(_PLAIN) + _PACKED)
            with SafetensorsSource(folder / file, tensors_only=False) as source:
                _check_names(folder / file, names, source.specs)
                with Writer(target, metadata=source.metadata) as writer:
                    for name in source.specs:
                        x = source.read(name)
                        writer.add(name, *store.encode(x, *store.for_dtype(x.dtype, bound, codec, level)))


def unpack(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Turn a packed folder into one with ordinary safetensors files, one tensor at a time: the inverse of `pack`.

    Raises:
        UsageError: `folder` has no packed weights, or `out` exists.
        FormatError: a file is damaged, or the files contradict each other.
    """
    folder, out = Path(folder), Path(out)
    readers = _readers(folder)
    with _converted(folder, out, _PACKED, _PLAIN) as partial:
        for file, reader in readers.items():
            specs = {name: Spec(reader.header(name).dtype, reader.header(name).shape) for name in reader}
            path = partial / (file.removesuffix(_PACKED) + _PLAIN)
            with SafetensorsTarget(path, specs, reader.metadata) as target:
                for name in target.order:
                    target.add(name, store.decode(reader, name))
                    reader.release()


def _config(model_class: Any, folder: Path, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the configuration, with those `kwargs` that belong to it, and the others."""
    config_class: Any = getattr(model_class, "config_class", None)
    if config_class is None:  # of an auto class
        config_class, kwargs = AutoConfig, {**kwargs, "trust_remote_code": False}
    return config_class.from_pretrained(folder, return_unused_kwargs=True, **kwargs)


def _concrete(auto_class: Any, config: Any) -> tuple[type[PreTrainedModel], Any]:
    """Return the class that an auto class stands for, and the part of the configuration that this class takes.

    An auto class loads no weights that it is given in place of a folder; so it makes a model without any.
    """
    with torch.device("meta"):
        model_class = type(auto_class.from_config(copy.deepcopy(config), trust_remote_code=False))
    return model_class, config if isinstance(config, model_class.config_class) else config.get_text_config()


class _Stored:
    """A tensor of a packed file, in the form of safetensors' slices that transformers loads from: ``stored[...]``."""

    def __init__(self, reader: Reader, name: str) -> None:
        self._reader = reader
        self._name = name

    def __getitem__(self, index: Any) -> torch.Tensor:
        x = as_torch(store.decode(self._reader, self._name))
        self._reader.release()
        return x[index]

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self._reader.header(self._name).dtype)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point


def _weights(folder: Path) -> dict[str, _Stored]:
    """Return the tensors of a packed folder."""
    return {name: _Stored(reader, name) for reader in _readers(folder).values() for name in reader}


def _readers(folder: Path) -> dict[str, Reader]:
    """Open the packed files of a folder."""
    homes = _homes(folder, _PACKED)
    readers = {file: Reader(folder / file) for file in homes}
    for file, names in homes.items():
        _check_names(folder / file, names, readers[file])
    return readers


def _index_name(suffix: str) -> str:
    return f"model{suffix}.index.json"


def _homes(folder: Path, suffix: str) -> dict[str, set[str] | None]:
    """Return the files of weights in a folder, each with the tensors that the index says it has, if there is one.

    Raises:
        UsageError: there are none.
        Corrupt: the index is damaged, or names a file that does not exist.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; fetch a model of the hub with huggingface_hub.snapshot_download")
    if (folder / f"model{suffix}").exists():
        return {f"model{suffix}": None}
    path = folder / _index_name(suffix)
    if not path.exists():
        expected = f"expected model{suffix} or {path.name}"
        if suffix == _PACKED and any(folder.glob(f"*{_PLAIN}")):
            expected = "they are ordinary safetensors: load them with transformers itself, or pack the folder"
        raise UsageError(f"{folder} holds no {'packed' if suffix == _PACKED else 'safetensors'} weights; {expected}")
    homes: dict[str, set[str] | None] = {}
    for name, file in _read_index(path, suffix).weight_map.items():
        names = homes.setdefault(file, set())
        assert names is not None
        names.add(name)
    if missing := [file for file in homes if not (folder / file).exists()]:
        raise Corrupt(f"{path} names {missing[0]}, which does not exist")
    return homes


def _read_index(path: Path, suffix: str) -> _Index:
    try:
        index = msgspec.json.decode(path.read_bytes(), type=_Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{path} is not an index of weights: {error}") from None
    if others := [file for file in index.weight_map.values() if not file.endswith(suffix)]:
        raise Corrupt(f"{path} names {others[0]}; expected a {suffix} file")
    return index


def _check_names(path: Path, expected: set[str] | None, found: Iterable[str]) -> None:
    """Check that a file has just the tensors that the index says."""
    if expected is not None and (odd := expected ^ set(found)):
        raise Corrupt(f"{path} and the index disagree about {min(odd)!r}")


def _state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors of a model under the names that transformers saves them by, each of the tied ones once."""
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"expected a model of transformers, got {type(model).__name__}; "
            "for any other module use trimtab.save(path, module.state_dict())"
        )
    if getattr(model, "hf_quantizer", None) is not None or getattr(model.config, "quantization_config", None):
        raise UsageError("a quantised model cannot be packed; pack the model that it was made from")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError("a model with adapters cannot be packed; merge them, or save them with model.save_pretrained")
    state = model.state_dict()
    for name, tensor in state.items():
        if isinstance(tensor, DTensor):
            raise UsageError(f"{name!r} is sharded; save the model with trimtab.dcp, or gather its state dict first")
        if tensor.is_meta:
            raise UsageError(f"{name!r} has no data on this device: offloaded models cannot be packed")
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    return revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model))


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Give a new folder; at the end, the files in it take the place of the packed weights in `folder`.

    The index goes first and comes last, so that no mixture of two saves loads.
    """
    last = ("model.tt", _index_name(_PACKED))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        partial = Path(name)
        yield partial
        shards = [file for file in folder.glob("*.tt") if re.match(_SHARD, file.name)]
        for file in [folder / last[1], folder / last[0], *shards]:
            file.unlink(missing_ok=True)
        for file in sorted(partial.iterdir(), key=lambda file: file.name in last):
            file.replace(folder / file.name)


@contextmanager
def _converted(folder: Path, out: Path, suffix: str, new_suffix: str) -> Iterator[Path]:
    """Give a new folder, to be filled with weights, that becomes `out` at the end: with the other files of `folder`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already; expected the name of a new folder")
    index = folder / _index_name(suffix)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as name:
        partial = Path(name) / "partial"
        shutil.copytree(folder, partial, ignore=_NOT_COPIED)
        yield partial
        if not (partial / f"model{new_suffix}").exists():
            content = _read_index(index, suffix)
            weight_map = {name: file.removesuffix(suffix) + new_suffix for name, file in content.weight_map.items()}
            _Index(weight_map, content.metadata).write(partial / _index_name(new_suffix))
        partial.replace(out)
