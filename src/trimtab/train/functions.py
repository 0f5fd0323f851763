"""What PyTorch's functions save for the backward pass, and what of that the backward pass reads.

| functions | saved, parameters aside | read by the backward pass |
| --- | --- | --- |
| convolutions, `linear` | the input | its values, for the gradient of the weight alone |
| `batch_norm` | the input, mean and deviation of each channel | values; an error hardly reaches the input's gradient |
| `batch_norm`, then `relu` | the same | values where the result is above zero; elsewhere hardly any |
| `relu` | the result | where it is above zero |
| `leaky_relu` | the input | where it is above zero |
| `hardtanh`, `relu6` | the input | where it is inside the range |
| pooling by the maximum | the input; places of the maxima | its shape; the places |
| pooling by the mean | the input | its shape |
| `dropout` | the mask, or zero and a constant in its place | which of two values |
| all others | | everything, so it is kept as it is |
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.train.controller import Layer
    from trimtab.train.rebuilt import Undecided


class Kind(enum.Enum):
    """What a function does with what it saves."""

    PRODUCT = "product"
    NORM = "norm"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    CLAMP = "clamp"
    MAX_POOL = "max_pool"
    MEAN_POOL = "mean_pool"
    DROPOUT = "dropout"
    OTHER = "other"


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_KINDS = {
    **dict.fromkeys((*_CONVOLUTIONS, "linear"), Kind.PRODUCT),
    "batch_norm": Kind.NORM,
    "relu": Kind.RELU,
    "relu_": Kind.RELU,
    "leaky_relu": Kind.LEAKY_RELU,
    "leaky_relu_": Kind.LEAKY_RELU,
    "hardtanh": Kind.CLAMP,
    "hardtanh_": Kind.CLAMP,
    "relu6": Kind.CLAMP,
    **{f"max_pool{n}d{with_indices}": Kind.MAX_POOL for n in (1, 2, 3) for with_indices in ("", "_with_indices")},
    **{
        f"adaptive_max_pool{n}d{with_indices}": Kind.MAX_POOL
        for n in (1, 2, 3)
        for with_indices in ("", "_with_indices")
    },
    **{f"{adaptive}avg_pool{n}d": Kind.MEAN_POOL for n in (1, 2, 3) for adaptive in ("", "adaptive_")},
    **{f"{alpha}dropout{n}": Kind.DROPOUT for n in ("", "_", "1d", "2d", "3d") for alpha in ("", "feature_")},
}


class Call:
    """A function of PyTorch that is running."""

    __slots__ = ("args", "input", "kind", "kwargs", "layer", "name", "norm", "plane", "reason", "taken", "weight")

    def __init__(self, name: str, kind: Kind, args: tuple, kwargs: dict[str, Any]) -> None:
        self.name, self.kind, self.args, self.kwargs = name, kind, args, kwargs
        self.input: Tensor | None = None
        self.weight: Tensor | None = None
        self.layer: Layer | None = None
        self.norm: Undecided | None = None
        self.reason = ""
        self.taken = False
        self.plane: tuple[int, ...] | None = None


def name_of(function: Callable) -> str:
    """Return the name that a report gives to a function."""
    return getattr(function, "__name__", None) or str(function)


def kind_of(function: Callable) -> Kind:
    """Return what a function of PyTorch, as a `TorchFunctionMode` sees it, does with what it saves."""
    module = getattr(function, "__module__", None)
    if module is not None and not module.startswith("torch"):
        return Kind.OTHER
    kind = _KINDS.get(name_of(function), Kind.OTHER)
    if kind is Kind.NORM and module != "torch.nn.functional":  # torch.batch_norm has its arguments in another order
        return Kind.OTHER
    return kind


def argument(args: tuple, kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    """Return an argument that may be given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def spread(value: Any, num: int) -> tuple[int, ...]:
    """Return a setting of each axis: one number stands for all."""
    return (int(value),) * num if isinstance(value, int) else tuple(value) * (num if len(value) == 1 else 1)
