from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import chart
from bench.harness import at_least, exact, metric
from bench.tables import (
    GIVEN,
    RATIO,
    RESULTS,
    TABLES,
    all_benchmarks,
    bars_table,
    lossless_table,
    lossy_table,
    readme_benchmarks,
    records,
)
from trimtab.errors import UsageError
from trimtab.records import Metric, Record


def metrics(subject: str, **ratios: float) -> dict[str, Metric]:
    found = {}
    for name, ratio in ratios.items():
        contender = {"ours": "trimtab ENEC", "given": GIVEN}.get(name, name)
        for what, value in {"ratio": ratio, "encode": 2 * ratio, "decode": 3 * ratio}.items():
            found[f"{subject}/{contender}/{what}"] = exact(value, "")
        if name not in ("ours", "given"):
            found[f"{subject}/{contender}/encode_times"] = exact(2.5, "x")
    return found


@pytest.fixture
def record() -> Record:
    return Record.new(
        "lossless",
        command="python -m bench.lossless",
        data={"MiniLM bf16": {"num_tensors": 3, "num_bytes": 6}},
        encoding={
            "contenders": {"trimtab ENEC": "ours", GIVEN: "ours", "zstd": "level 3", "rar": "?"},
            "failed": {"rar": "no such thing"},
            "refused": ["zstd takes no strings"],
        },
        inference={"num_threads": 1, "num_rounds": 9, "clock": "CPU"},
        metrics=metrics("MiniLM bf16", ours=1.4, given=1.6, zstd=1.5)
        | {"MiniLM bf16/trimtab ENEC/file_ratio": exact(1.45, "x")},
        bars=[at_least("small", 1.42, exact(1.4, "x"), "x")],
    )


def test_lossless_table(record: Record) -> None:
    assert lossless_table(record, "MiniLM bf16").splitlines()[2:] == [
        "| **trimtab ENEC** | 1.400 | 2.80 | 4.20 | - | - |",
        f"| **{GIVEN}** | 1.600 | 3.20 | 4.80 | - | - |",
        "| zstd | **1.500** | **3.00** | **4.50** | 2.50x | - |",
    ]


def test_spread_is_in_brackets(record: Record) -> None:
    record.metrics["MiniLM bf16/zstd/encode"] = metric([1.0, 2.0, 3.0], "GB/s")
    assert "| zstd | **1.500** | 2.00 (1.50-2.50) |" in lossless_table(record, "MiniLM bf16", spread=True)


def test_lossy_table_has_a_dash_where_nothing_was_measured(record: Record) -> None:
    lines = lossy_table(record, RATIO).splitlines()
    assert lines[2] == "| MiniLM bf16 | 1.400 | 1.600 | **1.500** | - |"


def test_bars_that_do_not_hold_stand_out(record: Record) -> None:
    assert bars_table([record]).splitlines()[2] == "| small | >= 1.42x | 1.4 | **no** |"


def test_pages_are_made_of_committed_records(record: Record, tmp_path: Path) -> None:
    assert "Not measured yet: run `python -m bench.lossy`" in all_benchmarks(tmp_path)
    record.save(tmp_path / "2-core" / "lossless.json")
    page, readme = all_benchmarks(tmp_path), readme_benchmarks(tmp_path)
    assert "1.45" in page
    assert "rar: no such thing" in page
    assert "zstd takes no strings" in page
    assert "revision" in readme
    assert "**1.500**" in readme


def test_every_committed_record_has_its_tables() -> None:
    for path in RESULTS.glob("*/*.json"):
        assert path.stem in TABLES
        _, table = TABLES[path.stem]
        assert "| ---" in table(Record.load(path))


def test_chart_is_svg_of_the_record_alone(record: Record) -> None:
    text = chart.draw(record)
    assert text == chart.draw(record)
    root = ET.fromstring(text)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "zstd" in texts
    assert GIVEN not in texts
    bars = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert [float(bar.get("width", 0)) for bar in bars[:2]] == pytest.approx([112.0, 140.0])
    assert [bar.get("class") for bar in bars[:2]] == ["ours", "peer"]
    with pytest.raises(UsageError, match="no subject 'GPT bf16'; it has MiniLM bf16"):
        chart.draw(record, "GPT bf16")


def test_the_committed_chart_is_up_to_date() -> None:
    if records("lossless"):
        chart.main(["--check"])
