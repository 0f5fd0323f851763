"""Metrics of a look: the text format, few series, and a server that only this machine reaches."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

import pytest

from trimtab.diagnose.frame import Writer, frame_path
from trimtab.diagnose.look import Look
from trimtab.diagnose.prometheus import CONTENT_TYPE, Server, exposition
from trimtab.diagnose.simulate import Fault, Job

STOP = Fault("stop", rank=5, step=8, place=3)
SAMPLE = re.compile(r'(trimtab_diagnose_[a-z_]+)(\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\})? (\S+)')


def samples(text: str) -> dict[str, float]:
    """Return the samples by name and labels; every line must be one, or say what a family is."""
    found, families = {}, set()
    for line in text.removesuffix("\n").split("\n"):
        if match := re.fullmatch(r"# TYPE (\S+) (counter|gauge)", line):
            families.add(match[1])
            assert match[1].endswith("_total") == (match[2] == "counter")
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] in families
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


def test_what_is_told(looked):
    look = looked(STOP)
    found = {
        name.removeprefix("trimtab_diagnose_"): value
        for name, value in samples(exposition(look, look.verdict())).items()
    }
    assert found['verdict{kind="H1"}'] == 1
    assert sum(value for name, value in found.items() if name.startswith("verdict{")) == 1
    assert found["verdict_confidence_ratio"] == 0.97
    assert found['faulty_rank{rank="5"}'] == 1
    assert found['ranks{state="inside"}'] == 7
    assert found['rank_lag_operations{rank="5"}'] == 1
    assert look.trace is not None
    assert found["operations_total"] == look.snapshot.done.sum()
    assert found['rank_operations_total{rank="1"}'] > 100


def test_seconds_inside_carry_the_operation(tmp_path):
    writer = Writer(frame_path(tmp_path, 0), rank=0, world_size=2)
    writer.enter(writer.prepare(writer.communicator('a "b"\\\n', [0, 1]), "all_reduce", 5))
    writer.waiting(0, 2_500_000_000)
    look = Look.of_folder(tmp_path)
    found = samples(exposition(look, look.verdict()))
    name = r'trimtab_diagnose_rank_inside_seconds{rank="0",communicator="a \"b\"\\\n",operation="all_reduce"}'
    assert 0 <= found[name] < 60
    assert found['trimtab_diagnose_rank_data_wait_seconds_total{rank="0"}'] == 2.5


def test_series_of_ranks_are_few(looked):
    look = looked(Fault("stop", rank=200, step=2, place=3), job=Job(tensor=4, pipeline=4, data=16), num_steps=4)
    found = samples(exposition(look, look.verdict(), limit=8))
    ranks = [name for name in found if name.startswith("trimtab_diagnose_rank_lag_operations")]
    assert len(ranks) == 8
    assert 'trimtab_diagnose_rank_lag_operations{rank="200"}' in ranks


def test_a_server():
    texts = iter(["a 1\n", "a 2\n"])
    server = Server(lambda: next(texts))
    url = f"http://127.0.0.1:{server.port}"
    try:
        for text in ("a 1\n", "a 2\n"):
            with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                assert answer.read().decode() == text
                assert answer.headers["Content-Type"] == CONTENT_TYPE
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(f"{url}/", timeout=10)
        refused.value.close()
        with pytest.raises(OSError, match="in use"):
            Server(lambda: "", port=server.port)
    finally:
        server.close()
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"{url}/metrics", timeout=2)
