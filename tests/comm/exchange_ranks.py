"""What one rank of the tests of exchanges does: ``python -m tests.comm.exchange_ranks WHAT FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
import xxhash
from torch.distributed.device_mesh import init_device_mesh

import trimtab.comm.exchange
from tests.dist.launch import join
from trimtab.codecs.sdp4bit import Groups
from trimtab.comm import Exchange, Layout, Meter, Noise, Topology
from trimtab.comm.topology import timeout_of
from trimtab.errors import CommError, PayloadError, PeerFailed, SettingsDiffer, UsageError

TIMEOUT = 6.0  # of the groups that are to break; the others wait longer, since ranks notice at different times
PATIENCE = 60.0
NOISE = Noise(seed=3, rank=0, step=5, bucket=1)


def data(rank: int, num: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(100 + rank)).to(dtype)


def assert_equal_on_all(x: torch.Tensor, group: dist.ProcessGroup | None = None) -> None:
    """Check that all ranks hold the same bits."""
    mine = x.contiguous().view(torch.uint8)
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_of_them, mine, group=group)
    assert all(torch.equal(mine, other) for other in all_of_them)


def fails(kind: type[CommError], do: Callable[[], object]) -> str:
    """Check that `do` raises an error of this kind, within the timeout and a grace, and return what it says."""
    start = time.monotonic()
    try:
        do()
    except CommError as error:
        assert type(error) is kind, f"{type(error).__name__}: {error}"
        assert time.monotonic() - start < TIMEOUT + 45
        print(f"{type(error).__name__}: {error}")
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def topologies() -> None:
    """Divisions by number, by mesh, by environment, and those that cannot be."""
    size = dist.get_world_size()
    halves = Topology(nodes=2)
    assert halves.members == ((0, 1), (2, 3)) and halves.two_level
    assert (halves.node_index, halves.local_rank) == divmod(dist.get_rank(), 2)
    assert Topology(nodes=2).intra is halves.intra, "groups are made once"
    assert Topology(nodes=1).inter is None and Topology(nodes=1).intra is dist.group.WORLD
    assert halves.flat().members == ((0,), (1,), (2,), (3,)) and halves.flat().intra is None
    patience, store = timedelta(seconds=PATIENCE), dist.group.WORLD.get_group_store()
    assert halves.timeout == store.timeout == patience, "watching for failures leaves the store's as it was"
    hasty = dist.new_group(timeout=timedelta(seconds=9))
    assert Topology(hasty).timeout == timedelta(seconds=9)
    assert timeout_of(SimpleNamespace(), halves.device, store) == patience, "without torch's private way"
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("inter", "intra"))
    assert Topology(nodes=mesh).members == halves.members
    columns = Topology(mesh.get_group("inter"))
    assert columns.size == 2 and not columns.two_level
    for nodes in (3, 0, size + 1):
        try:
            Topology(nodes=nodes)
        except UsageError as error:
            assert "nodes" in str(error)
        else:
            raise AssertionError(nodes)
    assert Topology().members == halves.flat().members, "nothing says which ranks share a node"
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    assert Topology().members == halves.members
    os.environ["GROUP_RANK"] = str(int(dist.get_rank() == 3))
    assert Topology().members == halves.flat().members, "uneven nodes"
    del os.environ["LOCAL_WORLD_SIZE"], os.environ["GROUP_RANK"]
    text = fails(SettingsDiffer, lambda: Topology(nodes=2 if dist.get_rank() else 4))
    assert "(1, 4)" in text
    same = Topology(nodes=2)
    text = fails(SettingsDiffer, lambda: Exchange(same, f"bits={4 + (dist.get_rank() == 2)}\ngroup=128"))
    assert "bits=4" in text and "bits=5" in text and "group" not in text


def exchanges() -> None:
    """Every collective, exact and packed, flat and in two levels, for many sizes."""
    rank, size = dist.get_rank(), dist.get_world_size()
    before = torch.random.get_rng_state()
    noise = NOISE._replace(rank=rank)
    sums: dict[str, torch.Tensor] = {}
    for nodes in (2, 4, 1):
        exchange = Exchange(Topology(nodes=nodes), f"nodes={nodes}", Meter(sample_every=1))
        for num in (0, 1, 7, 1000, 4099):
            mine = [data(r, size * num) for r in range(size)]
            total = torch.stack(mine).double().sum(0).view(size, num)
            x, y = mine[rank].clone(), torch.empty(num)
            exchange.reduce_scatter(y, x, scale=0.25)
            torch.testing.assert_close(y.double(), total[rank] / 4, rtol=1e-5, atol=1e-6)
            assert torch.equal(x, mine[rank]), "the input is the caller's"
            gathered = torch.full((size * num,), torch.nan)
            gathered.view(size, num)[rank] = y
            exchange.all_gather(gathered, gathered.view(size, num)[rank])
            torch.testing.assert_close(gathered.double(), total.view(-1) / 4, rtol=1e-5, atol=1e-6)
            assert_equal_on_all(gathered)

            codecs = (Groups(bits=8, hadamard=32), Groups(bits=4, hadamard=32))
            parts = (num // 3, "exact"), (0, "exact"), (num - num // 3 - num // 5, "packed"), (num // 5, "exact")
            layout = Layout.of_segments(parts)
            for chosen in (codecs, codecs[0], (codecs[0], Groups(bits=6, group=64)), (None, codecs[1])):
                exchange.reduce_scatter(y, x, chosen, layout=layout, noise=noise)
                for start, stop, exact in layout.runs:
                    error = (y.double() - total[rank])[start:stop].norm() / total[rank][start:stop].norm()
                    assert error < (1e-6 if exact else 0.3), (nodes, num, chosen, exact, error)
                again = torch.empty(num)
                exchange.reduce_scatter(again, x, chosen, layout=layout, noise=noise)
                assert torch.equal(y, again), "the same noise"
                if chosen is codecs:
                    sums[f"{nodes} {num}"] = y
            exchange.all_gather(gathered, mine[rank][:num], codecs[0], layout=layout, noise=noise)
            assert_equal_on_all(gathered)
            for r, row in enumerate(gathered.view(size, num)):
                for start, stop, exact in layout.runs:
                    error = (row - mine[r][:num])[start:stop].norm() / mine[r][start:stop].norm()
                    assert (error == 0) if exact else (stop - start < 32 or error > 0) and error < 0.02

            for gather, bound in ((None, 1e-6), (codecs[0], 0.3)):
                reduced = mine[rank][: num or 1].clone()
                expected = torch.stack([m[: num or 1] for m in mine]).sum(0) if num else reduced
                if num:
                    exchange.all_reduce(reduced, codecs if gather else None, gather=gather, noise=noise)
                    assert_equal_on_all(reduced)
                    assert (reduced - expected).norm() / expected.norm() < bound
            if num > 5:
                reduced = mine[rank][:num].clone()
                exchange.all_reduce(reduced, codecs, gather=codecs[0], layout=layout, noise=noise)
                expected = torch.stack([m[:num] for m in mine]).sum(0)
                for start, stop, exact in layout.runs:
                    error = (reduced - expected)[start:stop].norm() / expected[start:stop].norm()
                    assert error < (1e-6 if exact else 0.3)
        for dtype, bound in ((torch.bfloat16, 0.02), (torch.float16, 0.003)):
            x, y = data(rank, size * 64, dtype), torch.empty(64, dtype=dtype)
            exchange.reduce_scatter(y, x)
            expected = torch.stack([data(r, size * 64, dtype) for r in range(size)]).float().sum(0).view(size, -1)[rank]
            assert (y.float() - expected).norm() / expected.norm() < bound
            gathered = torch.empty(size * 64, dtype=dtype)
            exchange.all_gather(gathered, x[:64])
            assert torch.equal(
                gathered.view(size, -1), torch.stack([data(r, size * 64, dtype)[:64] for r in range(size)])
            )
            exchange.reduce_scatter(y, x, Groups(bits=8), noise=noise)
            assert (y.float() - expected).norm() / expected.norm() < 0.05
        sizes = [(3 * rank + 5 * k) % 11 * 17 for k in range(size)]
        received = exchange.all_to_all(
            [torch.full((n,), 10 * rank + k, dtype=torch.uint8) for k, n in enumerate(sizes)]
        )
        for k, found in enumerate(received):
            assert found.tolist() == [10 * k + rank] * ((3 * k + 5 * rank) % 11 * 17)
        report = exchange.meter.report
        assert report["codec_seconds"] > 0
        between, inside = (
            report["operations"]["reduce_scatter"][f"sent_bytes_{where}_nodes"] for where in ("between", "inside")
        )
        assert (between > 0) == (nodes > 1) and (inside > 0) == (nodes < 4)
        assert 0 < report["normalised_mean_squared_error"]["reduce_scatter"] < 0.05
    assert torch.equal(before, torch.random.get_rng_state()), "the user's generator"
    broken = Exchange(Topology(nodes=2))
    x = torch.ones(size * 512)
    x[rank * 7] = torch.nan if rank == 1 else 1
    y = torch.empty(512)
    broken.reduce_scatter(y, x, (Groups(bits=8), Groups(bits=4)), noise=noise)
    assert y.isnan().any() == (rank == 0), "a broken gradient stays visibly broken"


def repeats() -> None:
    """The bits of packed sums and of a gather, which are the same in every run and on every machine."""
    rank, size = dist.get_rank(), dist.get_world_size()
    exchange = Exchange(Topology(nodes=2))
    x = ((torch.arange(size * 999) * 7919 + rank * 104729) % 65536 - 32768).float() / 4096
    codec, noise = Groups(bits=4, hadamard=32), NOISE._replace(rank=rank)
    y, whole = torch.empty(999), torch.empty(size * 999)
    exchange.reduce_scatter(y, x, codec, noise=noise)
    exchange.all_gather(whole, y, Groups(bits=6), noise=noise)
    digest = xxhash.xxh3_64_hexdigest(whole.numpy().tobytes())
    assert digest == "ed864aa2b82a529f", digest


def faults() -> None:
    """Damaged payloads, and a rank that fails by itself: a clear error on every rank, each in new groups."""
    rank, size = dist.get_rank(), dist.get_world_size()
    send = trimtab.comm.exchange.all_to_all_bytes
    gather = trimtab.comm.exchange.all_gather_bytes

    def scenario(kind: str, nodes: int, do: Callable[[Exchange], object]) -> None:
        """Rank 1 misbehaves; one receiver or all notice, and the others learn of it in their next collective."""
        group = dist.new_group(timeout=timedelta(seconds=TIMEOUT))
        exchange = Exchange(Topology(group, nodes=nodes))
        start = time.monotonic()
        try:
            do(exchange)
            do(exchange)
            raise AssertionError(f"{kind}: no error on rank {rank}")
        except PayloadError as error:
            assert "from rank 1" in str(error) and kind in str(error), error
            print(f"{kind}: {error}")
        except PeerFailed as error:
            assert "PayloadError" in str(error) and "from rank 1" in str(error) and kind in str(error), error
            print(f"{kind}: {error}")
        assert time.monotonic() - start < 2 * TIMEOUT + 45
        trimtab.comm.exchange.all_to_all_bytes = send
        trimtab.comm.exchange.all_gather_bytes = gather
        dist.barrier()

    def reduce(exchange: Exchange) -> None:
        exchange.reduce_scatter(torch.empty(500), data(rank, size * 500), Groups(bits=4, hadamard=32), noise=NOISE)

    def flip(at: int) -> Callable[..., None]:
        def damaged(output, input, *others):
            if rank == 1:
                bad = input.clone()
                bad.view(-1)[at] ^= 4
                input = bad
            send(output, input, *others)

        return damaged

    trimtab.comm.exchange.all_to_all_bytes = flip(100)
    scenario("damaged", 2, reduce)

    def gather_flip(output, input, *others):
        if rank == 1:
            input = input.clone()
            input.view(-1)[77] ^= 128
        gather(output, input, *others)

    trimtab.comm.exchange.all_gather_bytes = gather_flip
    scenario(
        "damaged", 2, lambda e: e.all_gather(torch.empty(size * 300), data(rank, 300), Groups(bits=8), noise=NOISE)
    )

    many = [torch.zeros(8, dtype=torch.uint8)] * size
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT))
    exchange = Exchange(Topology(group, nodes=2))
    if rank == 3:
        bad = [torch.zeros(1 << 21 if k == 2 else 8, dtype=torch.uint8) for k in range(size)]
        text = fails(PeerFailed, lambda: exchange.all_to_all(bad, max_bytes=1 << 20))
    elif rank == 2:
        text = fails(PayloadError, lambda: exchange.all_to_all(many, max_bytes=1 << 20))
    else:
        text = fails(PeerFailed, lambda: exchange.all_to_all(many, max_bytes=1 << 20))
    assert "rank 3 announces a payload of 2097152 bytes" in text
    dist.barrier()

    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT))
    exchange = Exchange(Topology(group, nodes=2))
    if rank == 2:
        with_reason = "ran out of luck"
        try:
            with exchange.topology.failures.telling():
                raise ValueError(with_reason)
        except ValueError:
            pass
    else:
        assert "rank 2: ValueError: ran out of luck" in fails(PeerFailed, lambda: reduce(exchange))
    dist.barrier()


def killed() -> None:
    """A rank is killed; the others say so."""
    rank, size = dist.get_rank(), dist.get_world_size()
    exchange = Exchange(Topology(dist.new_group(timeout=timedelta(seconds=TIMEOUT)), nodes=2))

    def reduce() -> None:
        exchange.reduce_scatter(torch.empty(500), data(rank, size * 500), Groups(bits=4), noise=NOISE)

    reduce()
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    text = fails(PeerFailed, lambda: [reduce() for _ in range(3)])
    assert "no word from rank" in text and "2" in text


def sizes_differ() -> None:
    """One rank has another model: its messages have another size, which torch.distributed may notice first."""
    rank, size = dist.get_rank(), dist.get_world_size()
    exchange = Exchange(Topology(dist.new_group(timeout=timedelta(seconds=TIMEOUT)), nodes=size))
    num = 500 - 100 * (rank == 1)

    def reduce() -> None:
        exchange.reduce_scatter(torch.empty(num), data(rank, size * num), Groups(bits=4), noise=NOISE)

    start = time.monotonic()
    try:
        reduce()
        reduce()
    except CommError as error:
        print(f"{type(error).__name__}: {error}")
        assert time.monotonic() - start < 2 * TIMEOUT + 45
    else:
        raise AssertionError("no error")


if __name__ == "__main__":
    what, where = sys.argv[1:]
    join(what, where, PATIENCE)
    for name in what.split(","):
        {do.__name__: do for do in (topologies, exchanges, repeats, faults, killed, sizes_differ)}[name]()
    print("done")
