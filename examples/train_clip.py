"""Train a CLIP with FastCLIP: on Fashion-MNIST with captions made by rule, or on images and texts of your own.

    python -m examples.train_clip --epochs 10
    torchrun --nproc-per-node 2 -m examples.train_clip --train cc3m/ --test cc3m-validation.tar --side 224 \
        --image-encoder my_models:resnet50 --workers 8 --checkpoint run1.tt

Data are a folder of images with text files beside them, a tar file in webdataset's form, or a folder of such files; see
`examples.pairs`. Encoders and tokenizer are named by import path; see `examples.clip`. With `--checkpoint` the same
command goes on where it stopped, and ends with the same bits as if it had not. Progress goes to standard error, what
was evaluated to standard output, with `--json` as an object a line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import trimtab as tt
from examples import fashion_mnist
from examples.clip import CLIP, named
from examples.clip_learning import Batch, Batches, learn, make_optimizer, numbers_of_batches, share_of_rate
from examples.clip_run import Run
from examples.pairs import Classes, FashionMNIST, Pairs, open_pairs
from examples.ranks import Ranks
from examples.retrieval import retrieval, zero_shot

SETTINGS = (
    *("version", "rho", "gamma_min", "temperature", "image_encoder", "text_encoder", "tokenizer", "columns", "bf16"),
    *("epochs", "batch", "rate", "scale_rate", "warm_up", "weight_decay", "seed"),
)
"""Options that the results depend on."""
COLD = 0.03
"""The temperature from which on v3 learns it at a third of its rate, as published."""


def make_run(options: argparse.Namespace, ranks: Ranks) -> Run:
    """Return the run that the command line describes, at its first step."""
    if options.train:
        pairs: Pairs = open_pairs(options.train, options.side)
    else:
        pairs = FashionMNIST("train", limit=options.samples)
    if not options.batch <= len(pairs):
        raise ValueError(f"{len(pairs)} pairs do not fill a batch of {options.batch}")
    tokenize = named(options.tokenizer)()
    torch.manual_seed(options.seed)
    model = CLIP(
        named(options.image_encoder)(pairs.shape, options.columns),
        named(options.text_encoder)(tokenize.vocabulary, tokenize.context, options.columns),
        options.temperature,
    ).to(ranks.device)
    torch.manual_seed(1_000_003 * options.seed + 1 + ranks.rank)
    model.log_scale.requires_grad_(options.version in ("v0", "v3"))
    loss = tt.train.FastCLIP(
        samples=len(pairs),
        version=options.version,
        rho=options.rho,
        gamma_min=options.gamma_min,
        decay_epochs=max(options.epochs // 2, 1),
    )
    optimizer = make_optimizer(
        model, loss, rate=options.rate, scale_rate=options.scale_rate, weight_decay=options.weight_decay
    )
    settings = {name: value for name, value in vars(options).items() if name in SETTINGS}
    settings |= {"pairs": pairs.fingerprint, "ranks": ranks.size}
    return Run(pairs, tokenize, model, loss, optimizer, settings)


def train(options: argparse.Namespace, ranks: Ranks) -> None:
    """Train as the command line says; rank 0 tells how it goes, evaluates and saves."""
    run = make_run(options, ranks)
    path: Path | None = options.checkpoint
    if path is not None and path.exists():
        ranks.set_random_state(run.resume(path))
        if ranks.rank == 0:
            print(f"{path}: going on from step {run.step} of {run.num_steps}", file=sys.stderr, flush=True)
    test, labelled, names = tests(options)
    model: nn.Module = run.model
    if ranks.size > 1:
        model = DistributedDataParallel(run.model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None)
    end = min(options.stop_at or run.num_steps, run.num_steps)
    progress = Progress(ranks, run.step, end)
    while run.step < end:
        epoch, first = divmod(run.step, run.steps_an_epoch)
        run.loss.set_epoch(epoch)
        for batch in batches(run, ranks, epoch, first, options.workers):
            batch = Batch(*(x.to(ranks.device) for x in batch))
            is_cold = options.version == "v3" and run.model.temperature <= COLD
            run.optimizer.param_groups[-1]["full_rate"] = options.scale_rate / (3 if is_cold else 1)
            share = share_of_rate(run.step, run.num_steps, options.warm_up)
            run.total += learn(model, run.loss, run.optimizer, batch, share, bf16=options.bf16)
            run.model.clamp_scale()
            run.step += 1
            progress.tell(run)
            ends = run.step % run.steps_an_epoch == 0
            if ends and ranks.rank == 0:
                report(options, run, test, labelled, names)
            run.total *= not ends
            if path is not None and (ends or run.step == end or run.step % (options.save_every or end) == 0):
                states = ranks.random_states()
                if ranks.rank == 0:
                    run.save(path, states)
            if run.step == end:
                break


def batches(run: Run, ranks: Ranks, epoch: int, first: int, num_workers: int) -> DataLoader:
    """Return this rank's part of each of an epoch's batches, from batch `first` on."""
    seed = run.settings["seed"]
    numbers = numbers_of_batches(len(run.pairs), run.settings["batch"], seed, epoch)
    return DataLoader(
        Batches(run.pairs, run.tokenize, seed, epoch),
        batch_sampler=numbers[first:, ranks.rank :: ranks.size].tolist(),
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else every loader draws from torch's own
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


class Progress:
    """Says every few seconds on rank 0 how far a run is."""

    seconds = 5.0

    def __init__(self, ranks: Ranks, first: int, end: int) -> None:
        self._told, self._is_silent, self._begun, self._first, self._end = 0.0, ranks.rank > 0, time.time(), first, end

    def tell(self, run: Run) -> None:
        now = time.time()
        if self._is_silent or (now - self._told < self.seconds and run.step < self._end):
            return
        self._told = now
        seconds = (now - self._begun) / (run.step - self._first)
        loss = run.total / (1 + (run.step - 1) % run.steps_an_epoch)
        speed, left = run.settings["batch"] / seconds, (self._end - run.step) * seconds / 60
        where = f"step {run.step} of {run.num_steps}, epoch {1 + (run.step - 1) // run.steps_an_epoch}"
        print(f"{where}: loss {loss:.4f}, {speed:.0f} pairs/s, {left:.1f} min left", file=sys.stderr, flush=True)


def tests(options: argparse.Namespace) -> tuple[Pairs | None, Classes | FashionMNIST | None, Sequence[str]]:
    """Return the pairs to evaluate on, the labelled images, and the names of their classes, where there are any."""
    if not options.train:
        pairs = FashionMNIST("test", limit=options.test_samples)
        return pairs, pairs, fashion_mnist.CLASSES
    pairs = open_pairs(options.test, options.side) if options.test else None
    labelled = Classes(options.classes, options.side) if options.classes else None
    return pairs, labelled, labelled.names if labelled else ()


def report(
    options: argparse.Namespace,
    run: Run,
    test: Pairs | None,
    labelled: Classes | FashionMNIST | None,
    names: Sequence[str],
) -> None:
    """Evaluate at the end of an epoch, and print what came of it."""
    found: dict[str, Any] = {
        "epoch": run.step // run.steps_an_epoch,
        "step": run.step,
        "loss": run.total / run.steps_an_epoch,
        "temperature": run.model.temperature,
    }
    run.model.eval()
    if test is not None:
        found |= retrieval(run.model, test, run.tokenize)
    if labelled is not None:
        found["zero_shot"] = zero_shot(run.model, labelled, names, run.tokenize)
    run.model.train()
    if options.json:
        print(json.dumps(found), flush=True)
        return
    parts = [f"epoch {found['epoch']}: loss {found['loss']:.4f}"]
    for side in ("image_to_text", "text_to_image"):
        if side in found:
            parts.append(f"{side.replace('_', ' ')} {' '.join(f'{k} {v:.3f}' for k, v in found[side].items())}")
    if "zero_shot" in found:
        parts.append(f"zero-shot accuracy {found['zero_shot']:.3f}")
    print(", ".join(parts), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example, alone or as one of torchrun's ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--train", type=Path, help="folder of images and texts, tar file, or folder of them")
    data.add_argument("--test", type=Path, help="the same, to evaluate retrieval on")
    data.add_argument("--classes", type=Path, help="folder with a folder of images a class, for zero-shot evaluation")
    data.add_argument("--side", type=int, default=64, help="of images, in pixels (default 64)")
    data.add_argument("--samples", type=int, help="pairs of Fashion-MNIST to train on (default 60,000)")
    data.add_argument("--test-samples", type=int, default=2000, help="and to evaluate on (default 2000)")
    data.add_argument("--workers", type=int, default=0, help="processes that read images")
    model = parser.add_argument_group("model")
    model.add_argument("--image-encoder", default="examples.clip:ConvNet", help="MODULE:NAME(shape, columns)")
    model.add_argument(
        "--text-encoder", default="examples.clip:TextTransformer", help="MODULE:NAME(vocabulary, context, columns)"
    )
    model.add_argument("--tokenizer", default="examples.clip:Words", help="MODULE:NAME()")
    model.add_argument("--columns", type=int, default=64, help="elements of a feature vector")
    model.add_argument("--temperature", type=float, default=0.07, help="at the start; v1 keeps it (v2 has its own)")
    model.add_argument("--bf16", action="store_true", help="run the encoders in bfloat16")
    loss = parser.add_argument_group("loss, as tt.train.FastCLIP takes it")
    loss.add_argument("--version", choices=("v0", "v1", "v2", "v3"), default="v3")
    loss.add_argument("--rho", type=float)
    loss.add_argument("--gamma-min", type=float, default=0.2)
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=10)
    training.add_argument("--batch", type=int, default=64, help="pairs a step, of all ranks")
    training.add_argument("--rate", type=float, default=1e-3, help="of AdamW, falling as a cosine")
    training.add_argument("--scale-rate", type=float, default=2e-4, help="the same of the logarithm of the temperature")
    training.add_argument("--warm-up", type=int, default=200, help="steps in which the rate rises")
    training.add_argument("--weight-decay", type=float, default=0.1)
    training.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="file to save to, and to go on from")
    parser.add_argument("--save-every", type=int, help="steps between checkpoints (default: every epoch)")
    parser.add_argument("--stop-at", type=int, help="the step to stop at, with a checkpoint")
    parser.add_argument("--json", action="store_true", help="print an object for each epoch")
    options = parser.parse_args(argv)
    ranks = Ranks.join()
    try:
        train(options, ranks)
    except (ValueError, FileNotFoundError, FloatingPointError, tt.TrimtabError) as error:
        sys.exit(f"train_clip: {error}")
    finally:
        if ranks.size > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
