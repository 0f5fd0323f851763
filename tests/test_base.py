"""save and load against a base: where it may come from, what is packed as a difference, and which mistakes are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import trimtab as tt
from tests.forged import Forged
from tests.samples import same_bits, sample
from trimtab.codecs import ENEC, SZ, Raw
from trimtab.errors import BaseError, Corrupt, UsageError


@pytest.fixture
def base() -> dict[str, np.ndarray]:
    return {
        "moved": sample("float32", (60, 50)),
        "equal": sample("float32", (70, 50)),
        "unlike": sample("float32", (3000,), seed=3),
        "reshaped": sample("float32", (40, 50)),
        "retyped": sample("float32", (2000,)),
        "steps": np.array(3),
        "gone": np.zeros(5, np.float32),
    }


@pytest.fixture
def tuned(base) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "moved": base["moved"] + rng.normal(0, 1e-4, (60, 50)).astype(np.float32),
        "equal": base["equal"],
        "unlike": rng.permutation(np.repeat(np.float32([0.5, 1e9]), 1500)),
        "reshaped": base["reshaped"].reshape(50, 40),
        "retyped": base["retyped"].astype(np.float64),
        "steps": np.array(7),
        "new": sample("float32", (1000,)),
    }


def check(found, expected) -> None:
    assert list(found) == list(expected)
    assert all(same_bits(found[name], x) for name, x in expected.items())


def differences(tensors) -> list[str]:
    return [name for name in tensors if tensors.reader.header(name).base is not None]


@pytest.mark.parametrize("level", ["fast", "balanced", "ratio"])
@pytest.mark.parametrize("kind", ["mapping", "safetensors", "packed", "loaded", "torch"])
def test_there_and_back(base, tuned, tmp_path, kind, level):
    given = base
    if kind == "torch":
        given = {name: torch.from_numpy(x) for name, x in base.items()}
    elif kind == "safetensors":
        given = tmp_path / "base.safetensors"
        save_file(base, given)
    elif kind in ("packed", "loaded"):
        given = tmp_path / "base.tt"
        tt.save(given, base)
        given = tt.load(given) if kind == "loaded" else given
    path = tmp_path / "tuned.tt"
    tt.save(path, tuned, base=given, level=level)
    tensors = tt.load(path, base=given)
    check(tensors, tuned)
    assert differences(tensors) == ["moved", "equal"]
    assert tensors.report["arrays"]["equal"]["packed_bytes"] <= 4
    assert tensors.reader.manifest.base == (given.name if kind in ("safetensors", "packed") else "")
    check(tt.load(path, base=base), tuned)  # wherever the same arrays come from
    pt = tt.load(path, base=given, framework="pt")["moved"]
    assert same_bits(pt.numpy(), tuned["moved"])
    assert same_bits(tt.load(path, base=given, device="cpu")["moved"].numpy(), tuned["moved"])


def test_files_without_differences_say_nothing_of_a_base(tuned, tmp_path):
    tt.save(tmp_path / "a.tt", tuned)
    manifest = Forged.of((tmp_path / "a.tt").read_bytes()).manifest
    assert "base" not in manifest
    assert not any("base" in entry for entry in manifest["entries"].values())


def test_without_the_base(base, tuned, tmp_path):
    save_file(base, tmp_path / "base.safetensors")
    tt.save(tmp_path / "tuned.tt", tuned, base=tmp_path / "base.safetensors")
    tensors = tt.load(tmp_path / "tuned.tt")
    assert same_bits(tensors["new"], tuned["new"])
    checksum = tensors.reader.header("moved").base
    with pytest.raises(
        BaseError, match=f"a base is needed: 'moved' .* 'base.safetensors' with checksum {checksum}"
    ) as e:
        tensors["moved"]
    assert str(tmp_path) not in str(e.value)
    assert str(tmp_path).encode() not in (tmp_path / "tuned.tt").read_bytes()
    with pytest.raises(BaseError, match="no such array"):
        tt.load(tmp_path / "tuned.tt", base={"else": base["moved"]})["moved"]


def test_with_another_base(base, tuned, tmp_path):
    tt.save(tmp_path / "tuned.tt", tuned, base=base)
    other = {**base, "moved": base["moved"] * 2}
    tensors = tt.load(tmp_path / "tuned.tt", base=other)
    with pytest.raises(BaseError, match="this is not the base: 'moved'"):
        tensors["moved"]
    assert same_bits(tensors["equal"], tuned["equal"])
    with pytest.raises(BaseError, match=r"expected float32 \[60, 50\]"):
        tt.load(tmp_path / "tuned.tt", base={"moved": base["reshaped"]})["moved"]


def test_chains(base, tuned, tmp_path):
    save_file(base, tmp_path / "base.safetensors")
    tt.save(tmp_path / "first.tt", tuned, base=tmp_path / "base.safetensors")
    second = {**tuned, "moved": tuned["moved"] * np.float32(1.0001)}
    with pytest.raises(BaseError, match="against a base itself, 'base.safetensors'"):
        tt.save(tmp_path / "second.tt", second, base=tmp_path / "first.tt")
    with pytest.raises(BaseError, match="against a base itself, 'base.safetensors'"):
        tt.load(tmp_path / "first.tt", base=tmp_path / "first.tt")
    first = tt.load(tmp_path / "first.tt", base=tmp_path / "base.safetensors")
    tt.save(tmp_path / "second.tt", second, base=first)
    check(tt.load(tmp_path / "second.tt", base=first), second)


def test_one_array():
    base = sample("bfloat16", (3000,))
    x = (base.astype(np.float32) * np.float32(1.003)).astype(base.dtype)
    blob = tt.compress(x, base=base)
    assert len(blob) < 0.8 * len(tt.compress(x))
    assert same_bits(tt.decompress(blob, base=base), x)
    assert same_bits(tt.decompress(tt.compress(x, base=base[:-1])), x)  # of another shape: packed without
    with pytest.raises(BaseError, match="a base in memory"):
        tt.decompress(blob)
    with pytest.raises(BaseError):
        tt.decompress(blob, base=x)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bound": tt.Rel(1e-3)}, "leave out the bound"),
        ({"codec": SZ()}, "only ENEC"),
        ({"codec": Raw()}, "only ENEC"),
        ({"codec": ENEC(mode="paper")}, "'fast' and 'ratio'"),
    ],
    ids=repr,
)
def test_what_goes_with_no_base(settings, words, tmp_path):
    x = sample("float32", (2000,))
    with pytest.raises(UsageError, match=words):
        tt.compress(x, **settings, base=x)
    with pytest.raises(UsageError, match=words):
        tt.save(tmp_path / "x.tt", {"x": x}, **settings, base={})


def test_other_files_are_no_base(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(5))
    with pytest.raises(tt.FormatError):
        tt.load(tmp_path / "x.npy", base=tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError):
        tt.save(tmp_path / "x.tt", {}, base=tmp_path / "none.safetensors")


def test_an_entry_of_another_codec_cannot_claim_a_base():
    x = sample("float32", (100,))
    forged = Forged.of(tt.compress(x, codec=Raw()))
    forged.manifest["entries"][""]["base"] = "0" * 16
    with pytest.raises(Corrupt, match="claims to be a difference"):
        tt.decompress(forged.bytes(), base=x)
