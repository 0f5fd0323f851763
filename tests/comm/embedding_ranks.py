"""What one rank of the tests of the embedding exchange does: ``python -m tests.comm.embedding_ranks WHAT FOLDER``."""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.distributed as dist

import trimtab.comm.embedding
from tests.dist.launch import join
from trimtab.bounds import Abs, Lossless, Rel
from trimtab.comm import EmbeddingExchange
from trimtab.comm.topology import all_to_all_bytes
from trimtab.comm.wire import HEADER_BYTES, message_bytes
from trimtab.errors import PayloadError, PeerFailed, SettingsDiffer, ShapeError, UsageError

OWNERS, COLUMNS = [0, 2, 0, 1, 2], [16, 8, 3, 16, 32]
"""Of four ranks, the last owns nothing."""


def tables() -> list[torch.Tensor]:
    """All tables, as their owners have them."""
    return [
        torch.randn(50, width, generator=torch.Generator().manual_seed(k)) * 0.05 for k, width in enumerate(COLUMNS)
    ]


def wanted(rank: int, step: int) -> list[torch.Tensor]:
    """The rows of each table that a rank asks for: of one table none, in some steps."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    num_rows = [40 + 7 * rank, 3, 0 if step % 2 else 11, 200, 64]
    return [torch.randint(0, 50, (num,), generator=generator) for num in num_rows]


def exchange(attached, step: int, weights: list[torch.Tensor], dtype=torch.float32) -> list[torch.Tensor]:
    """Look up what all ranks ask for in the own tables, and return what this rank asked for."""
    rank, size = dist.get_rank(), dist.get_world_size()
    everyone = [wanted(other, step) for other in range(size)]
    own = attached.own_tables
    looked_up = [weights[t][torch.cat([ids[t] for ids in everyone])].to(dtype) for t in own]
    send_rows = [[ids[t].numel() for ids in everyone] for t in own]
    return attached(looked_up, send_rows, [ids.numel() for ids in everyone[rank]])


def owners() -> list[int]:
    return [owner % dist.get_world_size() for owner in OWNERS]


def check(settings: EmbeddingExchange, limit, steps: int = 2, dtype=torch.float32, slack: float = 0.0):
    """Check what comes, and what goes back, over some steps; return the exchange."""
    rank, size = dist.get_rank(), dist.get_world_size()
    attached = settings(owners(), COLUMNS, dtype=dtype)
    for step in range(steps):
        weights = [table.clone().requires_grad_() for table in tables()]
        received = exchange(attached, step, weights, dtype)
        meant = [table[ids] for table, ids in zip(tables(), wanted(rank, step), strict=True)]
        for t, (x, y) in enumerate(zip(meant, received, strict=True)):
            x, y = x.to(dtype), y.detach()
            assert x.shape == y.shape and y.dtype == dtype
            if limit(t, step) == 0 or owners()[t] == rank:
                assert torch.equal(x, y), t
            else:
                assert float((x.double() - y.double()).abs().max() if x.numel() else 0) <= limit(t, step), (t, step)
        sum((y.float() * (t + 1 + rank)).sum() for t, y in enumerate(received)).backward()
        for t in attached.own_tables:
            expected = torch.zeros_like(weights[t])
            for other in range(size):
                ids = wanted(other, step)[t]
                expected.index_add_(0, ids, torch.full((ids.numel(), COLUMNS[t]), float(t + 1 + other)))
            assert torch.allclose(weights[t].grad, expected, atol=1e-4 + slack * 40 * size), t
    assert attached.step == steps
    return attached


def values() -> None:
    """Bounds hold on all ranks, in every direction, encoder and dtype; what is exact is exact."""
    fast = {"bandwidth": 1e5, "latency": 0.0}  # a link on which packing pays for a few rows
    attached = check(EmbeddingExchange(bound=Abs(0.01), **fast), lambda t, step: 0.01)
    if dist.get_world_size() > 1:
        assert attached.report["packing"] == {"forward": True, "backward": False}
        forward = attached.report["tables"]["forward"]
        assert sorted(forward) == attached.own_tables
        sent = {t: (table["encoded_bytes"], table["exact_bytes"]) for t, table in forward.items()}
        assert all(2 * packed < exact for t, (packed, exact) in sent.items() if t in (0, 3, 4)), sent
        assert attached.report["operations"]["all_to_all"]["exact_bytes"] > 0
        assert "-> " in repr(attached)
    check(EmbeddingExchange(bound=Lossless()), lambda t, step: 0)
    check(EmbeddingExchange(bound=Abs(0.01), bandwidth=1e12), lambda t, step: 0)  # packing would not pay
    for encoder in ("exact", "unique", "entropy", "vector_lz", "dedup"):
        lossless = encoder in ("exact", "unique")
        check(
            EmbeddingExchange(bound=Abs(0.01), encoder=encoder, **fast), lambda t, step, a=lossless: 0 if a else 0.01, 1
        )
    check(EmbeddingExchange(bound=Abs(0.01), **fast), lambda t, step: 0.01, 1, torch.bfloat16)
    check(EmbeddingExchange(bound=Abs(0.01), backward_bound=Abs(0.02), **fast), lambda t, step: 0.01, 2, slack=0.02)
    spans = [float(table.max() - table.min()) for table in tables()]
    check(
        EmbeddingExchange(bound=Rel(0.01), backward_bound=Rel(1e-3), **fast),
        lambda t, step: 0.01 * spans[t],
        2,
        slack=1e-3,
    )
    early = EmbeddingExchange(bound=Abs(0.005), early_factor=4, early_steps=3, every=2, schedule="linear", **fast)
    check(early, lambda t, step: 0.005 * max(4 - step, 1), 4)
    classes = EmbeddingExchange(bound=Abs(0.5), class_factors=(0.01, 1, 2), **fast)
    attached = check(classes, lambda t, step: 0.005)  # within the bound whole tables fall together
    kinds = {table["class"] for table in attached.report["tables"]["forward"].values()}
    assert kinds <= {"tighten"} and (kinds or not attached.own_tables or dist.get_world_size() == 1)


def modes() -> None:
    """Evaluation counts no steps and keeps no graph; what comes repeats to the last bit; no global RNG is touched."""
    settings = EmbeddingExchange(bound=Abs(0.01), bandwidth=1e5)
    state = torch.get_rng_state()
    found = []
    for _ in range(2):
        attached = settings(owners(), COLUMNS)
        with torch.no_grad():
            found.append(exchange(attached, 0, tables()))
        assert attached.step == 0 and not found[-1][0].requires_grad
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    nothing = [torch.zeros(0, COLUMNS[t]) for t in attached.own_tables]
    for wrong, error in (
        (lambda: EmbeddingExchange(bound=Abs(0.01))([7], 4), UsageError),
        (lambda: EmbeddingExchange(every=0), UsageError),
        (lambda: attached([torch.zeros(1, 1)], [[1]], []), ShapeError),
        (lambda: attached(nothing, [[0]] * len(nothing), []), ShapeError),
    ):
        try:
            wrong()
        except error:
            continue
        raise AssertionError(error)


def settings_differ() -> None:
    try:
        EmbeddingExchange(bound=Abs(0.01 if dist.get_rank() else 0.02))(owners(), COLUMNS)
    except SettingsDiffer as error:
        assert "0.02" in str(error)
    else:
        raise AssertionError("settings that differ")


def damage() -> None:
    """A payload that is intact as a message, but holds something else: `PayloadError` there, `PeerFailed` elsewhere."""
    attached = EmbeddingExchange(bound=Abs(0.01), bandwidth=1e5, latency=0.0)(owners(), COLUMNS)
    rank = dist.get_rank()
    pack = attached._ways["forward"].pack

    def hostile(*arguments):
        payloads = pack(*arguments)
        if rank == 0:
            payloads[1][0] ^= np.uint8(255)  # the size of a slice
        return payloads

    attached._ways["forward"].pack = hostile
    try:
        exchange(attached, 0, tables())
        exchange(attached, 0, tables())
    except PayloadError as error:
        assert rank == 1 and "rank 0" in str(error), error
    except PeerFailed as error:
        assert rank != 1 and "rank 1: PayloadError" in str(error), error
    else:
        raise AssertionError("no error")


def flipped() -> None:
    """A bit that flips on the way."""
    attached = EmbeddingExchange(bound=Abs(0.01), bandwidth=1e5, latency=0.0)(owners(), COLUMNS)
    rank = dist.get_rank()

    def noisy(output, input, group, *sizes):
        all_to_all_bytes(output, input, group, *sizes)
        if rank == 1 and output.numel() > 4 * message_bytes(8):  # no message of sizes
            output[HEADER_BYTES + 20] ^= 4  # in what rank 0 sends

    trimtab.comm.exchange.all_to_all_bytes = noisy
    try:
        exchange(attached, 0, tables())
        exchange(attached, 0, tables())
    except PayloadError as error:
        assert rank == 1 and "checksum" in str(error), error
    except PeerFailed as error:
        assert rank != 1 and "rank 1: PayloadError" in str(error), error
    else:
        raise AssertionError("no error")


def main() -> None:
    what, folder = sys.argv[1], sys.argv[2]
    for name in what.split("+"):
        join(name, folder, 6 if name in ("damage", "flipped") else 60)
        globals()[name]()
        try:
            dist.destroy_process_group()
        except RuntimeError:
            continue  # the group is broken, as it was meant to be


if __name__ == "__main__":
    main()
