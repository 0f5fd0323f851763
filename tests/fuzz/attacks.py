"""Attack the decoders of one codec; run as ``python -W error -m tests.fuzz.attacks CODEC NUM_FLIPS SEED LOG``.

It runs in a process of its own with a limit on its memory, so that a crash or an absurd allocation is seen. Before each
attack its name goes to the file LOG; what went wrong goes to standard output, one line an attack. Whatever is done to a
file, reading it either raises FormatError or gives the elements that were written.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from tests.forged import LIES, lies
from tests.networks import pooling
from tests.samples import sample
from trimtab import store
from trimtab.bounds import PSNR, Abs, Bound, Lossless, PointwiseRel, Rel
from trimtab.codecs import make_codec
from trimtab.errors import BaseError, BoundError, FormatError, ShapeError
from trimtab.files import Reader, to_bytes
from trimtab.packed import Packed

MEMORY = 1 << 30  # bytes that an attack may cost beyond what the imports took
SIZE = 1505  # elements of the small files: odd, so that no wider dtype fits by chance
SECONDS = 5.0  # that an attack may take
BOUNDS: list[Bound] = [Lossless(), Abs(2e-5), Abs(0.02), Rel(0.01), PointwiseRel(0.05), PSNR(50.0)]
SETTINGS = {  # codecs whose settings change the format
    "enec": [{"mode": "fast"}, {"mode": "ratio"}, {"mode": "paper"}],
    "sz": [{"level": "fast"}, {"level": "balanced"}, {"level": "ratio"}],
    "aesz": [{"model": pooling(2).model, "choice": "network"}],
    "embedding": [{"encoder": "exact"}, {"encoder": "entropy"}, {"encoder": "vector_lz"}, {"encoder": "dedup"}],
    "blocks": [{"dither": False}, {"dither": True}],
    "gwlz": [{"hidden": []}, {"hidden": [4], "groups": 1, "steps": 800}, {"hidden": [], "groups": 1, "relaxed": 2}],
}
SIZES = {"gwlz": 12_005}  # codecs that leave arrays of SIZE to others
LOSSLESS = ["bfloat16", "float16", "float32", "float64", "int16", "uint8", "bool", "complex64", "float8_e5m2"]
LOSSY = ["float32", "float64", "bfloat16", "uint8", "int16", "uint64"]


def rough(name: str, size: int) -> np.ndarray:
    """Return a walk with flat stretches and special values in it, so that every way of coding is taken."""
    x = sample(name, (size,), seed=5)
    if name in ("float32", "float64"):
        x = x.cumsum()
        x[size // 3 : size // 2] = 0
        x[[7, 70, -9]] = [np.nan, np.inf, -0.0]
    elif name == "uint64":  # far from zero, one not
        x = x.cumsum(dtype=x.dtype) + np.uint64(1 << 61)
        x[7] = 0
    elif name != "bool":
        x[size // 3 : size // 2] = x[0]
    return x


Subject = tuple[str, Packed, str, np.ndarray | None]
"""What it is, packed, its checksum, and the base that it is the difference from."""


def subjects(codec_id: str, size: int) -> Iterator[Subject]:
    """Yield what the codec makes of each bound and dtype that it takes; what only differs in the bound is left out."""
    seen = set()
    for settings, bound in itertools.product(SETTINGS.get(codec_id, [{}]), BOUNDS):
        codec = make_codec({"id": codec_id, **settings})
        for name in LOSSLESS if isinstance(bound, Lossless) else LOSSY:
            x = rough(name, size)
            if codec_id == "sparse":
                x[np.arange(size) % 7 > 0] = 0
            try:
                packed, checksum = store.encode(x if size % 5 else x.reshape(5, -1), bound, codec)
            except (BoundError, ShapeError):
                continue
            content = (name, *(data.tobytes() for data in packed.buffers.values()))
            if packed.header.codec["id"] == codec_id and content not in seen:
                seen.add(content)
                yield f"{settings} {bound} {name}", packed, checksum, None
    if codec_id == "enec":
        yield from differences(size)


def differences(size: int) -> Iterator[Subject]:
    """Yield differences from a base: of floats as tokens, of other dtypes as planes, and some where little moved."""
    rng = np.random.default_rng(11)
    for name, share in itertools.product(LOSSLESS, (0.02, 1.0)):
        base = rough(name, size)
        bits = f"u{base.itemsize // 2 if base.dtype.kind == 'c' else base.itemsize}"
        words = base.copy().view(bits)
        moved = rng.random(words.size) < share
        steps = rng.geometric(0.2, words.size) * rng.choice([-1, 1], words.size)
        words[moved] += (steps % 2 if name == "bool" else steps)[moved].astype(bits)
        if name == "bool":
            words &= 1
        x = words.view(base.dtype)
        packed, checksum = store.encode(x, base=base)
        if packed.header.base is not None:
            yield f"{share} difference of {name}", packed, checksum, base


def cuts(blob: bytes) -> Iterator[tuple[str, bytes]]:
    for size in range(len(blob)):
        yield f"cut to {size} bytes", blob[:size]


def flips(blob: bytes, num_flips: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Flip one to four bits, two times out of three in the body only: in the header, the checksum is what sees them."""
    body = 8 + int.from_bytes(blob[:8], "little")
    for i in range(num_flips):
        damaged = bytearray(blob)
        places = rng.integers(0 if i % 3 == 0 else 8 * body, 8 * len(blob), rng.integers(1, 5))
        for place in places:
            damaged[place // 8] ^= 1 << place % 8
        yield f"flip bits {places.tolist()}", bytes(damaged)


def words(packed: Packed, checksum: str, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Lie in words of the buffers: all of a short one, the ends and some of the middle of a long one."""
    for role, buffer in packed.buffers.items():
        raw = np.ascontiguousarray(buffer).view(np.uint8)
        for width in (8, 4, 2, 1):
            count = raw.size // width
            near = [*range(min(count, 24)), *range(max(count - 8, 0), count)]
            for at in sorted({*near, *rng.integers(0, count, 8).tolist()} if count else ()):
                truth = int.from_bytes(raw[at * width : (at + 1) * width].tobytes(), "little")
                for lie in (truth + 1, truth - 1, truth * 2, *(lie for lie in LIES if isinstance(lie, int))):
                    damaged = raw.copy()
                    written = (lie % (1 << 8 * width)).to_bytes(width, "little")
                    damaged[at * width : (at + 1) * width] = np.frombuffer(written, np.uint8)
                    blob = changed(packed, checksum, {role: damaged.view(buffer.dtype)})
                    yield f"u{8 * width} {at} of buffer {role}: {lie}", blob


def exchanges(packed: Packed, checksum: str) -> Iterator[tuple[str, bytes]]:
    """Swap buffers, cut them, lengthen them, empty them, fill them with one byte, leave them out."""
    for a, b in itertools.combinations(packed.buffers, 2):
        yield f"swap buffers {a} and {b}", changed(packed, checksum, {a: packed.buffers[b], b: packed.buffers[a]})
    for role, buffer in packed.buffers.items():
        for size in {*range(min(buffer.size, 40)), *range(max(buffer.size - 40, 0), buffer.size), buffer.size // 2}:
            yield f"cut buffer {role} to {size}", changed(packed, checksum, {role: buffer[:size]})
        for more in (1, 7, 8, 4096):
            longer = np.concatenate([buffer, np.zeros(more, buffer.dtype)])
            yield f"lengthen buffer {role} by {more}", changed(packed, checksum, {role: longer})
        for byte in (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x55, 0xAA):
            filled = np.full(buffer.nbytes, byte, np.uint8).view(buffer.dtype)
            yield f"fill buffer {role} with {byte:02x}", changed(packed, checksum, {role: filled})
        for dtype in ("uint8", "uint16", "uint64", "float32"):
            whole = np.ascontiguousarray(buffer).view(np.uint8)
            other = whole[: whole.size // 8 * 8].view(dtype)
            yield f"buffer {role} as {dtype}", changed(packed, checksum, {role: other})
        rest = {kept: data for kept, data in packed.buffers.items() if kept != role}
        yield f"leave out buffer {role}", to_bytes(dataclasses.replace(packed, buffers=rest), checksum)


def grafts(packed: Packed, checksum: str, others: list[Subject]) -> Iterator[tuple[str, bytes]]:
    """Give the buffers the header of another entry, or its params only: other layouts, dtypes and settings."""
    for kind, other, *_ in others:
        params = msgspec.structs.replace(packed.header, params=other.header.params)
        yield f"params of {kind}", to_bytes(dataclasses.replace(packed, header=params), checksum)
        yield f"header of {kind}", to_bytes(dataclasses.replace(packed, header=other.header), checksum)
        yield f"buffers of {kind}", to_bytes(dataclasses.replace(packed, buffers=other.buffers), checksum)


def changed(packed: Packed, checksum: str, buffers: dict[str, np.ndarray]) -> bytes:
    return to_bytes(dataclasses.replace(packed, buffers={**packed.buffers, **buffers}), checksum)


def elements(blob: bytes, base: np.ndarray | None) -> list[bytes]:
    reader = Reader(blob)
    bases = {} if base is None else {"": base}
    return [store.decode(reader, name, bases).tobytes() for name in reader]


def fault(blob: bytes, truth: list[bytes], base: np.ndarray | None = None) -> str | None:
    """Read a damaged file and return what is wrong with the outcome."""
    start = time.monotonic()
    try:
        wrong = None if elements(blob, base) == truth else "wrong elements"
    except (FormatError, BaseError):  # a header that names another base
        wrong = None
    except Exception as error:  # noqa: BLE001 (whatever else comes out is the finding)
        wrong = repr(error)
    seconds = time.monotonic() - start
    return wrong or (f"took {seconds:.1f} s" if seconds > SECONDS else None)


def attacks(codec_id: str, num_flips: int, seed: int) -> Iterator[tuple[str, bytes, list[bytes], np.ndarray | None]]:
    """Yield name, damaged file, true elements and base."""
    rng = np.random.default_rng(seed)
    small = list(subjects(codec_id, SIZES.get(codec_id, SIZE)))
    assert small, f"codec {codec_id} takes no array"
    for kind, packed, checksum, base in small:
        blob = to_bytes(packed, checksum)
        truth = elements(blob, base)
        yield from ((f"{kind}: untouched", blob, truth, base),)
        for name, damaged in itertools.chain(
            cuts(blob), flips(blob, -(-num_flips // len(small)), rng), words(packed, checksum, rng),
            exchanges(packed, checksum), lies(blob), grafts(packed, checksum, small),
        ):  # fmt: skip
            yield f"{kind}: {name}", damaged, truth, base
    for kind, packed, checksum, base in subjects(codec_id, 600_001):  # several chunks: their tables are the aim
        if packed.header.dtype not in ("float32", "bfloat16"):
            continue
        blob = to_bytes(packed, checksum)
        truth = elements(blob, base)
        for name, damaged in itertools.chain(
            itertools.islice(words(packed, checksum, rng), 0, None, 17),
            flips(blob, 30, rng),
            exchanges(packed, checksum),
        ):
            yield f"large {kind}: {name}", damaged, truth, base


def main(codec_id: str, num_flips: int, seed: int, log: Path) -> None:
    for _ in subjects(codec_id, SIZES.get(codec_id, SIZE)):  # compile and load everything before memory is limited
        pass
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    count = 0
    with log.open("wb") as file:
        for name, damaged, truth, base in attacks(codec_id, num_flips, seed):
            os.pwrite(file.fileno(), name.encode().ljust(4096), 0)
            wrong = fault(damaged, truth, base)
            if wrong:
                print(f"{name} -> {wrong}")  # noqa: T201
            count += 1
    print(f"{count} attacks")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
