from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from transformers import BertConfig, BertModel

from bench import tuning


class Words:
    """A tokenizer for the few words that it is given."""

    def __call__(self, texts: list[str], **_: object) -> dict[str, torch.Tensor]:
        ids = [[1 + len(word) % 30 for word in text.split()[:8]] for text in texts]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        return {"input_ids": padded, "attention_mask": (padded > 0).long()}


def tuned(num_steps: int) -> dict[str, np.ndarray]:
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    torch.manual_seed(3)
    model = BertModel(config)
    torch.manual_seed(4)
    tuning._tune(model, Words(), tuning.docstrings()[:50], num_steps)
    return {name: x.numpy().copy() for name, x in model.state_dict().items()}


def test_docstrings_are_pairs() -> None:
    pairs = tuning.docstrings()
    assert len(pairs) > 1000
    assert all("\n" not in first and rest.strip() for first, rest in pairs)


def test_steps_are_small_and_repeatable() -> None:
    before, after, again = tuned(0), tuned(4), tuned(4)
    name = "encoder.layer.0.intermediate.dense.weight"
    steps = abs(after[name] - before[name]).max()
    assert 0 < steps <= 4 * tuning.LEARNING_RATE * 1.01
    assert all(np.array_equal(after[name], again[name]) for name in after)
