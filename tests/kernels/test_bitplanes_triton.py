"""Exponent codes on the device: the bytes are those of the specification, chunk by chunk."""

from __future__ import annotations

import numpy as np
import pytest

from tests.device import DEVICE
from tests.kernels.test_bitplanes import chosen, encoded, weights
from trimtab.kernels.bitplanes import ref

torch = pytest.importorskip("torch")
triton = pytest.importorskip("trimtab.kernels.bitplanes.triton", exc_type=ImportError)

CHUNK = 8192
SIZES = (1, 9, 4095, 4096, 4097, 8192, 9001)


def chunks(halves: np.ndarray) -> list[np.ndarray]:
    return [halves[start : start + CHUNK] for start in range(0, halves.size, CHUNK)]


def by_reference(halves: np.ndarray, base: int, width: int, next_width: int, distances: np.ndarray):
    parts = [encoded(ref, chunk, base, width, next_width, distances) for chunk in chunks(halves)]
    signs, planes, tails, num_escapes = zip(*parts, strict=True)
    table = [(num, tail.size - ref.plane_bytes(num, next_width)) for num, tail in zip(num_escapes, tails, strict=True)]
    return *map(np.concatenate, (signs, planes, tails)), np.array(table, np.int64)


def on_device(x: np.ndarray, offset: int = 0) -> torch.Tensor:
    """Return a tensor, `offset` bytes away from an address that wide words can be read from."""
    room = torch.empty(x.nbytes + offset, dtype=torch.uint8, device=DEVICE)[offset:]
    room.copy_(torch.from_numpy(x.view(np.uint8).copy()))
    return room.view(torch.int16) if x.dtype == np.uint16 else room


def by_device(halves: np.ndarray, *codes, offset: int = 0):
    """Return what the device makes of `halves`: signs, planes, tails and table."""
    width, distances = codes[1], codes[3]
    signs, planes = (
        torch.full((num + offset,), 77, dtype=torch.uint8, device=DEVICE)[offset:]
        for num in (halves.size, ref.plane_bytes(halves.size, width))
    )
    x = on_device(halves, offset)
    table, tails = triton.encode_chunks(x, CHUNK, *codes[:3], distances, signs, planes)
    return *(part.cpu().numpy() for part in (signs, planes, tails)), table


def decoded(size: int, signs, planes, tails, table, *codes, offset: int = 0) -> tuple[bool, np.ndarray]:
    out = torch.full((2 * size + offset,), 77, dtype=torch.uint8, device=DEVICE)[offset:].view(torch.int16)
    parts = (on_device(part, offset) for part in (signs, planes, tails))
    verdict = triton.decode_chunks(*parts, table, CHUNK, *codes, out)
    return verdict, out.cpu().numpy().view(np.uint16)


def agree(halves: np.ndarray, *codes, offset: int = 0) -> None:
    expected, got = by_reference(halves, *codes), by_device(halves, *codes, offset=offset)
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))
    verdict, back = decoded(halves.size, *got, *codes, offset=offset)
    assert verdict
    assert np.array_equal(back, halves)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("width", "next_width"), [(2, 4), (3, 2), (3, 4), (4, 3)])
def test_device_agrees_and_reads_back(size: int, width: int, next_width: int) -> None:
    halves = weights(size, seed=size)
    base, *_ = chosen(halves)
    distances = np.array([d for d in range(256) if d >= (1 << width) - 1][:: 16 // width][:15], np.uint8)
    agree(halves, base, width, next_width, distances)


@pytest.mark.parametrize("offset", [2, 8])
def test_memory_that_wide_words_cannot_reach(offset: int) -> None:
    halves = weights(9001, seed=offset)
    agree(halves, *chosen(halves), offset=offset)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_every_code_an_escape(width: int) -> None:
    agree(np.full(9001, 7 << 7, np.uint16), 200, width, 2, np.arange(100, 115, dtype=np.uint8))


def test_no_escape_at_all() -> None:
    halves = (np.arange(9001) % 128 | 121 << 7).astype(np.uint16)
    *_, table = by_device(halves, 121, 3, 2, np.arange(7, 22, dtype=np.uint8))
    assert not table.any()
    agree(halves, 121, 3, 2, np.arange(7, 22, dtype=np.uint8))


@pytest.mark.parametrize("base", [1, 255])
def test_every_bit_pattern(base: int) -> None:
    """NaN payloads, infinities, denormals and both zeros among them; more escapes in a chunk than a block has codes."""
    halves = np.random.default_rng(0).permutation(np.arange(1 << 16).astype(np.uint16))[:20_011]
    agree(halves, base, 2, 3, np.arange(50, 65, dtype=np.uint8))


def test_equal_distances_in_the_list() -> None:
    """The list comes from a file; the first of equal distances is the code."""
    halves = np.full(100, 7 << 7, np.uint16)
    agree(halves, 107, 2, 2, np.array([100, 100, 100] + 12 * [0], np.uint8))


@pytest.mark.parametrize(("size", "step"), [(64, 1), (9001, 65), (9001, 513), (70, 100)])
def test_survey_agrees(size: int, step: int) -> None:
    halves = weights(size)
    fast, slow = np.empty(256, np.int64), np.empty(256, np.int64)
    triton.survey(on_device(halves), step, fast)
    ref.survey(halves, step, slow)
    assert np.array_equal(fast, slow)


@pytest.mark.parametrize("seed", range(12))
def test_hostile_parts_give_the_same_answer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    halves = weights(int(rng.integers(1, 10_000)), seed)
    codes = chosen(halves)
    width, next_width = codes[1], codes[2]
    signs, planes, tails, table = (np.copy(part) for part in by_reference(halves, *codes))
    match seed % 4:
        case 0:
            planes[rng.integers(0, planes.size, 3)] ^= np.uint8(1 << rng.integers(0, 8))
        case 1:
            table[-1, 1] += 1
            tails = np.append(tails, np.uint8(0))
        case 2:
            tails = rng.integers(0, 256, tails.size, dtype=np.uint8)
        case 3:
            table[0, 0] = max(table[0, 0] - 1, 0)
            num = sum(ref.plane_bytes(int(escapes), next_width) + raw for escapes, raw in table)
            tails = np.pad(tails, (0, max(num - tails.size, 0)))[:num]
    verdict, back = decoded(halves.size, signs, planes, tails, table, *codes)
    expected, slow, at, tail_at = True, [], 0, 0
    for chunk, (num_escapes, num_raw) in zip(chunks(halves), table.tolist(), strict=True):
        part, out = ref.plane_bytes(chunk.size, width), np.zeros(chunk.size, np.uint16)
        num = ref.plane_bytes(num_escapes, next_width) + num_raw
        start = len(slow) * CHUNK
        expected &= ref.decode(
            signs[start : start + chunk.size], planes[at : at + part], tails[tail_at : tail_at + num], num_escapes,
            *codes, out,
        )  # fmt: skip
        at, tail_at = at + part, tail_at + num
        slow.append(out)
    assert verdict == expected
    assert not verdict or np.array_equal(back, np.concatenate(slow))


def test_a_table_beyond_its_chunks_is_refused() -> None:
    halves = weights(100)
    codes = chosen(halves)
    signs, planes, tails, _ = by_reference(halves, *codes)
    for table in ([[101, 0]], [[2**32 - 1, 0]], [[3, 4]]):
        assert not decoded(100, signs, planes, tails, np.array(table), *codes)[0]


@pytest.mark.parametrize("level", ["array", "list"])
def test_codes_past_the_end_are_refused(level: str) -> None:
    """A code where there is no element, which no count contradicts."""
    halves = np.full(4097, 121 << 7, np.uint16)
    halves[::400] = 100 << 7  # 11 escapes
    codes = (121, 3, 2, np.array([21, 22, 23, *range(100, 112)], np.uint8))
    signs, planes, tails, table = by_reference(halves, *codes)
    assert table.tolist() == [[11, 0]]
    assert decoded(halves.size, signs, planes, tails, table, *codes)[0]
    # the lowest plane of a block with one byte (array), or two (list): the last lane has no code there
    changed, at = (planes, 3 * 512) if level == "array" else (tails, 1)
    changed[at] |= 0x80
    assert not decoded(halves.size, signs, planes, tails, table, *codes)[0]
