"""One job of `bench.contrastive`, in a process of its own: see `bench.contrastive_runs`."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from bench.contrastive_ways import REGIMES, SETTINGS, Regime, make_loss
from examples.clip import CLIP, ConvNet, TextTransformer, Words
from examples.clip_learning import Batch, learn, make_optimizer, numbers_of_batches, share_of_rate
from examples.pairs import FashionMNIST
from examples.retrieval import encode, recall

TEMPERATURES = (0.01, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15)
"""What the loss on held-out pairs is the least over."""


def run(regime: Regime, way: str, choice: int, seed: int, *, test: bool) -> dict[str, Any]:
    """Train; return curves on validation pairs, and recalls on these and, with `test`, on test pairs."""
    begun = time.process_time()
    pairs = FashionMNIST("train", limit=regime.num_pairs)
    validation = FashionMNIST("train", start=50_000, limit=regime.num_validation)
    tokenize, settings = Words(), SETTINGS[way][choice]
    torch.manual_seed(seed)
    model = CLIP(
        ConvNet(pairs.shape, regime.columns),
        TextTransformer(tokenize.vocabulary, tokenize.context, regime.columns),
        settings["temperature"],
    )
    model.log_scale.requires_grad_("scale_rate" in settings)
    loss = make_loss(way, settings, regime)
    optimizer = make_optimizer(
        model,
        loss,
        rate=regime.rate,
        scale_rate=settings.get("scale_rate", 0.0),
        weight_decay=regime.weight_decay,
    )
    tokens = tokenize(pairs.captions(range(len(pairs))))
    curve, step, learning = [], 0, 0.0
    points = {round(regime.epochs * (k + 1) / regime.num_points) for k in range(regime.num_points)}
    for epoch in range(regime.epochs):
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(epoch)
        start = time.process_time()
        for numbers in numbers_of_batches(len(pairs), regime.batch, seed, epoch):
            share = share_of_rate(step, regime.num_steps, regime.num_steps // 10)
            learn(model, loss, optimizer, Batch(pairs.images(numbers), tokens[numbers], numbers), share)
            model.clamp_scale()
            step += 1
        learning += time.process_time() - start
        if epoch + 1 in points:
            curve.append({"epoch": epoch + 1, **_evaluate(model, validation, tokenize, len(validation))})
    return {
        "curve": curve,
        "validation": curve[-1],
        "test": _evaluate(model, FashionMNIST("test", limit=regime.num_test), tokenize, regime.gallery)
        if test
        else None,
        "temperature": model.temperature,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "milliseconds_a_step": 1e3 * learning / regime.num_steps,
        "cpu_seconds": time.process_time() - begun,
    }


def _evaluate(model: CLIP, pairs: FashionMNIST, tokenize: Words, gallery: int) -> dict[str, float]:
    """Return recalls in %, and the contrastive loss, means over galleries."""
    model.eval()
    images, texts = encode(model, pairs, tokenize)
    model.train()
    found = [_gallery(pairs, images, texts, part) for part in torch.arange(len(pairs)).split(gallery)]
    return {name: sum(one[name] for one in found) / len(found) for name in found[0]}


def _gallery(pairs: FashionMNIST, images: torch.Tensor, texts: torch.Tensor, part: torch.Tensor) -> dict[str, float]:
    images, texts, captions = images[part], texts[part], pairs.captions(part.tolist())
    sides = {"image to text": (images, texts), "text to image": (texts, images)}
    found = {f"{k} {side}": 100 * value for side, both in sides.items() for k, value in recall(*both, captions).items()}
    return found | {"recall": sum(found.values()) / len(found), "loss": min(_losses(images @ texts.T))}


def _losses(similarities: torch.Tensor) -> Iterator[float]:
    """Yield the cross entropy of finding each other, by the temperature; NaN where it is not a number."""
    own = torch.arange(len(similarities))
    for temperature in TEMPERATURES:
        logits = similarities / temperature
        value = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)).item() / 2
        yield value if math.isfinite(value) else math.inf


def main(argv: Sequence[str] | None = None) -> None:
    """Run a job, and write what it found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--regime", choices=REGIMES, required=True)
    parser.add_argument("--way", choices=SETTINGS, required=True)
    parser.add_argument("--choice", type=int, required=True, help="which of its settings")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--test", action="store_true", help="evaluate on test pairs, too")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.write_text(json.dumps(run(REGIMES[args.regime], args.way, args.choice, args.seed, test=args.test)))


if __name__ == "__main__":
    main()
