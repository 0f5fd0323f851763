"""Models of transformers: they come back bit for bit, and damaged or odd folders are refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import trimtab as tt
from trimtab import hf
from trimtab.codecs import Raw
from trimtab.errors import BoundError, Corrupt, FormatError, UsageError

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No progress bars, and no look at the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    transformers.logging.disable_progress_bar()


def bert(dtype: torch.dtype = torch.float32) -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM._from_config(BertConfig(**SMALL), dtype=dtype).eval()


def llama(dtype: torch.dtype = torch.float32, *, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=tied)
    model = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
    model.generation_config.max_new_tokens = 7
    return model


def assert_same(x: torch.nn.Module, y: torch.nn.Module) -> None:
    """Compare two models bit for bit: weights, buffers, ties, and what they make of a text."""
    one, other = x.state_dict(), y.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name
    buffers = dict(y.named_buffers())
    for name, buffer in x.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    tied = [model.get_input_embeddings().weight is model.get_output_embeddings().weight for model in (x, y)]
    assert tied[0] == tied[1]
    text = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(x(text).logits, y(text).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", ["5GB", "30KB"])
@pytest.mark.parametrize("make", [bert, llama])
def test_models_come_back(tmp_path, make, size, dtype):
    model = make(dtype)
    hf.save_pretrained(model, tmp_path, max_shard_size=size)
    came, info = hf.from_pretrained(type(model), tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same(model, came)
    assert not came.training
    assert came.dtype == dtype
    assert all(p.requires_grad and p.is_leaf for p in came.parameters())
    assert came.name_or_path == str(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert ("model.tt" in files) == (size == "5GB")
    assert ("model.tt.index.json" in files) == (size != "5GB")


def test_loading_is_what_transformers_does(tmp_path):
    model = llama(torch.bfloat16, tied=False)
    model.save_pretrained(tmp_path / "plain")
    hf.save_pretrained(model, tmp_path / "packed")
    same = {path.name for path in (tmp_path / "plain").iterdir()} - {"model.safetensors"}
    assert {path.name for path in (tmp_path / "packed").iterdir()} == same | {"model.tt"}
    for name in same:
        assert (tmp_path / "plain" / name).read_text() == (tmp_path / "packed" / name).read_text()
    for options in ({}, {"dtype": torch.float32}, {"dtype": "float16", "attn_implementation": "eager"}):
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", **options)
        came = hf.from_pretrained(AutoModelForCausalLM, tmp_path / "packed", **options)
        assert type(came) is LlamaForCausalLM
        assert_same(expected, came)
        assert came.config._attn_implementation == expected.config._attn_implementation
        assert came.generation_config.to_dict() == expected.generation_config.to_dict()
    assert came.generation_config.max_new_tokens == 7


def test_experts_are_stored_as_on_the_hub(tmp_path):
    """Weights that transformers holds together and stores apart go both ways."""
    torch.manual_seed(2)
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=3)).eval()
    hf.save_pretrained(model, tmp_path)
    assert any("experts.2.w1" in name for name in tt.load(tmp_path / "model.tt"))
    assert_same(model, hf.from_pretrained(MixtralForCausalLM, tmp_path))


def test_tied_weights_are_stored_once(tmp_path):
    hf.save_pretrained(llama(), tmp_path)
    arrays = tt.load(tmp_path / "model.tt")
    assert "model.embed_tokens.weight" in arrays
    assert "lm_head.weight" not in arrays
    assert arrays.report["metadata"] == {"format": "pt"}


def test_only_the_base_model_and_config_overrides(tmp_path, caplog):
    hf.save_pretrained(bert(), tmp_path)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        base, info = hf.from_pretrained(
            AutoModel, tmp_path, add_pooling_layer=False, output_hidden_states=True, output_loading_info=True
        )
    assert type(base) is BertModel
    assert base.config.output_hidden_states
    assert info["unexpected_keys"] and not info["missing_keys"]
    assert torch.equal(base.embeddings.word_embeddings.weight, bert().bert.embeddings.word_embeddings.weight)


def test_missing_weights_are_reported(tmp_path):
    model = bert()
    hf.save_pretrained(model.bert, tmp_path)
    came, info = hf.from_pretrained(BertForMaskedLM, tmp_path, output_loading_info=True)
    assert "cls.predictions.transform.dense.weight" in info["missing_keys"]
    assert torch.equal(came.bert.encoder.layer[1].output.dense.weight, model.bert.encoder.layer[1].output.dense.weight)


def test_bound_codec_and_level(tmp_path):
    model = bert()
    hf.save_pretrained(model, tmp_path / "ratio", level="ratio")
    modes = [array["codec"].get("mode") for array in tt.load(tmp_path / "ratio" / "model.tt").report["arrays"].values()]
    assert "ratio" in modes
    assert_same(model, hf.from_pretrained(BertForMaskedLM, tmp_path / "ratio"))
    hf.save_pretrained(model, tmp_path / "lossy", tt.Abs(1e-3))
    hf.save_pretrained(model, tmp_path / "raw", codec=Raw())
    came = hf.from_pretrained(BertForMaskedLM, tmp_path / "lossy")
    errors = [(x - y).abs().max() for x, y in zip(model.parameters(), came.parameters(), strict=True)]
    assert 0 < max(errors) <= 1e-3
    sizes = [(tmp_path / name / "model.tt").stat().st_size for name in ("lossy", "raw")]
    assert 2 * sizes[0] < sizes[1]
    with pytest.raises(BoundError):
        hf.save_pretrained(model, tmp_path / "raw", 0.1)
    assert_same(model, hf.from_pretrained(BertForMaskedLM, tmp_path / "raw"))  # the save before is still there


def test_device(tmp_path):
    hf.save_pretrained(bert(), tmp_path)
    came = hf.from_pretrained(BertForMaskedLM, tmp_path, device="meta")
    assert came.device.type == "meta"


def test_a_new_save_replaces_the_one_before(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    hf.save_pretrained(llama(), tmp_path, max_shard_size="20KB")
    many = set(os.listdir(tmp_path))
    hf.save_pretrained(bert(), tmp_path, max_shard_size="60KB")
    assert_same(bert(), hf.from_pretrained(BertForMaskedLM, tmp_path))
    assert len(set(os.listdir(tmp_path))) < len(many)
    hf.save_pretrained(llama(), tmp_path)
    assert set(os.listdir(tmp_path)) == {"tokenizer.json", "config.json", "generation_config.json", "model.tt"}
    assert_same(llama(), hf.from_pretrained(LlamaForCausalLM, tmp_path))


def test_models_that_cannot_be_packed(tmp_path):
    model = bert()
    with pytest.raises(UsageError, match=r"trimtab\.save"):
        hf.save_pretrained(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        (tmp_path / "file").touch()
        hf.save_pretrained(model, tmp_path / "file")
    with pytest.raises(UsageError, match="offloaded"):
        hf.save_pretrained(bert().to("meta"), tmp_path)
    model._hf_peft_config_loaded = True
    with pytest.raises(UsageError, match="adapters"):
        hf.save_pretrained(model, tmp_path)
    model = bert()
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(UsageError, match="quantised"):
        hf.save_pretrained(model, tmp_path)
    assert set(os.listdir(tmp_path)) == {"file"}


def test_sharded_models_are_sent_elsewhere(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = bert()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        layer = model.bert.encoder.layer[0].output.dense
        layer.weight = torch.nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(UsageError, match=r"sharded.*trimtab\.dcp"):
            hf.save_pretrained(model, tmp_path / "model")
    finally:
        torch.distributed.destroy_process_group()


def test_folders_that_hold_no_packed_model(tmp_path):
    with pytest.raises(UsageError, match="snapshot_download"):
        hf.from_pretrained(AutoModel, tmp_path / "org" / "model")
    with pytest.raises(UsageError, match="holds no packed weights"):
        hf.from_pretrained(AutoModel, tmp_path)
    bert().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="ordinary safetensors"):
        hf.from_pretrained(AutoModel, tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):  # and the other way round
        hf.save_pretrained(bert(), tmp_path / "packed")
        AutoModel.from_pretrained(tmp_path / "packed")


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_configurations_that_are_refused(tmp_path):
    hf.save_pretrained(bert(), tmp_path)
    with pytest.raises(UsageError, match="not run"):
        hf.from_pretrained(BertForMaskedLM, tmp_path, trust_remote_code=True)
    edit(tmp_path / "config.json", hidden_size=40)
    with pytest.raises(UsageError, match="has shape .* where the configuration says"):
        hf.from_pretrained(BertForMaskedLM, tmp_path)
    hf.from_pretrained(BertForMaskedLM, tmp_path, ignore_mismatched_sizes=True)
    edit(tmp_path / "config.json", hidden_size=32, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UsageError, match="quantised"):
        hf.from_pretrained(BertForMaskedLM, tmp_path)


def test_without_a_dtype_the_weights_decide(tmp_path):
    hf.save_pretrained(bert(torch.bfloat16), tmp_path)
    edit(tmp_path / "config.json", dtype=None)
    assert hf.from_pretrained(BertForMaskedLM, tmp_path).dtype == torch.bfloat16


def test_damage_is_noticed(tmp_path):
    hf.save_pretrained(bert(), tmp_path)
    path = tmp_path / "model.tt"
    whole = path.read_bytes()

    def replace(blob: bytes) -> None:
        path.unlink()  # threads of transformers may still read the file before, so it must not change in place
        path.write_bytes(blob)

    source = np.random.default_rng(0)
    for position in source.integers(len(whole), size=12):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        replace(damaged)
        try:
            came = hf.from_pretrained(BertForMaskedLM, tmp_path)
        except FormatError:
            continue
        assert_same(came, bert())  # a bit that means nothing
    replace(whole[:-1])
    with pytest.raises(FormatError):
        hf.from_pretrained(BertForMaskedLM, tmp_path)


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.tt.index.json").read_text())


def test_hostile_indexes_are_refused(tmp_path):
    folder = tmp_path / "model"
    hf.save_pretrained(bert(), folder, max_shard_size="60KB")
    truth = index_of(folder)
    weights = truth["weight_map"]
    name, file = next(iter(weights.items()))
    others = sorted(set(weights.values()) - {file})
    shutil.copy(folder / file, tmp_path / file)
    last = len(set(weights.values()))
    lies: list[Any] = [
        [],
        None,
        {},
        {"weight_map": []},
        {"weight_map": {name: 3}},
        {"weight_map": weights, "metadata": 3},
        {"weight_map": {**weights, name: others[0]}},
        {"weight_map": {**weights, name: f"../{file}"}},
        {"weight_map": {**weights, name: str(tmp_path / file)}},
        {"weight_map": {**weights, name: "model.tt"}},
        {"weight_map": {**weights, name: file + "\n"}},
        {"weight_map": {**weights, name: file + "\0"}},
        {"weight_map": {**weights, name: f"model-{last + 1:05}-of-{last:05}.tt"}},
        {"weight_map": {**weights, "more": file}},
        {"weight_map": {key: home for key, home in weights.items() if key != name}},
    ]
    texts = [json.dumps(lie).encode() for lie in lies]
    texts += [b"", b"\xff", b"{" * 100_000, json.dumps(truth).encode()[:-5]]
    twice = json.dumps({"weight_map": weights})[:-2] + f', "{name}": "{others[0]}"' + "}}"
    for text in [*texts, twice.encode()]:
        (folder / "model.tt.index.json").write_bytes(text)
        with pytest.raises(Corrupt):
            hf.from_pretrained(BertForMaskedLM, folder)
    (folder / "model.tt.index.json").write_text(json.dumps({"weight_map": weights}))
    assert_same(bert(), hf.from_pretrained(BertForMaskedLM, folder))
    (folder / file).unlink()
    with pytest.raises(Corrupt, match="does not exist"):
        hf.from_pretrained(BertForMaskedLM, folder)


@pytest.mark.parametrize("size", ["5GB", "30KB"])
def test_folders_are_packed_and_unpacked(tmp_path, size):
    """Without the model, and bit for bit: the very files that transformers wrote come back."""
    model = llama(torch.bfloat16)
    model.save_pretrained(tmp_path / "plain", max_shard_size=size)
    (tmp_path / "plain" / "tokenizer.json").write_text("{}")
    (tmp_path / "plain" / "more").mkdir()
    (tmp_path / "plain" / "more" / "config.json").write_text("[]")
    (tmp_path / "plain" / "pytorch_model.bin").write_text("left out")
    hf.pack(tmp_path / "plain", tmp_path / "packed", level="ratio")
    assert_same(model, hf.from_pretrained(LlamaForCausalLM, tmp_path / "packed"))
    packed = {path.name for path in (tmp_path / "packed").rglob("*")}
    assert {"tokenizer.json", "more", "config.json", "generation_config.json"} < packed
    assert not any(name.endswith((".bin", ".safetensors")) for name in packed)
    hf.unpack(tmp_path / "packed", tmp_path / "again")
    assert_same(model, LlamaForCausalLM.from_pretrained(tmp_path / "again"))
    before = {path.name: path for path in (tmp_path / "plain").rglob("*") if path.suffix != ".bin"}
    after = {path.name: path for path in (tmp_path / "again").rglob("*")}
    assert before.keys() == after.keys()
    for name in before:
        if name.endswith(".index.json"):
            assert json.loads(before[name].read_text()) == json.loads(after[name].read_text())
        elif before[name].is_file():
            assert before[name].stat().st_size == after[name].stat().st_size


def test_packing_what_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="no safetensors weights"):
        hf.pack(tmp_path, tmp_path / "out")
    bert().save_pretrained(tmp_path / "plain", max_shard_size="30KB")
    with pytest.raises(UsageError, match="exists already"):
        hf.pack(tmp_path / "plain", tmp_path)
    with pytest.raises(UsageError, match="pack the folder"):
        hf.unpack(tmp_path / "plain", tmp_path / "out")
    (file, *_) = (tmp_path / "plain").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match="damaged"):
        hf.pack(tmp_path / "plain", tmp_path / "out")
    file.unlink()
    with pytest.raises(Corrupt, match="does not exist"):
        hf.pack(tmp_path / "plain", tmp_path / "out")
    assert os.listdir(tmp_path) == ["plain"]
