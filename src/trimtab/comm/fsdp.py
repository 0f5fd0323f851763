"""FSDP2 from the inside: the only module that uses names of PyTorch's that are not public (2.11 to 2.13)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from trimtab.errors import BackendUnavailable, UsageError

try:
    from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
    from torch.distributed.fsdp._fully_shard._fsdp_common import DDPMeshInfo, FSDPMeshInfo
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
except ImportError as error:
    raise BackendUnavailable(
        f"PyTorch {torch.__version__} lacks FSDP2's custom collectives ({error}); versions 2.11 to 2.13 have them"
    ) from error

if TYPE_CHECKING:
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

__all__ = ["AllGather", "ReduceScatter", "Segment", "Unit", "units"]

OLDEST, NEWEST = (2, 11), (2, 13)


@dataclass(frozen=True)
class Segment:
    """A parameter's part in the flat row that its unit gathers from each rank."""

    name: str
    num: int
    """Elements of the row, padding included: the same on all ranks."""
    num_bytes: int
    """Of the whole parameter, as it is kept."""


class Unit:
    """The parameters that one `fully_shard` call made, which are gathered and reduced together."""

    def __init__(self, name: str, module: FSDPModule, group: FSDPParamGroup) -> None:
        self.name = name
        self._module = module
        self._group = group
        self._whole_mesh: Any = None
        mesh = group.mesh_info
        if not isinstance(mesh, FSDPMeshInfo):
            raise UsageError(f"the parameters of {name!r} are replicated, not sharded; use DistributedDataParallel")
        self.shard_group: dist.ProcessGroup = mesh.shard_process_group
        self.replicate_group: dist.ProcessGroup | None = (
            mesh.replicate_process_group if isinstance(mesh, DDPMeshInfo) else None
        )

    @property
    def global_ranks(self) -> tuple[int, ...]:
        """The ranks that hold the unit: shards and, with a 2-D mesh, replicas."""
        mesh = self._group.mesh_info
        dims = [dim for dim in (mesh.replicate_mesh_dim, mesh.shard_mesh_dim) if dim is not None]
        names = mesh.mesh.mesh_dim_names or ()
        if mesh.mesh.ndim == len(dims):
            return tuple(mesh.mesh.mesh.flatten().tolist())
        return tuple(mesh.mesh[tuple(names[dim] for dim in dims)].mesh.flatten().tolist())

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(
            Segment(
                f"{self.name}.{param._module_info.param_name}".lstrip("."),
                param._sharded_param_data.numel(),
                param._orig_size.numel() * param.sharded_param.element_size(),
            )
            for param in self._params
        )

    @property
    def trained(self) -> tuple[bool, ...]:
        """Which segments take gradients now."""
        return tuple(param.sharded_param.requires_grad for param in self._params)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The sharded parameters, which optimizers see."""
        return tuple(param.sharded_param for param in self._params)

    @property
    def extended(self) -> bool:
        """Whether a parameter is gathered by its own protocol (`fsdp_pre_all_gather`)."""
        return any(hasattr(param._sharded_local_tensor, "fsdp_pre_all_gather") for param in self._params)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that own the parameters."""
        return tuple({id(param._module_info.module): param._module_info.module for param in self._params}.values())

    @property
    def gather_dtype(self) -> torch.dtype:
        """What weights are gathered in."""
        return self._group.mp_policy.param_dtype or self._params[0].sharded_param.dtype

    @property
    def reduce_dtype(self) -> torch.dtype:
        """What gradients are reduced in."""
        return self._group.mp_policy.reduce_dtype or self.gather_dtype

    @property
    def averages(self) -> bool:
        """Whether the replicas' gradients are averaged, not summed: unless the user set a factor to divide by."""
        return self._group.gradient_divide_factor is None

    def use(self, all_gather: AllGather, reduce_scatter: ReduceScatter) -> None:
        """Let the unit communicate through these."""
        self._module.set_custom_all_gather(all_gather)
        self._module.set_custom_reduce_scatter(reduce_scatter)

    def replace_all_reduce(self, hook: Callable[[torch.Tensor], None], alone: dist.ProcessGroup) -> None:
        """Call `hook` in place of the all-reduce between replicas.

        FSDP2 runs its own all-reduce before the hook, so that gets a group of this rank alone.
        """
        self._whole_mesh = self._group.mesh_info
        mesh: Any = copy.copy(self._whole_mesh)
        mesh.replicate_process_group = alone
        self._group.mesh_info = mesh
        self._module.set_all_reduce_hook(hook)

    def restore(self) -> None:
        """Let the unit communicate as it did before."""
        self.use(DefaultAllGather(), DefaultReduceScatter())
        if self._whole_mesh is not None:
            self._group.mesh_info, self._whole_mesh = self._whole_mesh, None
            self._group._all_reduce_hook = None

    @property
    def _params(self) -> Sequence[FSDPParam]:
        return self._group.fsdp_params


def units(model: nn.Module) -> list[Unit]:
    """Return the units of a model that `fully_shard` was applied to, in the order of its modules.

    Raises:
        BackendUnavailable: this version of PyTorch is not one that was tested.
        UsageError: the model has none, or one with several groups, or one that cannot be taken over.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if not OLDEST <= version <= NEWEST:
        raise BackendUnavailable(f"PyTorch {torch.__version__}; expected 2.11 to 2.13, with whose FSDP2 this works")
    found = []
    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            groups: Sequence[FSDPParamGroup] = module._get_fsdp_state()._fsdp_param_groups
            for group in groups:
                if len(groups) > 1:
                    raise UsageError(f"{name or 'the model'!r} has parameters on several meshes; expected one mesh")
                if group._all_reduce_hook is not None:
                    raise UsageError(f"{name or 'the model'!r} has an all-reduce hook already; remove it first")
                found.append(Unit(name, module, group))
    if not found:
        raise UsageError("the model has no parameters that fully_shard has sharded; call fully_shard(model) first")
    return found
