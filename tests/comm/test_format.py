"""Layouts of rows, and what lies where in a payload."""

from __future__ import annotations

import pytest
import torch

from trimtab.codecs.sdp4bit import Groups
from trimtab.comm import Layout, Meter, Noise
from trimtab.comm.format import Format, exact_codec
from trimtab.errors import ShapeError

NOISE = Noise(seed=1, rank=2, step=3, bucket=4)


def test_segments_of_a_kind_are_joined():
    segments = [(5, "exact"), (0, "packed"), (3, "exact"), (7, "packed"), (2, "skipped"), (1, "packed"), (4, "exact")]
    layout = Layout.of_segments(segments)
    assert layout == Layout(22, ((0, 8), (18, 22)), ((15, 17),))
    assert layout.runs == ((0, 8, True), (8, 15, False), (17, 18, False), (18, 22, True))
    assert Layout(0).runs == () and Layout(3).runs == ((0, 3, False),)
    assert Layout(3, skipped=((0, 3),)).runs == ()


@pytest.mark.parametrize("parts", [((0, 4), (3, 5)), ((2, 1),), ((-1, 2),), ((3, 11),)])
def test_parts_must_lie_apart_inside_the_row(parts):
    with pytest.raises(ShapeError, match="of 10 elements"):
        Layout(10, parts)
    with pytest.raises(ShapeError, match="of 10 elements"):
        Layout(10, skipped=parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back(dtype):
    x = torch.randn(700, generator=torch.Generator().manual_seed(0)).to(dtype)
    layout = Layout.of_segments([(100, "exact"), (300, "packed"), (50, "skipped"), (250, "packed")])
    form = Format(layout, Groups(bits=8), dtype)
    payload = torch.full((form.num_bytes,), 255, dtype=torch.uint8)
    form.encode(x, payload, NOISE)
    y = torch.full_like(x, torch.nan)
    form.decode(payload, y)
    assert torch.equal(y[:100], x[:100]) and y[400:450].isnan().all()
    for part in (slice(100, 400), slice(450, 700)):
        assert 0 < (y[part] - x[part]).float().norm() < 0.03 * x[part].float().norm()
    again = torch.zeros_like(payload)
    form.encode(x, again, NOISE)
    assert torch.equal(again, payload), "no byte is left over from before"
    form.encode(x, again, NOISE._replace(rank=3))
    assert not torch.equal(again, payload)


def test_differences_come_closer_and_skipped_parts_stay():
    x = torch.randn(600, generator=torch.Generator().manual_seed(0))
    reference = torch.zeros(600)
    layout = Layout.of_segments([(300, "packed"), (200, "skipped"), (100, "exact")])
    form = Format(layout, Groups(bits=4), torch.float32)
    payload = torch.empty(form.num_bytes, dtype=torch.uint8)
    last = float("inf")
    for step in range(4):
        form.encode_difference(x, reference, payload, NOISE._replace(step=step))
        form.decode_add(payload, reference)
        error = (x - reference)[:300].abs().max().item()
        assert error < last / 3
        last = error
    assert not reference[300:500].any() and torch.equal(reference[500:], x[500:])


def test_sums_are_recoded_with_and_without_a_common_transform():
    rows = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    layout = Layout.of_segments([(300, "packed"), (100, "exact")])
    one = Format(layout, Groups(bits=8, hadamard=32), torch.float32)
    payloads = torch.empty(3, one.num_bytes, dtype=torch.uint8)
    for row, payload in zip(rows, payloads, strict=True):
        one.encode(row, payload, NOISE)
    for codec in (Groups(bits=8, hadamard=32), Groups(bits=8), None):
        other = Format(layout, codec, torch.float32)
        payload, y = torch.empty(other.num_bytes, dtype=torch.uint8), torch.empty(400)
        one.recode_sum(payloads, other, payload, NOISE, 1)
        other.decode(payload, y)
        assert (y - rows.sum(0)).norm() < 0.02 * rows.sum(0).norm()
        torch.testing.assert_close(y[300:], rows.sum(0)[300:])


def test_other_elements_are_refused():
    for dtype in (torch.float64, torch.int32, torch.uint8):
        with pytest.raises(ShapeError, match="float32, bfloat16, float16"):
            exact_codec(dtype)


def test_a_meter_counts():
    meter = Meter(sample_every=2)
    assert meter.due("sum")
    meter.add("sum", exact=100, inter=10, intra=5)
    assert not meter.due("sum")
    meter.skip("sum", exact=100)
    with meter.codec():
        meter.sample("sum", torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    report = meter.report
    assert report["operations"]["sum"] == {
        "calls": 1,
        "skipped_calls": 1,
        "exact_bytes": 200,
        "sent_bytes": 15,
        "sent_bytes_between_nodes": 10,
        "sent_bytes_inside_nodes": 5,
    }
    assert report["normalised_mean_squared_error"] == {"sum": 0.01} and report["codec_seconds"] > 0
    meter.reset()
    assert meter.report["operations"] == {} and Meter(sample_every=0).due("sum") is False
