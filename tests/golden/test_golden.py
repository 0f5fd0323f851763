"""Files of every released format version are decoded for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

import trimtab as tt
from tests.golden.arrays import FILES, base
from tests.golden.write import write
from tests.samples import promised, same_bits
from trimtab.files import FORMAT_VERSION

FOLDER = Path(__file__).parent
FILES_OF_ALL_VERSIONS = sorted(FOLDER.glob("v*/*.tt"))


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
@pytest.mark.parametrize("name", FILES)
def test_every_version_has_its_files(version, name):
    path = FOLDER / f"v{version}" / f"{name}.tt"
    assert path.exists(), f"{path.name} of version {version} is missing; `python -m tests.golden.write` makes new ones"


@pytest.mark.parametrize("backend", ["numba", "ref"])
@pytest.mark.parametrize("path", FILES_OF_ALL_VERSIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_files_are_decoded(path, backend):
    """Reading checks the checksum of the decoded bits; what was packed is computed anew."""
    cases = FILES[path.stem]()
    with tt.backend(backend):
        tensors = tt.load(path, base=base())
        assert list(tensors) == list(cases)
        for name, (x, bound, codec) in cases.items():
            if backend == "ref" and x.size > 100_000:
                continue
            y = tensors[name]
            bound = promised(codec, bound)
            assert tensors.reader.header(name).bound == bound
            assert bound.allows(x, y) if not isinstance(bound, tt.Lossless) else same_bits(x, y)


def test_the_cases_take_every_codec(tmp_path):
    """Arrays that a codec hands to Raw would make the files prove less than they seem to."""
    paths = write(tmp_path)
    assert write(tmp_path) == []
    for path in paths:
        tensors = tt.load(path)
        fallbacks = [name for name in tensors if tensors.reader.header(name).codec["id"] != path.stem.split("-")[0]]
        assert len(fallbacks) <= 0.2 * len(tensors), fallbacks
    assert sum(path.stat().st_size for path in paths) < 400_000
