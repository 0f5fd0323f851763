"""A fine-tuned checkpoint and the base it was tuned from: all-MiniLM-L6-v2, tuned on the docstrings at hand.

As such models are tuned: AdamW at 2e-5 with warm-up and linear decay, without weight decay, and a contrastive objective
(multiple negatives, Henderson et al., arXiv 1705.00652, 2017): the first line of a docstring has to find its own rest
among others. The docstrings are those of Python's standard library. Everything is seeded; it takes some minutes.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from bench.weights import FILES, Weights, load_weights, package_file

NUM_STEPS = 200
BATCH_SIZE = 8
NUM_TOKENS = 32
LEARNING_RATE = 2e-5
WARM_UP = 0.1  # of the steps
TEMPERATURE = 0.05
SEED = 0
_TESTS = ("test", "tests", "idlelib", "lib2to3", "site-packages")

Pair = tuple[str, str]


def tuned_weights(num_steps: int = NUM_STEPS) -> Weights:
    """Return the weights after so many steps, float32, under the names of the base's own file."""
    folder = package_file(*FILES["MiniLM"]).parent
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)  # of the dropout
        _tune(model, tokenizer, docstrings(), num_steps)
    base, tuned = load_weights("MiniLM"), model.state_dict()
    return {name: tuned[name].numpy() if name in tuned else x for name, x in base.items()}


def settings(num_steps: int = NUM_STEPS) -> dict[str, object]:
    """Return how the weights were tuned, for a record."""
    return {
        "optimizer": "AdamW",
        "weight_decay": 0.0,
        "learning_rate": LEARNING_RATE,
        "num_steps": num_steps,
        "batch_size": BATCH_SIZE,
        "num_tokens": NUM_TOKENS,
        "seed": SEED,
    }


def docstrings() -> list[Pair]:
    """Return the first line and the rest of the docstrings of Python's standard library, in the order of its files."""
    pairs = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if any(part in _TESTS for part in path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # some files are there to be wrong
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n")
                if len(first) > 20 and len(rest.strip()) > 40:
                    pairs.append((first, rest.strip()))
    return pairs


def _tune(model: torch.nn.Module, tokenizer: object, pairs: list[Pair], num_steps: int) -> None:
    chosen = random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    warm_up = max(1, round(WARM_UP * num_steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (num_steps - step) / max(1, num_steps - warm_up))
    )
    model.train()
    for _ in range(num_steps):
        firsts, rests = zip(*chosen.sample(pairs, BATCH_SIZE), strict=True)
        scores = _embed(model, tokenizer, firsts) @ _embed(model, tokenizer, rests).T / TEMPERATURE
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(BATCH_SIZE))
        optimizer.zero_grad(set_to_none=False)  # memory that is given back has to be fetched again
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _embed(model: torch.nn.Module, tokenizer: object, texts: tuple[str, ...]) -> torch.Tensor:
    """Return the mean of the last hidden states of each text, scaled to length 1: the model's own pooling."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=NUM_TOKENS, return_tensors="pt")
    states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
