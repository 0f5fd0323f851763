"""Ways to train that take turns on the ranks of a process group, so that what slows the machine slows all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch.distributed as dist

from trimtab.comm import counters


class Turn(NamedTuple):
    """What a turn of one way took on this rank, a step."""

    seconds: float
    cpu_seconds: float
    sent_bytes: float
    """Counted by the interface."""


def take_turns(
    steps: Mapping[str, Callable[[], Any]], num_rounds: int, num_steps: int, num_warm_up: int
) -> dict[str, list[Turn]]:
    """Let each way take `num_steps` steps a round, in an order drawn anew, after a turn of `num_warm_up` untimed ones.

    All ranks take part, and begin and end each turn together. `steps` has what takes a step in each way.
    """
    turns: dict[str, list[Turn]] = {way: [] for way in steps}
    for number in range(-1, num_rounds):
        for way in random.Random(number).sample(list(steps), len(steps)):
            dist.barrier()
            before, begun, busy = counters.read(), time.perf_counter(), time.process_time()
            for _ in range(num_steps if number >= 0 else num_warm_up):
                steps[way]()
            dist.barrier()
            seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - busy
            sent = (counters.read() - before).sent_bytes
            if number >= 0:
                turns[way].append(Turn(seconds / num_steps, cpu_seconds / num_steps, sent / num_steps))
    return turns
