"""FastCLIP: contrastive training of image and text encoders with small batches (2024, arXiv 2407.01445).

The global contrastive loss compares each sample with all others of the data set. With s_ij the product of the features
of image i and text j, B samples in the batch and tau_1i, tau_2i the temperatures of a sample,

    g_1i = 1 / (B - 1) sum_{j != i} exp((s_ij - s_ii) / tau_1i)        image i against all texts
    g_2i = 1 / (B - 1) sum_{j != i} exp((s_ji - s_ii) / tau_2i)        text i against all images
    u <- (1 - gamma) u + gamma g        the running estimate of a sample's g, kept from epoch to epoch; at first u = g

| version | loss, of which the mean over samples is taken | temperature |
| --- | --- | --- |
| v0 | (log(eps + u_1) + log(eps + u_2)) / 2 | one, learned: 1 / logit scale |
| v1 | the same | one, constant |
| v2 | (tau_1 (log(eps + u_1) + rho) + tau_2 (log(eps + u_2) + rho)) / 2 | two a sample, learned by their own Adam |
| v3 | tau ((log(eps + u_1) + log(eps + u_2)) / 2 + rho) | one, learned: 1 / logit scale |

Gradients are those of the losses with g in place of u, where 1 / (eps + u) stands for 1 / (eps + g). Each rank computes
the whole gradient of its own features, those of the others being constants, so features are gathered once and no
gradient of features is exchanged; beside them, two numbers a sample are (v2: four).

Differences from the paper and its published code:

- u is kept as its logarithm, in which nothing overflows at any temperature. The running maxima that the published v2
  stores beside u are not needed.
- The loss that is returned is the value of the objective; the published one is a surrogate, nearly constant.
- The temperature's gradient is that of the objective. In the published code each half of the loss carries the logit
  scale, so that the similarities count twice (v0, v3). In v2 it scales no row by its temperature, divides Adam's step
  by the second moment, not by its root, and counts epochs where Adam counts steps. `as_released` does all this, since
  the published rho and learning rates were tuned so.
- The true numbers of samples count, so that last batches may differ from rank to rank.
- Two collectives carry the data, after one of 24 bytes by which the ranks agree that nothing is wrong.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from trimtab.errors import Corrupt, NotFinite, UsageError
from trimtab.train.pairs import Pairs
from trimtab.train.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["FastCLIP"]

Version = Literal["v0", "v1", "v2", "v3"]

_RHO = {"v0": 0.0, "v1": 0.0, "v2": 7.0, "v3": 6.5}
_LEAST, _MOST = 0.01, 1.0  # temperature of a sample
_MOST_GRADIENT = 5.0  # by it
_BETAS, _ADAM_EPS = (0.9, 0.999), 1e-8
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_EXTRA = "_extra_state"


class FastCLIP(nn.Module):
    """A contrastive loss that learns from small batches, called like open_clip's with the samples' indices added.

    >>> import torch, trimtab as tt
    >>> contrast = tt.train.FastCLIP(samples=1000, version="v3", decay_epochs=15)
    >>> image, text = (torch.nn.functional.normalize(torch.randn(8, 32)).requires_grad_() for _ in range(2))
    >>> contrast.set_epoch(0)
    >>> contrast(image, text, torch.tensor(14.3, requires_grad=True), torch.arange(8)).backward()

    **Several ranks.** Each calls it with its own samples, and gradients are averaged over the ranks, as
    DistributedDataParallel and FSDP do. The loss itself is not wrapped; its tables are the same on every rank::

        model = DistributedDataParallel(model)  # returns image features, text features, logit scale
        for epoch in range(num_epochs):
            contrast.set_epoch(epoch)
            for images, texts, index in batches:  # samplers must not repeat samples: drop_last=True
                contrast(*model(images, texts), index).backward()

    **The temperature.** In v0 and v3, learn the logarithm of the logit scale without weight decay, and keep the scale
    at 100 or less; published for v3: rates of 2e-4 to 5e-5, a third of that once the temperature is below 0.03. In v1
    and v2, the logit scale gets a gradient of zero.

    **Accumulating gradients.** Call it for each part of a batch, and divide by the number of parts: then only samples
    of one part are compared. Or let `trimtab.train.accumulate` compare all: this equals the whole batch at once.

    **State.** All of it is in `state_dict`: a run that is resumed repeats an uninterrupted one bit for bit. Saved on
    any one rank, it is loaded on all. A loss for more samples than were saved takes the additional ones as new.

    **Evaluation.** After `eval()` the loss is that of the batch alone, no index is needed, and nothing is stored.

    Args:
        samples: How many samples the indices number: 0 to `samples` - 1, the same in all epochs and after restarts.
        version: "v0" to "v3": see the table above.
        rho: What presses the temperatures down (v2, v3): the larger, the lower they end. Published for CC3M: 7 in v2
            and 6.5 in v3; 8.5 and 16 in v3 for larger sets.
        schedule: Of gamma: "cosine" falls from 1 to `gamma_min` over `decay_epochs`, "constant" is `gamma_min`; in
            either, gamma is 1 in epoch 0.
        gamma_min: The least weight of a batch in the running estimates; published: 0.2, for the largest set 0.8.
        decay_epochs: Of the cosine; published: half of all epochs.
        eps: Added to u in the loss; published: 1e-14, for the largest set 1e-6.
        temperature: The samples' temperatures at the start (v2).
        temperature_lr: The learning rate of the samples' temperatures (v2); published, `as_released`: 0.0133.
        as_released: Compute the temperatures' gradients, and update those of samples, as the published code does.
        group: The ranks that compute the loss together; the default group if it is left out.

    Raises:
        UsageError: an argument is out of range.
    """

    log_u: Tensor
    temperatures: Tensor
    moments: Tensor
    visits: Tensor

    def __init__(
        self,
        *,
        samples: int,
        version: Version = "v3",
        rho: float | None = None,
        schedule: Literal["cosine", "constant"] = "cosine",
        gamma_min: float = 0.2,
        decay_epochs: int = 18,
        eps: float = 1e-14,
        temperature: float = 0.03,
        temperature_lr: float = 0.002,
        as_released: bool = False,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        for what, fits in (
            (f"samples must be a whole number from 2, got {samples!r}", isinstance(samples, int) and samples >= 2),
            (f"version must be one of {', '.join(get_args(Version))}, got {version!r}", version in get_args(Version)),
            (f"rho must be a finite number from 0, got {rho!r}", rho is None or 0 <= rho < math.inf),
            (f"rho is for v2 and v3, not {version}", rho is None or version in ("v2", "v3")),
            (f"schedule must be cosine or constant, got {schedule!r}", schedule in ("cosine", "constant")),
            (f"gamma_min must be above 0 and at most 1, got {gamma_min!r}", 0 < gamma_min <= 1),
            (f"decay_epochs must be at least 1, got {decay_epochs!r}", decay_epochs >= 1),
            (f"eps must be a finite number from 0, got {eps!r}", 0 <= eps < math.inf),
            (f"temperature must be 0.01 to 1, got {temperature!r}", _LEAST <= temperature <= _MOST),
            (f"temperature_lr must be a finite number from 0, got {temperature_lr!r}", 0 <= temperature_lr < math.inf),
        ):
            if not fits:
                raise UsageError(what)
        self.samples, self.version = samples, version
        self.rho = _RHO[version] if rho is None else rho
        self.schedule, self.gamma_min, self.decay_epochs = schedule, gamma_min, decay_epochs
        self.eps, self.temperature, self.temperature_lr = eps, temperature, temperature_lr
        self.as_released, self.group = as_released, group
        self.epoch = self.steps = 0
        for name, table in self._new_rows(samples).items():
            self.register_buffer(name, table)

    def _new_rows(self, num: int) -> dict[str, Tensor]:
        """Return tables for samples that were not seen yet, a row each; image and text have a column each."""
        tables = {"log_u": torch.full((num, 2), -math.inf)}
        if self.version == "v2":
            tables["temperatures"] = torch.full((num, 2), self.temperature)
            tables["moments"] = torch.zeros(num, 4)  # the first ones, then the second ones
            tables["visits"] = torch.zeros(num, dtype=torch.int32)
        return tables

    def set_epoch(self, epoch: int) -> None:
        """Say that an epoch begins, counted from 0.

        Raises:
            UsageError: `epoch` is no such number.
        """
        if not isinstance(epoch, int) or epoch < 0:
            raise UsageError(f"epoch must be a whole number from 0, got {epoch!r}")
        self.epoch = epoch

    @property
    def gamma(self) -> float:
        """The weight of a batch in the running estimates, in this epoch."""
        if self.epoch == 0:
            return 1.0
        if self.schedule == "constant" or self.epoch >= self.decay_epochs:
            return self.gamma_min
        return self.gamma_min + 0.5 * (1 + math.cos(math.pi * self.epoch / self.decay_epochs)) * (1 - self.gamma_min)

    @property
    def report(self) -> dict[str, Any]:
        """Where the estimates stand: plain numbers."""
        seen = self.log_u[~self.log_u[:, 0].isneginf()]
        found: dict[str, Any] = {
            "version": self.version,
            "epoch": self.epoch,
            "steps": self.steps,
            "gamma": self.gamma,
            "seen_samples": len(seen),
        }
        means = {"log_u": seen}
        if self.version == "v2":
            means["temperature"] = self.temperatures
        for name, table in means.items():
            for column, side in enumerate(("image", "text")):
                found[f"mean_{name}_{side}"] = float(table[:, column].double().mean())
        return found

    def extra_repr(self) -> str:
        """Say what `repr` shows."""
        shown = f"samples={self.samples}, version={self.version!r}, epoch={self.epoch}, gamma={self.gamma:.3g}"
        return f"{shown}, as_released=True" if self.as_released else shown

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float | None,
        index: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, a scalar that is the same on all ranks, and update the estimates of the batch's samples.

        Under autocast, too, it is computed in float32 (in float64 for float64 features).

        Args:
            image_features: Those of this rank's images, [b, d], each of length 1; b may differ from rank to rank.
            text_features: Those of their texts, [b, d].
            logit_scale: 1 / temperature: v0 and v3 give it a gradient. Keep it at 100 or less. v2 ignores it.
            index: The samples' numbers, [b], whole numbers; no sample twice in the batch of all ranks.
            output_dict: Return the loss as ``{"contrastive_loss": loss}``.

        Raises:
            UsageError: shapes or dtypes do not fit, an index is out of range or repeated, all ranks together have fewer
                than two samples, or the logit scale is not a positive number.
            NotFinite: features are NaN or infinite.
            SettingsDiffer: the ranks differ in settings, epoch, number of calls, logit scale, or kind of features.

        An error is raised on all ranks, and leaves the estimates as they were.
        """
        ranks, device = Ranks(self.group), image_features.device
        problem = self._problem(image_features, text_features, logit_scale, index)
        state = "" if problem else self._state(image_features, logit_scale)
        counts = ranks.agree(len(image_features), state, problem, device)
        wanted = torch.is_grad_enabled()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            images, texts, indices = self._gather(ranks, counts, image_features, text_features, index)
            temperatures = self._temperatures(images, indices, logit_scale)
            start = sum(counts[: ranks.rank])
            pairs = Pairs(images, texts, slice(start, start + counts[ranks.rank]), 1 / temperatures)
            log_g, exponents = self._statistics(ranks, counts, pairs)
            log_u = self._estimate(indices, log_g) if self.training else log_g
            logs = torch.logaddexp(log_u, log_u.new_tensor(self.eps).log())
            scaled = self.version in ("v2", "v3")
            loss = (temperatures * (logs + self.rho)).mean() if scaled else logs.mean()
            gradients = self._gradients(ranks.size, pairs, temperatures, log_g, logs) if wanted else ()
            if self.training:
                if exponents is not None:
                    slopes = (log_g - logs).exp() * exponents  # of the logarithm of u + eps, by that of 1 / temperature
                    self._learn_temperatures(indices, (logs + self.rho - slopes).T)
                self.log_u[indices] = log_u.T.to(self.log_u)
                self.steps += 1
        if wanted:
            scale = logit_scale if isinstance(logit_scale, Tensor) else None
            loss = _KnownGradients.apply(loss, image_features, text_features, scale, *gradients)
        return {"contrastive_loss": loss} if output_dict else loss

    def _problem(self, image: Tensor, text: Tensor, logit_scale: Any, index: Tensor | None) -> Exception | None:
        """Return what is wrong with this rank's input, if anything is."""
        if image.dim() != 2 or image.shape != text.shape:
            return UsageError(
                f"features have shapes {tuple(image.shape)} and {tuple(text.shape)}; expected [b, d] both"
            )
        if image.dtype != text.dtype or not image.is_floating_point() or image.device != text.device:
            kinds = " and ".join(f"{x.dtype} on {x.device}" for x in (image, text))
            return UsageError(f"features are {kinds}; expected one floating-point dtype and one device")
        if self.log_u.dtype != torch.float32:
            return UsageError(f"the tables were cast to {self.log_u.dtype}; leave this module in float32")
        if self.training:
            if index is None or index.shape != image.shape[:1] or index.dtype not in _WHOLE:
                given = "missing" if index is None else f"{index.dtype} of shape {tuple(index.shape)}"
                return UsageError(f"index is {given}; expected whole numbers of shape ({len(image)},)")
            bad = index[(index < 0) | (index >= self.samples)]
            if len(bad):
                return UsageError(f"index {int(bad[0])} is out of range: samples are numbered 0 to {self.samples - 1}")
        if self.version != "v2":
            scale = torch.as_tensor(math.nan if logit_scale is None else logit_scale)
            if scale.numel() != 1 or not 0 < scale.item() < math.inf:
                return UsageError(f"logit_scale must be one positive number, got {logit_scale!r}")
        for name, x in (("image", image), ("text", text)):
            if not x.isfinite().all():
                row = int(x.isfinite().all(1).int().argmin())
                return NotFinite(f"{name}_features have NaN or infinite values, first in row {row}")
        return None

    def _state(self, image: Tensor, logit_scale: Any) -> str:
        """Say what must be the same on all ranks."""
        settings = f"version {self.version} for {self.samples} samples, rho {self.rho}, {self.schedule} gamma to"
        settings += f" {self.gamma_min} in {self.decay_epochs} epochs, eps {self.eps}, as_released {self.as_released}"
        if self.version == "v2":
            settings += f", temperature {self.temperature}, temperature_lr {self.temperature_lr}"
        else:
            settings += f", logit_scale {torch.as_tensor(logit_scale).item()}"
        mode = f"{'training' if self.training else 'evaluation'} in epoch {self.epoch} after {self.steps} steps"
        return f"{mode}, {image.dtype} features of {image.shape[1]} columns, {settings}"

    def _gather(
        self, ranks: Ranks, counts: list[int], image: Tensor, text: Tensor, index: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of all ranks, [B, d], in the dtype of the computation, and their indices, [B]."""
        if sum(counts) < 2:
            raise UsageError(f"all ranks together have {sum(counts)} samples; a contrastive loss compares at least two")
        if index is None or not self.training:
            index = torch.zeros(len(image), dtype=torch.int64)
        images, texts, column = ranks.gather(counts, image, text, index.to(image.device, torch.int64)[:, None])
        indices = column[:, 0].to(self.log_u.device)
        if self.training:
            numbers, occurrences = indices.unique(return_counts=True)
            if len(numbers) < len(indices):
                raise UsageError(
                    f"index {int(numbers[occurrences.argmax()])} is repeated in the batch of all ranks; a sample can"
                    " come once a step: let the sampler drop the last, incomplete batch, not fill it up"
                )
        dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
        return images.to(dtype), texts.to(dtype), indices

    def _temperatures(self, features: Tensor, indices: Tensor, logit_scale: Any) -> Tensor:
        """Return the temperatures of all anchors, [2, B]: a row for images, and one for texts."""
        if self.version != "v2":
            return (1 / torch.as_tensor(logit_scale).to(features)).expand(2, len(indices))
        rows = self.temperatures[indices] if self.training else self.temperatures.mean(0).expand(len(indices), 2)
        return rows.T.to(features)

    def _statistics(self, ranks: Ranks, counts: list[int], pairs: Pairs) -> tuple[Tensor, Tensor | None]:
        """Return log g of all anchors, [2, B], and where samples have temperatures their mean exponents, too."""
        if self.version == "v2":
            log_g, exponents = (x.T for x in ranks.gather(counts, pairs.log_means.T, pairs.mean_exponents().T))
        else:
            log_g, exponents = ranks.gather(counts, pairs.log_means.T)[0].T, None
        if not log_g.isfinite().all():
            raise NotFinite("the similarities overflow: features must have length 1")
        return log_g, exponents

    def _estimate(self, indices: Tensor, log_g: Tensor) -> Tensor:
        """Return log u after its update, [2, B]."""
        old, gamma = self.log_u[indices].T.to(log_g), self.gamma
        is_new = old.isneginf()
        if self.epoch == 0 and self.gamma_min < 1 and not is_new.any():
            # a warning is shown once a place, unless filters say otherwise
            warnings.warn("samples come again in epoch 0, where gamma is 1: call set_epoch", stacklevel=5)
        kept = old + math.log1p(-gamma) if gamma < 1 else torch.full_like(old, -math.inf)
        return torch.where(is_new, log_g, torch.logaddexp(kept, log_g + math.log(gamma)))

    def _gradients(
        self, num_ranks: int, pairs: Pairs, temperatures: Tensor, log_g: Tensor, logs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by this rank's features and by the logit scale, of which the mean over ranks counts."""
        num = temperatures.shape[1]
        share = num_ranks / (2 * num)
        # what the loss gains by a larger difference of similarities of weight 1, but for the share
        released = self.version == "v2" and self.as_released
        slopes = torch.ones_like(temperatures) if self.version in ("v2", "v3") and not released else 1 / temperatures
        images, texts = pairs.gradients((share / (num - 1) * slopes).log() - logs)
        scale = temperatures.new_zeros(())
        if self.version in ("v0", "v3"):
            own = pairs.own
            similar = (slopes * temperatures**2)[:, own] * (log_g - logs)[:, own].exp() * pairs.mean_exponents()
            scale += share * similar.sum() * (2 if self.as_released else 1)
        if self.version == "v3":
            scale -= (temperatures**2 * (logs + self.rho)).mean()
        return images, texts, scale

    def _learn_temperatures(self, indices: Tensor, gradients: Tensor) -> None:
        """Take a step of Adam for the temperatures of a batch; `gradients` is [B, 2]."""
        gradients = gradients.to(self.temperatures).clamp(-_MOST_GRADIENT, _MOST_GRADIENT)
        first, second = self.moments[indices].split(2, dim=1)
        visits = self.visits[indices] + 1
        betas = (0.0, 0.0) if self.as_released and self.epoch == 0 else _BETAS
        count = torch.full_like(visits, self.epoch + 1) if self.as_released else visits
        first = betas[0] * first + (1 - betas[0]) * gradients
        second = betas[1] * second + (1 - betas[1]) * gradients**2
        mean, square = (
            x / (1 - beta ** count[:, None].float()) for x, beta in zip((first, second), betas, strict=True)
        )
        step = mean / ((square if self.as_released else square.sqrt()) + _ADAM_EPS)
        self.temperatures[indices] = (self.temperatures[indices] - self.temperature_lr * step).clamp(_LEAST, _MOST)
        self.moments[indices] = torch.cat([first, second], dim=1)
        self.visits[indices] = visits

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the state holds beside the tables."""
        numbers = {"samples": self.samples, "world_size": Ranks(self.group).size}
        return {"version": self.version, **numbers, "epoch": self.epoch, "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take what the state holds beside the tables, which was checked before."""
        self.epoch, self.steps = state["epoch"], state["steps"]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any, **named: Any) -> None:
        """Check a state, and load it, with rows added for samples that it does not have.

        Raises:
            UsageError: it is of another version, world size or number of samples.
            Corrupt: its parts do not fit together.
        """
        if f"{prefix}{_EXTRA}" in state_dict:
            state_dict = {**state_dict, **self._fitting(state_dict, prefix)}
        super()._load_from_state_dict(state_dict, prefix, *others, **named)

    def _fitting(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor]:
        """Return the tables of a state, with a row for each of our samples."""
        extra, size = state_dict[f"{prefix}{_EXTRA}"], Ranks(self.group).size
        if not isinstance(extra, dict) or extra.keys() != self.get_extra_state().keys():
            raise Corrupt(f"{prefix}{_EXTRA} is not what FastCLIP saves: {extra!r}")
        numbers = [value for name, value in extra.items() if name != "version"]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise Corrupt(f"{prefix}{_EXTRA} has no whole numbers from 0: {extra!r}")
        if extra["version"] != self.version:
            raise UsageError(f"the state is of FastCLIP {extra['version']}, this is {self.version}")
        if extra["samples"] > self.samples:
            raise UsageError(f"the state is for {extra['samples']} samples, more than the {self.samples} here")
        if extra["world_size"] != size:
            raise UsageError(
                f"the state was saved by {extra['world_size']} ranks, here are {size}, which would not repeat the run;"
                f" to go on all the same, put {size} for 'world_size' into the state's {_EXTRA!r}"
            )
        found = {}
        for name, rows in self._new_rows(self.samples - extra["samples"]).items():
            table = state_dict.get(f"{prefix}{name}")
            if table is None:
                continue  # load_state_dict tells what is missing
            if table.shape != (extra["samples"], *rows.shape[1:]) or table.dtype != rows.dtype:
                raise Corrupt(f"{name} is {table.dtype} of shape {tuple(table.shape)}, for {extra['samples']} samples")
            if table.isnan().any() or table.isposinf().any():
                raise Corrupt(f"{name} has NaN or infinite values")
            found[f"{prefix}{name}"] = torch.cat([table, rows.to(table.device)])
        return found


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients were computed with it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *inputs_and_gradients: Tensor | None) -> Tensor:
        inputs, gradients = inputs_and_gradients[:3], inputs_and_gradients[3:]
        ctx.save_for_backward(*gradients)
        ctx.kinds = [None if x is None else (x.shape, x.dtype, x.device) for x in inputs]
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *above: Any) -> Any:  # pyrefly: ignore[bad-override] (the decorator hides the names)
        (gradient,) = above
        found = [
            None if kind is None else (gradient * known).reshape(kind[0]).to(kind[2], kind[1])
            for known, kind in zip(ctx.saved_tensors, ctx.kinds, strict=True)
        ]
        return None, *found, None, None, None
