"""Methods that turn a trained model into a smaller or cheaper one, within a budget that is verified.

They need PyTorch, which `import trimtab` and this package's import leave alone until a method runs.
"""

from trimtab.compact.deepsz import Compacted, DeepSZ, load

__all__ = ["Compacted", "DeepSZ", "load"]
