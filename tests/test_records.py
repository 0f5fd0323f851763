"""Records: what is written is what is read, and no host name is in it."""

from __future__ import annotations

import platform
import re

import msgspec
import pytest

import trimtab as tt
from trimtab.errors import FormatError
from trimtab.records import Bar, Metric, Record, machine, machine_slug, versions


@pytest.fixture
def record() -> Record:
    return Record.new(
        "demo",
        command="trimtab demo",
        packages=("msgspec", "no-such-package"),
        data={"size": 3},
        metrics={"a/ratio": Metric(value=1.5, unit="x", low=1.4, high=1.6, num_rounds=7, claim="1.2 in the paper")},
        bars=[Bar(name="ratio", required=">= 1.2", reached=1.5, passed=True)],
    )


def test_records_come_back(record, tmp_path):
    path = record.save(tmp_path / "new" / "folder" / "demo.json")
    assert Record.load(path) == record
    assert path.read_text().endswith("\n")
    assert path.read_text().count("\n") > 10  # diffs of committed records stay readable


def test_new_records_describe_the_run(record):
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", record.date)
    assert record.versions["python"] == platform.python_version()
    assert record.versions["msgspec"] == msgspec.__version__
    assert record.versions["trimtab"] == tt.__version__
    assert "no-such-package" not in record.versions
    assert record.revision


def test_no_host_name_is_recorded(record, tmp_path):
    text = record.save(tmp_path / "r.json").read_text()
    assert platform.node() not in text
    assert str(tmp_path) not in text


def test_machines_are_described_in_words():
    assert machine()["num_cores"] >= 1
    assert re.fullmatch(r"\d+-core[a-z0-9-]*", machine_slug())


def test_absent_packages_have_no_version():
    assert list(versions(("no-such-package",))) == ["python"]


def test_the_revision_is_unknown_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Record.new("x", command="x").revision == "unknown"


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff", b'{"name": 3}', b'{"name": "\xff"}', b"{" * 10**5])
def test_what_is_no_record_is_refused(text, tmp_path):
    (tmp_path / "r.json").write_bytes(text)
    with pytest.raises(FormatError, match="is not a record"):
        Record.load(tmp_path / "r.json")


def test_unknown_fields_are_refused(record, tmp_path):
    path = record.save(tmp_path / "r.json")
    path.write_text(path.read_text().replace('"seed"', '"sead"'))
    with pytest.raises(FormatError, match="sead"):
        Record.load(path)
