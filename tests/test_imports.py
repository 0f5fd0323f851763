"""Importing trimtab is light: nothing heavy comes with it, and the command line's help needs none of it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import click
import pytest

import trimtab as tt

HEAVY = {
    "torch",
    "numba",
    "llvmlite",
    "triton",
    "matplotlib",
    "zarr",
    "numcodecs",
    "h5py",
    "dask",
    "xarray",
    "nibabel",
    "transformers",
    "zstandard",
}


def loaded(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after running `code`."""
    code += "\nimport sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light():
    assert not loaded("import trimtab") & {*HEAVY, "numpy", "msgspec"}


def test_bounds_need_no_compiler():
    assert not loaded("import trimtab as tt; tt.Rel(1e-3), tt.errors.Corrupt, tt.Record") & HEAVY


def test_codecs_need_no_torch():
    code = "import trimtab as tt, numpy as np; tt.decompress(tt.compress(np.ones(9000, 'f4')))"
    assert not loaded(code) & (HEAVY - {"numba", "llvmlite", "zstandard"})


def test_settings_of_methods_need_no_torch():
    assert "torch" not in loaded("import trimtab as tt; tt.compact.DeepSZ(max_drop=0.1), tt.train.COMET()")


def help_of(*verbs: str) -> str:
    return f"""
import sys
from trimtab.cli import main
sys.argv = ["trimtab", *{verbs!r}, "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
"""


def test_help_is_light():
    assert not loaded(help_of()) & HEAVY


def test_help_of_every_verb_is_light():
    from trimtab.cli import main

    verbs = main.list_commands(click.Context(main))
    assert verbs
    code = "".join(help_of(verb) for verb in verbs)
    assert not loaded(code) & HEAVY


@pytest.mark.parametrize("name", tt.__all__)
def test_public_names_exist(name):
    assert getattr(tt, name) is not None
    assert name in dir(tt)


@pytest.mark.parametrize("name", ["dcp", "hf", "numcodecs", "zarr"])
def test_adapters_are_reached_by_name(name):
    assert getattr(tt, name) is importlib.import_module(f"trimtab.{name}")
    assert name in dir(tt)
    assert name not in tt.__all__


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tt.nothing
