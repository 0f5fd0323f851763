"""The context in which what autograd saves is kept compressed.

`torch.autograd.graph.saved_tensors_hooks` gives the tensors, a `torch.overrides.TorchFunctionMode` the function that
saves them and the weight it does so with, so that modules and plain calls are treated alike. Functions that PyTorch
runs inside another one, such as those of multi-head attention, are seen as that one.
"""

from __future__ import annotations

import math
import resource
import sys
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from trimtab.arrays import as_numpy
from trimtab.errors import UsageError
from trimtab.train.controller import Controller, Layer
from trimtab.train.functions import Kind, argument, kind_of, name_of, spread
from trimtab.train.gradient_error import Curve, mean_square, norm_gain, product_gain, reach
from trimtab.train.saved import Bounded, Exact, Places, Saved, ShapeOnly, Signs, TwoValued, Window
from trimtab.train.tally import Row, Tally

if TYPE_CHECKING:
    from trimtab.train.activations import COMET

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class _Call:
    """A function of PyTorch that is running."""

    __slots__ = ("args", "input", "kind", "kwargs", "layer", "name", "norm", "plane", "reason", "taken", "weight")

    def __init__(self, name: str, kind: Kind, args: tuple, kwargs: dict[str, Any]) -> None:
        self.name, self.kind, self.args, self.kwargs = name, kind, args, kwargs
        self.input: Tensor | None = None
        self.weight: Tensor | None = None
        self.layer: Layer | None = None
        self.reason = ""
        self.taken = False
        self.plane: tuple[int, ...] | None = None
        self.norm: Tensor | None = None


_NOWHERE = _Call("autograd function", Kind.OTHER, (), {})


class _Watch(TorchFunctionMode):
    """Tells the hooks which function is running."""

    def __init__(self, owner: CompressedActivations) -> None:
        super().__init__()
        self._owner = owner

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._owner._run(func, args, kwargs or {})


class CompressedActivations:
    """What `COMET` returns: enter it around training steps."""

    def __init__(
        self,
        settings: COMET,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scaler: torch.amp.GradScaler | None = None,
        *,
        counting: bool = False,
    ) -> None:
        """Of `COMET`'s call; `counting` keeps everything as it is and counts bytes alone."""
        self._counting = counting
        self.settings, self.model, self._optimizer, self._scaler = settings, model, optimizer, scaler
        _check_model(model)
        if optimizer is not None:
            _check_optimizer(model, optimizer)
        self._codec = settings.make_codec()
        self._keeps_signs = bool(getattr(self._codec, "keeps_signs", False))
        self._controller = Controller(settings.noise, settings.memory_ratio, settings.model)
        self._layers: dict[str, Layer] = {}
        self._of_weight: dict[int, tuple[weakref.ref, Layer | None]] = {}
        self._kinds: dict[Any, tuple[str, Kind]] = {}
        self._bounded: weakref.WeakValueDictionary[Any, Bounded] = weakref.WeakValueDictionary()
        self._signs: weakref.WeakValueDictionary[Any, Signs] = weakref.WeakValueDictionary()
        self._tally, self._done = Tally(), Tally()
        self._call = _NOWHERE
        self._pending: tuple[Any, Signs, Row] | None = None
        self._stack: ExitStack | None = None
        self._num_steps = 0
        self._step_begun = False
        self._backward_ran = True
        self._measuring = False
        self._gains: dict[str, _Measured] = {}
        self._hooks: list[Any] = []
        self._constants: set[int] = set()
        self._always: bool | None = None

    def twin(self, *, measuring: bool = True) -> CompressedActivations:
        """Return another context of the same settings and bounds, for a step on trial, which it measures or not."""
        other = CompressedActivations(self.settings, self.model, self._optimizer, self._scaler)
        other._layers = {name: replace(layer) for name, layer in self._layers.items()}
        other._always = measuring
        return other

    def measured_layers(self) -> dict[str, Layer]:
        """Return the layers by the names of their weights, with what the last step measured."""
        self._end_step()
        return self._layers

    # ---- the context

    @property
    def entered(self) -> bool:
        return self._stack is not None

    def __enter__(self) -> CompressedActivations:
        if self._stack is not None:
            raise UsageError("this context is entered already; leave it first, or make another with COMET(...)(model)")
        self._backward_ran = True
        self._stack = ExitStack()
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack))
        self._stack.enter_context(_Watch(self))
        return self

    def __exit__(self, *error: Any) -> None:
        stack, self._stack = self._stack, None
        assert stack is not None
        self._settle()
        self._call = _NOWHERE
        stack.__exit__(*error)

    # ---- forward

    def _run(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        found = self._kinds.get(func)
        if found is None:
            found = self._kinds[func] = name_of(func), kind_of(func)
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        outer, call = self._call, _Call(*found, args, kwargs)
        if call.kind is Kind.PRODUCT or call.kind is Kind.NORM:
            self._find_layer(call)
        self._call = call
        try:
            result = func(*args, **kwargs)
        finally:
            self._call = outer
        if self._measuring and call.taken and call.layer is not None:
            self._watch_gradient(call, call.layer, result)
        return result

    def _find_layer(self, call: _Call) -> None:
        """Find out which layer the call is of, and why its input cannot be bounded, if so."""
        call.input = argument(call.args, call.kwargs, 0, "input")
        product = call.kind is Kind.PRODUCT
        call.weight = argument(call.args, call.kwargs, 1 if product else 3, "weight")
        key = call.weight if product or call.weight is not None else argument(call.args, call.kwargs, 1, "running_mean")
        if not isinstance(key, Tensor) or not isinstance(call.input, Tensor):
            call.reason = "has neither weight nor running mean"
            return
        if not product and self.settings.batch_norm == "exact":
            call.reason = "as set"
            return
        known = self._of_weight.get(id(key))
        if known is None or known[0]() is not key:
            known = weakref.ref(key), self._make_layer(key, call.name)
            self._of_weight[id(key)] = known
        call.layer = known[1]
        if call.layer is None:
            call.reason = "its weight is no parameter of the model"

    def _make_layer(self, key: Tensor, function: str) -> Layer | None:
        for named in (self.model.named_parameters(), self.model.named_buffers()):
            for name, tensor in named:
                if tensor is key:
                    return self._layers.setdefault(name, Layer(name.removesuffix(".weight"), function))
        return None

    def _pack(self, x: Tensor) -> Saved:
        if isinstance(x, nn.Parameter):
            return Exact(x)
        call = self._call
        if self._backward_ran and call is not _NOWHERE and call.name not in ("backward", "grad"):
            self._begin_step()
        if type(x) is not Tensor or x.layout is not torch.strided:
            return self._keep(x, call, "a tensor of its own kind")
        storage = x.untyped_storage()
        if storage.data_ptr() in self._constants:
            return Exact(x)
        weak = StorageWeakRef(storage)
        key = (weak, x.storage_offset(), x._version, x.shape, x.stride(), x.dtype)
        if self._pending is not None and self._pending[0] != key:
            self._settle()
        kind = call.kind
        if kind is Kind.OTHER or x.dtype.is_complex or self._counting:
            return self._keep(x, call, "", weak)
        if kind is Kind.PRODUCT or kind is Kind.NORM:
            return self._pack_input(x, key, call)
        if kind is Kind.MAX_POOL or kind is Kind.MEAN_POOL:
            return self._pack_pool(x, key, call)
        if x.nbytes < self.settings.min_bytes:
            return self._keep(x, call, "small", weak)
        if kind is Kind.RELU or kind is Kind.LEAKY_RELU:
            return self._pack_signs(x, key, call)
        if kind is Kind.CLAMP:
            return self._pack_clamped(x, key, call)
        return self._pack_dropout(x, key, call)

    def _keep(self, x: Tensor, call: _Call, reason: str, weak: StorageWeakRef | None = None) -> Exact:
        """Keep a tensor as it is."""
        if weak is None:
            try:
                weak = StorageWeakRef(x.untyped_storage())
            except (NotImplementedError, RuntimeError):  # a kind of tensor without storage
                return Exact(x)
        row = self._tally.row(call.name, call.layer.name if call.layer else "")
        self._tally.saw(weak, x, row)
        num_bytes = self._tally.retains(weak, x)
        self._tally.keep(row, f"exact: {reason}" if reason else "exact", num_bytes)
        return Exact(x, num_bytes)

    def _pack_input(self, x: Tensor, key: Any, call: _Call) -> Saved:
        layer, weight, storage = call.layer, call.weight, key[0]
        if call.input is None or not self._is_input(x, call):
            return self._keep(x, call, "statistics" if call.kind is Kind.NORM else "a copy", storage)
        if call.kind is Kind.PRODUCT and weight is not None and not weight.requires_grad:
            self._tally.saw(storage, x, self._tally.row(call.name, layer.name if layer else ""))
            return ShapeOnly(x)
        call.taken = True
        if layer is None:
            return self._keep(x, call, call.reason, storage)
        if x.nbytes < self.settings.min_bytes:
            return self._keep(x, call, "small", storage)
        if x.dtype not in _FLOATS:
            return self._keep(x, call, f"{x.dtype} is not packed", storage)
        if layer.bound is None or self._measuring:
            self._measure_input(x, layer, call)
        if layer.bound is None:
            return self._keep(x, call, layer.reason, storage)
        row = self._tally.row(call.name, layer.name)
        self._tally.saw(storage, x, row, owns=True)
        bounded = self._bounded.get(key)
        if bounded is None:
            signs = self._signs.get(key)
            if self._pending is not None and self._pending[0] == key and self._keeps_signs:
                self._pending = None
            else:
                self._settle()
            mask = signs if signs is not None and not self._keeps_signs else None
            bounded = Bounded(x, self._codec, layer.bound, mask)
            self._bounded[key] = bounded
            self._tally.keep(row, "bounded", bounded.num_bytes)
            if signs is not None and self._keeps_signs:
                self._tally.keep(self._tally.row("relu"), "signs", -signs.num_bytes)
                signs.share(bounded)
        elif layer.bound < bounded.bound:
            self._tally.keep(row, "bounded", -bounded.num_bytes)
            bounded.encode(x, layer.bound)
            self._tally.keep(row, "bounded", bounded.num_bytes)
        bounded.readers += 1
        layer.num_values, layer.num_bytes = x.numel(), bounded.num_bytes
        if self._measuring:
            self._measure_error(x, bounded, layer, call)
        return bounded

    def _is_input(self, x: Tensor, call: _Call) -> bool:
        """Whether `x` is the call's input, or a cast or flattened copy of it, and not the cast of its weight."""
        given, weight = call.input, call.weight
        assert given is not None
        if call.taken or x.numel() != given.numel() or not x.is_floating_point():
            return False
        if x.untyped_storage()._cdata == given.untyped_storage()._cdata:
            return True
        like_weight = weight is not None and x.shape in (weight.shape, weight.mT.shape if weight.dim() == 2 else None)
        return not like_weight

    def _pack_signs(self, x: Tensor, key: Any, call: _Call) -> Saved:
        row = self._tally.row(call.name)
        self._tally.saw(key[0], x, row)
        bounded = self._bounded.get(key)
        if bounded is not None and self._keeps_signs:
            bounded.readers += 1
            return bounded
        signs = self._signs.get(key)
        if signs is None:
            signs = self._signs[key] = Signs(x)
            self._pending = key, signs, row
        return signs

    def _settle(self) -> None:
        """Let go of the tensor whose signs are wanted."""
        if self._pending is not None:
            (_, signs, row), self._pending = self._pending, None
            signs.settle()
            self._tally.keep(row, "signs", signs.num_bytes)

    def _pack_clamped(self, x: Tensor, key: Any, call: _Call) -> Saved:
        defaults = (0.0, 6.0) if call.name == "relu6" else (-1.0, 1.0)
        low, high = (
            float(argument(call.args, call.kwargs, n + 1, ("min_val", "max_val")[n], defaults[n])) for n in (0, 1)
        )
        if call.name == "relu6":
            low, high = defaults
        saved = TwoValued(x, (x <= low) | (x >= high), ((low + high) / 2, high))
        return self._count(x, key, call, saved, "inside or outside")

    def _pack_dropout(self, x: Tensor, key: Any, call: _Call) -> Saved:
        most = x.max().item()
        where = x != 0
        if x.is_floating_point() and not bool(((x == most) | ~where).all()):
            return self._keep(x, call, "", key[0])
        return self._count(x, key, call, TwoValued(x, where, (0, most)), "mask")

    def _pack_pool(self, x: Tensor, key: Any, call: _Call) -> Saved:
        if x.is_floating_point():
            call.plane = tuple(x.shape[2:] if x.dim() > 3 or call.name.endswith("1d") else x.shape[1:])
            self._tally.saw(key[0], x, self._tally.row(call.name))
            return ShapeOnly(x)
        window = None if x.nbytes < self.settings.min_bytes else _window(call)
        if window is None or window.size > 256:
            return self._keep(x, call, "", key[0])
        saved = Places(x, window)
        if not torch.equal(saved.restore(), x):
            return self._keep(x, call, "places outside their windows", key[0])
        return self._count(x, key, call, saved, "places")

    def _count(self, x: Tensor, key: Any, call: _Call, saved: Saved, how: str) -> Saved:
        row = self._tally.row(call.name)
        self._tally.saw(key[0], x, row)
        self._tally.keep(row, how, saved.num_bytes)
        return saved

    def _unpack(self, saved: Saved) -> Tensor:
        self._backward_ran = True
        return saved.restore()

    # ---- measuring

    def _begin_step(self) -> None:
        self._end_step()
        self._backward_ran = False
        self._num_steps += 1
        number, every = self._num_steps, self.settings.update_every
        ramp = number < every and number & (number - 1) == 0
        self._measuring = (ramp or number % every == 0) if self.settings.adaptive else number == 1
        if self._always is not None:
            self._measuring = self._always
        self._constants = {
            tensor.untyped_storage().data_ptr()
            for tensors in (self.model.parameters(), self.model.buffers())
            for tensor in tensors
            if type(tensor) in (nn.Parameter, Tensor)
        }
        self._tally = Tally()

    def _end_step(self) -> None:
        """Take in what the last step measured, and choose bounds."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if not self._num_steps:
            return
        self._done = self._tally
        before, after = self._done.before, self._done.after
        layers = self._layers.values()
        if self._measuring:
            self._measuring = False
            self._read_measures()
            if self.settings.adaptive:
                self._controller.choose(layers, before, after)
            elif self.settings.memory_ratio is not None:
                self._controller.scale(layers, before, after)
        elif self.settings.memory_ratio is not None and self.settings.adaptive and after:
            if not 1 <= before / after / self.settings.memory_ratio <= 1.04:
                self._controller.choose(layers, before, after)

    def _measure_input(self, x: Tensor, layer: Layer, call: _Call) -> None:
        """Sample the values: how bytes and errors depend on the bound."""
        curve = Curve.measure(_flat(x), self._codec)
        if curve is None:
            if layer.bound is None:
                layer.reason = "its input is zero, or holds NaN or infinities"
            return
        layer.curve, layer.reason = curve, ""
        if layer.bound is None:
            layer.bound = self.settings.initial_bound * curve.scale

    def _measure_error(self, x: Tensor, bounded: Bounded, layer: Layer, call: _Call) -> None:
        values = as_numpy(_flat(x))
        error = mean_square(values, as_numpy(_flat(bounded.decode())))
        if math.isfinite(error):
            layer.error, layer.measured_bound = error, bounded.bound
            measured = self._gains.setdefault(layer.name, _Measured())
            measured.nonzero = float(torch.count_nonzero(x)) / x.numel()

    def _watch_gradient(self, call: _Call, layer: Layer, result: Any) -> None:
        """Have the output's gradient measured, and the weight's."""
        if not isinstance(result, Tensor) or not result.requires_grad or call.input is None:
            return
        measured = self._gains.setdefault(layer.name, _Measured())
        if call.kind is Kind.PRODUCT:
            assert call.weight is not None
            parts = []
            if call.name != "linear":
                parts = reach(call.name, call.input.shape, result.shape, call.weight, call.args, call.kwargs)
            hook = partial(_add_product, measured, parts)
        else:
            hook = partial(_add_norm, measured, _deviations(call))
        self._hooks.append(result.register_hook(hook))
        if call.weight is not None and call.weight.requires_grad:
            self._hooks.append(call.weight.register_hook(partial(_add_weight, measured)))

    def _read_measures(self) -> None:
        momenta = _momenta(self.model, self._optimizer)
        scale = self._scaler.get_scale() if self._scaler is not None and self._scaler.is_enabled() else 1.0
        for name, layer in self._layers.items():
            measured = self._gains.get(layer.name)
            if measured is None:
                continue
            if math.isfinite(measured.gain):
                layer.gain = measured.gain / scale**2
                layer.paper_gain = measured.paper_gain / scale
            if math.isfinite(measured.gradient) and measured.gradient:
                layer.gradient = measured.gradient / scale
            layer.momentum = momenta.get(name)
        self._gains = {}

    # ---- what a user reads

    @property
    def report(self) -> dict[str, Any]:
        """What the last finished step saved: all bytes, by function and by layer, with bounds and predicted noise."""
        tally = self._tally if self._num_steps else self._done
        before, after = tally.before, tally.after
        layers = {}
        for layer in self._layers.values():
            row = tally.rows.get((layer.function, layer.name))
            layers[layer.name] = {
                "function": layer.function,
                "before_bytes": row.before if row else 0,
                "after_bytes": row.after if row else 0,
                "kept_bytes": dict(row.kept) if row else {},
                "error_bound": layer.bound,
                "measured_bound": layer.measured_bound,
                "mean_squared_error": layer.error,
                "gradient_gain": layer.gain,
                "predicted_sigma": layer.sigma if self.settings.model == "closed" else layer.paper_sigma,
                "mean_abs_momentum": layer.momentum,
                "mean_abs_gradient": layer.gradient,
            }
        return {
            "steps": self._num_steps,
            "saved_bytes_before": before,
            "saved_bytes_after": after,
            "ratio": before / after if after else 1.0,
            "tolerance": self._controller.tolerance,
            "functions": tally.functions(),
            "layers": layers,
            "peak_resident_bytes": resident_peak(),
        }

    def __repr__(self) -> str:
        if not self._num_steps:
            return "CompressedActivations(no step yet)"
        report = self.report
        tolerance = report["tolerance"]
        return (
            f"CompressedActivations({report['saved_bytes_before']} -> {report['saved_bytes_after']} bytes, "
            f"ratio {report['ratio']:.2f}, {len(self._layers)} layers, "
            f"tolerance {f'{tolerance:.3g}' if tolerance is not None else 'not chosen yet'}, step {self._num_steps})"
        )

    def check(self, loss: Callable[[], Tensor]) -> dict[str, dict[str, float]]:
        """Compare the noise of the gradients with the prediction: one exact step and one compressed on the same batch.

        `loss()` runs the forward pass and returns the loss; nothing but the gradients is asked of it, and the model's
        buffers, its gradients and the global generators stay as they were. Returns for each layer the standard
        deviation ``measured``, the ``predicted`` one, and the mean absolute ``gradient``.

        Raises:
            UsageError: called inside the context.
        """
        from trimtab.train.check import check

        return check(self, loss)


class _Measured:
    """What one step measured of a layer; layers that are called several times add up."""

    __slots__ = ("gain", "gradient", "nonzero", "paper_gain")

    def __init__(self) -> None:
        self.gain = self.gradient = self.paper_gain = 0.0
        self.nonzero = 1.0


def _add_product(measured: _Measured, parts: list[Tensor], gradient: Tensor) -> None:
    measured.gain += product_gain(gradient, parts)
    channel = gradient.shape[-1] if not parts else gradient.shape[gradient.dim() - len(parts) - 1]
    num = gradient.numel() / channel
    measured.paper_gain += float(gradient.detach().float().abs().mean()) * math.sqrt(num * measured.nonzero)


def _add_norm(measured: _Measured, deviations: Tensor, gradient: Tensor) -> None:
    measured.gain += norm_gain(gradient, deviations)
    num = gradient.numel() / gradient.shape[1]
    scaled = gradient.detach().float().abs().mean() * deviations.square().mean().sqrt()
    measured.paper_gain += float(scaled) * math.sqrt(num * measured.nonzero)


def _add_weight(measured: _Measured, gradient: Tensor) -> None:
    measured.gradient += float(gradient.detach().float().abs().mean())


def _deviations(call: _Call) -> Tensor:
    """Return 1 / std of each channel, as batch normalisation takes it."""
    x, args, kwargs = call.input, call.args, call.kwargs
    assert x is not None
    eps = argument(args, kwargs, 7, "eps", 1e-5)
    variance = argument(args, kwargs, 2, "running_var")
    if argument(args, kwargs, 5, "training", False) or variance is None:
        dims = [axis for axis in range(x.dim()) if axis != 1]
        variance = x.detach().float().var(dim=dims, correction=0)
    return (variance.detach().float() + eps).rsqrt()


def _window(call: _Call) -> Window | None:
    """Return the windows of a pooling function; None where they are not all alike."""
    if call.plane is None or call.name.startswith("adaptive"):
        return None
    num = int(call.name[len("max_pool")])
    kernel = spread(argument(call.args, call.kwargs, 1, "kernel_size"), num)
    given = argument(call.args, call.kwargs, 2, "stride")
    stride = kernel if given is None or given == [] or given == () else spread(given, num)
    padding = spread(argument(call.args, call.kwargs, 3, "padding", 0), num)
    dilation = spread(argument(call.args, call.kwargs, 4, "dilation", 1), num)
    if num == 1:  # is run as one of two axes
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    if len(call.plane) != len(kernel):
        return None
    return Window(call.plane, kernel, stride, padding, dilation)


def _flat(x: Tensor) -> Tensor:
    from trimtab.train.saved import Layout

    return Layout(x).flat(x)


def _momenta(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, float]:
    """Return the mean absolute momentum of each parameter of which the optimizer has one."""
    found = {}
    for name, parameter in model.named_parameters() if optimizer is not None else ():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        momentum = state.get("momentum_buffer")
        if momentum is None:
            momentum = state.get("exp_avg")
        if isinstance(momentum, Tensor):
            momentum = momentum.to_local() if hasattr(momentum, "to_local") else momentum
            mean = float(momentum.detach().float().abs().mean()) if momentum.numel() else math.nan
            if math.isfinite(mean):
                found[name] = mean
    return found


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"expected a torch.nn.Module, got {type(model).__name__}")


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in trained for parameter in model.parameters()):
        raise UsageError("the optimizer has none of the model's parameters; pass the one that trains this model")


def resident_peak() -> int:
    """Return the largest memory that this process has had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
