"""Tables of how training is fed: SOLAR's plan, and its loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.markdown import markdown, ours_bold
from trimtab.records import Metric, Record

SOLAR_CHART = Path(__file__).parent.parent / "docs" / "assets" / "solar.svg"


def solar_plan_tables(record: Record) -> str:
    """Return what is read and how evenly, beside other policies, and how long planning takes."""
    shape = record.data["shape"]
    parts = [
        f"{shape['num_samples']:,} samples, {shape['num_ranks']} ranks, {shape['batch_size']} samples of each rank in "
        "a step, 20 epochs where no other number is given. All is counted exactly, from the shuffles of torch's "
        "DistributedSampler. *Buffers* are those of all ranks together, as parts of the data.",
        "**Hit rates**, over all epochs, the cold one included / reads a step of the slowest rank / samples of the "
        "largest batch, both on average / samples sent between ranks, of all",
        _policies(record),
        "No policy can read less than the bound. SOLAR's plan reads as little, keeps batches equal, and sends nothing "
        "but where buffers hold nearly all. Searching for an order of the epochs, as in the paper, leaves the hit rate "
        "as it is, and must: buffers that hold C samples allow C hits an epoch, in any order.",
        "**Evenness**, epochs after the first: reads a step of the slowest rank; of a rank if the reads of each step "
        "were shared out in whole samples; the same in fractions of samples",
        _evenness(record),
        _small_batches(record),
        "**Close to all samples**, ranks with a buffer each or eight to a node: reads a step of the slowest rank "
        "beyond whole samples / samples sent between nodes, of all",
        _nodes(record),
        "**All samples held**: what does not fit into its holder's batch is sent, or makes batches larger",
        _surplus(record),
        *(_paper_shapes(record) if any(key.startswith("paper/") for key in record.metrics) else []),
        *(_merged(record) if any(key.startswith("merged/") for key in record.metrics) else []),
        "**Planning**, CPU seconds of a core and memory of the whole process",
        _times(record),
    ]
    return "\n\n".join(parts)


def _found(record: Record, prefix: str) -> Iterator[tuple[list[str], Metric]]:
    """Yield the rest of each key that begins so, in parts, and its metric."""
    for key, found in record.metrics.items():
        if key.startswith(f"{prefix}/"):
            yield key.removeprefix(f"{prefix}/").split("/"), found


def _parts(record: Record, prefix: str, index: int) -> list[str]:
    return list(dict.fromkeys(parts[index] for parts, _ in _found(record, prefix)))


def _policies(record: Record) -> str:
    def cell(key: str) -> str:
        forms = {"hit_rate": ".4f", "slowest": ".1f", "largest": ".1f", "sent": ".2f"}
        return " / ".join(f"{_value(record, f'{key}/{what}'):{form}}" for what, form in forms.items())

    helds = _parts(record, "policy", 0)
    names = [name for name in _parts(record, "policy", 1) if name != "bound"]
    rows = [[ours_bold(name), *(cell(f"policy/{held}/{name}") for held in helds)] for name in names]
    rows.append(["bound", *(f"{_value(record, f'policy/{held}/bound'):.4f}" for held in helds)])
    return markdown(["buffers", *helds], rows)


def _evenness(record: Record) -> str:
    rows = []
    for epochs in _parts(record, "bound", 0):
        for held in _parts(record, "bound", 1):
            key = f"bound/{epochs}/{held}"
            reads = (f"{_value(record, f'{key}/{what}'):.2f}" for what in ("slowest", "whole", "even"))
            rows.append([f"{epochs} epochs, buffers {held}", *reads, f"{_value(record, f'{key}/over'):.5f}x"])
    return markdown(["", "slowest rank", "whole samples", "fractions", "all reads over the bound"], rows)


def _small_batches(record: Record) -> str:
    def cell(key: str) -> str:
        return f"{_value(record, f'{key}/slowest'):.2f} ({_value(record, f'{key}/excess'):+.2f})"

    helds = _parts(record, "batch", 1)
    rows = [
        [f"batches of {size}", *(cell(f"batch/{size}/{held}") for held in helds)] for size in _parts(record, "batch", 0)
    ]
    return markdown(["slowest rank (beyond whole samples)", *(f"buffers {held}" for held in helds)], rows)


def _nodes(record: Record) -> str:
    def cell(key: str) -> str:
        return f"{_value(record, f'{key}/excess'):.2f} / {_value(record, f'{key}/sent'):.3f}"

    helds = _parts(record, "node", 1)
    rows = [
        [f"{ranks} a node", *(cell(f"node/{ranks}/{held}") for held in helds)] for ranks in _parts(record, "node", 0)
    ]
    return markdown(["buffers", *helds], rows)


def _surplus(record: Record) -> str:
    rows = [
        [
            slack,
            f"{_value(record, f'surplus/{slack}/sent'):.3f}",
            f"{_value(record, f'surplus/{slack}/largest'):.0f}",
            f"{_value(record, f'surplus/{slack}/reads'):.0f}",
        ]
        for slack in _parts(record, "surplus", 0)
    ]
    return markdown(
        ["batches may differ by", "sent, of all samples", "largest batch", "reads after the first epoch"], rows
    )


def _paper_shapes(record: Record) -> list[str]:
    def cell(key: str) -> str:
        rates = (f"{_value(record, f'{key}/{what}'):.4f}" for what in ("hit_rate", "lru"))
        return f"{' / '.join(rates)} / {_value(record, f'{key}/ceiling'):.1f}x"

    helds = _parts(record, "paper", 1)
    rows = [
        [f"{name}, {record.data['paper'][name][0]:,} samples", *(cell(f"paper/{name}/{held}") for held in helds)]
        for name in _parts(record, "paper", 0)
    ]
    return [
        "**At sizes as the paper's**, 32 ranks: hit rate of SOLAR's plan over 20 epochs / of a DistributedSampler with "
        "an LRU cache of the same size / how many times fewer reads than without buffers are possible at all, over 100 "
        "epochs",
        markdown(["buffers", *helds], rows),
        "The paper reports up to 24.4 times the speed of PyTorch's DataLoader. Fewer reads alone cannot bring that "
        "unless buffers hold nearly all samples: over 100 epochs 96.9 % of them, over 20 not even all. Otherwise it "
        "takes what is not counted here: requests at once, large and in order, and behind computation. With half of "
        "the data in memory, fewer reads bring a factor of 2 at most.",
    ]


def _merged(record: Record) -> list[str]:
    found, helds = record.data["merged"], _parts(record, "merged", 0)
    rows = [
        [stored, *(f"{_value(record, f'merged/{held}/{stored}'):.1f}" for held in helds)]
        for stored in _parts(record, "merged", 1)
    ]
    reads = (f"{_value(record, f'policy/{held}/trimtab SOLAR/slowest'):.1f}" for held in helds)
    return [
        "**Requests**, a step, of the rank that makes most of them in an epoch, where samples that lie near each other "
        f"share one: at {found['bytes_per_second'] / 1e6:g} MB/s, by bytes of a sample and seconds of a request; what "
        f"half of {found['look_ahead']} batches holds is read together",
        markdown(["buffers", *helds], [["samples read", *reads], *rows]),
    ]


def _times(record: Record) -> str:
    rows = []
    for name in _parts(record, "time", 0):
        for held in _parts(record, "time", 1):
            key = f"time/{name}/{held}"
            seconds, memory = _value(record, f"{key}/seconds"), _value(record, f"{key}/memory")
            rows.append([f"{name}, buffers {held}", f"{seconds:.2f}", f"{memory:.0f}"])
    return markdown(["", "seconds", "MiB"], rows)


def _value(record: Record, key: str) -> float:
    return record.metrics[key].value


def solar_loading_tables(record: Record) -> str:
    """Return how long loading takes in each way, and how much is read."""
    names = list(record.data["shapes"])
    ways = list(dict.fromkeys(key.split("/")[1] for key in record.metrics if key.endswith("/seconds")))

    def cell(name: str, way: str) -> str:
        seconds = record.metrics.get(f"{name}/{way}/seconds")
        if seconds is None:
            return ""
        times = record.metrics.get(f"{name}/{way}/times")
        return f"{seconds.value:.2f} s" + ("" if times is None else f" / {times.value:.2f}x")

    rows = [[name, *(cell(name, way) for way in ways)] for name in names]
    reads = [
        [
            name,
            *(
                f"{_value(record, f'{name}/{way}/reads'):,.0f}"
                for way in ways
                if f"{name}/{way}/reads" in record.metrics
            ),
        ]
        for name in names
    ]
    network = record.inference["network"]
    modelled = f"{network['latency_seconds'] * 1e6:g} us, {network['bytes_per_second'] / 1e9:g} GB/s a request"
    over = {"free network": "over pooled 0.5", f"modelled network: {modelled}": "over pooled, network 0.5"}
    beside = [
        [name, *(f"{_value(record, f'{name}/{key}'):.2f}x" for key in over.values())]
        for name in names
        if f"{name}/over pooled 0.5" in record.metrics
    ]
    parts = [
        "**Seconds of ten epochs**, loading alone / times as fast as the best of the DataLoaders in the same round; "
        "the number behind *DataLoader* is that of its workers, the others are buffers as parts of the data",
        markdown(["", *(ours_bold(way) for way in ways)], rows),
        "**Beside NoPFS's policy** (*pooled*), which keeps as many samples as trimtab and reads as many from the "
        "store, but keeps them where they are used most often, not always where they are used: times as fast as it, "
        "buffers .5, where samples of other ranks cost nothing, and where each is a modelled request to its rank",
        markdown(["", *over], beside),
        "**Samples read from the store**",
        markdown(["", *(ours_bold(way) for way in ways)], [row + [""] * (len(ways) + 1 - len(row)) for row in reads]),
    ]
    return "\n\n".join(parts)
