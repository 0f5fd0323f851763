"""Write the golden files of the present format version: ``python -m tests.golden.write``. None is ever overwritten."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.golden.arrays import FILES, base
from trimtab import store
from trimtab.files import FORMAT_VERSION, Writer

FOLDER = Path(__file__).parent


def write(folder: Path) -> list[Path]:
    """Write the files that are missing in `folder` and return their paths."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, cases in FILES.items():
        path = folder / f"{name}.tt"
        if path.exists():
            continue
        bases = base() if name == "enec-delta" else {}
        with Writer(path, metadata={"made by": "tests.golden.write"}, base="base.tt" if bases else "") as writer:
            for entry, (x, bound, codec) in cases().items():
                writer.add(entry, *store.encode(x, bound, codec, base=bases.get(entry)))
        written.append(path)
    return written


if __name__ == "__main__":
    paths = write(FOLDER / f"v{FORMAT_VERSION}")
    if not paths:
        sys.exit("all golden files are there already; they are never written again. A new format has a new version")
    for path in paths:
        print(f"{path}: {path.stat().st_size} bytes")  # noqa: T201
