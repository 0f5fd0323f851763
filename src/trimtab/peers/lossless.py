"""Lossless peers: zipnn, OpenZL, pcodec, Blosc2 and Zstandard."""

from __future__ import annotations

import atexit
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np

from trimtab.bounds import Bound, Lossless
from trimtab.peers.peer import Encoded, Peer, array, words


class _LosslessPeer(Peer):
    """The part that lossless peers share: they take any array, and no other bound."""

    lossless: ClassVar[bool] = True

    def refuses(self, x: np.ndarray, bound: Bound = Lossless()) -> str | None:
        if not isinstance(bound, Lossless):
            return f"{self.name} is lossless; it has no error bounds"
        return None


@dataclass(frozen=True, repr=False)
class ZipNN(_LosslessPeer):
    """ZipNN (Hershcovitch et al., arXiv 2411.05239, 2024): Huffman-coded exponents of model weights."""

    package: ClassVar[str] = "zipnn"
    module: ClassVar[str] = "zipnn"
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float16", "float32")

    @property
    def name(self) -> str:
        return "zipnn"

    @property
    def setting(self) -> str:
        return "bytes, dtype of the weights, 1 thread; includes the copy of its input that it needs"

    def refuses(self, x: np.ndarray, bound: Bound = Lossless()) -> str | None:
        if x.dtype.name not in self.dtypes:
            return f"zipnn takes {', '.join(self.dtypes)}; the array is {x.dtype}"
        return super().refuses(x, bound)

    def compress(self, x: np.ndarray, bound: Bound = Lossless()) -> Encoded:
        # zipnn shuffles the bits of its input in place, so it gets a copy of its own
        data = _zipnn(self, x.dtype.name).compress(bytearray(words(x)))
        return Encoded(data, len(data), x.dtype, x.shape)

    def decompress(self, encoded: Encoded) -> np.ndarray:
        return array(_zipnn(self, encoded.dtype.name).decompress(encoded.data), encoded)


@cache
def _zipnn(peer: ZipNN, dtype: str) -> Any:
    return peer.load().ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)


@dataclass(frozen=True, repr=False)
class OpenZL(_LosslessPeer):
    """OpenZL: a graph of transforms, here the one that its documentation suggests for arrays of numbers.

    bfloat16 is split into exponents, which are entropy-coded, and the rest, which is stored; other dtypes into
    byte planes, each entropy-coded. (Its own split of float16 and float32 gave lower ratios on model weights.)
    """

    coder: Literal["Huffman", "Fse"] = "Huffman"
    package: ClassVar[str] = "openzl"
    module: ClassVar[str] = "openzl.ext"

    @property
    def name(self) -> str:
        return f"openzl-{self.coder.lower()}"

    @property
    def setting(self) -> str:
        return f"exponents of bfloat16, else byte planes, coded by {self.coder}"

    def compress(self, x: np.ndarray, bound: Bound = Lossless()) -> Encoded:
        openzl = self.load()
        context = openzl.CCtx()
        context.ref_compressor(_graph(self, x.dtype.name == "bfloat16"))
        context.set_parameter(openzl.CParam.FormatVersion, openzl.MAX_FORMAT_VERSION)  # forgotten after each call
        data = context.compress([openzl.Input(openzl.Type.Numeric, words(x))])
        return Encoded(data, len(data), x.dtype, x.shape)

    def decompress(self, encoded: Encoded) -> np.ndarray:
        output = self.load().DCtx().decompress(encoded.data)[0]
        return output.content.as_nparray().view(encoded.dtype).reshape(encoded.shape)


@cache
def _graph(peer: OpenZL, bfloat16: bool) -> Any:
    openzl = peer.load()
    atexit.register(_graph.cache_clear)  # its binding complains about objects that outlive the interpreter
    compressor = openzl.Compressor()
    compressor.set_parameter(openzl.CParam.FormatVersion, openzl.MAX_FORMAT_VERSION)
    coder = getattr(openzl.graphs, peer.coder)()(compressor)
    if bfloat16:
        store = openzl.graphs.Store()(compressor)
        graph = openzl.nodes.BFloat16Deconstruct()(compressor, store, coder)
    else:
        planes = openzl.nodes.TransposeSplit()(compressor, coder)
        graph = openzl.nodes.ConvertNumToStructLE()(compressor, planes)
    compressor.select_starting_graph(graph)
    return compressor


@dataclass(frozen=True, repr=False)
class Pcodec(_LosslessPeer):
    """Pcodec (Loncaric, Jeppesen and Zinberg, arXiv 2502.06112, 2025): binned deltas of numerical sequences."""

    level: int = 8
    package: ClassVar[str] = "pcodec"
    module: ClassVar[str] = "pcodec"
    dtypes: ClassVar[tuple[str, ...]] = ("float16", "float32", "float64", "int16", "int32", "int64")

    @property
    def name(self) -> str:
        return "pcodec"

    @property
    def setting(self) -> str:
        return f"level {self.level}; bfloat16 as uint16"

    def refuses(self, x: np.ndarray, bound: Bound = Lossless()) -> str | None:
        if x.dtype.itemsize == 1:
            return f"pcodec advises against 8-bit numbers; the array is {x.dtype}"
        if x.size == 0:
            return "pcodec does not say what an empty array was"
        return super().refuses(x, bound)

    def compress(self, x: np.ndarray, bound: Bound = Lossless()) -> Encoded:
        pcodec = self.load()
        numbers = np.ascontiguousarray(x).reshape(-1) if x.dtype.name in self.dtypes and x.dtype.isnative else words(x)
        config = pcodec.ChunkConfig(compression_level=self.level)
        data = pcodec.standalone.simple_compress(numbers, config)
        return Encoded(data, len(data), x.dtype, x.shape)

    def decompress(self, encoded: Encoded) -> np.ndarray:
        numbers = self.load().standalone.simple_decompress(encoded.data)
        return numbers.view(encoded.dtype).reshape(encoded.shape)


@dataclass(frozen=True, repr=False)
class Blosc2(_LosslessPeer):
    """Blosc2: a shuffle of bytes or bits in front of a general compressor, in blocks that fit the cache."""

    codec: Literal["ZSTD", "LZ4"] = "ZSTD"
    filter: Literal["SHUFFLE", "BITSHUFFLE"] = "SHUFFLE"
    level: int = 1
    package: ClassVar[str] = "blosc2"
    module: ClassVar[str] = "blosc2"

    @property
    def name(self) -> str:
        return f"blosc2-{self.codec.lower()}"

    @property
    def setting(self) -> str:
        return f"{self.codec} level {self.level}, {self.filter.lower()}, typesize of the dtype, 1 thread"

    def refuses(self, x: np.ndarray, bound: Bound = Lossless()) -> str | None:
        if x.nbytes >= 2**31 - 64:
            return f"blosc2 takes up to 2 GiB at once; the array has {x.nbytes} bytes"
        return super().refuses(x, bound)

    def compress(self, x: np.ndarray, bound: Bound = Lossless()) -> Encoded:
        blosc2 = self.load()
        numbers = words(x)
        data = blosc2.compress2(
            numbers,
            typesize=numbers.itemsize,
            codec=blosc2.Codec[self.codec],
            filters=[blosc2.Filter[self.filter]],
            clevel=self.level,
            nthreads=1,
        )
        return Encoded(data, len(data), x.dtype, x.shape)

    def decompress(self, encoded: Encoded) -> np.ndarray:
        return array(self.load().decompress2(encoded.data, nthreads=1), encoded)


@dataclass(frozen=True, repr=False)
class Zstd(_LosslessPeer):
    """Zstandard on the bytes as they are."""

    level: int = 3
    package: ClassVar[str] = "zstandard"
    module: ClassVar[str] = "zstandard"

    @property
    def name(self) -> str:
        return "zstd"

    @property
    def setting(self) -> str:
        return f"level {self.level}"

    def compress(self, x: np.ndarray, bound: Bound = Lossless()) -> Encoded:
        data = self.load().ZstdCompressor(self.level).compress(words(x))
        return Encoded(data, len(data), x.dtype, x.shape)

    def decompress(self, encoded: Encoded) -> np.ndarray:
        return array(self.load().ZstdDecompressor().decompress(encoded.data), encoded)
