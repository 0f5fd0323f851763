from __future__ import annotations

import math

import pytest
import torch

from bench import gpt

SMALL = gpt.SIZES["small"]


@pytest.fixture(scope="module")
def text() -> gpt.Text:
    return gpt.library()


def test_large_enough() -> None:
    with torch.device("meta"):
        model = gpt.GPT(gpt.SIZES["10M"])
    assert sum(parameter.numel() for parameter in model.parameters()) > 10e6


def test_model_follows_from_its_seed() -> None:
    state = torch.get_rng_state()
    one, same, other = (gpt.make(SMALL, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.q.weight"], other["blocks.0.q.weight"])


def test_untrained_model_guesses(text: gpt.Text) -> None:
    tokens, targets = text.held_out(SMALL, 4)
    assert gpt.loss(gpt.make(SMALL, 0), tokens, targets).item() == pytest.approx(math.log(256), rel=0.05)


def test_no_byte_sees_the_next(text: gpt.Text) -> None:
    model = gpt.make(SMALL, 0)
    tokens, _ = text.held_out(SMALL, 1)
    changed = tokens.clone()
    changed[:, 10] ^= 1
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert (difference[:10] == 0).all() and (difference[10:] > 0).all()


def test_batches(text: gpt.Text) -> None:
    def batch(**changes: int) -> torch.Tensor:
        given = {"seed": 0, "step": 3, "rank": 1, "world_size": 4} | changes
        tokens, targets = text.batch(SMALL, 2, **given)
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        return tokens

    assert torch.equal(batch(), batch())
    for changes in ({"seed": 1}, {"step": 4}, {"rank": 2}):
        assert not torch.equal(batch(), batch(**changes))


def test_text_is_divided_by_file(text: gpt.Text) -> None:
    train, validation = (bytes(part.numpy()) for part in (text.train, text.validation))
    assert len(train) > 5 * len(validation) > 1e6
    files = [b"def b64encode(s, altchars=None)", b"class Popen", b"def heappush(heap, item)", b"class OrderedDict("]
    assert all((file in train) + (file in validation) == 1 for file in files)


def test_rates_rise_and_fall() -> None:
    shares = [gpt.share_of_rate(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == [step / 10 for step in range(1, 11)]
    assert shares[10] == 1 and shares[55] == pytest.approx(0.55) and 0.1 < shares[-1] < 0.101
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert gpt.share_of_rate(0, 1, 0.1) == 1
