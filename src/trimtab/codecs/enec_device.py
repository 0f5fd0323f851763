"""The escape layout of ENEC where tensors are: a CUDA device packs and unpacks, and only packed bytes cross the bus.

The bytes are those of `trimtab.codecs.enec_escape`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trimtab import kernels
from trimtab.arrays import as_numpy, to_device
from trimtab.codecs.enec_escape import CHUNK, EscapeParams, choose_codes, read_table, sampling_step
from trimtab.errors import Corrupt
from trimtab.packed import Packed, digest

if TYPE_CHECKING:
    import torch


def encode_escape_tensor(x: torch.Tensor) -> tuple[EscapeParams, dict[str, torch.Tensor]] | None:
    """Encode a bfloat16 tensor on its device; None where the layout does not suit it, or the device has no kernels."""
    import torch

    bitplanes = kernels.load_for("bitplanes", x.device.type) if x.layout is torch.strided else None
    if bitplanes is None:
        return None
    halves = x.detach().contiguous().reshape(-1).view(torch.int16)
    counts = np.empty(256, np.int64)
    bitplanes.survey(halves, sampling_step(halves.numel()), counts)
    chosen = choose_codes(counts)
    if chosen is None:
        return None
    params, listed = chosen
    num_halves = halves.numel()
    fixed = halves.new_empty(num_halves + bitplanes.plane_bytes(num_halves, params.width), dtype=torch.uint8)
    table, tails = bitplanes.encode_chunks(
        halves, CHUNK, params.base, params.width, params.next_width, listed, fixed[:num_halves], fixed[num_halves:]
    )
    head = np.concatenate([listed[: (1 << params.next_width) - 1], table.astype("<u4").reshape(-1).view(np.uint8)])
    return params, {"fixed": fixed, "escapes": torch.cat([torch.from_numpy(head).to(x.device), tails])}


def decode_escape_tensor(packed: Packed, params: EscapeParams, device: torch.device) -> torch.Tensor | None:
    """Return the array as a tensor on `device`, or None if it has no kernels.

    Raises:
        Corrupt: a buffer has the wrong size, or the parts contradict each other.
    """
    bitplanes = kernels.load_for("bitplanes", device.type)
    if bitplanes is None:
        return None
    import torch

    if packed.header.dtype != "bfloat16":
        raise Corrupt(f"the escape layout holds bfloat16; the header says {packed.header.dtype}")
    num_halves = packed.header.num_elements
    num_planes = bitplanes.plane_bytes(num_halves, params.width)
    fixed, escapes = packed.buffer("fixed", "uint8", num_halves + num_planes), packed.buffer("escapes")
    listed, table, bounds = read_table(escapes, num_halves, params.next_width)
    on_device = to_device(fixed, device)
    halves = torch.empty(num_halves, dtype=torch.int16, device=device)
    if not bitplanes.decode_chunks(
        on_device[:num_halves],
        on_device[num_halves:],
        to_device(escapes[bounds[0] :], device),
        np.array(table, np.int64),
        CHUNK,
        params.base,
        params.width,
        params.next_width,
        listed,
        halves,
    ):
        raise Corrupt("the numbers of escapes that chunks claim are not those of their planes")
    return halves.view(torch.bfloat16).reshape(packed.header.shape)


def tensor_digests(y: torch.Tensor) -> list[int]:
    """Return the digests of a bfloat16 tensor's chunks, made on its device where `encode_escape_tensor` works there."""
    import torch

    xxh3 = kernels.load_for("xxh3", y.device.type)
    assert xxh3 is not None
    flat = y.detach().contiguous().reshape(-1)
    num_whole = flat.numel() // CHUNK
    end = num_whole * CHUNK
    digests = xxh3.digests(flat[:end].view(torch.uint8).reshape(num_whole, CHUNK * flat.itemsize))
    return digests if end == flat.numel() else [*digests, digest(as_numpy(flat[end:]))]
