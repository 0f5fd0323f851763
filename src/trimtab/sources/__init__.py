"""Files of arrays that are not ours, one module a kind: `open_source` reads them, `create_target` writes them."""

from trimtab.sources.kinds import create_target, open_source, sniff
from trimtab.sources.source import Source, Spec
from trimtab.sources.target import Target

__all__ = ["Source", "Spec", "Target", "create_target", "open_source", "sniff"]
