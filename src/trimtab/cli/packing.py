"""Packing a file: under a given bound, or under the smallest that reaches a ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import options
from trimtab.cli.output import names, progress, ratio, size_text

if TYPE_CHECKING:
    from trimtab.arrays import Array
    from trimtab.bounds import Bound
    from trimtab.codecs import Codec
    from trimtab.sources import Source
    from trimtab.store import Level
    from trimtab.tune import Choice


@dataclass(frozen=True)
class Packing:
    """The arrays of a file, and how they are packed but for the bound."""

    arrays: Source
    codec: Codec | None
    level: Level | None
    integers: bool
    quiet: bool
    base: Path | None = None
    bases: Mapping[str, Array] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(spec.num_bytes for spec in self.arrays.specs.values())

    def encode(self, x: Any, bound: Bound, base: Array | None = None) -> tuple[Any, str]:
        """Return an array packed, losslessly where no bound applies, and its checksum."""
        from trimtab.store import encode, for_dtype

        return encode(x, *for_dtype(x.dtype, bound, self.codec, self.level, integers=self.integers), base=base)

    def write(self, path: Path, bound: Bound) -> int:
        """Pack all arrays into a file, and return how many were packed as differences from those of the base.

        Raises:
            ShapeError: the codec does not take an array.
        """
        from trimtab.errors import ShapeError
        from trimtab.files import Writer
        from trimtab.store import base_name

        num_differences = 0
        with (
            Writer(path, metadata=self.arrays.metadata, base=base_name(self.base)) as writer,
            progress("packing", self.num_bytes, quiet=self.quiet) as advance,
        ):
            for name, spec in self.arrays.specs.items():
                x = self.arrays.read(name)
                try:
                    packed, checksum = self.encode(x, bound, self.bases.get(name))
                except ShapeError as error:
                    raise ShapeError(f"{self.arrays.path}: {name!r}: {error}") from None
                writer.add(name, packed, checksum)
                num_differences += packed.header.base is not None
                options.release(self.bases)
                del x, packed  # before the next one is read
                advance(spec.num_bytes)
        return num_differences


def reach(packing: Packing, out: Path, target_ratio: float) -> Choice:
    """Write OUT under the smallest relative bound that reaches the ratio, and return the choice.

    Each trial on the whole is a packed file beside OUT; the best so far is kept, so that the last need not be repeated.

    Raises:
        NoFeasibleChoice: no bound reaches it; nothing is written.
    """
    import tempfile
    from dataclasses import replace

    from trimtab.bounds import Rel
    from trimtab.errors import NoFeasibleChoice
    from trimtab.tune import bisect, ratio_target
    from trimtab.tune.bounds import SPACE, START

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        written: dict[float, Path] = {}

        def measure(value: float) -> float:
            path = Path(folder) / f"{value:g}"
            packing.write(path, Rel(value))
            reached = ratio(packing.num_bytes, path.stat().st_size)
            if reached < target_ratio:
                path.unlink()
                return reached
            written[value] = path
            for worse in sorted(written)[1:]:
                written.pop(worse).unlink()
            return reached

        try:
            sample = _sample(packing, target_ratio)
            choice = bisect(measure, ratio_target(target_ratio), SPACE, start=START, sample=sample)
        except NoFeasibleChoice as error:
            raise NoFeasibleChoice(f"{packing.arrays.path}: {error}; nothing is written", error.nearest) from None
        written[choice.value].replace(out)
    return replace(choice, value=Rel(choice.value))


def _sample(packing: Packing, target_ratio: float) -> Callable[[float], float] | None:
    """Return a function that estimates the file's ratio from blocks of its large arrays; None for small files.

    Raises:
        NoFeasibleChoice: the arrays that are kept exactly leave no room.
    """
    import numpy as np

    from trimtab.bounds import Rel, value_range
    from trimtab.dtypes import numpy_dtype
    from trimtab.errors import NoFeasibleChoice
    from trimtab.store import bound_applies
    from trimtab.tune import bounds
    from trimtab.tune.sample import draw, local_bound

    specs = packing.arrays.specs
    sizes = {
        name: (spec.shape, numpy_dtype(spec.dtype).itemsize)
        for name, spec in specs.items()
        if bound_applies(spec.dtype, integers=packing.integers)
    }
    exact = [name for name in specs if name not in sizes]
    exact_bytes = sum(packing.encode(packing.arrays.read(name), Rel(1.0))[0].num_bytes for name in exact)
    if exact_bytes * target_ratio > packing.num_bytes:
        raise NoFeasibleChoice(
            f"{names(exact)} are kept exactly and take {size_text(exact_bytes)}; ratio {target_ratio:g} of "
            f"{size_text(packing.num_bytes)} leaves {size_text(packing.num_bytes / target_ratio)} for all arrays"
        )
    lossy_bytes = sum(specs[name].num_bytes for name in sizes)
    if lossy_bytes < 2 * bounds.SAMPLE_BYTES:
        return None
    blocks, covered = [], 0
    for name, boxes in draw(sizes, bounds.SAMPLE_BYTES).items():
        x = packing.arrays.read(name)
        span, drawn = value_range(x), [np.array(x[box], order="C") for box in boxes]
        weight = x.nbytes / sum(block.nbytes for block in drawn)
        blocks += [(block, span, weight) for block in drawn]
        covered += x.nbytes
        del x

    def sample(value: float) -> float:
        packed = sum(
            weight * packing.encode(block, local_bound(Rel(value), block, span))[0].num_bytes
            for block, span, weight in blocks
        )
        return packing.num_bytes / (packed * lossy_bytes / covered + exact_bytes)

    return sample
