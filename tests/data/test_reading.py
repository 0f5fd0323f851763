"""Requests: what is merged, what is split, what happens when the system gives less than was asked for."""

from __future__ import annotations

import os
import pickle
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.data import reading
from trimtab.data.reading import MOST_REQUEST, Costs, File, Parts, Reader, Rows, measure
from trimtab.data.throttle import Throttle
from trimtab.errors import Corrupt, UsageError


class Log(Throttle):
    """Counts requests, and does not slow them."""

    def __init__(self):
        super().__init__(0, 1e15)
        self.sizes = []

    def request(self, num_bytes):
        self.sizes.append(num_bytes)
        return super().request(num_bytes)


@pytest.fixture
def file(tmp_path):
    np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8).tofile(tmp_path / "a")
    return File(tmp_path / "a")


def fill(file, offsets, size, reader):
    offsets = np.array(offsets, np.int64)
    out = np.zeros((len(offsets), size), np.uint8)
    rows = Rows(np.arange(len(offsets)), out)
    parts = Parts(file, offsets, np.full(len(offsets), size), range(len(offsets)))
    return out, reader.fill(parts, rows, rows.places(), None).run()


@pytest.mark.parametrize(
    ("gap", "sizes"), [(0, [20, 10, 10, 10]), (4, [20, 10, 10, 10]), (5, [20, 40]), (94, [20, 40]), (95, [155])]
)
def test_neighbours_are_merged_where_the_gap_is_cheap(file, gap, sizes):
    log = Log()
    reader = Reader(1, Costs((gap + 0.5) / 1e9, 1e9), log)
    offsets = [1115, 1000, 1010, 1130, 1145]
    out, num_bytes = fill(file, offsets, 10, reader)
    expected = np.fromfile(file.path, np.uint8)
    assert all(np.array_equal(row, expected[at : at + 10]) for row, at in zip(out, offsets, strict=True))
    assert log.sizes == sizes
    assert num_bytes == sum(log.sizes)


def test_requests_are_not_too_long(tmp_path):
    with (tmp_path / "a").open("wb") as made:
        made.truncate(6 * MOST_REQUEST)
    log = Log()
    size = MOST_REQUEST // 2
    fill(File(tmp_path / "a"), np.arange(12) * size, size, Reader(1, Costs(1, 1e9), log))
    assert log.sizes == [MOST_REQUEST] * 6
    log.sizes.clear()
    fill(File(tmp_path / "a"), np.arange(4) * 100, 100, Reader(4, Costs(1e-9, 1e9), log))
    assert log.sizes == [100] * 4, "each thread has one"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 65_000), max_size=40), st.integers(1, 536), st.integers(0, 3000), st.integers(1, 3),
    st.integers(1, 700),
)  # fmt: skip
def test_any_parts_with_short_reads(tmp_path_factory, offsets, size, gap, num_threads, most):
    path = tmp_path_factory.mktemp("any") / "a"
    x = np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8)
    x.tofile(path)

    def short(fd, places, offset):
        data = os.pread(fd, min(most, sum(map(len, places))), offset)
        for place in places:
            place[: len(data[: len(place)])] = data[: len(place)]
            data = data[len(place) :]
        return min(most, sum(map(len, places)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "preadv", short)
        out, num_bytes = fill(File(path), offsets, size, Reader(num_threads, Costs(gap / 1e6, 1e6)))
    needed = {at + k for at in offsets for k in range(size)}
    assert num_bytes >= len(needed)
    for row, at in zip(out, offsets, strict=True):
        assert np.array_equal(row, x[at : at + size])


def test_systems_without_preadv(file):
    x = np.fromfile(file.path, np.uint8)
    places = [memoryview(bytearray(n)) for n in (3, 0, 70)]
    assert reading._seek_and_read(file.fd, places, 100) == 73
    assert b"".join(places) == x[100:173].tobytes()
    assert reading._seek_and_read(file.fd, places, (1 << 16) - 5) == 5


def test_errors_of_the_system_are_told(file, monkeypatch):
    def fails(fd, places, offset):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(reading, "preadv", fails)
    for reader in (Reader(1, Costs(1e-6, 1e9)), Reader(1, Costs(1e-6, 1e9), Log())):
        with pytest.raises(OSError, match="Input/output error: .*a'"):
            fill(file, [0, 5000], 10, reader)
    os.utime(file.path, ns=(1, 1))
    with pytest.raises(Corrupt, match="replaced or written while it was read: sample 0, at byte 0"):
        fill(file, [0, 5000], 10, reader)


def test_costs_are_measured(tmp_path):
    with (tmp_path / "a").open("wb") as made:
        made.truncate(1 << 24)
    reader = Reader(1, throttle=Throttle(2e-3, 200e6))
    costs = reader.costs_of(File(tmp_path / "a"))
    assert 1.5e-3 < costs.latency_seconds < 20e-3
    assert 20e6 < costs.bytes_per_second < 260e6
    assert measure(lambda size: None, 100) == reading.USUAL


def test_requests_are_in_flight_together(tmp_path):
    with (tmp_path / "a").open("wb") as made:
        made.truncate(1 << 20)
    seconds = {}
    for num_threads in (1, 8):
        reader = Reader(num_threads, Costs(20e-3, 1e5), Throttle(20e-3, 1e9))
        begun = time.perf_counter()
        fill(File(tmp_path / "a"), np.arange(8) * 100_000, 10, reader)
        seconds[num_threads] = time.perf_counter() - begun
    assert seconds[1] >= 0.16
    assert seconds[8] < seconds[1] / 2


def test_a_throttled_request_takes_its_time():
    throttle = pickle.loads(pickle.dumps(Throttle(5e-3, 1e6)))
    begun = time.perf_counter()
    for _ in range(5):
        with throttle.request(5000):
            pass
    assert time.perf_counter() - begun > 0.045
    for numbers in [(-1, 1), (0, 0), (float("nan"), 1), (0, float("nan"))]:
        with pytest.raises(UsageError):
            Throttle(*numbers)


def test_streams_of_a_throttle_do_not_wait_for_one_another():
    throttle, begun = Throttle(50e-3, 1e9), time.perf_counter()

    def once():
        with throttle.request(1):
            pass

    workers = [threading.Thread(target=once) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert 0.05 <= time.perf_counter() - begun < 0.35
