"""DeepSZ: the smallest file of a pruned model within an accuracy budget (Jin et al., HPDC 2019, arXiv 1901.09124).

Prune, assess error bounds layer by layer, choose one for each layer, and verify: what comes out is inside the budget,
or an error says that nothing is. Differences from the paper:

- all layers take part, convolutions and biases too, where the paper compresses fully connected ones;
- a bound is assessed by what it does to the model's outputs, a smooth measure that needs no labels; the paper takes
  the accuracy itself, which moves in steps of one sample;
- the sum of the layers' divergences only orders the choices. Each choice that is worth trying is evaluated with all
  layers decoded, and bisection finds the one that just keeps the budget; the paper trusts that accuracies add up;
- bounds are parts of a layer's root mean square, in a geometric grid, where the paper's are the same for all layers;
- places and weights are coded by `trimtab.codecs.Sparse`, and what a bound lets vanish costs no place.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from trimtab import store
from trimtab.arrays import as_numpy, as_torch, is_torch
from trimtab.bounds import Abs, is_finite
from trimtab.codecs.sparse import SparseTrials
from trimtab.dtypes import FLOATS
from trimtab.errors import NoFeasibleChoice, UsageError
from trimtab.files import Writer, checksum, file_size
from trimtab.packed import Packed, digest
from trimtab.tune import Choice, knapsack

if TYPE_CHECKING:
    import torch

    from trimtab.compact.calibration import Divergence

_FACTORS = (0.7, 0.55, 0.42, 0.35, 0.3, 0.25, 0.21, 0.18, 0.14, 0.1, 0.05, 0.01)
"""Error bounds that are assessed, as parts of the root mean square of a layer's weights that are not zero."""
_EXACT = 0.0
_SMALL = 0.01  # tensors with less than this part of all weights share one factor: each costs little, and an assessment
_NARROW = 1.1  # divergences closer than this factor count as one
_FIRST_GUESS = 3.0  # Kullback-Leibler divergence in nats that costs as much accuracy as the budget allows, about
_WORTH_A_TRIAL = 0.01  # part of the bytes that an evaluation must promise to save
_TIED = "deepsz.tied"

logger = logging.getLogger(__name__)


class DeepSZ(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Turn a trained model into the smallest file whose measured score stays within a budget.

    Attributes:
        max_drop: how much of the score may be lost, in the unit that ``evaluate`` returns: 0.003 is 0.3 points of an
            accuracy from 0 to 1.
        min_ratio: instead of a budget of loss, how many times smaller than the model's tensors the file must be; the
            divergence of the outputs is then the least.
        keep: the part of the weights that pruning leaves, for every parameter of two axes and more, or by parameter
            name; None where the model is pruned already, or is to stay dense.
        num_epochs: epochs of retraining over which they are pruned.
        measure: how outputs are compared while bounds are assessed: "kl", the Kullback-Leibler divergence of the
            softmax over the last axis, or "mse", the relative mean square error.
        num_samples: samples to assess on, of those that ``evaluate`` gives to the model.
        confidence: such as 0.95: the drop must be within the budget with this confidence for samples like those that
            were evaluated, not only on these. ``evaluate`` then returns a score for each sample.
        max_trials: how many choices are evaluated at most.
    """

    max_drop: float | None = None
    min_ratio: float | None = None
    keep: float | dict[str, float] | None = None
    num_epochs: int = 8
    measure: Literal["kl", "mse"] = "kl"
    num_samples: int = 256
    confidence: float | None = None
    max_trials: int = 8

    def __post_init__(self) -> None:
        if (self.max_drop is None) == (self.min_ratio is None):
            raise UsageError("give either max_drop, a budget of loss, or min_ratio, a budget of bytes")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise UsageError(f"max_drop must be a finite number, not negative, got {self.max_drop!r}")
        if self.min_ratio is not None and not 0 < self.min_ratio < math.inf:
            raise UsageError(f"min_ratio must be a positive finite number, got {self.min_ratio!r}")
        if self.confidence is not None and not 0.5 <= self.confidence < 1:
            raise UsageError(f"confidence must be at least 0.5 and below 1, got {self.confidence!r}")
        for name in ("num_epochs", "num_samples", "max_trials"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)!r}")

    def __call__(
        self,
        model: torch.nn.Module,
        evaluate: Callable[[torch.nn.Module], Any],
        *,
        retrain: Callable[[torch.nn.Module, int], Any] | None = None,
        calibration: Any = None,
        baseline: torch.nn.Module | None = None,
    ) -> Compacted:
        """Return the model, compacted; the one that was given stays as it is.

        ``evaluate(model)`` returns a score, the higher the better, or one for each sample (their mean counts); it must
        give the same each time. ``retrain(model, epoch)`` trains for one epoch while the model is pruned; masks are
        kept after every step of an optimiser of `torch.optim`. `calibration` is a batch of inputs, or a list of them,
        to assess on (a tuple is several arguments, a mapping named ones); without it, the first inputs that `evaluate`
        gives to the model are recorded and used. `baseline` is the model that the drop is counted from, for instance
        the one before pruning; it is `model` unless given.

        Raises:
            NoFeasibleChoice: no choice is within the budget, or the pruned model alone is not.
            UsageError: `evaluate` is random or returns no number, or an argument makes no sense.
        """
        run = _Run(self, evaluate, model, baseline, calibration)
        run.prune(retrain)
        if self.min_ratio is None:
            assert self.max_drop is not None
            return run.result(run.search_drop(self.max_drop), {"max_drop": self.max_drop})
        return run.result(run.search_ratio(self.min_ratio), {"min_ratio": self.min_ratio})

    def frontier(
        self,
        model: torch.nn.Module,
        evaluate: Callable[[torch.nn.Module], Any],
        max_drops: Sequence[float],
        *,
        retrain: Callable[[torch.nn.Module, int], Any] | None = None,
        calibration: Any = None,
        baseline: torch.nn.Module | None = None,
    ) -> list[Compacted]:
        """Return the model under each of several budgets, pruned and assessed once: the curve of accuracy and size.

        `max_drops` takes the place of the setting `max_drop`. What is evaluated for one budget serves the others, too.
        All else is as in a call.
        """
        run = _Run(self, evaluate, model, baseline, calibration)
        run.prune(retrain)
        return [run.result(run.search_drop(most), {"max_drop": most}) for most in max_drops]


@dataclass(frozen=True)
class Compacted:
    """A model that `DeepSZ` made smaller: `model` is a plain module with the weights that a reader of the file gets."""

    model: torch.nn.Module
    report: dict[str, Any]
    """Scores, bytes and ratios, and for each tensor its bound, bytes and divergence."""
    entries: Mapping[str, tuple[Packed, str]]
    """What the file holds: a packed tensor and its checksum by name."""
    metadata: Mapping[str, str]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one packed file: `trimtab.load` opens it as a state dict, `trimtab.compact.load` into a model."""
        with Writer(path, metadata=self.metadata) as writer:
            for name, (packed, text) in self.entries.items():
                writer.add(name, packed, text)

    def densify(self) -> torch.nn.Module:
        """Return a copy of the model: an ordinary module, to train or change."""
        return copy.deepcopy(self.model)

    def __repr__(self) -> str:
        report = self.report
        return (
            f"Compacted({report['model_bytes']} -> {report['file_bytes']} bytes, ratio {report['ratio']:.1f}, "
            f"score {report['score']:.4f}, drop {report['drop']:.4f})"
        )


def load(path: str | os.PathLike[str], model: torch.nn.Module) -> torch.nn.Module:
    """Read a file of `Compacted.save` into a model of the same structure, and return it.

    Tied parameters, which the file has once, come back under all their names.

    Raises:
        FormatError: the file is damaged, or no packed file.
        UsageError: the file has other tensors than the model.
    """
    tensors = store.load(path, framework="pt")
    try:
        tied = msgspec.json.decode(tensors.reader.metadata.get(_TIED, "{}"), type=dict[str, str])
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} does not say which tensors are tied: {error}") from None
    state: dict[str, Any] = dict(tensors.items())
    state |= {name: state[first] for name, first in tied.items() if first in state}
    expected = model.state_dict()
    if odd := sorted(state.keys() ^ expected.keys()):
        raise UsageError(f"{path} and the model disagree about {odd[0]!r}; expected a model of the same structure")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UsageError(f"{name!r} is {list(tensor.shape)} in {path}, {list(expected[name].shape)} in the model")
    model.load_state_dict(state)
    return model


@dataclass(frozen=True)
class _Score:
    """What `evaluate` returned: the mean, and the scores of all samples where it tells them."""

    mean: float
    samples: np.ndarray | None = None

    @classmethod
    def of(cls, value: Any) -> _Score:
        samples = np.asarray(as_numpy(value) if is_torch(value) else value)
        if samples.dtype.kind not in "fiub" or samples.ndim > 1 or not samples.size:
            raise UsageError(f"evaluate must return a number, or one for each sample; got {value!r}")
        mean = float(samples.mean(dtype=np.float64))
        if not math.isfinite(mean):
            raise UsageError(f"evaluate returned {mean}; expected finite scores")
        return cls(mean, samples.astype(np.float64) if samples.ndim else None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Score) and self.mean == other.mean

    __hash__ = None  # type: ignore[assignment]

    def drop(self, found: _Score, confidence: float | None) -> float:
        """Return how much lower `found` is; with a confidence, how much at most, for samples like these."""
        drop = self.mean - found.mean
        if confidence is None:
            return drop
        if self.samples is None or found.samples is None or self.samples.shape != found.samples.shape:
            raise UsageError("confidence needs the score of each sample; let evaluate return them as an array")
        lost = self.samples - found.samples
        error = float(lost.std(ddof=1)) / math.sqrt(lost.size) if lost.size > 1 else math.inf
        return drop + statistics.NormalDist().inv_cdf(confidence) * error


@dataclass
class _Tensor:
    """A floating-point parameter to be quantised."""

    name: str
    parameter: torch.Tensor
    original: torch.Tensor
    scale: float
    """The root mean square of its weights that are finite and not zero."""
    trials: SparseTrials

    def packed(self, factor: float) -> tuple[Packed, np.ndarray | None]:
        """Return the entry for a bound, and what a decoder makes of it; None where it is exact."""
        if factor != _EXACT:
            bound = Abs(float(f"{factor * self.scale:.3g}"))  # the file spells it out
            found = self.trials.pack(bound)
            if found is not None and found[0].num_bytes < self.original.nbytes:
                return found
        return self.trials.pack_exactly(), None

    def put(self, weights: np.ndarray | None) -> None:
        """Put weights in the place of the parameter's own; None brings those back."""
        self.parameter.data.copy_(self.original if weights is None else as_torch(weights))


Assessed = dict[str, dict[float, dict[str, float]]]
"""Item -> factor -> ``bytes`` and ``divergence``."""


@dataclass(frozen=True)
class _Trial:
    """A choice that was evaluated, the divergence that it was allowed, and its drop."""

    allowed: float
    choice: Choice
    drop: float


def _next(best: _Trial | None, high: _Trial | None, most: float, guess: float) -> float:
    """Return the divergence to allow next, between a trial within the budget and the next one that is not.

    The drop is about proportional to it.
    """
    near = best or high
    if near is None:
        return guess
    aim = near.allowed * most / near.drop if near.drop > 0 else math.inf
    if best is None:
        return min(max(aim, near.allowed / 8), near.allowed / 2)
    if high is None:
        return min(max(aim, 1.5 * near.allowed), 4 * near.allowed)
    width = high.allowed / near.allowed
    return min(max(aim, near.allowed * width**0.25), near.allowed * width**0.75)


@dataclass
class _Run:
    """One run of `DeepSZ`."""

    settings: DeepSZ
    evaluate: Callable[[torch.nn.Module], Any]
    given: torch.nn.Module
    baseline: torch.nn.Module | None
    calibration: Any
    model: torch.nn.Module = field(init=False)
    items: dict[str, list[_Tensor]] = field(init=False, default_factory=dict)
    fixed: dict[str, tuple[Packed, str]] = field(init=False, default_factory=dict)
    trials: list[_Trial] = field(init=False, default_factory=list)
    seconds: dict[str, float] = field(init=False, default_factory=dict)
    scores: dict[tuple[float, ...], _Score] = field(init=False, default_factory=dict)
    num_evaluations: int = 0

    def __post_init__(self) -> None:
        self._begun = time.perf_counter()
        self.model = copy.deepcopy(self.given).eval()

    def prune(self, retrain: Callable[[torch.nn.Module, int], Any] | None) -> None:
        """Prune the model where the settings say so, evaluate what the budget is counted from, and what is left."""
        from trimtab.compact.calibration import Recorder, as_calls
        from trimtab.compact.pruning import keep_rates, prune

        settings = self.settings
        if settings.keep is None and retrain is not None:
            raise UsageError("retrain is for pruning: say how many weights to keep, for instance keep=0.1")
        self.base = None
        if self.baseline is not None or settings.keep is not None:
            self.base = self._score(self.given if self.baseline is None else self.baseline)
        if settings.keep is not None:
            prune(self.model, keep_rates(self.model, settings.keep), retrain, settings.num_epochs)
            self.model.eval()
            logger.info("pruned")
        self._lap("prune")
        recorder = Recorder(settings.num_samples)
        record = self.calibration is None
        self.start = recorder.watch(self.model, self._score) if record else self._score(self.model)
        if (again := self._score(self.model)) != self.start:
            raise UsageError(
                f"evaluate gave {self.start.mean:g} and then {again.mean:g} for the same model; it must not be random: "
                "no dropout (model.eval()), and the same samples each time"
            )
        self.base = self.base or self.start
        self.calls = recorder.calls if record else as_calls(self.calibration)
        if not self.calls:
            raise UsageError("evaluate does not call the model it is given; pass inputs to assess on as calibration=")

    @cached_property
    def assessed(self) -> Assessed:
        """Bytes and divergence of each item under each bound, with all other items as they are."""
        from trimtab.compact.calibration import Divergence

        self._collect()
        self.divergence: Divergence = Divergence(self.model, self.calls, self.settings.measure)
        assessed: Assessed = {}
        for number, (item, tensors) in enumerate(self.items.items()):
            options = assessed[item] = {}
            options[_EXACT] = {
                "bytes": sum(tensor.packed(_EXACT)[0].num_bytes for tensor in tensors),
                "divergence": 0.0,
            }
            for factor in _FACTORS:
                num_bytes = self._put({item: factor})
                options[factor] = {"bytes": num_bytes, "divergence": max(self.divergence(self.model), 0.0)}
            self._put({item: _EXACT})
            logger.info("assessed %d of %d: %s", number + 1, len(self.items), item)
        self._lap("assess")
        return assessed

    def search_drop(self, most: float) -> dict[str, float]:
        """Return the choice of fewest bytes, among those tried for this budget or another, whose drop is within it.

        Raises:
            NoFeasibleChoice: the model loses more before any weight is quantised.
        """
        if (drop := self._drop(self.start)) > most:
            raise NoFeasibleChoice(
                f"before any weight is quantised the drop is {drop:.4g}, of at most {most:g}; "
                "keep more weights, or retrain for longer",
                [Choice("not quantised", {"drop": drop, "score": self.start.mean})],
            )
        divergences = [m["divergence"] for options in self.assessed.values() for m in options.values()]
        finite = [divergence for divergence in divergences if 0 < divergence < math.inf]
        exact = dict.fromkeys(self.assessed, _EXACT)
        if not finite:
            return exact
        largest = len(self.assessed) * max(finite)
        for _ in range(self.settings.max_trials):
            best = self._best(most)
            low = best.allowed if best else 0.0
            worse = [t for t in self.trials if t.allowed > low and t.drop > most]
            high = min(worse, key=lambda t: t.allowed, default=None)
            if low >= largest or (high and high.allowed <= low * _NARROW):
                break
            allowed = _next(best, high, most, _FIRST_GUESS * most or min(finite))
            allowed = min(max(allowed, min(finite)), largest)
            choice = knapsack(self.assessed, "bytes", {"divergence": allowed})
            enough = (1 - _WORTH_A_TRIAL) * best.choice.metrics["bytes"] if best else math.inf
            while choice.metrics["bytes"] > enough and not high and allowed < largest:
                allowed = min(1.5 * allowed, largest)
                choice = knapsack(self.assessed, "bytes", {"divergence": allowed})
            if choice.metrics["bytes"] > enough or (high and allowed >= high.allowed):
                break
            drop = self._drop(self._score_of(choice.value))
            self.trials.append(_Trial(allowed, choice, drop))
            logger.info("%d bytes: drop %.5f of %.5f", choice.metrics["bytes"], drop, most)
        self._lap("search")
        best = self._best(most)
        return best.choice.value if best else exact

    def _best(self, most: float) -> _Trial | None:
        """Return the trial of fewest bytes within a budget."""
        within = (trial for trial in self.trials if trial.drop <= most)
        return min(within, key=lambda trial: trial.choice.metrics["bytes"], default=None)

    def search_ratio(self, min_ratio: float) -> dict[str, float]:
        """Return the choice of least divergence whose file is `min_ratio` times smaller than the model's tensors."""
        assessed = self.assessed
        most = self._model_bytes() / min_ratio
        choice = knapsack(assessed, "divergence", {"bytes": most - file_size(self.fixed)})
        for _ in range(self.settings.max_trials):
            excess = file_size(*self._file(choice.value, {"min_ratio": min_ratio})) - most
            if excess <= 0:
                self._lap("search")
                return choice.value
            choice = knapsack(assessed, "divergence", {"bytes": choice.metrics["bytes"] - excess})
        raise NoFeasibleChoice(f"no choice was found whose file has {most:.0f} bytes or less", [choice])

    def result(self, chosen: Mapping[str, float], budget: Mapping[str, float]) -> Compacted:
        """Return the model with the chosen bounds, and what was measured with just these weights."""
        self._put(chosen)
        score = self._score_of(chosen)
        drop = self._drop(score)
        assert self.base is not None
        assert drop <= budget.get("max_drop", math.inf)  # it was chosen by this score
        entries, metadata = self._file(chosen, budget)
        model_bytes, size = self._model_bytes(), file_size(entries, metadata)
        self._lap("finish")
        report = {
            "drop": drop,
            **budget,
            "score": score.mean,
            "score_before_quantising": self.start.mean,
            "score_of_baseline": self.base.mean,
            "divergence": self.divergence(self.model),
            "model_bytes": model_bytes,
            "file_bytes": size,
            "ratio": model_bytes / size,
            "tensors": {
                tensor.name: self._tensor_report(tensor, chosen[item], entries[tensor.name][0])
                for item, tensors in self.items.items()
                for tensor in tensors
            },
            "trials": [
                {"bytes": t.choice.metrics["bytes"], "divergence": t.choice.metrics["divergence"], "drop": t.drop}
                for t in self.trials
            ],
            "num_evaluations": self.num_evaluations,
            "seconds": dict(self.seconds),
        }
        return Compacted(copy.deepcopy(self.model), report, entries, metadata)

    def _collect(self) -> None:
        """Sort the model's tensors into items to assess, and those that are kept exactly; tied ones count once."""
        state = self.model.state_dict(keep_vars=True)
        parameters = {id(p) for p in self.model.parameters()}
        self.tied: dict[str, str] = {}
        first: dict[int, str] = {}
        tensors: list[_Tensor] = []
        for name, tensor in state.items():
            if not is_torch(tensor):
                raise UsageError(
                    f"{name!r} of the state dict is no tensor, but {type(tensor).__name__}; it has no file"
                )
            if id(tensor) in first:
                self.tied[name] = first[id(tensor)]
                continue
            first[id(tensor)] = name
            original = tensor.detach().clone()
            x = as_numpy(original)
            wide = x.astype(np.float64)[is_finite(x) & (x != 0)] if x.dtype.name in FLOATS else np.empty(0)
            if id(tensor) in parameters and wide.size:
                scale = math.sqrt(float(np.square(wide).mean()))
                tensors.append(_Tensor(name, tensor, original, scale, SparseTrials(x)))
            else:
                self.fixed[name] = store.encode(x)
        total = sum(tensor.original.numel() for tensor in tensors)
        for tensor in tensors:
            item = tensor.name if tensor.original.numel() >= _SMALL * total else "small tensors"
            self.items.setdefault(item, []).append(tensor)

    def _put(self, factors: Mapping[str, float]) -> int:
        """Put the weights of some items in place, as their bounds make them, and return the bytes of their entries."""
        num_bytes = 0
        for item, factor in factors.items():
            for tensor in self.items[item]:
                packed, weights = tensor.packed(factor)
                tensor.put(weights)
                num_bytes += packed.num_bytes
        return num_bytes

    def _score_of(self, chosen: Mapping[str, float]) -> _Score:
        """Return the score with these bounds, each choice being evaluated once."""
        key = tuple(chosen.values())
        if not any(key):
            return self.start
        if key not in self.scores:
            self._put(chosen)
            self.scores[key] = self._score(self.model)
        return self.scores[key]

    def _score(self, model: torch.nn.Module) -> _Score:
        self.num_evaluations += 1
        return _Score.of(self.evaluate(model))

    def _drop(self, score: _Score) -> float:
        assert self.base is not None
        return self.base.drop(score, self.settings.confidence)

    def _file(
        self, chosen: Mapping[str, float], budget: Mapping[str, float]
    ) -> tuple[dict[str, tuple[Packed, str]], dict[str, str]]:
        """Return the entries and the metadata of the file, in the order of the state dict."""
        entries = dict(self.fixed)
        for item, tensors in self.items.items():
            for tensor in tensors:
                packed, _ = tensor.packed(chosen[item])
                digests = packed.digests or [digest(as_numpy(tensor.original))]
                entries[tensor.name] = packed, checksum(digests)
        figures = {**budget, "drop": round(self._drop(self._score_of(chosen)), 6)}
        metadata = {"deepsz": json.dumps(figures)} | ({_TIED: json.dumps(self.tied)} if self.tied else {})
        return {name: entries[name] for name in self.model.state_dict() if name in entries}, metadata

    def _model_bytes(self) -> int:
        tensors = [tensor.original for tensors in self.items.values() for tensor in tensors]
        return sum(t.numel() * t.element_size() for t in tensors) + sum(
            p.header.num_bytes for p, _ in self.fixed.values()
        )

    def _tensor_report(self, tensor: _Tensor, factor: float, packed: Packed) -> dict[str, Any]:
        bound = packed.header.bound
        return {
            "shape": list(tensor.original.shape),
            "num_nonzero_before": int(tensor.original.count_nonzero()),
            "num_nonzero": int(tensor.parameter.count_nonzero()),
            "bound": bound.value if isinstance(bound, Abs) else 0.0,
            "bytes": packed.header.num_bytes,
            "packed_bytes": packed.num_bytes,
        }

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._begun
        self._begun = now
