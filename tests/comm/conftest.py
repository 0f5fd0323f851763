"""Compiles the kernels before ranks are started, lest each compile them."""

from __future__ import annotations

import pytest
import torch

from trimtab.codecs.sdp4bit import Groups


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels():
    x = torch.ones(40)
    for codec in (Groups(hadamard=32), Groups(stochastic=False)):
        for row in (x, x.bfloat16()):
            payload, other = (torch.empty(codec.payload_bytes(40), dtype=torch.uint8) for _ in range(2))
            codec.encode(row, payload, 1)
            codec.decode(payload, row)
            codec.decode_sum(payload[None], row)
            codec.decode_sum_encode(payload[None], other, 40, codec, 1)
            if not codec.hadamard:
                codec.encode_difference(row, x.to(row.dtype), payload, 1)
                codec.decode_add(payload, row)
