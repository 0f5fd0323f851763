"""XXH3-64 digests of pieces of equal size, on the device (Yann Collet's xxHash, specification 0.1.1 and later).

Works on torch tensors, on CUDA or, with TRITON_INTERPRET=1, on the CPU. A program takes a piece. Within a block of 1024
bytes the accumulators only add up, in any order, so its 16 stripes are taken at once; blocks follow one another.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl

from trimtab.errors import ShapeError

__all__ = ["BLOCK", "digests"]

BLOCK = 1024
"""The size of a piece is a multiple of this many bytes."""

_WORDS = tl.constexpr(BLOCK // 8)
_UNROLLED = tl.constexpr(4)  # blocks whose loads are under way together
_PRIME32_1 = tl.constexpr(0x9E3779B1)
_PRIME64_1 = tl.constexpr(0x9E3779B185EBCA87)
_AVALANCHE = tl.constexpr(0x165667919E3779F9)
_START = (
    *(0xC2B2AE3D, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9),
    *(0x85EBCA77C2B2AE63, 0x85EBCA77, 0x27D4EB2F165667C5, 0x9E3779B1),
)
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
# behind the start, 8 words, and the secret: what of it the last stripe takes (from byte 121), and the end (from 11)
_FINAL, _LAST, _MERGE = (tl.constexpr(at) for at in (8 + 16, 8 + 24, 8 + 24 + 8))


def digests(pieces: torch.Tensor) -> list[int]:
    """Return the XXH3-64 digest (no seed) of each row of `pieces` (contiguous uint8[n, size]).

    Raises:
        ShapeError: the size is not a multiple of 1024 bytes.
    """
    num, size = pieces.shape
    if not num:
        return []
    if not size or size % BLOCK:
        raise ShapeError(f"pieces of {size} bytes; expected whole blocks of {BLOCK}")
    if pieces.data_ptr() % 8:
        pieces = pieces.clone()  # whole words can be read only where they are aligned
    found = torch.empty(num, dtype=torch.int64, device=pieces.device)
    with torch.cuda.device_of(pieces):
        _digest[(num,)](pieces.view(torch.int64), size // 8, _constants(pieces.device), found, num_warps=1)
    return found.cpu().numpy().view(np.uint64).tolist()


@cache
def _constants(device: torch.device) -> torch.Tensor:
    parts = (_SECRET, _SECRET[121:185], _SECRET[11:75])
    words = np.concatenate([np.array(_START, np.uint64), *(np.frombuffer(part, "<u8") for part in parts)])
    return torch.from_numpy(words.view(np.int64)).to(device)


@triton.jit
def _load(at):
    return tl.load(at).to(tl.uint64, bitcast=True)


@triton.jit
def _added(words, keys, w):
    """Return what a block's words add to the accumulators."""
    value, other = _load(words + w), _load(words + (w ^ 1))
    mixed = value ^ keys
    return tl.sum(tl.reshape(other + (mixed & 0xFFFFFFFF) * (mixed >> 32), [_WORDS // 8, 8]), 0)


@triton.jit
def _digest(words, num_words, constants, found):
    piece = tl.program_id(0).to(tl.int64)
    words += piece * num_words
    i, w = tl.arange(0, 8), tl.arange(0, _WORDS)
    secret = constants + 8
    keys = _load(secret + w // 8 + w % 8)
    final = _load(constants + _FINAL + i)
    total = _load(constants + i)
    blocks = num_words // _WORDS - 1
    whole = blocks // _UNROLLED * _UNROLLED
    for start in range(0, whole, _UNROLLED):
        for k in tl.static_range(_UNROLLED):
            total += _added(words + (start + k) * _WORDS, keys, w)
            total = (total ^ (total >> 47) ^ final) * _PRIME32_1
    for block in range(whole, blocks):
        total += _added(words + block * _WORDS, keys, w)
        total = (total ^ (total >> 47) ^ final) * _PRIME32_1
    # the last stripe of the last block has words of the secret of its own
    at = words + blocks * _WORDS
    own = _load(constants + _LAST + w % 8)
    total += _added(at, tl.where(w < _WORDS - 8, keys, own), w)
    a, b = tl.split(tl.reshape(total ^ _load(constants + _MERGE + i), [4, 2]))
    digest = tl.sum((a * b) ^ tl.umulhi(a, b), 0) + (num_words * 8).to(tl.uint64) * _PRIME64_1
    digest = (digest ^ (digest >> 37)) * _AVALANCHE
    tl.store(found + piece, (digest ^ (digest >> 32)).to(tl.int64, bitcast=True))
