"""The window around a fault: one time for all ranks without comparing clocks, and what pages and traces show of it."""

from __future__ import annotations

import html.parser
import json
import re

import numpy as np
import pytest

from tests.diagnose.test_flight import dump, entry
from trimtab.diagnose.divergence import op_name
from trimtab.diagnose.flight import read_dumps
from trimtab.diagnose.frame import Writer, frame_path
from trimtab.diagnose.html import page
from trimtab.diagnose.look import Look
from trimtab.diagnose.perfetto import trace_json
from trimtab.diagnose.simulate import Fault, Job
from trimtab.diagnose.timeline import Timeline, align

STOP = Fault("stop", rank=5, step=8, place=3)


def timeline(look: Look, **options) -> Timeline:
    found = Timeline.of(look, look.verdict(), **options)
    assert found is not None
    return found


@pytest.mark.parametrize("fault", [STOP, Fault("slow", rank=5, step=8, factor=3.0)], ids=["hang", "slow"])
def test_clocks_are_aligned_by_operations(tmp_path, fault):
    """Clocks of simulated ranks are up to a week apart; what ranks share ends within a tenth of a millisecond."""
    run = Job(tensor=2, pipeline=2, data=2).run(faults=[fault], num_steps=16)
    run.write(tmp_path)
    look = Look.of_folder(tmp_path)
    assert look.trace is not None
    shift, is_aligned, notes = align(look.trace, look.clocks)
    assert is_aligned.all()
    assert np.abs(shift - (run.offset - run.offset[0])).max() < 1e5
    assert np.ptp(run.offset) > 1e13
    assert any("clocks are not compared" in note for note in notes)


def test_ranks_with_one_clock_are_not_shifted(tmp_path):
    Job(data=4).run(num_steps=8).write(tmp_path)
    look = Look.of_folder(tmp_path)
    look.clocks[:] = 7
    assert look.trace is not None
    shift, is_aligned, notes = align(look.trace, look.clocks)
    assert is_aligned.all()
    assert not shift.any()
    assert not notes


def test_a_rank_with_nothing_in_common_is_told(tmp_path):
    for rank, group in enumerate(([0, 1], [0, 1], [2, 3])):
        writer = Writer(frame_path(tmp_path, rank), rank=rank, world_size=4)
        call = writer.prepare(writer.communicator("pair", group), "all_reduce", 5)
        for _ in range(3):
            writer.leave(call, writer.enter(call))
    look = Look.of_folder(tmp_path)
    look.clocks[:] = [1, 2, 3, 0]
    found = timeline(look)
    assert any("rank 2: no operation to align by" in note for note in found.notes)
    assert {2} <= set(found.spans["rank"].tolist())


def test_the_window_lies_around_the_fault(looked):
    found = timeline(looked(STOP))
    assert found.ranks == tuple(range(8))
    assert 0 < found.focus < found.seconds
    spans = found.spans
    assert (spans["end"] >= 0).all() and (spans["begin"] <= found.seconds).all()
    stuck = spans[spans["is_open"]]
    assert sorted(stuck["rank"].tolist()) == [0, 1, 2, 3, 4, 6, 7]
    assert (stuck["end"] == found.seconds).all()
    at_focus = stuck[(stuck["rank"] == 1) & (np.abs(stuck["begin"] - found.focus) < 1e-6)]
    assert at_focus["seq"].tolist() == [9]
    assert op_name(int(at_focus["op"][0])) == "all_reduce"
    assert np.isfinite(found.ended[5]) and np.isnan(np.delete(found.ended, 5)).all()


def test_members_leave_an_operation_together_in_the_picture(looked):
    found = timeline(looked())
    world = found.look.snapshot.groups.names.index("world")
    last = found.spans[found.spans["communicator"] == world]
    ends = last["end"][last["seq"] == last["seq"].max()]
    assert ends.size == 8
    assert np.ptp(ends) < 1e-3


def test_of_many_ranks_those_that_matter(looked):
    look = looked(Fault("stop", rank=77, step=3, place=6), job=Job(tensor=4, pipeline=4, data=8), num_steps=5)
    found = timeline(look, limit=24)
    assert len(found.ranks) == 24
    assert found.num_left_out == 104
    assert {77, 76, 78, 79} <= set(found.ranks)  # its tensor group
    assert set(look.verdict().sets["inside"][:6]) <= set(found.ranks)


def test_overlapping_operations_get_lanes(tmp_path):
    writer = Writer(frame_path(tmp_path, 0), rank=0, world_size=1)
    call = writer.prepare(writer.communicator("world", [0]), "all_reduce", 5, flags=1)
    numbers = [writer.enter(call) for _ in range(3)]
    for number in numbers:
        writer.leave(call, number)
    assert timeline(Look.of_folder(tmp_path)).spans["lane"].tolist() == [0, 1, 2]


def test_nothing_recorded_is_no_timeline(tmp_path):
    Writer(frame_path(tmp_path, 0), rank=0, world_size=1).communicator("world", [0])
    look = Look.of_folder(tmp_path)
    assert Timeline.of(look, look.verdict()) is None
    assert "There are no operations to draw." in page(look, look.verdict(), None)


class Checked(html.parser.HTMLParser):
    """Counts tags, and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.num: dict[str, int] = {}

    def handle_starttag(self, tag, attrs):
        self.num[tag] = self.num.get(tag, 0) + 1
        if tag not in ("meta", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.num[tag] = self.num.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(text: str) -> Checked:
    parser = Checked()
    parser.feed(text)
    assert not parser.open
    return parser


@pytest.mark.parametrize(
    "fault",
    [STOP, Fault("other", rank=2, step=8, place=2), Fault("slow", rank=5, step=8, factor=3.0), None],
    ids=["H1", "H2", "S1", "healthy"],
)
def test_pages_are_whole(looked, fault):
    look = looked(*([fault] if fault else []))
    verdict = look.verdict()
    text = page(look, verdict, Timeline.of(look, verdict))
    found = checked(text)
    assert found.num["svg"] == 1
    assert found.num["rect"] > 50
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"<script|https?://|src=|@import", text)
    assert ('class="absent"' in text) == (fault is STOP)
    if fault is not None:
        assert f'<text class="named" x="82" y="{62 + 22 * fault.rank + 15}" text-anchor="end">' in text


def test_hostile_names_are_only_text(tmp_path):
    name = "<script>alert(1)</script>\x1b[2J"
    writer = Writer(frame_path(tmp_path, 0), rank=0, world_size=2)
    writer.enter(writer.prepare(writer.communicator(name, [0, 1]), "all_reduce", 5, site=writer.text("<i>&.py:1")))
    look = Look.of_folder(tmp_path)
    found = timeline(look)
    text = page(look, found.verdict, found)
    checked(text)
    assert "<script" not in text and "<i>" not in text and "\x1b" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "\x1b" not in trace_json(found).decode()


def test_traces_are_what_viewers_read(looked):
    look = looked(STOP)
    found = timeline(look, num_before=100)
    trace = json.loads(trace_json(found))
    by_kind: dict[str, list[dict]] = {}
    for event in trace["traceEvents"]:
        by_kind.setdefault(event["ph"], []).append(event)
    assert set(by_kind) == {"M", "X", "i"}
    names = {event["args"]["name"] for event in by_kind["M"] if event["name"] == "process_name"}
    assert sum(name.endswith("(named)") for name in names) == 1
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in by_kind["M"] if e["name"] == "thread_name"}
    assert "data 1" in threads.values()
    assert {(event["pid"], event["tid"]) for event in by_kind["X"]} == set(threads)
    assert all(event["dur"] >= 0 for event in by_kind["X"])
    open_ones = [event for event in by_kind["X"] if not event["args"]["complete"]]
    assert len(open_ones) == 7
    assert {"seq": 9, "communicator": "data 1", "site": "train.py:80"}.items() <= next(
        event["args"] for event in open_ones if event["pid"] == 1
    ).items()
    assert "not compared" in trace["metadata"]["clocks"]
    assert trace["metadata"]["verdict"]["ranks"] == [5]
    tracks: dict[tuple[int, int], float] = {}
    for event in sorted(by_kind["X"], key=lambda event: event["ts"]):  # no track has two at once
        track = (event["pid"], event["tid"])
        assert event["ts"] >= tracks.get(track, -np.inf) - 1e-3
        tracks[track] = event["ts"] + event["dur"]


def test_waits_for_data_are_drawn(looked):
    look = looked(STOP)
    assert look.trace is not None
    look.trace.columns["waited"][:] = 0.001
    found = timeline(look)
    assert "waits for data" in page(look, found.verdict, found)
    assert any(event["name"] == "waited for data" for event in json.loads(trace_json(found))["traceEvents"])


def test_dumps_without_durations_are_drawn_too(tmp_path):
    for rank, length in enumerate((9, 9, 7)):
        dump(tmp_path, rank, [entry(i, i + 1, retired=i < 8) for i in range(length)])
    look = Look.of_folder(tmp_path)
    assert read_dumps(tmp_path)[1].num_records == 25
    found = timeline(look)
    assert found.verdict.ranks == (2,)
    checked(page(look, found.verdict, found))
