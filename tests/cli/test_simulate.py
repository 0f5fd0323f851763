"""trimtab simulate solar: what it counts is what a plan counts."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import one_line_error
from trimtab.data import Plan, Tally
from trimtab.data.tally import tallies

SHAPE = ["--samples", 2048, "--sample-bytes", "64KiB", "--ranks", 4, "--batch", 16, "--epochs", 4]


def test_counts_are_those_of_the_plan(trimtab):
    result = trimtab("simulate", "solar", *SHAPE, "--buffer", "16MiB", "--json", "--seed", 3)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    plan = Plan(num_samples=2048, num_ranks=4, batch_size=16, num_epochs=4, num_slots=256, seed=3)
    counted = sum(tallies(plan), Tally())
    assert report["digest"] == plan.digest
    assert report["plan"]["num_slots"] == 256
    assert report["policies"]["SOLAR"]["reads"] == counted.num_reads == 4 * 2048 - 3 * 1024
    assert report["policies"]["SOLAR"]["hit_rate"] == report["most_hit_rate"] == pytest.approx(0.375)
    assert report["policies"]["DataLoader"]["reads"] == 4 * 2048
    assert "modelled_speedup" not in report["policies"]["SOLAR"]


def test_times_are_modelled(trimtab):
    """A read takes 2 ms and 64 KiB at 65.536 MB/s: 3 ms in all, of which the slowest rank has 64 in a whole epoch less
    hits."""
    timed = ["--latency", 2, "--bandwidth", "65536kB"]
    result = trimtab("simulate", "solar", *SHAPE, "--buffer", "50%", *timed, "--json")
    found = json.loads(result.stdout)["policies"]
    assert found["DataLoader"]["modelled_read_seconds"] == pytest.approx(4 * 512 * 0.003)
    assert found["SOLAR"]["modelled_read_seconds"] == pytest.approx((512 + 3 * 256) * 0.003)
    assert found["SOLAR"]["modelled_speedup"] == pytest.approx(1.6)
    text = trimtab("simulate", "solar", *SHAPE, "--buffer", "50%", *timed).stdout
    assert "1.60x" in text
    assert "modelled" in text


def test_other_policies(trimtab):
    result = trimtab(
        "simulate", "solar", *SHAPE, "--buffer", "50%", "--policies", "--ranks-per-node", 2, "--batch-slack", 1
    )
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if line]
    assert [line.split("  ")[0] for line in lines[2:5]] == [
        "DataLoader",
        "DistributedSampler, LRU",
        "DistributedSampler, Belady",
    ]
    assert lines[-2].startswith("SOLAR")
    assert lines[-1] == "buffers hold 50.0% of the samples; no policy has a hit rate above 0.3750 over 4 epochs"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Missing option"]),
        ([*SHAPE, "--buffer", "much"], ["'much' is not a size", "64KiB"]),
        ([*SHAPE, "--buffer", "1GiB", "--latency", 1], ["--latency and --bandwidth go together"]),
        ([*SHAPE, "--buffer", "1GiB", "--ranks-per-node", 3], ["4 ranks do not fill nodes of 3"]),
        ([*SHAPE, "--buffer", "1GiB", "--samples", 0], ["--samples"]),
    ],
)
def test_mistakes_are_told_in_a_line(trimtab, arguments, words):
    one_line_error(trimtab("simulate", "solar", *arguments), *words)


def test_there_must_be_such_a_system(trimtab):
    one_line_error(trimtab("simulate", "lunar"), "lunar")
