"""Slots that ranks share: who comes, who is refused, who is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from trimtab.data import Field
from trimtab.data.pool import SharedSlots
from trimtab.errors import BackendUnavailable, PeerFailed, SettingsDiffer

FIELDS = {"x": Field((3,), np.dtype("f4")), "y": Field((), np.dtype("i8"))}


def come(name: str, num_ranks: int = 3, *, identities=("same",) * 3, ranks=None, **settings):
    """Return what each rank gets: slots, or an error."""

    def one(rank: int):
        try:
            return SharedSlots(
                FIELDS, settings.get("num_slots", 5), local_rank=rank, num_ranks=num_ranks, name=name,
                identity=identities[rank], timeout=settings.get("timeout", 10),
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 (the test looks at it)
            return error

    with ThreadPoolExecutor(num_ranks) as threads:
        return list(threads.map(one, range(num_ranks) if ranks is None else ranks))


def test_what_one_writes_all_read():
    first, second, third = come("write")
    assert first.rows["x"].shape == (5, 3)
    second.rows["x"][4] = [1, 2, 3]
    second.rows["y"][0] = -7
    assert third.rows["x"][4].tolist() == [1, 2, 3]
    assert first.rows["y"].tolist() == [-7, 0, 0, 0, 0]
    for slots in (first, second, third):
        slots.close()


def test_steps_are_waited_for():
    ranks = come("steps")
    order = []

    def lag() -> None:
        time.sleep(0.2)
        order.append("taken")
        ranks[2].taken(0)

    ranks[0].taken(0)
    ranks[1].taken(0)
    thread = threading.Thread(target=lag)
    thread.start()
    ranks[0].before_writing(0)
    order.append("writes")
    thread.join()
    assert order == ["taken", "writes"]
    for slots in ranks:
        slots.written(0)
    ranks[1].before_reading(1)
    ranks[2].close()
    with pytest.raises(PeerFailed, match="rank 2 of this node has closed its loader and has not taken step 1"):
        for slots in ranks[:2]:
            slots.taken(1)
        ranks[0].before_writing(1)


def test_ranks_that_do_not_come():
    (found,) = come("alone", ranks=[0], timeout=0.3)
    assert isinstance(found, PeerFailed)
    assert "ranks [1, 2] of this node did not come" in str(found)
    (found,) = come("alone", ranks=[1], timeout=0.3)
    assert isinstance(found, PeerFailed)
    assert "rank 0 of this node did not come" in str(found)


def test_ranks_with_other_settings_are_refused():
    found = come("other", 2, identities=("same", "not the same"), timeout=2)
    assert all(isinstance(error, SettingsDiffer) for error in found)


def test_a_name_is_of_one_job():
    waiting = threading.Thread(target=come, args=("twice",), kwargs={"ranks": [0], "timeout": 1})
    waiting.start()
    time.sleep(0.3)
    (found,) = come("twice", ranks=[0], timeout=0.3)
    assert isinstance(found, BackendUnavailable)
    assert "another job of the same name" in str(found)
    waiting.join()


RANK = """
import sys, time, numpy as np
from trimtab.data import Field
from trimtab.data.pool import SharedSlots
slots = SharedSlots({"x": Field((3,), np.dtype("f4"))}, 5, local_rank=1, num_ranks=2, name=sys.argv[1], identity="",
                    timeout=20)
print("came", flush=True)
time.sleep(60)
"""


def test_a_killed_rank_is_noticed():
    name = f"killed {os.getpid()}"
    with subprocess.Popen([sys.executable, "-c", RANK, name], stdout=subprocess.PIPE) as process:
        fields = {"x": Field((3,), np.dtype("f4"))}
        slots = SharedSlots(fields, 5, local_rank=0, num_ranks=2, name=name, identity="", timeout=20)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        slots.taken(0)
        begun = time.monotonic()
        with pytest.raises(PeerFailed, match=r"rank 1 of this node \(process \d+\) is gone"):
            slots.before_writing(0)
        assert time.monotonic() - begun < 20


def test_one_that_waits_can_be_stopped():
    with pytest.raises(InterruptedError):
        SharedSlots(FIELDS, 5, local_rank=1, num_ranks=2, name="stopped", identity="", timeout=60, stopped=lambda: True)
