"""TACO's styles and autograd functions, by four real ranks."""

from __future__ import annotations

import pytest

from tests.dist.launch import run_ranks
from trimtab.comm.channel import packers
from trimtab.comm.tensor_parallel import TacoColwise
from trimtab.errors import UsageError

RANKS = "tests.comm.tensor_ranks"


def test_functions_and_choices(tmp_path):
    run_ranks(RANKS, 4, "functions+fused+choices", str(tmp_path), folder=tmp_path)


def test_styles(tmp_path):
    run_ranks(RANKS, 4, "styles+layers+payloads", str(tmp_path), folder=tmp_path)


def test_with_sdp4bit_on_a_mesh(tmp_path):
    run_ranks(RANKS, 4, "grid", str(tmp_path), folder=tmp_path)


def test_any_number_of_ranks(tmp_path):
    run_ranks(RANKS, 3, "functions", str(tmp_path), folder=tmp_path)


@pytest.mark.parametrize("packing", [{"codec": "fp4"}, {"group": 100}, {"codec": "int8", "group": 1024}])
def test_settings_are_checked_at_once(packing):
    with pytest.raises(UsageError):
        TacoColwise(**packing)


def test_names():
    (faithful,) = packers("fp8", 128, hadamard=True)
    assert (faithful.format, faithful.scales, faithful.hadamard, faithful.group) == ("e4m3", 2, True, 128)
    assert [codec.scales for codec in packers("fp8-1", 64, hadamard=None)] == [1, 1]
    assert [codec.hadamard for codec in packers("int6", 64, hadamard=None)] == [64, 0]
    assert packers("exact", 128, hadamard=True) == ()
