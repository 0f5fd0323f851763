"""The loader: batches are those of a DistributedSampler, reads are those of the plan, and it goes on anywhere."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from contextlib import ExitStack, closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.numbered import Numbered, check
from trimtab import waiting
from trimtab.data import SOLAR, Field, Tally
from trimtab.data.plan import STORE
from trimtab.data.tally import tallies
from trimtab.errors import PeerFailed, Truncated, UsageError

SMALL = {"tensors": False, "num_threads": 2, "look_ahead": 3}


def loaders(store, num_ranks: int, batch_size: int, **settings):
    """Return a loader for each rank."""
    settings = {"buffer": 0, "epochs": 2, **SMALL, **settings}
    return [
        SOLAR(store, batch_size // num_ranks, num_ranks=num_ranks, rank=rank, **settings) for rank in range(num_ranks)
    ]


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("trimtab")]


def steps(ranks, until=None):
    """Yield (epoch, step, samples of each rank) as the ranks go on together, until a position."""
    with ExitStack() as opened:
        for loader in ranks:
            opened.enter_context(closing(loader))
        while ranks[0].state_dict()["epoch"] < ranks[0].plan.num_epochs:
            for batches in zip(*ranks, strict=True):
                for batch, loader in zip(batches, ranks, strict=True):
                    check(batch, loader.samples)
                assert len({(loader.epoch, loader.step) for loader in ranks}) == 1
                yield ranks[0].epoch, ranks[0].step, [loader.samples for loader in ranks]
                state = ranks[0].state_dict()
                if (state["epoch"], state["step"]) == until:
                    return


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_global_batches_are_those_of_a_distributed_sampler(num_ranks, drop_last):
    data = pytest.importorskip("torch.utils.data")
    store = Numbered(203)
    samplers = [
        data.DistributedSampler(range(203), num_ranks, rank, seed=5, drop_last=drop_last) for rank in range(num_ranks)
    ]
    ranks = loaders(store, num_ranks, 16, epochs=3, buffer="60%", seed=5, drop_last=drop_last)
    num_steps = 0
    for epoch, step, samples in steps(ranks):
        theirs = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            batches = data.BatchSampler(sampler, 16 // num_ranks, drop_last)
            theirs += next(itertools.islice(batches, step, None))
        assert Counter(np.concatenate(samples).tolist()) == Counter(theirs)
        num_steps += 1
    assert num_steps == 3 * len(ranks[0])


jobs = st.fixed_dictionaries(
    {
        "num_samples": st.integers(1, 70),
        "batch": st.integers(1, 4),
        "num_ranks": st.sampled_from([1, 2, 3, 4]),
        "later_ranks": st.sampled_from([1, 2, 4, 6]),
        "held": st.floats(0, 1.2),
        "drop_last": st.booleans(),
        "seed": st.integers(0, 99),
        "kill": st.integers(0, 10**6),
        "is_quick": st.booleans(),
    }
)


@settings(deadline=None, max_examples=100)
@given(jobs)
def test_a_killed_training_goes_on_with_the_same_batches(job):
    """With any number of ranks; no sample is lost or doubled, and reads are those that the plan counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.data.prefetch._WAIT", 1.0 if job["is_quick"] else -1.0)
        _go_on(job)


def _go_on(job) -> None:
    num_samples, num_ranks, later_ranks = job["num_samples"], job["num_ranks"], job["later_ranks"]
    size = 12 * job["batch"]
    drop_last = job["drop_last"] and size <= num_samples
    store = Numbered(num_samples)

    def start(ranks: int) -> list[SOLAR]:
        held = int(job["held"] * num_samples / ranks)
        kept = {"buffer": f"{held + 8 * size // ranks} samples" if held else 0, "epochs": 3}
        if held * ranks > 0.9 * num_samples and ranks > 1:
            kept["batch_slack"] = size // ranks - 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # that nothing is lent
            return loaders(store, ranks, size, seed=job["seed"], drop_last=drop_last, **kept)

    ranks = start(num_ranks)
    plan = ranks[0].plan
    shuffle, total = plan.shuffle, 3 * plan.num_steps
    position = divmod(job["kill"] % total, plan.num_steps)
    found = {}
    if position > (0, 0):
        found = {(epoch, step): samples for epoch, step, samples in steps(ranks, until=position)}
    state = ranks[0].state_dict()
    store.reads.clear()
    again = start(later_ranks)
    for loader in again:
        loader.load_state_dict(state)
    later = {(epoch, step): samples for epoch, step, samples in steps(again)}
    assert [*found, *later] == [(e, s) for e in range(3) for s in range(len(ranks[0]))]
    for (epoch, step), samples in {**found, **later}.items():
        mine = shuffle if (epoch, step) < position else again[0].plan.shuffle
        theirs = mine.samples(epoch)[mine.offsets[step] : mine.offsets[step + 1]]
        assert Counter(np.concatenate(samples).tolist()) == Counter(theirs.tolist())
        first = shuffle.samples(epoch)[:num_samples][step * size : (step + 1) * size]
        assert not Counter(first.tolist()) - Counter(np.concatenate(samples).tolist())
    assert store.reads.total() == planned_reads(again[0].plan, position)


def planned_reads(plan, start) -> int:
    """Count what ranks that lend nothing read from a position on, with cold buffers."""
    ranks, per_node, reads = [plan.rank(rank, start=start) for rank in range(plan.num_ranks)], plan.ranks_per_node, 0
    cold = [{*planned.expected[0].tolist()} for planned in ranks[::per_node]]
    for planned in zip(*ranks, strict=True):
        for rank, step in enumerate(planned):
            reads += int((step.source == STORE).sum() + (step.lender >= 0).sum())
            held = {*step.samples[step.slot >= 0].tolist(), *step.lent.tolist()}
            reads += len(cold[rank // per_node] & held)
            cold[rank // per_node] -= held
    return reads


@pytest.mark.parametrize("held", [0, 0.1, 0.5, 0.8])
def test_reads_are_those_of_the_plan(held):
    store = Numbered(2000)
    slots = int(held * 500)
    ranks = loaders(store, 4, 32, epochs=4, buffer=f"{slots + max(16, slots // 7) + 16} samples" if held else 0)
    for _ in steps(ranks):
        pass
    counted = sum(tallies(ranks[0].plan), Tally())
    assert store.reads.total() == sum(loader.report["samples_read"] for loader in ranks)
    assert store.reads.total() == counted.num_reads + counted.num_sent
    assert abs(ranks[0].plan.num_slots - slots) <= 0.1 * slots
    assert counted.num_sent == 0 or held > 0.5


def test_what_is_seldom_held_is_read_where_ranks_cannot_lend():
    store = Numbered(640)
    with pytest.warns(UserWarning, match="would lend them to others"):
        ranks = loaders(store, 2, 32, epochs=4, buffer="200%")
    for _ in steps(ranks):
        pass
    counted = sum(tallies(ranks[0].plan), Tally())
    assert counted.num_sent > 0
    assert store.reads.total() == counted.num_reads + counted.num_sent


def together(ranks, checks) -> None:
    """Let each rank run in a thread of its own, as processes would."""
    errors = []

    def run(loader) -> None:
        try:
            while loader.state_dict()["epoch"] < loader.plan.num_epochs:
                for batch in loader:
                    check(batch, loader.samples)
                    checks(loader)
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)
            loader.close()

    threads = [threading.Thread(target=run, args=(loader,)) for loader in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("per_node", [2, 4])
@pytest.mark.parametrize("start", [(0, 0), (1, 7)])
def test_ranks_of_a_node_share_their_slots(per_node, start):
    store = Numbered(600, width=700)  # copied row by row, unlike the numbers
    ranks = loaders(
        store, 4, 32, epochs=4, buffer="88%", ranks_per_node=per_node, job=f"nodes {per_node} {start}", timeout=30
    )
    for loader in ranks:
        loader.load_state_dict(loader.state_dict() | dict(zip(("epoch", "step"), start, strict=True)))
    seen: dict[tuple[int, int], list[np.ndarray]] = {}
    lock = threading.Lock()

    def note(loader) -> None:
        with lock:
            seen.setdefault((loader.epoch, loader.step), []).append(loader.samples)

    together(ranks, note)
    shuffle = ranks[0].plan.shuffle
    assert sorted(seen) == [(e, s) for e in range(4) for s in range(len(ranks[0])) if (e, s) >= start]
    for (epoch, step), samples in seen.items():
        theirs = shuffle.samples(epoch)[shuffle.offsets[step] : shuffle.offsets[step + 1]]
        assert sorted(np.concatenate(samples).tolist()) == sorted(theirs.tolist())
    assert store.reads.total() == planned_reads(ranks[0].plan, start) < (3 - start[0]) * 600
    assert not running()


def test_a_rank_of_a_node_that_lags_is_named():
    store = Numbered(600)
    ranks = loaders(store, 2, 32, epochs=4, buffer="88%", ranks_per_node=2, job="lag", timeout=4)
    first = iter(ranks[1])

    def start() -> None:
        next(first)

    thread = threading.Thread(target=start)
    thread.start()
    with pytest.raises(PeerFailed, match="rank 1 of this node .* has not (taken|written)"):
        for _ in ranks[0]:
            pass
    thread.join()
    ranks[1].close()
    assert not running()


def test_augmentation_depends_on_the_sample_and_the_epoch_alone():
    def noise(sample, random):
        return {"number": sample["number"], "noise": random.random(2)}

    found = []
    for num_ranks in (1, 2, 4):
        ranks, drawn = loaders(Numbered(100), num_ranks, 12, seed=3, buffer="70%", transform=noise), {}
        for epoch in range(2):
            for batches in zip(*ranks, strict=True):
                for batch in batches:
                    numbers, values = batch["number"].tolist(), map(tuple, batch["noise"].tolist())
                    drawn.update(zip(((epoch, number) for number in numbers), values, strict=True))
        found.append(drawn)
    assert found[0] == found[1] == found[2]
    assert len({*found[0].values()}) == 200


def test_what_a_training_does_to_batches_stays_there():
    for transform in (None, lambda sample, random: sample):
        loader = SOLAR(Numbered(90), 9, 4, "90 samples", transform=transform, **SMALL)
        for _ in range(4):
            for batch in loader:
                check(batch, loader.samples)
                batch["x"][:] = -1
                batch["number"][:] = -1


def test_collation_of_ones_own():
    loader = SOLAR(Numbered(20), 5, 1, 0, collate=lambda samples: [int(s["number"]) for s in samples], **SMALL)
    for batch in loader:
        assert batch == loader.samples.tolist()


def test_two_loaders_at_once():
    pairs = [loaders(Numbered(100), 1, 10, buffer="50%", seed=seed)[0] for seed in (0, 1)]
    orders = [[], []]
    for batches in zip(*pairs, strict=True):
        for order, batch, loader in zip(orders, batches, pairs, strict=True):
            check(batch, loader.samples)
            order += batch["number"].tolist()
    assert sorted(orders[0]) == sorted(orders[1]) == [*range(100)]
    assert orders[0] != orders[1]
    for loader in pairs:
        loader.close()
    assert not running()


def test_an_epoch_left_early_is_gone_on_with():
    loader = loaders(Numbered(100), 1, 10, buffer="50%")[0]
    seen = []
    for _ in loader:
        seen += loader.samples.tolist()
        if loader.step == 3:
            break
    loader.set_epoch(0)
    with pytest.raises(UsageError, match="epoch 0 comes next, from step 4 of 10 on, not epoch 1"):
        loader.set_epoch(1)
    for _ in loader:
        seen += loader.samples.tolist()
    assert sorted(seen) == [*range(100)]
    assert loader.epoch == 1
    loader.set_epoch(1)
    assert len([*loader]) == len(loader) == 10
    assert not running()
    with pytest.raises(UsageError, match="all 2 epochs are over"):
        next(iter(loader))


def test_errors_of_threads_reach_the_training():
    loader = loaders(Numbered(100, fails_at=42), 1, 10, buffer="50%")[0]
    with pytest.raises(OSError, match="the disk is gone"):
        for _ in loader:
            pass
    assert not running()
    loader.store.fails_at = None
    state = loader.state_dict()
    assert len([*loader]) == 10 - state["step"]
    loader.close()

    def spoil(sample, random):
        raise ZeroDivisionError("in a transform")

    loader = loaders(Numbered(100), 1, 10, transform=spoil)[0]
    with pytest.raises(ZeroDivisionError, match="in a transform"):
        next(iter(loader))
    assert not running()


def test_slow_stores_are_read_ahead_and_quick_ones_when_a_batch_is_made(monkeypatch):
    monkeypatch.setattr("trimtab.data.prefetch._WAIT", 5e-4)
    store = Numbered(1000)
    loader = loaders(store, 1, 10, epochs=3, buffer="50%")[0]
    for batch in loader:
        check(batch, loader.samples)
    assert "trimtab-batches" in store.readers
    store.seconds = 0.02
    for batch in loader:  # what is known ahead is still read in the old way
        check(batch, loader.samples)
    store.readers.clear()
    for batch in loader:
        check(batch, loader.samples)
    assert store.readers
    assert "trimtab-batches" not in store.readers


def test_threads_end_with_the_loader():
    loader = loaders(Numbered(1000, seconds=0.05), 1, 10, buffer="50%")[0]
    for _ in loader:
        break
    assert running()
    begun = time.monotonic()
    del loader
    assert not running()
    assert time.monotonic() - begun < 20


def script(body: str) -> str:
    return f"""
import sys, time
sys.modules["torch"] = None
from tests.data.numbered import Numbered, check
import trimtab as tt
{body}
"""


def test_without_torch_and_at_the_end_of_a_process():
    body = """
loader = tt.data.SOLAR(Numbered(100, seconds=0.01), 10, 3, "50%", num_threads=2)
for batch in loader:
    check(batch, loader.samples)
for batch in loader:
    break
print("left")
"""
    done = subprocess.run([sys.executable, "-c", script(body)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_a_keyboard_interrupt_ends_it():
    body = """
loader = tt.data.SOLAR(Numbered(100, seconds=3), 10, 3, "50%", num_threads=1)
print("begun", flush=True)
for batch in loader:
    pass
"""
    with subprocess.Popen(
        [sys.executable, "-c", script(body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(1)
        begun = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert said.splitlines()[-1] == "KeyboardInterrupt"


def test_importing_it_is_light():
    code = "import sys, trimtab.data as d; d.SOLAR, d.BatchSampler; print(*({'torch', 'numba'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_memory_stays_within_the_buffer():
    store, budget = Numbered(2000, width=16384), 20 * 2**20
    loader = SOLAR(store, 16, 2, budget, **SMALL)
    assert 0.95 * budget < loader.report["slot_bytes"] + loader.report["read_ahead_bytes"] <= budget
    next(iter(loader))  # planning has made its tables
    loader.close()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(2):
        for batch in loader:
            check(batch, loader.samples)
    most = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    batch = 16 * 65536
    assert most < budget + 3 * batch + 2**20  # the training's batch, and what checking it takes


def test_waiting_is_counted():
    before = waiting.total_seconds()
    loader = loaders(Numbered(40, seconds=0.05), 1, 10)[0]
    for _ in loader:
        pass
    assert waiting.total_seconds() - before > 0.05
    loader.close()


def test_state_of_another_training_is_refused():
    state = loaders(Numbered(100), 2, 12)[0].state_dict()
    for changes, words in (
        ({"seed": 1}, "seed: 1 here, 0 there"),
        ({"drop_last": True}, "drop_last: True here, False there"),
    ):
        with pytest.raises(UsageError, match=words):
            loaders(Numbered(100), 2, 12, **changes)[0].load_state_dict(state)
    with pytest.raises(UsageError, match=r"samples in a step of all ranks: 24 here, 12 there \(batch_size=3 with"):
        loaders(Numbered(100), 4, 24)[0].load_state_dict(state)
    with pytest.raises(UsageError, match="samples: 90 here, 100 there"):
        loaders(Numbered(90), 2, 12)[0].load_state_dict(state)
    loader = loaders(Numbered(100), 3, 12)[0]
    loader.load_state_dict(state)
    loader.load_state_dict(state | {"epoch": 2})
    for wrong in ({"epoch": 3}, {"step": 9}, {"step": -1}, {"epoch": 2, "step": 1}, {"epoch": "1"}):
        with pytest.raises(UsageError, match="there is no step"):
            loader.load_state_dict(state | wrong)
    for wrong in ({}, {"stream": 1}, state | {"stream": "x", "plan": {"num_samples": -1}}, [1]):
        with pytest.raises(UsageError, match="not the state"):
            loader.load_state_dict(wrong)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"buffer": "much"}, "is not a size"),
        ({"buffer": "20 samples"}, "takes 48"),
        ({"buffer": 100}, "holds 5 samples of 20 bytes"),
        ({"num_threads": 0}, "num_threads must be at least 1"),
        ({"num_ranks": 2}, "both num_ranks and rank"),
        ({"num_ranks": 2, "rank": 2}, "rank must be from 0 to 1"),
        ({"num_ranks": 2, "rank": 0, "ranks_per_node": 2, "buffer": "50%"}, "give job="),
        ({"epochs": 0}, "num_epochs must be"),
    ],
)
def test_mistakes(settings, words, monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UsageError, match=words):
        SOLAR(Numbered(1000), **{"batch_size": 12, "buffer": 0, **SMALL, **settings})


def test_ranks_must_be_known(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="one of 4 processes, as WORLD_SIZE says"):
        SOLAR(Numbered(100), 10, 2, 0, **SMALL)
    assert SOLAR(Numbered(100), 10, 2, 0, num_ranks=1, rank=0, **SMALL).plan.num_ranks == 1


def test_files_that_are_cut_short_while_they_are_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "scans.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.repeat(np.arange(200, dtype="f4")[:, None], 1024, axis=1)
        file["number"] = np.arange(200)
    loader = SOLAR(f"{path}::x,number", 10, 3, "50%", **SMALL)
    for batch in loader:
        check(batch, loader.samples)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(Truncated, match=r"scans.h5 was cut short"):
        for batch in loader:
            check(batch, loader.samples)
    assert not running()
    with pytest.raises(UsageError, match="is no store"):
        SOLAR(object())


def test_tensors():
    torch = pytest.importorskip("torch")
    loader = SOLAR(Numbered(20), 5, 1, 0)
    for batch in loader:
        assert batch["x"].dtype == torch.float32
        assert torch.equal(batch["number"], torch.as_tensor(loader.samples, dtype=torch.int64))
    store = Numbered(20)
    store.fields = {"x": Field((3,), np.dtype("V7"))}
    with pytest.raises(UsageError, match="torch has no tensors of"):
        SOLAR(store, 5, 1, 0)
    with pytest.warns(UserWarning, match="pin_memory needs") if not torch.cuda.is_available() else ExitStack():
        SOLAR(Numbered(20), 5, 1, 0, pin_memory=True)
