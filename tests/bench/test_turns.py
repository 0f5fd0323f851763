"""Turns of ways to train, in a group of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from bench import turns
from bench.turns import take_turns


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1))
    yield
    dist.destroy_process_group()


def test_turns_are_timed_behind_a_warm_up_in_an_order_of_their_own(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(turns.time, "process_time", lambda: clock[0] / 2)
    called: list[str] = []

    def step(way: str, seconds: float) -> None:
        clock[0] += seconds
        called.append(way)

    ways = {way: lambda way=way, seconds=seconds: step(way, seconds) for way, seconds in (("a", 1.0), ("b", 2.0))}
    found = take_turns(ways, num_rounds=8, num_steps=2, num_warm_up=3)
    assert sorted(called[:6]) == ["a"] * 3 + ["b"] * 3
    assert len(called) == 6 + 8 * 4
    assert {"".join(called[k : k + 4]) for k in range(6, len(called), 4)} == {"aabb", "bbaa"}
    for way, seconds in (("a", 1.0), ("b", 2.0)):
        assert [turn.seconds for turn in found[way]] == [seconds] * 8
        assert {turn.cpu_seconds for turn in found[way]} == {seconds / 2}
        assert all(turn.sent_bytes >= 0 for turn in found[way])
