"""The arrays of the golden files, by formulas in whole numbers: the same on every machine, for ever."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from tests.networks import pooling
from tests.samples import special
from trimtab.bounds import PSNR, Abs, Bound, Lossless, PointwiseRel, Rel
from trimtab.codecs import ENEC, GWLZ, SZ, Blocks, Codec, Embedding, Raw, Sparse
from trimtab.dtypes import FLOATS, INTEGERS, NAMES, numpy_dtype

Case = tuple[np.ndarray, Bound, Codec]
"""An array, and how it is packed; `base` has those arrays that some are differences from."""


def noise(size: int, seed: int = 1) -> np.ndarray:
    """Return int64 from -510 to 510, near normal: the sum of the bytes of a hash of the position."""
    words = (np.arange(size, dtype=np.uint64) + np.uint64(seed << 20)) * np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(29)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(32)
    return sum((words >> np.uint64(8 * k) & np.uint64(255)).astype(np.int64) for k in range(4)) - 510


def weights(name: str, *shape: int) -> np.ndarray:
    """Return elements like trained weights, in any dtype."""
    values = noise(int(np.prod(shape)))
    if name.startswith("complex"):
        return (values / 4096 + 1j * values[::-1] / 8192).astype(name).reshape(shape)
    if name == "float8_e8m0fnu":
        return (120 + values % 8).astype(np.uint8).view(numpy_dtype(name)).reshape(shape)
    if name == "bool" or name.startswith(("int", "uint")):
        return (abs(values) // 60 % 2 if name == "bool" else abs(values) // 20).astype(name).reshape(shape)
    return (values / 4096).astype(np.float32).astype(numpy_dtype(name)).reshape(shape)


def field(name: str, *shape: int) -> np.ndarray:
    """Return a smooth field with a little noise, exact in binary."""
    total = noise(int(np.prod(shape)), 2).reshape(shape) / 64
    for index in np.indices(shape).astype(np.float64):
        total += index * (11.0 - index) / 4
    return (total / 8).astype(numpy_dtype(name))


def with_specials(x: np.ndarray, *, largest: bool = True) -> np.ndarray:
    values = special(x.dtype.name)
    values = values if largest else np.delete(values, 4)  # beside the largest finite number all others are noise
    x.reshape(-1)[5 : 5 + values.size] = values
    return x


def raw() -> dict[str, Case]:
    shapes = [(3,), (), (2, 0)]
    return {f"{name} {shape}": (weights(name, *shape), Lossless(), Raw()) for name in NAMES for shape in shapes}


def enec() -> dict[str, Case]:
    arrays = {f"weights {name}": weights(name, 1100) for name in NAMES if name != "float8_e8m0fnu"}
    arrays |= {f"special {name}": with_specials(weights(name, 33, 37)) for name in FLOATS}
    arrays |= {"constant": np.full((600_001,), 3, np.int16), "block ends": weights("bfloat16", 4097)}
    return {name: (x, Lossless(), ENEC()) for name, x in arrays.items()}


def base() -> dict[str, np.ndarray]:
    arrays = {f"moved {name}": weights(name, 1500) for name in NAMES}
    arrays |= {f"special {name}": weights(name, 33, 37) for name in FLOATS}
    return arrays | {"rows": weights("bfloat16", 40, 64), "pattern": weights("float32", 4096)}


def enec_delta() -> dict[str, Case]:
    arrays = {}
    for name, x in base().items():
        words = x.copy().reshape(-1).view(np.uint8 if x.dtype == bool else f"u{min(x.itemsize, 8)}")
        some = noise(words.size, 3) // 100
        arrays[name] = words ^ (some & 1) if x.dtype == bool else words + some.astype(words.dtype)
        arrays[name] = arrays[name].astype(words.dtype).view(x.dtype).reshape(x.shape)
    for name in FLOATS:
        with_specials(arrays[f"special {name}"])
    arrays["rows"][::2] = base()["rows"][::2]
    arrays["pattern"].view(np.uint32)[...] = base()["pattern"].view(np.uint32) + (np.arange(4096) % 4 << 20)
    return {name: (x, Lossless(), ENEC()) for name, x in arrays.items()}


def enec_paper() -> dict[str, Case]:
    arrays = {}
    for name in ("bfloat16", "float16", "float32"):
        few_exponents = ((noise(1600) + 700) / 4096).astype(np.float32).astype(numpy_dtype(name))
        arrays[f"weights {name}"] = few_exponents
        arrays[f"special {name}"] = with_specials(few_exponents.copy())
    return {name: (x, Lossless(), ENEC(mode="paper")) for name, x in arrays.items()}


def sz() -> dict[str, Case]:
    bounds = [Abs(0.5), Rel(0.01), PointwiseRel(0.1), PSNR(40.0)]
    cases = {}
    for name, bound in itertools.product(FLOATS, bounds):
        cases[f"{name} {bound}"] = (with_specials(field(name, 13, 17), largest=False), bound, SZ())
    for shape in [(400,), (7, 8, 9), (3, 4, 5, 6), (2, 3, 4, 3, 5)]:
        cases[f"shape {shape}"] = (field("float32", *shape), Abs(0.25), SZ())
    tiles = np.zeros(2**21 + 3, np.float32)
    tiles[2**20 :] = 5
    cases["two tiles"] = (tiles, Abs(0.25), SZ())
    cases["nothing finite"] = (np.full(700, np.nan, np.float32), Abs(0.25), SZ())
    return cases


def sz_fast() -> dict[str, Case]:
    few, peaks, chunks = field("float32", 12, 10, 10), field("float32", 20, 60), np.zeros((3, 300, 400), np.float32)
    peaks[::7, ::11] += 300
    chunks[1:, 200:] = 5
    cases: dict[str, tuple[np.ndarray, Bound]] = {
        "many zeros": (field("float32", 30, 40), Abs(2.0)),
        "few zeros": (few, Abs(0.03)),
        "low bits": (few, Abs(1e-5)),
        "listed": (peaks, Abs(0.25)),
        "one axis": (with_specials(field("float64", 700), largest=False), Abs(0.01)),
        "logarithms": (with_specials(field("float16", 9, 10, 3)), PointwiseRel(0.1)),
        "two chunks": (chunks, Abs(0.25)),
    }
    return {name: (x, bound, SZ(level="fast")) for name, (x, bound) in cases.items()}


def sz_ratio() -> dict[str, Case]:
    codec = SZ(level="ratio")
    cases = {}
    for name in FLOATS:
        cases[f"special {name}"] = (with_specials(field(name, 20, 30), largest=False), Abs(0.5), codec)
    for shape in [(400,), (7, 8, 9), (3, 4, 5, 6)]:
        cases[f"shape {shape}"] = (field("float32", *shape), Rel(0.01), codec)
    cases["PSNR"] = (field("float32", 20, 30), PSNR(40.0), codec)
    cases["whole numbers"] = (field("float32", 20, 30).round(), Abs(0.25), codec)
    cases["fitted"] = (field("float32", 24, 24, 24), Abs(8.0), codec)
    cases["PSNR, finer coarse levels"] = (field("float32", 24, 24, 24), PSNR(25.0), codec)
    return cases


def sz_integers() -> dict[str, Case]:
    bounds = [Lossless(), Abs(2.0), Rel(0.01), PointwiseRel(0.1), PSNR(30.0)]
    cases = {}
    for name in INTEGERS:
        x = (field("float64", 13, 17) * (4 if name.endswith("8") else 400)).astype(np.int64) + 60
        x = np.clip(x, np.iinfo(name).min, min(np.iinfo(name).max, 2**40)).astype(name)
        some = bounds if name == "int16" else bounds[1:2]
        cases |= {f"{name} {bound}": (x, bound, SZ()) for bound in some}
    cases["far from zero"] = (noise(700).cumsum() + 2**62, Abs(10.0), SZ(level="fast"))
    cases["common divisor"] = ((noise(700).cumsum() * 16).astype(np.int32), Abs(20.0), SZ())
    return cases


def aesz() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name in ("float32", "float64", "float16"):
        x = with_specials(field(name, 20, 30), largest=False)
        cases[f"special {name}"] = (x, Abs(0.5), pooling(2, choice="network"))
    cases["three axes"] = (field("float32", 9, 13, 17), Rel(0.01), pooling(3, choice="network"))
    cases["planes"] = (field("float32", 3, 17, 20), Rel(0.02), pooling(2, choice="network", weights="shared"))
    cases["whole numbers"] = (field("float32", 20, 30).round(), Abs(0.25), pooling(2, choice="network"))
    mixed = field("float32", 24, 40)
    mixed[8:16, 16:] = np.where(noise(8 * 24, 3).reshape(8, 24) > 0, 90, 10)
    cases["kinds"] = (mixed, Abs(0.5), pooling(2, choice="l1"))
    return cases


def gwlz() -> dict[str, Case]:
    quick = GWLZ(hidden=(3, 2), groups=2, steps=30)
    rough, walk = field("float64", 30, 31, 32), (noise(120_000).cumsum() / 4096).astype(np.float32)
    cases: dict[str, Case] = {
        "one axis": (walk[:30_000], Abs(0.25), GWLZ(hidden=())),
        "hidden layers": (walk, Abs(0.25), GWLZ(hidden=(3, 2), groups=1, steps=1500)),
        "two axes": (rough.reshape(120, 248), Abs(1.0), GWLZ(hidden=())),
        "pairs": (rough.reshape(30, 496, 2), Rel(0.01), GWLZ(hidden=())),
        "relaxed": (rough, Abs(0.5), GWLZ(hidden=(), relaxed=2)),
        "ratio": (rough, Abs(1.0), GWLZ(hidden=(), base=SZ(level="ratio"))),
    }
    for name in FLOATS:
        cases[f"special {name}"] = (with_specials(rough.astype(numpy_dtype(name)), largest=False), Abs(1.0), quick)
    return cases


def sparse() -> dict[str, Case]:
    def pruned(name: str, *shape: int) -> np.ndarray:
        values = noise(int(np.prod(shape)))
        return (
            (np.where(abs(values) < 250, 0, values) / 4096).astype(np.float32).astype(numpy_dtype(name)).reshape(shape)
        )

    cases: dict[str, tuple[np.ndarray, Bound]] = {}
    for name, bound in itertools.product(FLOATS, [Lossless(), Abs(0.01), PSNR(40.0), PointwiseRel(0.1)]):
        cases[f"{name} {bound}"] = (with_specials(pruned(name, 41, 37), largest=False), bound)
    columns = pruned("float32", 60, 50)
    columns[:, ::3] = columns[:, 1::3] = 0
    cases["columns"] = (columns, Lossless())
    cases["kernels"] = (np.where(np.arange(25) % 5 == 0, pruned("float32", 30, 10, 25), 0), Rel(0.05))
    cases["integers"] = (np.where(noise(900, 3) < 200, 0, noise(900)), Abs(3.0))
    cases["bits"] = (np.where(noise(900, 3) < 0, 0, noise(900) << 40), Lossless())
    chunks = np.zeros(2**19 + 500, np.float32)
    chunks[::5001] = noise(105)
    cases["two chunks"] = (chunks, Abs(0.5))
    return {name: (x, bound, Sparse()) for name, (x, bound) in cases.items()}


def embedding() -> dict[str, Case]:
    def looked_up(name: str, steps: int) -> np.ndarray:
        table = (noise(40 * 12) * steps / 2**14).astype(np.float32).reshape(40, 12)
        return table[abs(noise(150, 3)) ** 2 // 2000 % 40].astype(numpy_dtype(name))

    cases = {}
    for encoder in ("exact", "unique", "entropy", "vector_lz", "dedup"):
        for name in ("float32", "float16", "bfloat16"):
            cases[f"{encoder} {name}"] = (with_specials(looked_up(name, 8)), Abs(0.02), Embedding(encoder=encoder))
        for steps in (0, 1, 3, 200, 20_000):
            cases[f"{encoder} {steps}"] = (looked_up("float32", steps), Abs(0.02), Embedding(encoder=encoder))
    cases["relative"] = (looked_up("float32", 8), Rel(0.01), Embedding())
    cases["lossless"] = (looked_up("float32", 8), Lossless(), Embedding())
    cases["one axis"] = (looked_up("float32", 8).reshape(-1), Abs(0.02), Embedding())
    cases["two slices"] = (np.tile(looked_up("float32", 8), (600, 1)), Abs(0.02), Embedding())
    return cases


def blocks(*, dither: bool = False) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    codec = Blocks(dither=dither)
    for name in ("float32", "float16", "bfloat16"):
        x = weights(name, 40, 64)
        cases[f"dense {name}"] = (x, Abs(0.01), codec)
        cases[f"sparse {name}"] = (np.maximum(x, 0), Abs(0.01), codec)
        cases[f"special {name}"] = (with_specials(weights(name, 33, 37)), Abs(0.01), codec)
    x = weights("float32", 1500 if dither else 4000)
    cases |= {f"{bound}": (x, bound, codec) for bound in (Rel(0.1), Abs(0.002), Abs(1e-5), Abs(1e-7), Abs(1e-9))}
    x = x.copy()
    x[::500] *= 4096
    x[1000:2100] = 0
    cases["outliers"] = (x, Abs(0.01), codec)
    slices = np.zeros(2**18 + 100, np.float32)
    slices[::5001] = noise(53)
    cases["two slices"] = (slices, Abs(0.5), codec)
    return cases


FILES: dict[str, Callable[[], dict[str, Case]]] = {
    "raw": raw,
    "enec": enec,
    "enec-delta": enec_delta,
    "enec-paper": enec_paper,
    "sz": sz,
    "sz-fast": sz_fast,
    "sz-ratio": sz_ratio,
    "sz-integers": sz_integers,
    "aesz": aesz,
    "gwlz": gwlz,
    "sparse": sparse,
    "embedding": embedding,
    "blocks": blocks,
    "blocks-dither": lambda: blocks(dither=True),
}
