"""Collectives that send a fraction of the bytes, and the laboratory that shows on which links this pays.

They run on torch.distributed as it is. Importing this package loads no PyTorch; using one of its names does.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "EmbeddingExchange": "embedding",
    "Exact": "sdp4bit",
    "Exchange": "exchange",
    "Layout": "format",
    "Link": "link",
    "Meter": "meter",
    "Netlab": "netlab",
    "Noise": "format",
    "PipelineReceive": "pipeline",
    "PipelineSend": "pipeline",
    "Plan": "planner",
    "Replicated": "replicated",
    "SDP4Bit": "sdp4bit",
    "Sharded": "sharded",
    "TacoColwise": "tensor_parallel",
    "TacoRowwise": "tensor_parallel",
    "TacoSequenceParallel": "tensor_parallel",
    "TacoShared": "tensor_parallel",
    "Topology": "topology",
}

__all__ = [*_HOMES]  # noqa: PLE0604 (the names are texts)

if TYPE_CHECKING:
    from trimtab.comm.embedding import EmbeddingExchange as EmbeddingExchange
    from trimtab.comm.exchange import Exchange as Exchange
    from trimtab.comm.format import Layout as Layout
    from trimtab.comm.format import Noise as Noise
    from trimtab.comm.link import Link as Link
    from trimtab.comm.meter import Meter as Meter
    from trimtab.comm.netlab import Netlab as Netlab
    from trimtab.comm.pipeline import PipelineReceive as PipelineReceive
    from trimtab.comm.pipeline import PipelineSend as PipelineSend
    from trimtab.comm.planner import Plan as Plan
    from trimtab.comm.replicated import Replicated as Replicated
    from trimtab.comm.sdp4bit import Exact as Exact
    from trimtab.comm.sdp4bit import SDP4Bit as SDP4Bit
    from trimtab.comm.sharded import Sharded as Sharded
    from trimtab.comm.tensor_parallel import TacoColwise as TacoColwise
    from trimtab.comm.tensor_parallel import TacoRowwise as TacoRowwise
    from trimtab.comm.tensor_parallel import TacoSequenceParallel as TacoSequenceParallel
    from trimtab.comm.tensor_parallel import TacoShared as TacoShared
    from trimtab.comm.topology import Topology as Topology


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trimtab.comm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"trimtab.comm.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
