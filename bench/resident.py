"""The resident memory of a process by time, watched from outside, so that a busy interpreter does not hide a peak."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_WATCH = """
import sys, time
with open(f"/proc/{sys.argv[1]}/statm", "rb", buffering=0) as file, open(sys.argv[3], "w", buffering=1) as out:
    out.write("0 0\\n")
    while True:
        file.seek(0)
        try:
            pages = int(file.read(100).split()[1])
        except (OSError, IndexError):
            break
        out.write(f"{time.monotonic()} {pages}\\n")
        time.sleep(float(sys.argv[2]))
"""
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_PAGE = 4096


def give_back_freed_memory(least: int = 1 << 16) -> None:
    """Have the C library return every freed piece of at least so many bytes at once: what is resident is then in use.

    Raises:
        OSError: this C library takes no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(_M_MMAP_THRESHOLD, least) and mallopt(_M_TRIM_THRESHOLD, least)):
        raise OSError("resident memory is measured with glibc only")


def reset_peak() -> None:
    """Let the peak of this process begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> tuple[int, int]:
    """Return the resident bytes of this process, now and at the peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, peak


class Watch:
    """``with Watch(pid, folder) as watch: ...``, then `watch.points`: seconds of the monotonic clock, and bytes."""

    def __init__(self, pid: int, folder: Path, interval: float = 0.0005) -> None:
        self._path = folder / "resident.txt"
        self._command = [sys.executable, "-c", _WATCH, str(pid), str(interval), str(self._path)]
        self.points: list[tuple[float, int]] = []

    def __enter__(self) -> Watch:
        self._child = subprocess.Popen(self._command)
        while not (self._path.exists() and self._path.stat().st_size):
            time.sleep(0.01)
        return self

    def __exit__(self, *problem: Any) -> None:
        self._child.terminate()
        self._child.wait()
        for line in self._path.read_text().splitlines()[1:]:
            words = line.split()
            if len(words) == 2:  # the last line may be cut off
                self.points.append((float(words[0]), int(words[1]) * _PAGE))
