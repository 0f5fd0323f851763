"""What one rank of the test of `bench.sharded_ways` does: ``python -m tests.bench.ways_ranks``."""

from __future__ import annotations

import torch
import torch.distributed as dist

from bench.sharded_ranks import losses, steps
from bench.sharded_runs import SCALES
from bench.sharded_ways import WAYS
from tests.dist.launch import leave

EXACT = ("stock", "stock, resharding", "exact, flat", "exact, two levels")
PACKED = ("qW", "TLq", "ZeRO++-style", "SDP4Bit", "TLq-HS", "qWD")
AUTO = "SDP4Bit, auto"
REPLICATED = ("DDP", "DDP, fp16 hook", "DDP, PowerSGD", "DDP, SDP4Bit")


def main() -> None:
    assert {*EXACT, *PACKED, *REPLICATED, AUTO} == WAYS.keys()
    found = {way: losses(way, SCALES["small"], seed=0, num_steps=3) for way in (*EXACT, *PACKED)}
    exact = found["stock"]
    assert exact["validation"] < 5.4
    for way, results in found.items():
        assert results["identical"], way
        assert (results["digests"] == exact["digests"]) == (way in EXACT), way
        assert abs(results["validation"] / exact["validation"] - 1) < 0.02, way
    assert losses("SDP4Bit", SCALES["small"], seed=0, num_steps=2)["digests"] == found["SDP4Bit"]["digests"][:3]

    timed = steps([*REPLICATED, "stock", "SDP4Bit", AUTO], SCALES["small"], num_rounds=2, num_steps=1)
    sent = {way: sum(map(sum, rounds)) for way, rounds in timed["sent"].items()}
    half = sent["DDP, fp16 hook"]
    # a third of the small model's gradients belongs to parameters that stay exact
    assert 0 < sent["SDP4Bit"] < 0.5 * half and 0 < sent["DDP, SDP4Bit"] < 0.65 * half, sent
    assert 1.8 * half < sent["DDP"] < sent["stock"], sent
    assert all(len(seconds) == 2 for seconds in timed["seconds"].values())


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
    leave()
