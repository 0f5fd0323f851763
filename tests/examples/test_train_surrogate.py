"""The trainer of surrogates: it learns, resumes to the last bit, and is fed as a DataLoader would feed it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import trimtab as tt
from examples import cosmology, ptychography, train_surrogate
from examples.stock_loader import Rows, StockLoader
from examples.surrogates import make_surrogate
from tests.dist.launch import ROOT, run_ranks

SMALL = ["--width", "4", "--batch", "8", "--buffer", "80%", "--threads", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Sixty samples of each kind: eight batches of eight less four, which are left out."""
    folder, made = tmp_path_factory.mktemp("data"), {}
    for name, main, options in (
        ("ptycho", ptychography.main, ["--side", "32"]),
        ("cosmo", cosmology.main, ["--side", "8", "--box", "64"]),
    ):
        made[name] = folder / f"{name}.h5"
        main([str(made[name]), "--samples", "60", "--test-samples", "16", *options])
    return made


def arguments(data: dict[str, Path], model: str, *others: object) -> list[str]:
    return [*SMALL, "--model", model, "--data", str(data[model]), "--json", *map(str, others)]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    train_surrogate.main(words)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def state(path: Path) -> dict[str, np.ndarray]:
    saved = tt.load(path)
    return {name: saved[name] for name in saved}


def assert_same(one: Path, two: Path) -> None:
    left, right = state(one), state(two)
    assert left.keys() == right.keys() and any(name.startswith("optimizer/") for name in left)
    for name in left:
        assert np.array_equal(left[name], right[name]), name


def assert_alike(one: list[dict], two: list[dict], left: Path, right: Path) -> None:
    """Two runs agree to rounding: their losses, errors, and what was learnt."""
    assert [found["step"] for found in one] == [found["step"] for found in two] == [7, 14, 21]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["errors"] == pytest.approx(b["errors"], rel=1e-4)
    left_state, right_state = state(left), state(right)
    for name in left_state:
        if name.startswith("model/"):
            np.testing.assert_allclose(left_state[name], right_state[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_it_learns_cosmology(data, capsys):
    found = run(capsys, *arguments(data, "cosmo", "--epochs", 12, "--rate", 0.003))
    assert [line["epoch"] for line in found] == [*range(1, 13)]
    assert found[-1]["loss"] < 0.85 * found[0]["loss"]
    assert found[-1]["errors"]["sigma_8"] < 0.9 * found[0]["errors"]["sigma_8"]


def test_it_learns_ptychography(tmp_path, capsys):
    """Amplitudes, within seconds; phases take more samples."""
    path = tmp_path / "scans.h5"
    ptychography.main([str(path), "--samples", "320", "--test-samples", "16", "--side", "32"])
    words = arguments({"ptycho": path}, "ptycho", "--epochs", 12, "--rate", 0.003, "--width", 8)
    found = run(capsys, *words)
    assert found[-1]["loss"] < 0.93 * found[0]["loss"]
    assert found[-1]["errors"]["amplitude"] < 0.95 * found[0]["errors"]["amplitude"]


def test_what_is_told(data, capsys):
    words = arguments(data, "cosmo", "--epochs", 1)
    words.remove("--json")
    train_surrogate.main(words)
    said = capsys.readouterr()
    assert "held-out error omega_m" in said.out and "% waiting for data" in said.err


@pytest.mark.parametrize("loader", ["solar", "dataloader"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(loader, data, tmp_path, capsys):
    """Three epochs of seven steps, at once and in three pieces, two of which end within an epoch."""
    words = arguments(data, "ptycho", "--epochs", 3, "--loader", loader)
    whole = run(capsys, *words, "--checkpoint", str(tmp_path / "whole.tt"))
    parts = [
        found
        for step in ("5", "9", "21")
        for found in run(capsys, *words, "--checkpoint", str(tmp_path / "parts.tt"), "--stop-at", step)
    ]
    assert [found["errors"] for found in parts] == [found["errors"] for found in whole]
    assert [found["loss"] for found in parts] == pytest.approx([found["loss"] for found in whole], rel=1e-12)
    assert_same(tmp_path / "whole.tt", tmp_path / "parts.tt")


def test_a_run_that_was_killed_ends_with_the_same_bits(data, tmp_path, capsys):
    whole, killed = tmp_path / "whole.tt", tmp_path / "killed.tt"
    words = arguments(data, "cosmo", "--epochs", 20, "--save-every", 1)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "examples.train_surrogate", *words, "--checkpoint", str(killed)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        while not killed.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    step = json.loads(tt.load(killed).report["metadata"]["progress"])["step"]
    assert 0 < step < 140
    run(capsys, *words, "--checkpoint", str(killed))
    words[words.index("--save-every") + 1] = "1000"
    run(capsys, *words, "--checkpoint", str(whole))
    assert_same(whole, killed)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_global_batches_are_those_of_a_dataloader(num_ranks, workers, data):
    fields = {name: f"train/{name}" for name in ("density", "parameters")}
    size = 8 // num_ranks
    store = tt.data.HDF5(data["cosmo"], fields)
    ours = [
        tt.data.SOLAR(
            store, size, 2, "40 samples", seed=3, drop_last=True, num_ranks=num_ranks, rank=rank, num_threads=2
        )
        for rank in range(num_ranks)
    ]
    stock = [
        StockLoader(Rows(data["cosmo"], fields), size, seed=3, num_ranks=num_ranks, rank=rank, workers=workers)
        for rank in range(num_ranks)
    ]
    seen = set()
    for _ in range(2):
        for steps in zip(*ours, *stock, strict=True):
            assert all(batch["density"].shape == (size, 8, 8, 8) for batch in steps)
            rows = [
                torch.cat([batch["density"].flatten(1) for batch in part])
                for part in (steps[:num_ranks], steps[num_ranks:])
            ]
            one, two = (sorted(row.numpy().tobytes() for row in part) for part in rows)
            assert one == two
            seen |= {*one}
    assert 56 <= len(seen) <= 60
    for loader in (*ours, *stock):
        loader.close()
    store.close()


@pytest.mark.parametrize("model", ["ptycho", "cosmo"])
def test_losses_are_those_of_a_dataloader(model, data, tmp_path, capsys):
    found = [
        run(
            capsys,
            *arguments(data, model, "--epochs", 3, "--loader", loader, "--checkpoint", tmp_path / f"{loader}.tt"),
        )
        for loader in ("solar", "dataloader")
    ]
    assert_alike(*found, tmp_path / "solar.tt", tmp_path / "dataloader.tt")


@pytest.fixture
def ranks(data, tmp_path, monkeypatch):
    """Run the example on two ranks of a node, as torchrun does; returns what rank 0 printed."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)

    def start(path: Path, *others: object) -> list[dict]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
        words = arguments(data, "ptycho", "--epochs", 3, "--buffer", "100%", "--checkpoint", path, *others)
        said = run_ranks("examples.train_surrogate", 2, *words, folder=tmp_path)[0]
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    return start


def test_two_ranks_learn_as_one_does(ranks, data, tmp_path, capsys):
    """Fed by SOLAR, which deals the samples otherwise than the sampler that one rank has here."""
    together = ranks(tmp_path / "two.tt")
    alone = run(
        capsys, *arguments(data, "ptycho", "--epochs", 3, "--loader", "dataloader", "--checkpoint", tmp_path / "one.tt")
    )
    assert_alike(together, alone, tmp_path / "two.tt", tmp_path / "one.tt")


@pytest.mark.slow
def test_two_ranks_are_fed_as_by_a_dataloader_and_go_on_with_the_same_bits(ranks, data, tmp_path, capsys):
    whole, parts, stock = (tmp_path / f"{name}.tt" for name in ("whole", "parts", "stock"))
    found = ranks(whole)
    assert_alike(found, ranks(stock, "--loader", "dataloader"), whole, stock)
    ranks(parts, "--stop-at", 10)
    copy = tmp_path / "alone.tt"
    copy.write_bytes(parts.read_bytes())
    ranks(parts)
    assert_same(whole, parts)
    alone = run(capsys, *arguments(data, "ptycho", "--epochs", 3, "--checkpoint", copy))
    assert alone[-1]["loss"] == pytest.approx(found[-1]["loss"], rel=1e-5), "one rank goes on where two stopped"


def test_a_run_of_other_settings_is_not_resumed(data, tmp_path):
    path = tmp_path / "saved.tt"
    train_surrogate.main(arguments(data, "cosmo", "--epochs", 1, "--stop-at", 1, "--checkpoint", path))
    for other in (["--seed", "1"], ["--width", "8"], ["--loader", "dataloader"]):
        with pytest.raises(SystemExit, match=f"of another run: {other[0][2:]} is"):
            train_surrogate.main([*arguments(data, "cosmo", "--epochs", 1, "--checkpoint", path), *other])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="train_surrogate"):
        train_surrogate.main(arguments(data, "cosmo", "--epochs", 1, "--checkpoint", path))


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (["--batch", "1000"], "do not fill a batch"),
        (["--batch", "0"], "cannot be divided"),
        (["--data", "/nowhere.h5"], "nowhere"),
        (["--model", "ptycho"], "no data set 't"),
        (["--buffer", "3"], "buffer"),
        (["--rate", "1e30"], "loss is"),
    ],
)
def test_mistakes_are_told(others, words, data):
    with pytest.raises(SystemExit, match=words):
        train_surrogate.main([*arguments(data, "cosmo", "--epochs", 1), *others])


def test_surrogates_take_the_sides_they_say():
    pattern = torch.rand(2, 48, 48)
    found = make_surrogate("ptycho", 2, (48, 48))(pattern)
    assert {name: tuple(x.shape) for name, x in found.items()} == dict.fromkeys(("amplitude", "phase"), (2, 24, 24))
    again = make_surrogate("cosmo", 2, (24, 24, 24))
    cube = torch.rand(2, 24, 24, 24)
    assert again(cube)["parameters"].shape == (2, 3)
    for name, shape in (("ptycho", (20, 20)), ("ptycho", (16, 32)), ("cosmo", (4, 4, 4)), ("cosmo", (16, 16))):
        with pytest.raises(ValueError, match="multiple of"):
            make_surrogate(name, 2, shape)
