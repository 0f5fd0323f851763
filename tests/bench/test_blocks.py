"""The benchmark of the block coder: its record and its table, on few elements."""

from __future__ import annotations

from bench import blocks
from bench.activation_tables import blocks_table
from bench.harness import Options


def test_record():
    record = blocks.run(Options(name="blocks", quick=True, num_rounds=1))
    bits = {key: found.value for key, found in record.metrics.items() if key.endswith("/bits")}
    for subject in blocks.SUBJECTS:
        assert bits[f"{subject.name}/4 bits, stochastic/bits"] == 4.25
        assert bits[f"{subject.name}/{blocks.OURS}/bits"] < bits[f"{subject.name}/trimtab SZ, fast/bits"]
        assert bits[f"{subject.name}/{blocks.DITHERED}/bits"] > bits[f"{subject.name}/{blocks.OURS}/bits"]
    assert all(bar.passed for bar in record.bars if "bits a value" in bar.name)
    assert len(record.bars) == 4 * len(blocks.SUBJECTS) + 2
    assert blocks_table(record).count("**trimtab Blocks**") == len(blocks.SUBJECTS)
