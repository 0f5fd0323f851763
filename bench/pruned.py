"""What else packs pruned weights: Deep Compression, SZ3 with packed gaps, and general compressors."""

from __future__ import annotations

import heapq
import lzma
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

from trimtab.bounds import Abs
from trimtab.peers import SZ3

SZ3_SETTINGS = (SZ3(algorithm="NOPRED"), SZ3(algorithm="LORENZO_REG"), SZ3())
NUM_CLUSTERS = 32
_ITERATIONS = 40


@dataclass
class Coded:
    """Weights as a decoder would give them, and the bytes that they take, in parts."""

    weights: dict[str, np.ndarray]
    value_bytes: float
    place_bytes: float

    @property
    def num_bytes(self) -> float:
        return self.value_bytes + self.place_bytes


def entropy_bytes(symbols: np.ndarray) -> float:
    """Return what an ideal coder needs that knows how often each symbol occurs: no real one needs less."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / symbols.size)).sum() / 8) if symbols.size else 0.0


def huffman_bytes(symbols: np.ndarray, num_symbols: int) -> int:
    """Return the bytes of a canonical Huffman code and of what a decoder must know of it: the length of each code word.

    `symbols` are below `num_symbols`. A length takes as many bits as the longest one needs.
    """
    counts = Counter(symbols.tolist())
    heap = [(count, [symbol]) for symbol, count in counts.items()]
    heapq.heapify(heap)
    lengths = dict.fromkeys(counts, int(len(counts) == 1))
    while len(heap) > 1:
        (first, some), (second, others) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in some + others:
            lengths[symbol] += 1
        heapq.heappush(heap, (first + second, some + others))
    bits = sum(count * lengths[symbol] for symbol, count in counts.items())
    return -(-(bits + num_symbols * max(lengths.values(), default=0).bit_length()) // 8)


def gaps(mask: np.ndarray) -> np.ndarray:
    """Return the distances from each True to the one before, in C order."""
    return np.diff(np.flatnonzero(mask.reshape(-1)), prepend=-1)


def gap_entropy_bytes(mask: np.ndarray) -> float:
    """Return the entropy of the gaps along rows or along columns, whichever is less."""
    return min(entropy_bytes(gaps(mask)), entropy_bytes(gaps(mask.reshape(mask.shape[0], -1).T)))


def gap_huffman_bytes(mask: np.ndarray) -> int:
    """Return the bytes of the gaps as Deep Compression stores them: of a few bits each, in Huffman's code.

    The largest number of these bits is a gap that goes on without a weight, as `byte_gaps` has it; in the paper a
    weight of zero stands there, which costs more. Bits and direction are those that make the result shortest, where
    the paper has 5 bits for fully connected layers and 8 for convolutions.
    """
    sizes = []
    for along in (mask, mask.reshape(mask.shape[0], -1).T):
        found = gaps(along) - 1
        for bits in range(2, 13):
            most = (1 << bits) - 1
            symbols = np.concatenate([found % most, np.full(int((found // most).sum()), most)])
            sizes.append(huffman_bytes(symbols, most + 1))
    return min(sizes)


def elias_fano_bytes(mask: np.ndarray) -> float:
    """Return the bytes of an Elias-Fano code of the places: log2(size / count) bits and about two more for each."""
    count = np.count_nonzero(mask)
    low = max(int(np.log2(mask.size / count)), 0) if count else 0
    return (count * low + count + (mask.size >> low)) / 8


def byte_gaps(mask: np.ndarray) -> np.ndarray:
    """Return gaps as bytes, the index array of DeepSZ: 255 goes on without a weight, so that any distance fits."""
    coded: list[int] = []
    for gap in (gaps(mask) - 1).tolist():
        coded += [255] * (gap // 255) + [gap % 255]
    return np.array(coded, np.uint8)


def best_lossless(data: bytes) -> int:
    """Return the bytes of the better of zstd, level 19, and xz."""
    return min(len(zstandard.ZstdCompressor(level=19).compress(data)), len(lzma.compress(data, preset=9)))


def deep_compression(weights: Mapping[str, np.ndarray]) -> dict[str, Coded]:
    """Share 32 values a tensor (5 bits), as Deep Compression does (Han et al., ICLR 2016, arXiv 1510.00149).

    Clusters start evenly between the extremes, and k-means moves them; the values are float32. Codes and gaps are
    counted in two ways: "Huffman", as the paper stores them, with what a decoder must know of the code; "entropies",
    what an ideal coder would need that knows how often each occurs without being told: no file of these is as small.
    """
    shared: dict[str, np.ndarray] = {}
    ways = {way: Coded(shared, 0.0, 0.0) for way in ("Huffman", "entropies")}
    for name, x in weights.items():
        values = x[x != 0]
        centres = np.linspace(values.min(), values.max(), min(NUM_CLUSTERS, values.size))
        for _ in range(_ITERATIONS):
            codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
            sums, counts = (np.bincount(codes, w, centres.size) for w in (values, None))
            centres = np.sort(np.where(counts > 0, sums / np.maximum(counts, 1), centres))
        codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
        y = np.zeros_like(x)
        y[x != 0] = centres[codes]
        shared[name] = y
        ways["Huffman"].value_bytes += huffman_bytes(codes, centres.size) + 4 * centres.size
        ways["entropies"].value_bytes += entropy_bytes(codes) + 4 * centres.size
        ways["Huffman"].place_bytes += gap_huffman_bytes(x != 0)
        ways["entropies"].place_bytes += gap_entropy_bytes(x != 0)
    return ways


def sz3(weights: Mapping[str, np.ndarray], bounds: Mapping[str, float]) -> Coded:
    """Pack the nonzeros of each tensor by the best setting of SZ3 within its bound, and the byte gaps losslessly.

    A bound of 0, and an array that SZ3 would lengthen, are stored as they are.
    """
    coded, value_bytes, place_bytes = {}, 0.0, 0.0
    for name, x in weights.items():
        values = np.ascontiguousarray(x[x != 0])
        best, decoded = values.nbytes, values
        for peer in SZ3_SETTINGS if bounds[name] else ():
            encoded = peer.compress(values, Abs(bounds[name]))
            if encoded.num_bytes < best:
                best, decoded = encoded.num_bytes, peer.decompress(encoded)
        y = np.zeros_like(x)
        y[x != 0] = decoded
        coded[name] = y
        value_bytes += best
        place_bytes += best_lossless(byte_gaps(x != 0).tobytes())
    return Coded(coded, value_bytes, place_bytes)


def zstd_bytes(weights: Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> int:
    """Return the bytes of the tensors, zeros and all, each packed by zstd, level 19."""
    arrays = weights.values() if isinstance(weights, Mapping) else weights
    return sum(len(zstandard.ZstdCompressor(level=19).compress(x.tobytes())) for x in arrays)
