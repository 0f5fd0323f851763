"""Train a surrogate on simulated samples in an HDF5 file, fed by SOLAR.

    python -m examples.ptychography scans.h5 --samples 16384
    torchrun --nproc-per-node 2 -m examples.train_surrogate --model ptycho --data scans.h5 --checkpoint run.tt
    python -m examples.cosmology universes.h5 --samples 8192
    python -m examples.train_surrogate --model cosmo --data universes.h5 --buffer "512 MiB"

With `--checkpoint` the same command goes on where it stopped, also with another number of ranks. `--loader dataloader`
trains on the same global batches, read by a stock DataLoader. Progress goes to standard error, with the share of time
that was spent waiting for data; errors on what was held out to standard output after each epoch, with `--json` as an
object a line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import trimtab as tt
from examples.checkpoint import load_optimizer, optimizer_tensors, part, refuse_other
from examples.ranks import Ranks
from examples.stock_loader import Rows, StockLoader
from examples.surrogates import SURROGATES, Batch, Surrogate, make_surrogate

SETTINGS = ("model", "width", "epochs", "batch", "rate", "seed", "loader")
"""Options that the results depend on."""


@dataclass
class Run:
    """A run: what learns from what, and how far it is."""

    model: Surrogate
    optimizer: torch.optim.Optimizer
    loader: tt.data.SOLAR | StockLoader
    held_out: tt.data.HDF5
    settings: dict[str, Any]
    """What the results depend on; a checkpoint of other settings is refused."""
    num_steps: int
    step: int = 0
    total: float = 0.0
    """The sum of the losses of this epoch's steps, each the mean over its global batch."""

    def save(self, path: Path) -> None:
        """Write a checkpoint, which takes the place of the last one when all of it is written."""
        tensors = {f"model/{name}": x for name, x in self.model.state_dict().items()}
        metadata = {
            "settings": self.settings,
            "loader": self.loader.state_dict(),
            "progress": {"step": self.step, "total": self.total},
        }
        texts = {name: json.dumps(value) for name, value in metadata.items()}
        tt.save(path, tensors | optimizer_tensors(self.optimizer), codec=tt.codecs.Raw(), metadata=texts)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the checkpoint is of a run with other settings or data.
        """
        saved = tt.load(path, framework="pt")
        metadata = {name: json.loads(text) for name, text in saved.report["metadata"].items()}
        refuse_other(path, self.settings, metadata["settings"])
        self.model.load_state_dict(part(saved, "model/"))
        load_optimizer(self.optimizer, saved)
        self.loader.load_state_dict(metadata["loader"])
        self.step, self.total = metadata["progress"]["step"], metadata["progress"]["total"]


def make_run(options: argparse.Namespace, ranks: Ranks) -> Run:
    """Return the run that the command line describes, at its first step."""
    if options.batch < 1 or options.batch % ranks.size:
        raise ValueError(f"a batch of {options.batch} cannot be divided among {ranks.size} ranks")
    kind, size = SURROGATES[options.model], options.batch // ranks.size
    with h5py.File(options.data) as file:
        data = {"simulation": file.attrs.get("settings", ""), "fields": sorted(kind.fields)}
    train, test = ({name: f"{group}/{name}" for name in kind.fields} for group in ("train", "test"))
    held_out = tt.data.HDF5(options.data, test)
    store = tt.data.HDF5(options.data, train, num_threads=1)  # SOLAR has threads of its own
    data["samples"] = store.num_samples
    if options.batch > store.num_samples:
        raise ValueError(f"{store.num_samples} samples do not fill a batch of {options.batch}")
    if options.loader == "solar":
        loader = tt.data.SOLAR(
            store, size, options.epochs, options.buffer, seed=options.seed, drop_last=True, num_threads=options.threads
        )
    else:
        loader = StockLoader(
            Rows(options.data, train), size, seed=options.seed, num_ranks=ranks.size, rank=ranks.rank,
            workers=options.workers,
        )  # fmt: skip
    torch.manual_seed(options.seed)
    model = make_surrogate(options.model, options.width, store.fields[kind.inputs].shape).to(ranks.device)
    optimizer = torch.optim.Adam(model.parameters(), options.rate)
    settings = {name: getattr(options, name) for name in SETTINGS} | {"data": data}
    return Run(model, optimizer, loader, held_out, settings, options.epochs * len(loader))


def train(options: argparse.Namespace, ranks: Ranks) -> None:
    """Train as the command line says; rank 0 tells how it goes, and saves."""
    run = make_run(options, ranks)
    path: Path | None = options.checkpoint
    if path is not None and path.exists():
        run.resume(path)
        if ranks.rank == 0:
            print(f"{path}: going on from step {run.step} of {run.num_steps}", file=sys.stderr, flush=True)
    model: nn.Module = run.model
    if ranks.size > 1:
        model = DistributedDataParallel(run.model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None)
    end = min(options.stop_at or run.num_steps, run.num_steps)
    progress = Progress(ranks, run.step, end)
    losses: list[torch.Tensor] = []  # of this rank, since they were last added to the run's
    while run.step < end:
        for batch in progress.watched(run.loader):
            for group in run.optimizer.param_groups:
                group["lr"] = options.rate * (1 + math.cos(math.pi * run.step / run.num_steps)) / 2
            losses.append(learn(model, run, {name: x.to(ranks.device) for name, x in batch.items()}))
            run.step += 1
            progress.tell(run, losses[-1])
            ends = run.step % len(run.loader) == 0
            saves = path is not None and (ends or run.step == end or run.step % (options.save_every or end) == 0)
            if ends or saves:
                run.total += total_over_ranks(losses, ranks)
                losses.clear()
            if ends:
                report(options, run, ranks)
                run.total = 0.0
            if saves and ranks.rank == 0:
                run.save(path)
            if run.step == end:
                break
    run.loader.close()


def learn(model: nn.Module, run: Run, batch: Batch) -> torch.Tensor:
    """Take a step, and return the loss.

    Raises:
        FloatingPointError: the loss is not finite; the weights are as they were.
    """
    run.optimizer.zero_grad()
    value = run.model.loss(model(batch[run.model.inputs]), batch)
    if not value.isfinite():
        raise FloatingPointError(f"the loss is {value.item()}")
    value.backward()
    run.optimizer.step()
    return value.detach()


def total_over_ranks(losses: Sequence[torch.Tensor], ranks: Ranks) -> float:
    """Return the sum over steps of the mean loss of all ranks, whose batches have equally many samples."""
    total = torch.stack([*losses]).double().sum()
    if ranks.size > 1:
        dist.all_reduce(total)
    return total.item() / ranks.size


@torch.no_grad()
def root_mean_squares(run: Run, ranks: Ranks) -> dict[str, float]:
    """Return the errors on the samples that were held out, divided among the ranks."""
    store, size = run.held_out, run.settings["batch"]
    own = np.arange(ranks.rank, store.num_samples, ranks.size)
    sums: dict[str, torch.Tensor] = {}
    run.model.eval()
    for samples in np.split(own, range(size, len(own), size)):
        rows = {name: np.empty((len(samples), *field.shape), field.dtype) for name, field in store.fields.items()}
        store.read(samples, rows)
        batch = {name: torch.from_numpy(x).to(ranks.device) for name, x in rows.items()}
        for name, x in run.model.errors(run.model(batch[run.model.inputs]), batch).items():
            sums[name] = sums.get(name, 0.0) + x.double().sum()
    run.model.train()
    together = torch.stack([*sums.values()])
    if ranks.size > 1:
        dist.all_reduce(together)
    return dict(zip(sums, (together / store.num_samples).sqrt().tolist(), strict=True))


def report(options: argparse.Namespace, run: Run, ranks: Ranks) -> None:
    """Evaluate at the end of an epoch, on all ranks, and print what came of it on one."""
    errors = root_mean_squares(run, ranks)
    if ranks.rank > 0:
        return
    epoch, loss = run.step // len(run.loader), run.total / len(run.loader)
    if options.json:
        print(json.dumps({"epoch": epoch, "step": run.step, "loss": loss, "errors": errors}), flush=True)
        return
    told = ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
    print(f"epoch {epoch}: loss {loss:.4f}, held-out error {told}", flush=True)


class Progress:
    """Says every few seconds on rank 0 how far a run is, and for how much of the time it has waited for data."""

    seconds = 5.0

    def __init__(self, ranks: Ranks, first: int, end: int) -> None:
        self._is_silent, self._first, self._end = ranks.rank > 0, first, end
        self._told, self._begun, self._waited = 0.0, time.monotonic(), 0.0

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and remember how long they took to come."""
        begun = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - begun
            yield batch
            begun = time.monotonic()

    def tell(self, run: Run, loss: torch.Tensor) -> None:
        now = time.monotonic()
        if self._is_silent or (now - self._told < self.seconds and run.step < self._end):
            return
        self._told, taken = now, now - self._begun
        speed = (run.step - self._first) / taken
        print(
            f"step {run.step} of {run.num_steps}, epoch {1 + (run.step - 1) // len(run.loader)}: loss {loss:.4f}, "
            f"{speed * run.settings['batch']:.0f} samples/s, {100 * self._waited / taken:.0f} % waiting for data, "
            f"{(self._end - run.step) / speed / 60:.1f} min left",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example, alone or as one of torchrun's ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SURROGATES], required=True)
    parser.add_argument("--data", type=Path, required=True, help="file of examples.ptychography or examples.cosmology")
    parser.add_argument("--width", type=int, default=16, help="channels of the first convolution (default 16)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="samples a step, of all ranks")
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam, falling as a cosine")
    parser.add_argument("--seed", type=int, default=0)
    feeding = parser.add_argument_group("feeding")
    feeding.add_argument("--loader", choices=("solar", "dataloader"), default="solar")
    feeding.add_argument("--buffer", default="50%", help="memory of a rank for samples, of SOLAR (default 50%%)")
    feeding.add_argument("--threads", type=int, default=16, help="threads that read, of SOLAR")
    feeding.add_argument("--workers", type=int, default=0, help="processes that read, of a DataLoader")
    parser.add_argument("--checkpoint", type=Path, help="file to save to, and to go on from")
    parser.add_argument("--save-every", type=int, help="steps between checkpoints (default: every epoch)")
    parser.add_argument("--stop-at", type=int, help="the step to stop at, with a checkpoint")
    parser.add_argument("--json", action="store_true", help="print an object for each epoch")
    options = parser.parse_args(argv)
    ranks = Ranks.join()
    try:
        train(options, ranks)
    except (ValueError, OSError, FloatingPointError, tt.TrimtabError) as error:
        sys.exit(f"train_surrogate: {error}")
    finally:
        if ranks.size > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
