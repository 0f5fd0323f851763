"""The planner's arithmetic: when compressing pays, without any ranks."""

from __future__ import annotations

import math

import pytest

from trimtab.codecs.wire import make_wire_codec
from trimtab.comm.link import Link
from trimtab.comm.planner import CodecSpeed, measure_codec, predict, sharded_step
from trimtab.errors import UsageError

STEP = {"exact_bytes": 100e6, "packed_bytes": 20e6, "codec_seconds": 0.1}
GRADIENTS = make_wire_codec({"id": "groups", "bits": 4, "group": 128, "hadamard": 32})
WEIGHTS = make_wire_codec({"id": "groups", "bits": 4, "group": 2048})


def link(bytes_per_second: float) -> Link:
    return Link(bytes_per_second=bytes_per_second, latency_seconds=0.001)


def test_compressing_pays_below_the_break_even_rate_only():
    slow, fast = predict(link(0.99 * 800e6), **STEP), predict(link(1.01 * 800e6), **STEP)
    assert slow.break_even_bytes_per_second == fast.break_even_bytes_per_second == 80e6 / 0.1
    assert slow.compress
    assert not fast.compress
    assert slow.packed_seconds < slow.exact_seconds
    assert fast.packed_seconds > fast.exact_seconds
    assert "pays below 800 MB/s" in repr(slow)
    assert repr(fast).startswith("Plan(stay exact: ")
    assert "pays only below 800 MB/s" in fast.reason
    assert fast.report["compress"] is False
    assert fast.report["reason"] == fast.reason


def test_seconds_are_those_of_the_link_and_the_codec():
    plan = predict(link(10e6), **STEP)
    assert plan.exact_seconds == pytest.approx(10.001)
    assert plan.packed_seconds == pytest.approx(2.101)


def test_a_codec_that_saves_nothing_never_pays():
    plan = predict(link(1.0), exact_bytes=10, packed_bytes=11, codec_seconds=0.0)
    assert not plan.compress
    assert plan.break_even_bytes_per_second == 0
    assert "would not save a byte" in plan.reason
    assert not predict(link(1e6), exact_bytes=0, packed_bytes=0, codec_seconds=0).compress


def test_a_codec_that_costs_nothing_always_pays():
    plan = predict(link(1e12), exact_bytes=10, packed_bytes=5, codec_seconds=0)
    assert plan.compress
    assert math.isinf(plan.break_even_bytes_per_second)
    assert "inf" not in repr(plan)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["exact_bytes", "packed_bytes", "codec_seconds"])
def test_numbers_that_make_no_sense_are_refused(name, value):
    with pytest.raises(UsageError, match=name):
        predict(link(1e6), **{**STEP, name: value})


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_links_that_make_no_sense_are_refused(rate):
    with pytest.raises(UsageError, match="bytes_per_second"):
        predict(link(rate), **STEP)


def test_bytes_and_work_of_a_sharded_step():
    speed = CodecSpeed(encode_bytes_per_second=4e9, decode_bytes_per_second=2e9)
    num = 1 << 20
    step = sharded_step(num, nodes=2, ranks_per_node=1, gradients=GRADIENTS, weights=WEIGHTS, speed=speed)
    assert step.exact_bytes == 4 * num  # half of the gradients go out, and half of the weights
    assert step.packed_bytes == num * (4 + 32 / 128 + 4 + 32 / 2048) / 8 / 2
    assert step.codec_seconds == pytest.approx(4 * num * (1.5 / 4e9 + 2 / 2e9))
    wide = sharded_step(num, nodes=2, ranks_per_node=4, gradients=GRADIENTS, weights=WEIGHTS, speed=speed)
    assert (wide.exact_bytes, wide.packed_bytes) == (step.exact_bytes, step.packed_bytes)
    assert wide.codec_seconds == pytest.approx(4 * num * ((1 + 1 / 4 + 1 / 8) / 4e9 + (1 + 1 / 4 + 1) / 2e9))


def test_a_codecs_speed():
    speed = measure_codec(make_wire_codec({"id": "exact"}))
    assert 1e6 < speed.encode_bytes_per_second < 1e12
    assert 1e6 < speed.decode_bytes_per_second < 1e12
