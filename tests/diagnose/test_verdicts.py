"""Every class of fault gets its verdict, with the ranks that cause it; what is no fault gets none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trimtab import diagnose as tt_diagnose
from trimtab.diagnose import Baseline, Host, Limits, Snapshot, diagnose, diagnose_folder
from trimtab.diagnose.analyze import hang_limit
from trimtab.diagnose.groups import Groups
from trimtab.diagnose.links import EDGE, slow_ranks
from trimtab.diagnose.simulate import TRUTH, Fault, Job
from trimtab.diagnose.verdict import ranks_in_words
from trimtab.errors import UsageError

JOBS = {
    "data 2": Job(data=2),
    "data 8": Job(data=8),
    "tensor 4": Job(tensor=4),
    "tensor 2, pipeline 2, data 2": Job(tensor=2, pipeline=2, data=2),
    "tensor 4, pipeline 4, data 4": Job(tensor=4, pipeline=4, data=4),
}


def fault(job: Job, kind: str, seed: int) -> Fault:
    """A fault at a random place; those that a collective must show are put into one."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(job.num_ranks))
    places = job.places(rank, "all_reduce") if kind == "freeze" else range(job.num_places(rank))
    factor = {"slow": 2.5, "link": 60.0}.get(kind, 1.0)
    return Fault(kind, rank=rank, step=12 + int(rng.integers(4)), place=int(rng.choice(places)), factor=factor)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["stop", "other", "slow"])
@pytest.mark.parametrize("name", JOBS)
def test_the_rank_is_named(name, kind, seed):
    one = fault(JOBS[name], kind, seed)
    verdict = JOBS[name].run(faults=[one], num_steps=24, seed=seed).verdict()
    assert verdict.kind == TRUTH[kind]
    assert verdict.ranks == (one.rank,), str(verdict)
    assert verdict.confidence > 0.5
    assert verdict.evidence


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", JOBS)
def test_a_frozen_operation(name, seed):
    one = fault(JOBS[name], "freeze", seed)
    verdict = JOBS[name].run(faults=[one], num_steps=24, seed=seed).verdict()
    assert verdict.kind == "H3"
    assert one.rank in verdict.sets["inside"]
    assert verdict.ranks == ()
    assert any("what each connection carried" in line for line in verdict.not_seen)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", JOBS)
def test_noise_is_no_fault(name, seed):
    assert JOBS[name].run(num_steps=24, seed=seed).verdict().kind == "healthy"


@pytest.mark.parametrize("jitter", [0.1, 0.3])
def test_much_noise_is_no_fault(jitter):
    for seed in range(5):
        verdict = Job(tensor=2, pipeline=2, data=4, jitter=jitter).run(num_steps=40, seed=seed).verdict()
        assert verdict.kind == "healthy", str(verdict)


class TestSkipped:
    """A rank that leaves out one of many identical operations: nothing but steps and call sites shows it."""

    job = Job(data=4, micro_batches=1)
    one = Fault("skip", rank=2, step=10, place=0)

    def test_two_collectives_a_step(self):
        verdict = self.job.run(faults=[self.one], num_steps=20).verdict()
        assert (verdict.kind, verdict.ranks) == ("H2", (2,))

    @pytest.mark.parametrize("tags", [{"steps_announced": False}, {"sites_known": False}])
    def test_identical_collectives(self, tags):
        job = Job(tensor=4, micro_batches=6, **tags)
        verdict = job.run(faults=[Fault("skip", rank=2, step=10, place=3)], num_steps=20).verdict()
        assert (verdict.kind, verdict.ranks) == ("H2", (2,)), str(verdict)

    def test_while_the_job_still_runs(self):
        """The silent case: the job goes on, one operation out of step, and nobody waits."""
        job = Job(tensor=4, micro_batches=6)
        run = job.run(num_steps=20)
        mine = run.words[2]
        rows = np.flatnonzero((mine[:, 2] > 0) & (mine[:, 0] >> np.uint64(32) & np.uint64(0xFFFF) == 0))
        mine[rows[100:-1], 5:7] = mine[rows[101:], 5:7]  # from there on it is one all-reduce ahead
        verdict = run.verdict()
        assert verdict.seq in (101, 102, 103, 104, 105, 106)
        assert (verdict.kind, verdict.ranks) == ("H2", (2,))
        assert "still runs" in " ".join(verdict.evidence)

    def test_of_two_the_one_that_left_a_step_out_is_named(self):
        job = Job(data=2, micro_batches=1)
        run = job.run(num_steps=20)
        for rank, offset in ((0, 0), (1, 1)):
            mine = run.words[rank]
            late = (mine[:, 2] > 0) & (mine[:, 6] & np.uint64(0xFFFFFFFF) >= 12)
            mine[late, 6] += np.uint64(offset)  # rank 1 has gone from step 11 to step 13
            early = (mine[:, 2] > 0) & (mine[:, 6] & np.uint64(0xFFFFFFFF) < 2)
            mine[early, 6] &= np.uint64(0xFFFFFFFF << 32)  # no step is announced before the first
        verdict = run.verdict()
        assert (verdict.kind, verdict.ranks) == ("H2", (1,)), str(verdict)
        assert "still runs" in " ".join(verdict.evidence)

    def test_without_tags_the_verdict_says_that_it_would_not_see_it(self):
        job = Job(tensor=4, steps_announced=False, sites_known=False)
        verdict = job.run(num_steps=12).verdict()
        assert any("identical operation that was left out" in line for line in verdict.not_seen)

    def test_call_sites_that_differ_as_a_rule_are_no_fault(self):
        run = self.job.run(num_steps=20)
        mine = run.words[1]
        mine[:, 5] ^= np.where(mine[:, 2] > 0, np.uint64(1 << 40), np.uint64(0))  # rank 1 calls from places of its own
        assert run.verdict().kind == "healthy"


@pytest.mark.parametrize("kind", ["skip", "other"])
def test_without_steps_the_one_who_left_its_own_way_is_named(kind):
    """Of two members that disagree, or wait for each other, neither is the smaller party."""
    job = Job(tensor=2, data=2, steps_announced=False)
    place = job.places(1, "all_reduce")[2]
    verdict = job.run(faults=[Fault(kind, rank=1, step=9, place=place)], num_steps=16).verdict()
    assert (verdict.kind, verdict.ranks) == ("H2", (1,))


def test_with_too_little_before_both_are_named():
    job = Job(data=2, steps_announced=False)
    verdict = job.run(faults=[Fault("other", rank=1, step=1, place=0)], num_steps=16).verdict()
    assert (verdict.kind, verdict.ranks) == ("H2", (0, 1))


def test_after_a_divergence_the_ranks_behind_are_the_healthy_ones():
    """Rank 0 called something else and went on alone: it is ahead, the others are behind, and it is the culprit."""
    job = Job(tensor=4, micro_batches=2)
    run = job.run(faults=[Fault("other", rank=0, step=6, place=1)], num_steps=12)
    snapshot = run.snapshot()
    at = np.flatnonzero((job.groups.ranks == 0) & (job.groups.communicator == 0))
    snapshot.seq[at] += 5
    verdict = diagnose(snapshot, run.trace())
    assert (verdict.kind, verdict.ranks) == ("H2", (0,))
    without_rings = diagnose(snapshot)
    assert without_rings.ranks != (0,)
    assert any("divergence that has passed" in line for line in without_rings.not_seen)


def test_signatures_that_always_differ_are_left_out():
    run = Job(data=4).run(num_steps=20)
    mine = run.words[1]
    mine[:, 5] ^= np.where(mine[:, 2] > 0, np.uint64(1), np.uint64(0))
    verdict = run.verdict()
    assert verdict.kind == "healthy"
    assert any("signatures" in line for line in verdict.not_seen)


class TestHangsOfFewStates:
    """States made by hand: groups, and what every member has entered and completed."""

    @staticmethod
    def state(members, entered, completed, *, num_ranks=None, op="all_reduce") -> Snapshot:
        num_ranks = num_ranks or 1 + max(max(ranks) for ranks in members)
        names = [f"group {i}" for i in range(len(members))]
        groups = Groups.build(num_ranks, [np.array(ranks) for ranks in members], names, [False] * len(names))
        state = Snapshot.empty(groups)
        state.present[:] = True
        state.seen[:] = True
        state.seq[:], state.done[:] = np.concatenate(entered), np.concatenate(completed)
        state.age[:] = 100
        return state

    def test_only_the_end_of_the_chain_is_named(self):
        # 0 waits for 1, 1 waits for 2, 2 waits for nobody
        state = self.state([[0, 1], [1, 2]], [[5, 4], [7, 6]], [[4, 4], [6, 6]])
        verdict = diagnose(state)
        assert (verdict.kind, verdict.ranks) == ("H1", (2,))
        assert verdict.communicator == "group 1"

    def test_a_circle_of_two(self):
        state = self.state([[0, 1], [0, 1], [1, 2]], [[5, 4], [6, 7], [2, 3]], [[4, 4], [6, 6], [2, 2]])
        verdict = diagnose(state)
        assert (verdict.kind, verdict.ranks) == ("H2", (0, 1))
        assert verdict.confidence <= 0.5

    def test_some_have_left(self):
        verdict = diagnose(self.state([[0, 1, 2, 3]], [[5, 5, 5, 5]], [[5, 4, 5, 5]]))
        assert (verdict.kind, verdict.ranks) == ("H3", (1,))
        assert verdict.sets["left"] == (0, 2, 3)

    def test_asynchronous_operations_are_no_waiting(self):
        state = self.state([[0, 1], [0, 1]], [[5, 4], [6, 7]], [[4, 4], [6, 6]])
        state.blocking[:] = [True, True, True, False]  # 1 has started one, and computes
        assert diagnose(state).ranks == (1,)

    def test_several_operations_ahead(self):
        """Asynchronous operations: the one that is stuck is the first that is not complete."""
        verdict = diagnose(self.state([[0, 1, 2]], [[9, 8, 5]], [[5, 5, 5]]))
        assert (verdict.kind, verdict.ranks, verdict.seq) == ("H1", (2,), 6)

    def test_a_rank_that_never_started(self):
        state = self.state([[0, 1, 2]], [[1, 1, 0]], [[0, 0, 0]])
        state.present[2] = state.seen[2] = False
        verdict = diagnose(state)
        assert (verdict.kind, verdict.ranks) == ("H1", (2,))
        assert "never seen" in verdict.summary
        assert any("rank 2" in line for line in verdict.not_seen)

    def test_one_that_was_seen_goes_before_one_that_was_not(self):
        state = self.state([[0, 1, 2, 3]], [[5, 5, 4, 0]], [[4, 4, 4, 0]])
        state.present[3] = state.seen[3] = False
        verdict = diagnose(state)
        assert verdict.ranks == (2,)
        assert verdict.confidence < 0.9

    def test_a_dead_rank_inside(self):
        state = self.state([[0, 1, 2]], [[5, 5, 5]], [[4, 4, 4]])
        state.age[:] = 2.0
        assert diagnose(state).kind == "healthy"
        verdict = diagnose(state, hosts={1: Host(state="Z")})
        assert (verdict.kind, verdict.ranks) == ("H1", (1,))
        assert "dead" in verdict.summary

    def test_a_stopped_rank_inside(self):
        state = self.state([[0, 1, 2]], [[5, 5, 5]], [[4, 4, 4]])
        verdict = diagnose(state, hosts={1: Host(state="T", cpu_share=0.0, stack=("main", "step"))})
        assert (verdict.kind, verdict.ranks) == ("H1", (1,))
        assert "stopped" in verdict.summary
        assert any("main > step" in line for line in verdict.evidence)

    def test_a_rank_that_finished_early(self):
        state = self.state([[0, 1]], [[5, 4]], [[4, 4]])
        state.finished[1] = True
        assert "finished" in diagnose(state).summary

    def test_waiting_for_data(self):
        state = self.state([[0, 1]], [[5, 4]], [[4, 4]])
        state.waiting[1] = 99
        assert "waits for data" in diagnose(state).summary

    def test_an_announced_pause_is_no_hang(self):
        state = self.state([[0, 1]], [[5, 4]], [[4, 4]])
        state.paused[1] = 30
        verdict = diagnose(state)
        assert verdict.kind == "healthy"
        assert "announced" in verdict.summary

    def test_whoever_waits_for_a_waiting_rank_began_later(self):
        state = self.state([[0, 1], [1, 2]], [[5, 4], [4, 3]], [[4, 4], [3, 3]])
        state.age[:] = [10, np.nan, 7, np.nan]
        assert diagnose(state, limits=Limits(hang_seconds=9)).ranks == (2,)
        state.age[2] = 1  # it has only come in: this is where it was held up
        assert diagnose(state, limits=Limits(hang_seconds=9)).ranks == (1,)

    def test_waits_below_the_limit_are_no_hang(self):
        state = self.state([[0, 1]], [[5, 4]], [[4, 4]])
        state.age[:] = 10
        assert diagnose(state).kind == "healthy"
        assert diagnose(state, limits=Limits(hang_seconds=5)).kind == "H1"

    def test_different_signatures_now(self):
        state = self.state([[0, 1, 2]], [[5, 5, 5]], [[4, 4, 4]])
        state.signature[:] = [7, 7, 8]
        assert (diagnose(state).kind, diagnose(state).ranks) == ("H2", (2,))

    @pytest.mark.parametrize(
        ("sent", "unsent", "ranks"),
        [([90, 80, 10, 85], [0] * 4, (2,)), ([90, 90, 90, 90], [0, 500, 0, 0], (1,)), ([9, 9, 9, 9], [0] * 4, ())],
    )
    def test_counters_name_the_rank_that_stalls(self, sent, unsent, ranks):
        state = self.state([[0, 1, 2, 3]], [[5] * 4], [[4] * 4])
        edges = np.zeros(4, EDGE)
        edges["rank"], edges["peer"], edges["sent"], edges["unsent"] = range(4), [1, 2, 3, 0], sent, unsent
        verdict = diagnose(state, edges=edges)
        assert (verdict.kind, verdict.ranks) == ("H3", ranks)


def connections(pairs, *, busy, cost, before, sent=10**6):
    """Edges that carry data."""
    edges = np.zeros(len(pairs), EDGE)
    edges["rank"], edges["peer"] = np.transpose(pairs)
    edges["sent"], edges["busy"], edges["cost"], edges["cost_before"] = sent, busy, cost, before
    return edges


RING = [(0, 1), (1, 2), (2, 3), (3, 0)]


@pytest.mark.parametrize(
    ("pairs", "busy", "cost", "before", "ranks"),
    [
        (RING, [0.02, 0.9, 0.9, 0.02], [1e-8, 1e-6, 1e-6, 1e-8], [1e-8] * 4, (2,)),
        (RING, [0.02, 0.9, 0.9, 0.02], [1e-8, 1e-6, 1e-6, 1e-8], [np.nan] * 4, (2,)),
        (RING, [0.02, 0.9, 0.02, 0.02], [1e-8, 1e-6, 1e-8, 1e-8], [1e-8] * 4, (1, 2)),
        ([(0, 1), (1, 0)], [0.5, 0.4], [1e-6, 9e-7], [2e-8, 3e-8], (0, 1)),  # no other, but their own past
        ([(0, 1), (1, 0)], [0.5, 0.4], [1e-6, 9e-7], [8e-7, 8e-7], ()),
        (RING, [0.9, 0.9, 0.8, 0.9], [1e-6] * 4, [np.nan] * 4, ()),
        (RING, [0.2, 0.01, 0.3, 0.01], [5e-8, 0, 4e-8, 1e-9], [4e-8, 4e-8, 1e-8, 1e-9], (2, 3)),
        (RING, [0.2, 0.01, 0.3, 0.01], [5e-8, 0, 4e-8, 1e-9], [4e-8, 4e-8, 4e-8, 1e-9], ()),  # as ever
    ],
)
def test_slow_connections(pairs, busy, cost, before, ranks):
    found, words = slow_ranks(connections(pairs, busy=busy, cost=cost, before=before))
    assert found == ranks
    assert bool(words) == bool(ranks)


class TestSlow:
    job = Job(tensor=2, pipeline=2, data=2)

    def test_from_the_start(self):
        """No history: the ranks that run the same program are the measure."""
        verdict = self.job.run(faults=[Fault("slow", rank=5, factor=2.0)], num_steps=24).verdict()
        assert (verdict.kind, verdict.ranks) == ("S1", (5,))

    def test_two_at_once(self):
        faults = [Fault("slow", rank=1, step=12, factor=2.5), Fault("slow", rank=6, step=12, factor=2.5)]
        verdict = Job(tensor=4, data=2).run(faults=faults, num_steps=24).verdict()
        assert (verdict.kind, verdict.ranks) == ("S1", (1, 6))

    def test_all_slower_is_nobodys_fault(self):
        faults = [Fault("slow", rank=rank, step=12, factor=2.0) for rank in range(8)]
        assert self.job.run(faults=faults, num_steps=24).verdict().kind == "healthy"

    @pytest.mark.parametrize("rank", [0, 3, 6])
    def test_a_link(self, rank):
        verdict = self.job.run(faults=[Fault("link", rank=rank, step=14, factor=60)], num_steps=24).verdict()
        assert (verdict.kind, verdict.ranks) == ("S2", (rank,))
        assert verdict.measures["P"] < 0.2

    def test_a_link_of_one_group_only_needs_counters(self):
        run = Job(data=4, micro_batches=1).run(faults=[Fault("link", rank=2, step=14, factor=60)], num_steps=24)
        alone = run.verdict()
        assert (alone.kind, alone.ranks) == ("S2", (0, 1, 2, 3))
        assert alone.confidence < 0.5
        edges = np.zeros(4, EDGE)
        edges["rank"], edges["peer"], edges["sent"] = range(4), [3, 0, 1, 2], 10**9
        edges["busy"] = [0.02, 0.03, 0.8, 0.9]  # 2 -> 1 and 3 -> 2
        edges["cost"], edges["cost_before"] = edges["busy"] / 1e8, np.nan
        assert run.verdict(edges=edges).ranks == (2,)
        edges["busy"] = [0.02, 0.03, 0.8, 0.02]
        edges["cost"] = edges["busy"] / 1e8
        assert run.verdict(edges=edges).ranks == (1, 2)

    def test_a_burst_is_no_fault(self):
        """What is slow for a quarter of the window, and then as ever, is over."""
        job = Job(data=4, micro_batches=1)
        run = job.run(num_steps=60)
        trace = run.trace()
        for begin, end, kind in ((0.6, 0.7, "healthy"), (0.55, 1.0, "S2")):
            for start, count in zip(trace.start, trace.count, strict=True):
                trace.columns["inside"][start + int(begin * count) : start + int(end * count)] += 0.5
            assert diagnose(run.snapshot(), trace).kind == kind

    @pytest.mark.parametrize(
        ("one", "kind"), [(Fault("slow", 2, 14, factor=3.0), "S1"), (Fault("link", 2, 14, factor=60.0), "S2")]
    )
    def test_ranks_that_wait_for_a_processor(self, one, kind):
        run = Job(data=4, micro_batches=1).run(faults=[one], num_steps=40)
        starved = {rank: Host(state="R", delay_share=0.9) for rank in range(4)}
        assert run.verdict(hosts={rank: Host(state="S", delay_share=0.01) for rank in range(4)}).kind == kind
        verdict = run.verdict(hosts=starved)
        assert verdict.kind == "healthy"
        assert any("wait for a processor for 90% of the time" in line for line in verdict.not_seen)
        alone = run.verdict(hosts={2: Host(state="R", delay_share=0.9)})  # the others are elsewhere
        assert (alone.kind, alone.ranks) == (("S1", (2,)) if kind == "S1" else ("healthy", ()))

    def test_a_sender_that_is_done_before_its_bytes_arrive(self):
        """Between two ranks the transfer then seems short, and the receiver waits for nobody."""
        run = Job(pipeline=4, micro_batches=2).run(num_steps=40)
        trace = run.trace()
        groups, inside = trace.groups, trace.columns["inside"]
        for c in np.flatnonzero(groups.p2p).tolist():
            start, _, count = trace.blocks(c)
            inside[start[0] : start[0] + count[0]] = 1e-5  # the sender is the first
            if 1 in groups.ranks[groups.members(c)]:
                inside[start[1] + count[1] // 2 : start[1] + count[1]] += 0.25
        snapshot = run.snapshot()
        assert diagnose(snapshot, trace).kind == "healthy"
        pairs = [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]
        slow = [1.0 if 1 in pair else 0.02 for pair in pairs]
        edges = connections(pairs, busy=[0.25 * x for x in slow], cost=[1e-6 * x for x in slow], before=[2e-8] * 6)
        verdict = diagnose(snapshot, trace, edges=edges)
        assert (verdict.kind, verdict.ranks) == ("S2", (1,)), str(verdict)
        assert "though nobody comes late, ranks wait" in verdict.evidence[0]

    def test_both(self):
        faults = [Fault("slow", rank=1, step=12, factor=3.0), Fault("link", rank=1, step=12, factor=9.0)]
        verdict = Job(data=4, micro_batches=1).run(faults=faults, num_steps=24).verdict()
        assert verdict.kind == "S3"
        assert verdict.sets["late"] == (1,)
        assert 0.2 <= verdict.measures["P"] <= 0.8

    def test_data_loading_is_told(self):
        run = self.job.run(faults=[Fault("slow", rank=5, step=12, factor=3.0)], num_steps=24)
        mine = run.words[5]
        late = mine[:, 6] & np.uint64(0xFFFFFFFF) > 12
        mine[late, 7] |= np.uint64(12_000)  # microseconds before each operation
        assert "data loading" in run.verdict().summary

    def test_a_baseline_remembers_what_the_rings_have_forgotten(self):
        job, baseline = Job(data=4, micro_batches=1), Baseline()
        assert job.run(num_steps=24).verdict(baseline=baseline).kind == "healthy"
        slow = [Fault("link", rank=2, factor=60)]
        assert job.run(faults=slow, num_steps=24).verdict().kind == "healthy"
        assert job.run(faults=slow, num_steps=24).verdict(baseline=baseline).kind == "S2"

    def test_transfers_faster_than_usual_are_healthy(self):
        """Tmax <= Tbase: the ratio of the paper has no meaning there."""
        baseline = Baseline()
        job = Job(data=4, jitter=0.0)
        job.run(num_steps=24).verdict(baseline=baseline)
        for key in baseline.transfers:
            baseline.transfers[key] *= 100
        verdict = job.run(num_steps=24, seed=1).verdict(baseline=baseline)
        assert verdict.kind == "healthy"

    def test_short_traces_say_that_they_are_short(self):
        verdict = Job(data=4).run(num_steps=1).verdict()
        assert verdict.kind == "healthy"
        assert any("too few" in line for line in verdict.not_seen)


def test_rings_that_went_round():
    run = Job(tensor=2, data=2).run(faults=[Fault("stop", rank=3, step=30, place=2)], num_steps=40, capacity=32)
    verdict = run.verdict()
    assert (verdict.kind, verdict.ranks) == ("H1", (3,))
    assert any("overwritten" in line for line in verdict.not_seen)


def test_the_hang_limit_follows_the_history():
    trace = Job(data=2).run(num_steps=200).trace()
    assert hang_limit(None, Limits()) == hang_limit(trace, Limits()) == 30
    assert hang_limit(trace, Limits(hang_seconds=7)) == 7
    trace.columns["inside"][3] = 60.0  # the others waited for a checkpoint
    assert hang_limit(trace, Limits()) == pytest.approx(180)
    trace.columns["inside"][3] = 1e6
    assert hang_limit(trace, Limits()) == 900


def test_files_give_the_same_verdict(tmp_path):
    run = Job(tensor=2, pipeline=2, data=2).run(faults=[Fault("stop", rank=5, step=8, place=3)], num_steps=12)
    run.write(tmp_path)
    from_files, direct = diagnose_folder(tmp_path), run.verdict()
    assert (from_files.kind, from_files.ranks) == (direct.kind, direct.ranks)
    assert any("clock of 8 ranks" in line for line in from_files.not_seen)
    (tmp_path / "rank-000005.frame").unlink()
    (tmp_path / "rank-000001.frame").write_bytes(b"ttframe\nnonsense")
    verdict = diagnose_folder(tmp_path)
    assert verdict.kind == "H1"
    assert any("there is no file" in line for line in verdict.not_seen)
    assert any("could not be read" in line for line in verdict.not_seen)


def test_reports_are_plain():
    verdict = Job(data=4).run(faults=[Fault("stop", rank=3, step=8)], num_steps=12).verdict()
    report = json.loads(json.dumps(verdict.report))
    assert report["kind"] == "H1"
    assert report["ranks"] == [3]
    assert "never reached" in report["meaning"]
    assert repr(verdict).startswith("<H1, rank 3, confidence 0.97: rank 3 did not enter")
    assert "not seen" not in str(verdict) or verdict.not_seen
    assert not verdict.is_healthy


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([], "no rank"), ([4], "rank 4"), ([1, 2, 3, 9], "ranks 1-3, 9"), (range(0, 40, 2), "and more, 20 in all")],
)
def test_ranks_in_words(ranks, words):
    assert words in ranks_in_words(ranks)


@pytest.mark.parametrize("wrong", [{"rank": 2}, {"rank": -1}, {"rank": 0, "place": 99}])
def test_faults_that_cannot_be(wrong):
    with pytest.raises(UsageError):
        Job(data=2).run(faults=[Fault("stop", **wrong)])


@pytest.mark.parametrize("name", tt_diagnose.__all__)
def test_public_names(name):
    assert getattr(tt_diagnose, name).__doc__
    assert name in dir(tt_diagnose)
