"""The command line as a whole: help, versions, errors, signals and weight."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import one_line_error
from trimtab import __version__
from trimtab.cli import main, pack
from trimtab.codecs import codec_ids
from trimtab.store import encode

VERBS = ["pack", "unpack", "inspect", "verify", "compare", "netlab", "simulate", "diagnose", "doctor", "papers", "demo"]
GROUPS = {"simulate": ["solar"], "diagnose": ["report", "watch", "run"]}
LEAVES = [[verb, *name] for verb in VERBS for name in ([[name] for name in GROUPS.get(verb, [])] or [[]])]
HEAVY = {"torch", "numba", "numpy", "matplotlib", "rich", "msgspec", "zarr", "h5py", "nibabel", "safetensors"}


def test_the_verbs_are_these(trimtab):
    result = trimtab("--help")
    assert result.exit_code == 0
    listed = re.findall(r"^  (\w+)  +[A-Z]", result.stdout, re.MULTILINE)
    assert listed == VERBS


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_every_verb_has_help_and_json(trimtab, verb):
    result = trimtab(*verb, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


@pytest.mark.parametrize(
    "args",
    [[], ["--help"], ["--version"], *([verb, "--help"] for verb in GROUPS), *([*leaf, "--help"] for leaf in LEAVES)],
)
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys, json\nfrom trimtab.cli import main\n"
        f"try: main({args!r}, prog_name='trimtab')\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout.splitlines()[-1])) & HEAVY


def test_nothing_asked(trimtab):
    result = trimtab()
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: trimtab")
    assert result.stderr.count("\n") > 10


def test_version(trimtab):
    assert trimtab("--version").stdout == f"trimtab {__version__}\n"


def test_python_m_runs_the_same_program():
    done = subprocess.run([sys.executable, "-m", "trimtab", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"trimtab {__version__}\n"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["nonsense"], "nonsense"),
        (["pack"], "Missing argument 'IN'"),
        (["pack", "a", "b", "--nonsense"], "--nonsense"),
        (["pack", "a", "b", "--rel", "much"], "'much' is not a valid float"),
        (["pack", "a", "b", "--codec", "zip"], "'zip' is not one of"),
        (["pack", "a", "b", "--threads", "0"], "0 is not in the range"),
    ],
)
def test_usage_mistakes_are_one_line(trimtab, args, word):
    assert "--help" in one_line_error(trimtab(*args), word)


def test_codecs_on_offer_are_those_that_exist():
    options = {option.name: option for option in pack.verb.params}
    assert {"model", "sparse"} <= options.keys()
    assert {*options["codec"].type.choices, "aesz", "sparse", "blocks"} == set(codec_ids())  # blocks is for memory


def test_warnings_are_one_line_without_source(trimtab, field, tmp_path, monkeypatch):
    def warn_and_encode(*args, **settings):
        warnings.warn("the fast kernel is\nnot here", stacklevel=1)
        return encode(*args, **settings)

    monkeypatch.setattr("trimtab.store.encode", warn_and_encode)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = trimtab("pack", field, tmp_path / "out.tt", "--codec", "raw")
    assert result.exit_code == 0
    assert "trimtab: warning: the fast kernel is not here\n" in result.stderr


def test_a_bug_is_not_hidden(trimtab, field, tmp_path, monkeypatch):
    def broken(*args, **settings):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("trimtab.store.encode", broken)
    assert isinstance(trimtab("pack", field, tmp_path / "out.tt").exception, ZeroDivisionError)


def test_not_enough_memory_is_one_line(trimtab, field, tmp_path, monkeypatch):
    def hungry(*args, **settings):
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr("trimtab.store.encode", hungry)
    one_line_error(trimtab("pack", field, tmp_path / "out.tt"), "memory", "1 TiB")


def test_a_reader_that_leaves_is_no_error(start, field, tmp_path, trimtab):
    assert trimtab("pack", field, tmp_path / "f.tt", "--codec", "raw").exit_code == 0
    process = start("inspect", tmp_path / "f.tt")
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc to see when packing has begun")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_pack_leaves_nothing(start, tmp_path, number, status):
    source, folder = tmp_path / "many.npz", tmp_path / "out"
    folder.mkdir()
    np.savez(source, **{f"x{i}": np.full(4_000_000, i, np.float32) for i in range(12)})
    process = start("pack", source, folder / "many.tt", "--codec", "raw")
    while not is_writing(process.pid, folder):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == status
    assert talk == ""
    assert list(folder.iterdir()) == []


def is_writing(pid: int, folder: Path) -> bool:
    """Whether a process has a file of `folder` open, under whatever name or none."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(link.readlink()).startswith(f"{folder}/"):
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def test_main_ends_the_program():
    with pytest.raises(SystemExit) as ended:
        main(["--version"], prog_name="trimtab")
    assert ended.value.code == 0
