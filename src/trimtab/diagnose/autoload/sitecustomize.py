"""Starts a probe in every Python process that comes to import `torch`, without a change to the program.

Put the folder of this file in front of `PYTHONPATH`, and set `TRIMTAB_DIAGNOSE` to the folder of the job, as
``trimtab diagnose run`` does. Python runs a module of this name when it starts; another one of the same name further
down the path is run afterwards, as it would have been. Processes that ignore the environment (``python -I``, ``-E``)
or leave out `site` (``-S``) are not reached; there, ``with tt.diagnose.Probe():`` is the way.

Nothing is imported before the program itself imports `torch`, and nothing in here may raise.
"""

import importlib.machinery
import importlib.util
import os
import sys

_TARGET = "torch"  # which imports torch.distributed


class _Finder:
    """Has a probe started when the target has been imported."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Find the target as it would be found without us, and have its loader do more."""
        if name != _TARGET:
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not cls]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _start()

            spec.loader.exec_module = exec_module
        return spec


def _start():
    try:
        from trimtab.diagnose import injection, probe

        injection.start_by_environment()
        probe.start_by_environment()
    except Exception as error:  # noqa: BLE001 (the job comes first)
        print(f"trimtab's probe could not be started: {error!r}", file=sys.stderr)  # noqa: T201


def _run_the_other_one():
    """Run the `sitecustomize` that ours has hidden."""
    here = os.path.dirname(os.path.abspath(__file__))
    paths = [path for path in sys.path if os.path.abspath(path or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    if os.environ.get("TRIMTAB_DIAGNOSE"):
        sys.meta_path.insert(0, _Finder)
    _run_the_other_one()
