"""An error-bounded quantiser where torchrec expects a codec of its quantised communication.

torchrec packs one buffer for all ranks, and cuts it by sizes that follow from the number of elements alone. So only the
quantiser of `trimtab.comm.EmbeddingExchange` fits: elements become 1 or 2 bytes each, on one step for all, and equal
vectors are not left out. torchrec itself is not imported; its codecs are known by their methods.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from trimtab import kernels
from trimtab.arrays import as_numpy
from trimtab.bounds import Abs
from trimtab.codecs.embedding_slice import scale
from trimtab.errors import BoundError, ShapeError

__all__ = ["BoundedCodec"]


class BoundedCodec:
    """A `QuantizedCommCodec` of torchrec that keeps every element within a bound.

    `QuantizedCommCodecs(forward=BoundedCodec(Abs(0.01)), backward=...)` in torchrec's `qcomm_codecs_registry` uses it.
    NaN and infinities stay what they are, but for the payload of NaN.

    Args:
        bound: Of float32 elements.
        bits: Of an element: 8 for values up to 248 times the bound, 16 for up to 65,528 times.

    Raises:
        BoundError: the bound is not `Abs`, or too small or large for float32.
    """

    def __init__(self, bound: Abs, bits: Literal[8, 16] = 8) -> None:
        if not isinstance(bound, Abs) or not 2.0**-100 <= bound.value <= 2.0**100 or bits not in (8, 16):
            raise BoundError(f"torchrec's codecs need Abs from 2^-100 to 2^100 and 8 or 16 bits; got {bound}, {bits}")
        self.bound, self.bits = bound, bits
        self._largest = (1 << (bits - 1)) - 4  # beyond it stand infinity, its negative, and NaN

    def encode(self, input_tensor: torch.Tensor, ctx: None = None) -> torch.Tensor:
        """Return the codes as uint8.

        Raises:
            BoundError: a finite element is too large for a code.
            ShapeError: the tensor is not float32.
        """
        if input_tensor.dtype != torch.float32:
            raise ShapeError(f"torchrec's codecs take float32, got {input_tensor.dtype}")
        x = np.ascontiguousarray(as_numpy(input_tensor)).reshape(-1)
        codes, places = np.empty(x.size, np.int16), np.empty(x.size, np.int64)
        low, high, num = kernels.load("vectors").quantise(x, *scale(self.bound.value), codes, places)
        special = x[places[:num]]
        if max(high, -low) > self._largest or np.isfinite(special).any():
            raise BoundError(
                f"elements up to {np.abs(x[np.isfinite(x)]).max()} do not fit {self.bits} bits in steps of twice "
                f"{self.bound.value}; take a larger bound or 16 bits"
            )
        codes[places[:num]] = self._largest + np.where(np.isnan(special), 3, np.where(special > 0, 1, 2))
        data = codes.astype(np.int8) if self.bits == 8 else codes.astype("<i2", copy=False)
        return torch.from_numpy(data.view(np.uint8)).to(input_tensor.device)

    def decode(self, input_grad: torch.Tensor, ctx: None = None) -> torch.Tensor:
        """Return the elements as a flat float32 tensor."""
        data = np.ascontiguousarray(as_numpy(input_grad)).reshape(-1)
        codes = data.view(np.int8 if self.bits == 8 else "<i2")
        y = codes.astype(np.float32) * scale(self.bound.value)[1]
        for code, value in enumerate((np.inf, -np.inf, np.nan), self._largest + 1):
            y[codes == code] = value
        return torch.from_numpy(y).to(input_grad.device)

    @property
    def quantized_dtype(self) -> torch.dtype:
        return torch.uint8

    def calc_quantized_size(self, input_len: int, ctx: None = None) -> int:
        """Return how many bytes so many elements take."""
        return input_len * self.bits // 8

    def create_context(self) -> None:
        """Return nothing: there is no state between encoder and decoder."""

    def padded_size(
        self, input_tensor: torch.Tensor, dim_per_rank: list[int], my_rank: int, qcomm_ctx: None
    ) -> tuple[int, int]:
        """Return the columns that are sent, and 0: nothing needs padding."""
        return input_tensor.shape[0] if input_tensor.dim() == 1 else input_tensor.shape[1], 0
