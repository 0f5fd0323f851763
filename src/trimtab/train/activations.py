"""COMET: activations wait for the backward pass compressed (Jin et al., VLDB 2022, arXiv 2111.09562).

What a convolution or a linear layer saves is kept within an error bound. An error there changes the gradient of that
layer's weight only, by a noise whose size is known beforehand, so the bound of each layer follows from how much noise
its gradient may have: a part of the momentum. `trimtab.train.gradient_error` has the formula,
`trimtab.train.functions` what becomes of all else that is saved.

Differences from the paper, of which only the abstract and the released code could be read:

- noise is predicted from the encoder's mean squared error and the sum of the squared output gradients, without an
  empirical constant; `model="comet"` is the paper's form, with a constant that was calibrated here;
- inputs of batch normalisation are kept compressed too: in a residual network they are half of all bytes. Those with
  a rectifier behind are rebuilt from its result, which takes no bytes (`trimtab.train.rebuilt`): an approximation;
- rectifiers keep signs in one bit, or none where a convolution keeps their result; pooling keeps places in a window;
- the report counts every saved byte, not those of compressed layers alone;
- one tolerance for all layers can be derived from the memory that is wanted (`memory_ratio`);
- the bounds are measured anew every 100 steps, and more often at the start; the paper has 1000.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from trimtab.errors import UsageError

if TYPE_CHECKING:
    import torch

    from trimtab.codecs.codec import Codec
    from trimtab.train.compressed import CompressedActivations

_TOLERANCE = 0.01


class COMET(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keep what the backward pass needs compressed, within bounds that follow the training.

        comet = trimtab.train.COMET(memory_ratio=6)(model, optimizer)
        for x, y in loader:
            with comet:
                loss = criterion(model(x), y)
                loss.backward()
            optimizer.step()
        comet.report

    Attributes:
        tolerance: standard deviation of the noise of a weight's gradient, as a part of its mean absolute momentum (of
            its gradient, where the optimizer has no momentum). 0.01, the paper's, unless `memory_ratio` is given.
        memory_ratio: instead of a tolerance, how many times smaller all that is saved is to be, at least; the tolerance
            that all layers share is then the smallest that is predicted to do, but not below 0.001.
        codec: what packs values within a bound: `trimtab.codecs.Blocks(dither=True)` by default, or another codec such
            as `trimtab.codecs.SZ`, whose errors correlate, so that there is more noise than is predicted.
        model: how noise is predicted: "closed", a formula without a constant, or "comet", the paper's form.
        adaptive: False for the fixed schedule of the paper's forerunner (arXiv 2011.09017): each layer keeps the bound
            that it was given first, `initial_bound` or what `memory_ratio` asks for, and nothing is measured later.
        update_every: steps after which bounds are chosen anew from fresh measurements. Until then it is done at steps
            1, 2, 4, 8, ...
        initial_bound: the bound of the first step, as a part of the root mean square of a layer's input.
        batch_norm: what becomes of inputs of batch normalisation: "bounded", "exact", or "rebuilt" from the result of
            the rectifier that reads the output, where one does, its result is kept as values, and nothing else reads
            the output; else "bounded". Rebuilding takes hardly any bytes, and approximates the input's gradient: no
            bound holds for its error.
        min_bytes: smaller tensors stay as they are.
    """

    tolerance: float | None = None
    memory_ratio: float | None = None
    codec: Any = None
    model: Literal["closed", "comet"] = "closed"
    adaptive: bool = True
    update_every: int = 100
    initial_bound: float = 1 / 16
    batch_norm: Literal["rebuilt", "bounded", "exact"] = "rebuilt"
    min_bytes: int = 4096

    def __post_init__(self) -> None:
        if self.tolerance is not None and self.memory_ratio is not None:
            raise UsageError("give either tolerance, a budget of noise, or memory_ratio, a budget of bytes")
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise UsageError(f"tolerance must be a positive finite number, got {self.tolerance!r}")
        if self.memory_ratio is not None and not 1 < self.memory_ratio < math.inf:
            raise UsageError(f"memory_ratio must be a finite number above 1, got {self.memory_ratio!r}")
        if self.model not in ("closed", "comet") or self.batch_norm not in ("rebuilt", "bounded", "exact"):
            raise UsageError(
                f"model={self.model!r}, batch_norm={self.batch_norm!r};"
                " expected 'closed' or 'comet', 'rebuilt', 'bounded' or 'exact'"
            )
        if not 0 < self.initial_bound <= 1:
            raise UsageError(f"initial_bound must be above 0 and at most 1, got {self.initial_bound!r}")
        if self.update_every < 1 or self.min_bytes < 0:
            raise UsageError(
                f"update_every={self.update_every!r}, min_bytes={self.min_bytes!r}; expected at least 1, and 0"
            )

    def __call__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        scaler: torch.amp.GradScaler | None = None,
    ) -> CompressedActivations:
        """Return a context for the training steps of `model`: forward and backward run inside, or forward alone.

        It may be entered for each step or once for many. `optimizer` tells the momentum; without one the gradients
        themselves are the measure. `scaler` is the one that scales the loss, if any. Bounds are for one backward pass:
        the noise of n passes whose gradients accumulate is sqrt(n) times as large.

        Call it after `fully_shard` or `DistributedDataParallel`; each rank has bounds of its own. What runs inside
        `torch.utils.checkpoint` is left to it. Tensors on other devices are packed on the host.

        Raises:
            UsageError: the optimizer does not train this model, or a module went through `torch.compile`.
        """
        from trimtab.train.compressed import CompressedActivations

        return CompressedActivations(self, model, optimizer, scaler)

    def make_codec(self) -> Codec:
        """Return the codec of the settings."""
        if self.codec is not None:
            return self.codec
        from trimtab.codecs import Blocks

        return Blocks(dither=True)

    @property
    def noise(self) -> float | None:
        """The tolerance that was asked for; None where bytes decide."""
        return self.tolerance if self.tolerance is not None or self.memory_ratio is not None else _TOLERANCE
