from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import harness
from bench.harness import Contender, Options, Timings, at_least, exact, metric, parse, speeds, speedup
from trimtab.records import Record


class Clock:
    """A clock that stands still unless a contender works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(harness.time, "process_time", lambda: self.now)
        monkeypatch.setattr(harness.time, "perf_counter", lambda: 2 * self.now)

    def contender(self, name: str, encode: float, decode: float) -> Contender:
        def work(what: str, seconds: float) -> Callable[..., Any]:
            def call(*arguments: Any) -> str:
                assert not gc.isenabled()
                assert arguments in ((), (f"{name} encoded",))
                self.now += seconds
                self.calls.append(name)
                return f"{name} {what}"

            return call

        return Contender(name, work("encoded", encode), work("decoded", decode))


def test_contenders_take_turns_and_the_warm_up_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    contenders = [clock.contender(name, seconds, 2 * seconds) for name, seconds in zip("abc", (1, 2, 3), strict=True)]
    timings = harness.measure(contenders, num_rounds=30)
    rounds = ["".join(clock.calls[i : i + 6 : 2]) for i in range(0, len(clock.calls), 6)]
    assert len(rounds) == 31
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert timings["b"].cpu == {"encode": [2] * 30, "decode": [4] * 30}
    assert timings["b"].wall == {"encode": [4] * 30, "decode": [8] * 30}
    first = clock.calls.copy()
    clock.calls.clear()
    harness.measure(contenders, num_rounds=30)
    assert clock.calls == first
    assert gc.isenabled()


def test_speedup_is_paired_within_the_round() -> None:
    ours, theirs = Timings(), Timings()
    ours.cpu["encode"] = [1.0, 10.0, 1.0]
    theirs.cpu["encode"] = [2.0, 20.0, 3.0]  # medians 1 and 3 would say 3x
    found = speedup(ours, theirs, "encode", "cpu")
    assert (found.value, found.low, found.high, found.num_rounds) == (2.0, 2.0, 2.5, 3)


def test_speeds_count_bytes_of_input_by_both_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    timings = harness.measure([clock.contender("ours", 1, 2), clock.contender("peer", 4, 1)], num_rounds=2)
    found = speeds("field", timings, 2_000_000_000, "ours")
    assert found["field/ours/encode"].value == 2
    assert found["field/ours/encode_wall"].value == 1
    assert found["field/ours/decode"].unit == "GB/s"
    assert found["field/peer/encode_times"].value == 4
    assert found["field/peer/decode_times"].value == 0.5
    assert "field/ours/encode_times" not in found


def test_metric_is_the_median_with_quartiles() -> None:
    found = metric([5, 1, 2, 4, 3], "s")
    assert (found.value, found.low, found.high, found.num_rounds) == (3, 2, 4, 5)
    assert exact(1 / 3, "x").value == 0.333333


def test_a_bar_that_was_not_measured_is_not_passed() -> None:
    assert not at_least("ratio", 1.0, None).passed
    assert at_least("ratio", 1.0, exact(1.0, "x")).passed
    assert not at_least("ratio", 1.0, exact(0.999, "x")).passed


def test_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert parse("lossless", None, []).num_rounds >= 7
    assert parse("lossless", None, ["--quick"]).results is None
    options = parse("lossless", None, ["--rounds", "5", "--results", str(tmp_path)])
    assert options.command == "python -m bench.lossless --rounds 5"  # no folder of this machine
    with pytest.raises(SystemExit):
        parse("lossless", None, ["--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_write_saves_the_record_and_tells_the_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bars = [at_least("fast", 2.0, exact(3.0, "x")), at_least("small", 2.0, exact(1.0, "x"))]
    record = Record.new("lossless", command="python -m bench.lossless", bars=bars)
    harness.write(record, Options(name="lossless", results=tmp_path / "here"))
    assert Record.load(tmp_path / "here" / "lossless.json") == record
    told = capsys.readouterr().err
    assert "pass  fast: 3 (required >= 2)" in told
    assert "FAIL  small: 1 (required >= 2)" in told
