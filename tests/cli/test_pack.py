"""trimtab pack and unpack, together: what goes in comes out, within its bound, and mistakes are told in one line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import trimtab as tt
from tests.cli.conftest import one_line_error
from tests.networks import pooling
from tests.samples import same_bits
from trimtab import bounds


def test_lossless_there_and_back(trimtab, arrays, tmp_path):
    packed, back = tmp_path / "a.tt", tmp_path / "b.npz"
    result = trimtab("pack", arrays, packed)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "5 arrays" in result.stdout
    assert trimtab("unpack", packed, back).exit_code == 0
    with np.load(arrays) as before, np.load(back) as after:
        assert list(before) == list(after)
        assert all(same_bits(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [("--abs", "0.01", bounds.Abs(0.01)), ("--rel", "1e-3", bounds.Rel(1e-3)), ("--psnr", "60", bounds.PSNR(60.0))],
)
def test_lossy_there_and_back(trimtab, field, tmp_path, flag, value, bound):
    packed, back = tmp_path / "f.tt", tmp_path / "f2.npy"
    result = trimtab("pack", field, packed, flag, value, "--json")
    report = json.loads(result.stdout)
    assert report["bound"]["value"] == float(value)
    assert report["ratio"] > 3
    assert report["packed_file_bytes"] == packed.stat().st_size
    assert trimtab("unpack", packed, back, "-q").stdout == ""
    x, y = np.load(field), np.load(back)
    assert bound.allows(x, y)
    assert not same_bits(x, y)
    assert tt.load(packed).reader.header("field").bound == bound


def test_pointwise_relative_bound(trimtab, field, tmp_path):
    assert trimtab("pack", field, tmp_path / "f.tt", "--pointwise-rel", "0.01").exit_code == 0
    assert bounds.PointwiseRel(0.01).allows(np.load(field), tt.load(tmp_path / "f.tt")["field"])


def test_a_model_predicts(trimtab, tmp_path):
    path, packed, back = tmp_path / "m.tt", tmp_path / "x.tt", tmp_path / "y.npy"
    pooling(2).save(path)
    x = np.repeat(np.random.default_rng(0).normal(0, 1, (100, 100)), 4, axis=0).repeat(4, axis=1).astype("f4")
    np.save(tmp_path / "x.npy", x)
    assert trimtab("pack", tmp_path / "x.npy", packed, "--rel", "0.01", "--model", path).exit_code == 0
    assert tt.load(packed).reader.header("x").codec["id"] == "aesz"
    assert trimtab("unpack", packed, back).exit_code == 0
    assert bounds.Rel(0.01).allows(x, np.load(back))
    for wrong in (["--model", path], ["--model", path, "--rel", "0.01", "--codec", "sz"]):
        assert "--model" in one_line_error(trimtab("pack", tmp_path / "x.npy", packed, "--force", *wrong))
    tt.save(packed, {"x": x}, tt.Rel(0.01), codec=pooling(2, weights="shared"))
    assert trimtab("unpack", packed, back, "--force", "--model", path).exit_code == 0
    assert trimtab("verify", packed, "--model", path).exit_code == 0


def test_a_bound_leaves_other_dtypes_alone_and_says_so(trimtab, arrays, tmp_path):
    result = trimtab("pack", arrays, tmp_path / "a.tt", "--rel", "1e-2")
    assert result.exit_code == 0
    assert result.stderr == "trimtab: rel 0.01 does not apply to 'counts', 'mask'; kept exactly\n"
    tensors = tt.load(tmp_path / "a.tt")
    with np.load(arrays) as before:
        assert same_bits(tensors["counts"], before["counts"])
        assert bounds.Rel(1e-2).allows(before["weights"], tensors["weights"])


def test_a_bound_applies_to_integers_where_asked(trimtab, tmp_path):
    image = (np.add.outer(np.arange(90), np.arange(80)) ** 2 // 7).astype(np.uint16)
    np.savez(tmp_path / "scan.npz", image=image, mask=image % 2 == 0)
    result = trimtab("pack", tmp_path / "scan.npz", tmp_path / "a.tt", "--abs", "3", "--integers")
    assert result.exit_code == 0
    assert result.stderr == "trimtab: abs 3 does not apply to 'mask'; kept exactly\n"
    came = tt.load(tmp_path / "a.tt")
    assert bounds.Abs(3).allows(image, came["image"])
    assert not same_bits(image, came["image"])
    assert same_bits(image % 2 == 0, came["mask"])
    assert trimtab("verify", tmp_path / "a.tt", "--against", tmp_path / "scan.npz").exit_code == 0


def test_integers_need_a_bound(trimtab, field, tmp_path):
    one_line_error(trimtab("pack", field, tmp_path / "f.tt", "--integers"), "--integers needs an error bound")


@pytest.mark.parametrize("codec", ["enec", "sz", "raw"])
def test_the_codec_can_be_chosen(trimtab, field, tmp_path, codec):
    flags = ["--abs", "0.01"] if codec == "sz" else []
    assert trimtab("pack", field, tmp_path / "f.tt", "--codec", codec, *flags).exit_code == 0
    assert tt.load(tmp_path / "f.tt").reader.header("field").codec["id"] == codec


@pytest.mark.parametrize("level", [None, "fast"])
def test_a_learned_enhancer_brings_a_field_closer(trimtab, tmp_path, level):
    x = np.exp(np.add.outer(np.sin(np.arange(200) / 9), 2 * np.cos(np.arange(300) / 7))).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    flags = ["--abs", "0.2", *(["--level", level] if level else [])]
    for codec in ("sz", "gwlz"):
        packed = tmp_path / f"{codec}.tt"
        assert trimtab("pack", tmp_path / "x.npy", packed, "--codec", codec, *flags).exit_code == 0
        assert trimtab("verify", packed, "--against", tmp_path / "x.npy").exit_code == 0
    plain, better = (tt.load(tmp_path / f"{codec}.tt") for codec in ("sz", "gwlz"))
    assert better.reader.header("x").codec["base"] == {"id": "sz", "level": level or "balanced"}
    assert bounds.psnr(x, better["x"]) > bounds.psnr(x, plain["x"]) + 1


def test_a_learned_enhancer_needs_a_bound(trimtab, field, tmp_path):
    one_line_error(trimtab("pack", field, tmp_path / "f.tt", "--codec", "gwlz"), "--codec gwlz needs an error bound")


def test_pruned_weights_are_packed_as_sparse(trimtab, tmp_path):
    rng = np.random.default_rng(0)
    pruned = (rng.random((200, 300)) < 0.05) * rng.standard_normal((200, 300)).astype(np.float32)
    weights = {"pruned": pruned, "dense": rng.standard_normal((40, 50)).astype(np.float32), "steps": np.arange(9)}
    save_file(weights, tmp_path / "m.safetensors")
    sizes = {}
    for flags in ([], ["--sparse"], ["--abs", "0.05"], ["--abs", "0.05", "--sparse"]):
        out = tmp_path / f"m{'-'.join(flags)}.tt"
        assert trimtab("pack", tmp_path / "m.safetensors", out, *flags).exit_code == 0
        sizes[tuple(flags)] = out.stat().st_size
        loaded = tt.load(out)
        assert (loaded.reader.header("pruned").codec["id"] == "sparse") == ("--sparse" in flags)
        assert loaded.reader.header("dense").codec["id"] != "sparse" or flags[0] == "--abs"
    plain, sparse, lossy, lossy_sparse = sizes.values()
    assert sparse < plain
    assert lossy_sparse < 0.7 * lossy
    refused = trimtab("pack", tmp_path / "m.safetensors", tmp_path / "n.tt", "--sparse", "--level", "fast")
    one_line_error(refused, "leave out --level fast")


def test_threads_do_not_change_the_file(trimtab, field, tmp_path):
    for count in (1, 2):
        assert trimtab("pack", field, tmp_path / f"{count}.tt", "--rel", "1e-3", "--threads", count).exit_code == 0
    assert (tmp_path / "1.tt").read_bytes() == (tmp_path / "2.tt").read_bytes()


def test_metadata_of_safetensors_is_kept(trimtab, tmp_path):
    source, packed, back = (tmp_path / name for name in ("m.safetensors", "m.tt", "n.safetensors"))
    weights = {"a": np.ones((3, 5), ml_dtypes.bfloat16), "b": np.arange(7, dtype=np.float32)}
    save_file(weights, source, metadata={"format": "pt", "made": "by me"})
    assert trimtab("pack", source, packed).exit_code == 0
    assert trimtab("unpack", packed, back).exit_code == 0
    with safe_open(back, "np") as opened:
        assert opened.metadata() == {"format": "pt", "made": "by me"}
        assert set(opened.keys()) == {"a", "b"}
    result = trimtab("unpack", packed, tmp_path / "b.npy", "--entry", "b")
    # the safetensors library writes them in any order
    assert re.search(r"not kept: the metadata \((format, made|made, format)\)", result.stderr)


def test_entries_can_be_chosen(trimtab, arrays, tmp_path):
    trimtab("pack", arrays, tmp_path / "a.tt", "-q")
    assert trimtab("unpack", tmp_path / "a.tt", tmp_path / "c.npy", "--entry", "counts").exit_code == 0
    assert same_bits(np.load(tmp_path / "c.npy"), np.arange(12, dtype=np.int64))
    one_line_error(trimtab("unpack", tmp_path / "a.tt", tmp_path / "x.npy", "--entry", "nope"), "nope", "inspect")
    one_line_error(trimtab("unpack", tmp_path / "a.tt", tmp_path / "x.npy"), "not 5", "--entry")


def test_json_reports_have_units(trimtab, arrays, tmp_path):
    packed = json.loads(trimtab("pack", arrays, tmp_path / "a.tt", "--json").stdout)
    assert packed["num_arrays"] == 5
    assert packed["array_bytes"] == 60 * 50 * 4 + 12 * 8 + 2 + 8
    assert packed["in_file_bytes"] == arrays.stat().st_size
    assert {"seconds", "megabytes_per_second", "ratio"} <= packed.keys()
    unpacked = json.loads(trimtab("unpack", tmp_path / "a.tt", tmp_path / "b.npz", "--json").stdout)
    assert unpacked["out_file_bytes"] == (tmp_path / "b.npz").stat().st_size


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf"])
@pytest.mark.parametrize("flag", ["--abs", "--rel", "--pointwise-rel", "--psnr"])
def test_bounds_must_be_positive(trimtab, field, tmp_path, flag, value):
    one_line_error(trimtab("pack", field, tmp_path / "f.tt", flag, value), flag, "positive", value)
    assert not (tmp_path / "f.tt").exists()


def test_one_bound_at_most(trimtab, field, tmp_path):
    result = trimtab("pack", field, tmp_path / "f.tt", "--abs", "1", "--rel", "1")
    one_line_error(result, "--abs", "--rel", "one of them")


def test_enec_keeps_every_bound_by_losing_nothing(trimtab, field, tmp_path):
    assert trimtab("pack", field, tmp_path / "f.tt", "--codec", "enec", "--abs", "1").exit_code == 0
    assert same_bits(np.load(field), tt.load(tmp_path / "f.tt")["field"])


def test_sz_needs_a_bound(trimtab, field, tmp_path):
    one_line_error(trimtab("pack", field, tmp_path / "f.tt", "--codec", "sz"), "--codec sz needs an error bound")


def test_existing_files_are_kept(trimtab, field, tmp_path):
    out = tmp_path / "f.tt"
    out.write_text("precious")
    one_line_error(trimtab("pack", field, out), "exists", "--force")
    assert out.read_text() == "precious"
    assert trimtab("pack", field, out, "--force").exit_code == 0
    back = tmp_path / "back.npy"
    back.write_text("precious")
    one_line_error(trimtab("unpack", out, back), "exists", "--force")
    assert back.read_text() == "precious"
    assert trimtab("unpack", out, back, "--force").exit_code == 0
    assert same_bits(np.load(back), np.load(field))


def test_in_and_out_must_differ(trimtab, field, tmp_path):
    (tmp_path / "link.npy").symlink_to(field)
    one_line_error(trimtab("pack", field, field, "--force"), "same file")
    one_line_error(trimtab("pack", field, tmp_path / "link.npy", "--force"), "same file")


def test_folder_of_out_must_exist(trimtab, field, tmp_path):
    one_line_error(trimtab("pack", field, tmp_path / "no" / "f.tt"), "folder", "mkdir")


def test_out_is_a_folder(trimtab, field, tmp_path):
    one_line_error(trimtab("pack", field, tmp_path), "exists")
    one_line_error(trimtab("pack", field, tmp_path, "--force"), "is a folder")
    os.mkfifo(tmp_path / "pipe")
    one_line_error(trimtab("pack", field, tmp_path / "pipe", "--force"), "a device or a pipe")
    trimtab("pack", field, tmp_path / "f.tt", "-q")
    (tmp_path / "d.npy").mkdir()
    one_line_error(trimtab("unpack", tmp_path / "f.tt", tmp_path / "d.npy", "--force"), "folder")


def test_missing_files_and_folders_as_input(trimtab, tmp_path):
    for verb in ("pack", "unpack"):
        one_line_error(trimtab(verb, tmp_path / "none.npy", tmp_path / "out.npz"), "No such file", "check the name")
        one_line_error(trimtab(verb, tmp_path, tmp_path / "out.npz"), "is a folder")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read and write everything")
def test_permissions(trimtab, field, tmp_path):
    field.chmod(0)
    one_line_error(trimtab("pack", field, tmp_path / "f.tt"), "Permission denied")
    field.chmod(0o600)
    (tmp_path / "ro").mkdir(mode=0o500)
    one_line_error(trimtab("pack", field, tmp_path / "ro" / "f.tt"), "cannot be written")


@pytest.mark.parametrize("x", [np.array([{}, 1], object), np.array(["a", "bc"]), np.zeros(2, "f4,i4")])
def test_dtypes_that_cannot_be_stored(trimtab, tmp_path, x):
    source = tmp_path / "x.npz"
    np.savez(source, good=np.arange(3.0), bad=x)
    one_line_error(trimtab("pack", source, tmp_path / "x.tt"), "'bad'", "--tensors-only")
    result = trimtab("pack", source, tmp_path / "x.tt", "--tensors-only")
    assert result.exit_code == 0
    assert result.stderr == "trimtab: left out, not arrays of numbers: 'bad'\n"
    assert list(tt.load(tmp_path / "x.tt")) == ["good"]


def test_nothing_to_pack(trimtab, tmp_path):
    np.save(tmp_path / "x.npy", np.array(["a"]))
    one_line_error(trimtab("pack", tmp_path / "x.npy", tmp_path / "x.tt", "--tensors-only"), "nothing to pack")


def test_packed_files_are_not_packed_again(trimtab, field, tmp_path):
    trimtab("pack", field, tmp_path / "f.tt", "-q")
    one_line_error(trimtab("pack", tmp_path / "f.tt", tmp_path / "g.tt"), "already packed", "inspect")


def test_unpack_tells_what_it_can_write(trimtab, field, tmp_path):
    trimtab("pack", field, tmp_path / "f.tt", "-q")
    one_line_error(trimtab("unpack", tmp_path / "f.tt", tmp_path / "f.doc"), ".npy", ".safetensors", ".zarr")
    one_line_error(trimtab("unpack", field, tmp_path / "f.npz"), "is not packed", "compare")


def test_a_damaged_file_does_not_unpack(trimtab, field, tmp_path):
    packed = tmp_path / "f.tt"
    trimtab("pack", field, packed, "-q", "--codec", "raw")
    damaged = bytearray(packed.read_bytes())
    damaged[-5] ^= 1
    packed.write_bytes(damaged)
    for suffix in (".npy", ".npz", ".safetensors", ".h5", ".zarr"):
        one_line_error(trimtab("unpack", packed, tmp_path / f"out{suffix}"), "'field'", "checksum")
    packed.write_bytes(damaged[:-100])
    one_line_error(trimtab("unpack", packed, tmp_path / "out.npy"), "f.tt", "need")
    packed.write_bytes(b"")
    one_line_error(trimtab("unpack", packed, tmp_path / "out.npy"), "is empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.tt", "field.npy"]


def test_newer_format_version(trimtab, field, tmp_path):
    packed = newer_version(trimtab, field, tmp_path)
    for args in (["unpack", packed, tmp_path / "x.npy"], ["inspect", packed], ["verify", packed]):
        one_line_error(trimtab(*args), "version 999", "pgrade")


def newer_version(trimtab, field: Path, folder: Path) -> Path:
    """Return a packed file whose format version is 999, sound otherwise."""
    trimtab("pack", field, folder / "f.tt", "-q")
    raw = (folder / "f.tt").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + length].replace(b'{\\"version\\":1,', b'{\\"version\\":999,')
    assert len(text) == length + 2
    text += b" " * (-len(text) % 8)
    path = folder / "newer.tt"
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return path


@pytest.mark.parametrize("level", ["fast", "balanced"])
def test_target_ratio(trimtab, field, tmp_path, level):
    out = tmp_path / "f.tt"
    result = trimtab("pack", field, out, "--target-ratio", 12, "--level", level)
    assert result.exit_code == 0, result.output
    reached = np.load(field).nbytes / out.stat().st_size
    assert 12 <= reached <= 12.6
    bound = re.search(r"ratio 12\.\d+, (rel [\de.-]+),", result.stdout)[1]
    assert f"{bound} is the smallest bound found that reaches ratio 12" in result.stderr
    assert trimtab("verify", out, "--against", field).exit_code == 0
    again = tmp_path / "again.tt"
    trimtab("pack", field, again, *bound.replace("rel", "--rel").split(), "--level", level)
    assert again.read_bytes() == out.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"field.npy", "f.tt", "again.tt"}


def test_target_ratio_of_a_file_tried_on_a_sample(trimtab, tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.tune.bounds.SAMPLE_BYTES", 400_000)
    monkeypatch.setattr("trimtab.tune.sample._BLOCK", 1 << 13)
    x = np.cumsum(np.random.default_rng(0).standard_normal((60, 70, 80)), axis=2)
    np.savez(tmp_path / "x.npz", x=x, half=x.astype(np.float32), mask=x > 0)
    report = json.loads(trimtab("pack", tmp_path / "x.npz", tmp_path / "x.tt", "--target-ratio", 9, "--json").stdout)
    assert 9 <= report["ratio"] <= 9.45
    assert report["bound"]["kind"] == "rel"
    assert [trial["sampled"] for trial in report["trials"]].count(False) <= 4
    assert any(trial["sampled"] for trial in report["trials"])
    assert same_bits(tt.load(tmp_path / "x.tt")["mask"], x > 0)


def test_target_ratio_out_of_reach(trimtab, field, arrays, tmp_path):
    np.savez(tmp_path / "i.npz", noise=np.random.default_rng(0).integers(0, 2**62, 5000), x=np.zeros(9))
    for source, words in ((field, "reaches ratio 1e+09"), (tmp_path / "i.npz", "'noise' are kept exactly and take")):
        result = trimtab("pack", source, tmp_path / "f.tt", "--target-ratio", 1e9)
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.splitlines()[-1].startswith("trimtab: no: ")
        assert result.stdout == ""
        assert {path.name for path in tmp_path.iterdir()} == {"field.npy", "arrays.npz", "i.npz"}


def test_target_ratio_stands_alone(trimtab, field, tmp_path):
    out = tmp_path / "f.tt"
    one_line_error(trimtab("pack", field, out, "--target-ratio", 9, "--rel", 1e-3), "--target-ratio", "leave out --rel")
    one_line_error(trimtab("pack", field, out, "--target-ratio", 9, "--codec", "enec"), "--codec enec loses nothing")
    for value in ("1", "nan", "inf", "-3"):
        one_line_error(trimtab("pack", field, out, "--target-ratio", value), "above 1")
    assert trimtab("pack", field, out, "--target-ratio", 9, "--codec", "sz").exit_code == 0
