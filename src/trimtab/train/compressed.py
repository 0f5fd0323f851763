"""The context in which what autograd saves is kept compressed.

`torch.autograd.graph.saved_tensors_hooks` gives the tensors, a `torch.overrides.TorchFunctionMode` the function that
saves them and the weight it does so with, so that modules and plain calls are treated alike. Functions that PyTorch
runs inside another one, such as those of multi-head attention, are seen as that one.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from trimtab.codecs import Codec
from trimtab.errors import UsageError
from trimtab.train.controller import Controller, Layer
from trimtab.train.functions import Call, Kind, argument, kind_of, name_of, spread
from trimtab.train.measures import Measures
from trimtab.train.rebuilt import Undecided
from trimtab.train.saved import MASKED, Bounded, Exact, Mask, Places, Saved, ShapeOnly, Signs, TwoValued, Windows
from trimtab.train.tally import Tally

if TYPE_CHECKING:
    from trimtab.train.activations import COMET
    from trimtab.train.check import Probe


_DITHER_STRIDE = 0x2545F491
"""From one tensor to the next, the pattern of the dither moves by so many elements: it has 2^32."""
_NOWHERE = Call("autograd function", Kind.OTHER, (), {})


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
        if not isinstance(self._codec, Codec):
            raise UsageError(f"expected a codec such as trimtab.codecs.Blocks(), got {self._codec!r}")
        self._keeps_signs = bool(getattr(self._codec, "keeps_signs", False))
        self._controller = Controller(settings.noise, settings.memory_ratio, settings.model)
        self._layers: dict[str, Layer] = {}
        self._of_weight: dict[int, tuple[weakref.ref, Layer | None]] = {}
        self._kinds: dict[Any, tuple[str, Kind]] = {}
        self._bounded: weakref.WeakValueDictionary[Any, Bounded] = weakref.WeakValueDictionary()
        self._signs: weakref.WeakValueDictionary[Any, Signs] = weakref.WeakValueDictionary()
        self._num_bounded = 0
        self._tally = Tally()
        self._call = _NOWHERE
        self._pending: tuple[Any, Signs] | None = None
        self._norm: Undecided | None = None
        self._stack: ExitStack | None = None
        self._num_steps = 0
        self._backward_ran = True
        self._measuring = False
        self._measures = Measures()
        self._windows: dict[Any, Windows] = {}
        self._fixed: list[Tensor] = []
        self._named = dict(model.named_parameters())
        self._constants: set[int] = set()
        self._always: bool | None = None
        self._probe: Probe | None = None

    def twin(self, *, measuring: bool = True, probe: Probe | None = None) -> CompressedActivations:
        """Return another context of the same settings and bounds, for a step on trial, which it measures or not.

        With a `probe`, which is told what would be kept, inputs stay as they are and so do all gradients.
        """
        other = CompressedActivations(self.settings, self.model, self._optimizer, self._scaler)
        other._layers = {name: replace(layer) for name, layer in self._layers.items()}
        other._always, other._probe = measuring, probe
        other._num_bounded = self._num_bounded
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
        if self._measuring:  # here, since inside of a forward pass FSDP2 shows other parameters than the optimizer has
            self._named = dict(self.model.named_parameters())
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
        outer, call = self._call, Call(*found, args, kwargs)
        if call.kind is Kind.PRODUCT or call.kind is Kind.NORM:
            self._find_layer(call)
        if self._norm is not None:
            self._norm.meets(call)
        self._call = call
        try:
            result = func(*args, **kwargs)
        finally:
            self._call = outer
        norm = self._norm
        if norm is not None:
            if norm.call is call:
                norm.gives(result)
            elif norm.is_read_by(call, result):
                self._settle_norm()
        if self._measuring and call.taken and call.layer is not None:
            self._measures.watch(call, call.layer, result)
            if self._probe is not None:
                self._probe.watch(call, func, result)
        return result

    def _find_layer(self, call: Call) -> None:
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
            place, names = id(key), self._of_weight
            known = weakref.ref(key, lambda _: names.pop(place, None)), self._make_layer(key, call.name)
            names[place] = known
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
        if call is _NOWHERE and _is_compiled():
            raise UsageError(f"a function {_COMPILED}")
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
        norm = self._norm
        if norm is not None and norm.call is not call and call.norm is not norm and norm.rectified != key:
            self._settle_norm()
        kind = call.kind
        if kind is Kind.OTHER or x.dtype.is_complex or self._counting:
            return self._keep(x, call, "", weak)
        if kind is Kind.PRODUCT or kind is Kind.NORM:
            return self._pack_input(x, key, call)
        if kind is Kind.MAX_POOL or kind is Kind.MEAN_POOL:
            return self._pack_pool(x, key, call)
        if x.nbytes < self.settings.min_bytes:
            return self._keep(x, call, "small", weak)
        if kind is Kind.RELU and x.dtype in MASKED:
            return self._pack_signs(x, key, call)
        if kind is Kind.RELU or kind is Kind.LEAKY_RELU:
            where = (x <= 0).logical_not_() if kind is Kind.RELU else x > 0  # NaN passes the one, not the other
            return self._count(x, key, call, TwoValued(x, where, (0, 1)), "signs")
        if kind is Kind.CLAMP:
            return self._pack_clamped(x, key, call)
        return self._pack_dropout(x, key, call)

    def _keep(self, x: Tensor, call: Call, reason: str, weak: StorageWeakRef | None = None) -> Exact:
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

    def _pack_input(self, x: Tensor, key: Any, call: Call) -> Saved:
        layer, weight, storage = call.layer, call.weight, key[0]
        if weight is not None and x.untyped_storage()._cdata == weight.untyped_storage()._cdata:
            return Exact(x)  # a view of the weight
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
        if x.dtype not in MASKED:
            return self._keep(x, call, f"{x.dtype} is not packed", storage)
        rebuilds = call.kind is Kind.NORM and self.settings.batch_norm == "rebuilt" and self._keeps_signs
        if rebuilds and key not in self._bounded:
            self._tally.saw(storage, x, self._tally.row(call.name, layer.name), owns=True)
            self._settle_norm()
            self._norm = call.norm = Undecided(x, call, key)
            return self._norm
        return self._pack_bounded(x, key, call, layer)

    def _pack_bounded(self, x: Tensor, key: Any, call: Call, layer: Layer) -> Saved:
        storage = key[0]
        if layer.rebuilt:  # what was chosen for the rectifier's result means nothing here
            layer.rebuilt, layer.bound = False, None
        if layer.bound is None or self._measuring:
            layer.sample(x, self._codec, self.settings.initial_bound)
        if layer.bound is None:
            return self._keep(x, call, layer.reason, storage)
        row = self._tally.row(call.name, layer.name)
        bounded = self._bounded.get(key)
        if bounded is None:
            self._tally.saw(storage, x, row, owns=True)
            signs = self._signs.get(key)
            if self._pending is not None and self._pending[0] == key and self._keeps_signs:
                self._pending = None
            else:
                self._settle()
            mask = signs if signs is not None and not self._keeps_signs else None
            bounded = Bounded(x, self._codec, layer.bound, mask, self._dither_start())
            self._bounded[key] = bounded
            bounded.row = row
            self._tally.keep(row, "bounded", bounded.num_bytes)
            if signs is not None and self._keeps_signs:
                self._tally.keep(signs.row, "signs", -signs.num_bytes)
                signs.share(bounded)
            bounded.layer = layer
            layer.num_bytes += bounded.num_bytes
            if self._norm is not None and self._norm.rectified == key:
                self._rebuild_norm(x, bounded)
        else:
            layer.shares = bounded.layer if bounded.layer is not layer else None
            if layer.bound < bounded.bound:
                before = bounded.num_bytes
                bounded.encode(x, layer.bound)
                self._tally.keep(bounded.row, "bounded", bounded.num_bytes - before)
                bounded.layer.num_bytes += bounded.num_bytes - before
        layer.num_values += x.numel()
        if self._measuring:
            self._measures.error(x, bounded, layer)
        if self._probe is not None:
            self._probe.take(call, x, bounded)
            return Exact(x)
        bounded.readers += 1
        return bounded

    def _is_input(self, x: Tensor, call: Call) -> bool:
        """Whether `x` is the call's input, or a cast or flattened copy of it, and not the cast of its weight."""
        given, weight = call.input, call.weight
        assert given is not None
        if call.taken or x.numel() != given.numel() or not x.is_floating_point():
            return False
        if x.untyped_storage()._cdata == given.untyped_storage()._cdata:
            return True
        like_weight = weight is not None and x.shape in (weight.shape, weight.mT.shape if weight.dim() == 2 else None)
        return not like_weight

    def _pack_signs(self, x: Tensor, key: Any, call: Call) -> Saved:
        row = self._tally.row(call.name)
        self._tally.saw(key[0], x, row)
        bounded = self._bounded.get(key)
        if bounded is not None and self._keeps_signs:
            bounded.readers += 1
            return bounded
        signs = self._signs.get(key)
        if signs is None:
            signs = self._signs[key] = Signs(x)
            signs.row = row
            self._pending = key, signs
            if call.norm is not None:
                call.norm.rectified = key
        return signs

    def _settle(self) -> None:
        """Let go of the tensor whose signs are wanted."""
        if self._pending is not None:
            (_, signs), self._pending = self._pending, None
            signs.settle()
            self._tally.keep(signs.row, "signs", signs.num_bytes)
        self._settle_norm()

    def _settle_norm(self) -> None:
        """Let go of the input of batch normalisation that waits: what is to be rebuilt cannot be."""
        norm, self._norm = self._norm, None
        if norm is None or norm.tensor is None:
            return
        assert norm.call is not None and norm.call.layer is not None
        norm.settle(self._pack_bounded(norm.tensor, norm.key, norm.call, norm.call.layer))

    def _rebuild_norm(self, r: Tensor, bounded: Bounded) -> None:
        """Let the rectifier's result, now kept, stand for the input of batch normalisation that waits."""
        norm = self._norm
        assert norm is not None and norm.call is not None and norm.call.layer is not None
        x = norm.tensor
        if x is None or norm.can_be_read:
            return self._settle_norm()
        self._norm, call, layer = None, norm.call, norm.call.layer
        rebuilt = norm.rebuild(r, bounded, self._codec, self._dither_start())
        self._tally.keep(self._tally.row(call.name, layer.name), "rebuilt", rebuilt.num_bytes)
        layer.rebuilt, layer.shares, layer.reason = True, bounded.layer, ""
        layer.bound, layer.curve = bounded.layer.bound, bounded.layer.curve
        layer.num_values += r.numel()
        if self._measuring:
            self._measures.error(r, bounded, layer)
        if self._probe is not None:
            self._probe.take(call, x, rebuilt)
            norm.settle(Exact(x))
        return None

    def _dither_start(self) -> int:
        """Return where the dither of the next tensor begins."""
        self._num_bounded += 1
        return self._num_bounded * _DITHER_STRIDE

    def _pack_clamped(self, x: Tensor, key: Any, call: Call) -> Saved:
        defaults = (0.0, 6.0) if call.name == "relu6" else (-1.0, 1.0)
        low, high = (
            float(argument(call.args, call.kwargs, n + 1, ("min_val", "max_val")[n], defaults[n])) for n in (0, 1)
        )
        if call.name == "relu6":
            low, high = defaults
        saved = TwoValued(x, (x > low) & (x < high), (high, (low + high) / 2))
        return self._count(x, key, call, saved, "inside or outside")

    def _pack_dropout(self, x: Tensor, key: Any, call: Call) -> Saved:
        x = x.detach()
        most = x.max().item()
        if x.dtype in MASKED:
            saved: Saved = Mask(x, most)
        else:
            saved = TwoValued(x, x != 0, (0, most))
        if not torch.equal(saved.restore(), x):
            return self._keep(x, call, "", key[0])
        return self._count(x, key, call, saved, "mask")

    def _pack_pool(self, x: Tensor, key: Any, call: Call) -> Saved:
        if x.is_floating_point():
            call.plane = tuple(x.shape[2:] if x.dim() > 3 or call.name.endswith("1d") else x.shape[1:])
            self._tally.saw(key[0], x, self._tally.row(call.name))
            return ShapeOnly(x)
        windows = None if x.nbytes < self.settings.min_bytes else self._windows_of(call, x)
        saved = None if windows is None else Places.of(x, windows)
        if saved is None:
            return self._keep(x, call, "", key[0])
        return self._count(x, key, call, saved, "places")

    def _windows_of(self, call: Call, indices: Tensor) -> Windows | None:
        """Return the windows of a pooling function; None where they are not all alike, or too large."""
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
        outputs = tuple(indices.shape[-len(kernel) :])
        if len(call.plane) != len(kernel) or math.prod(kernel) > 256:
            return None
        key = call.plane, outputs, kernel, stride, padding, dilation
        found = self._windows.get(key)
        if found is None:
            found = self._windows[key] = Windows(*key)
        return found

    def _count(self, x: Tensor, key: Any, call: Call, saved: Saved, how: str) -> Saved:
        row = self._tally.row(call.name)
        self._tally.saw(key[0], x, row)
        self._tally.keep(row, how, saved.num_bytes)
        return saved

    def _unpack(self, saved: Saved) -> Tensor:
        self._backward_ran = True
        return saved.restore()

    # ---- measuring

    def _begin_step(self) -> None:
        self._settle()
        self._end_step()
        self._backward_ran = False
        self._num_steps += 1
        number, every = self._num_steps, self.settings.update_every
        ramp = number < every and number & (number - 1) == 0
        self._measuring = (ramp or number % every == 0) if self.settings.adaptive else number == 1
        if self._always is not None:
            self._measuring = self._always
        if self._measuring or not self._fixed:
            tensors = (*self.model.parameters(), *self.model.buffers())
            self._fixed = [x for x in tensors if type(x) in (nn.Parameter, Tensor)]
        self._constants = {x.untyped_storage().data_ptr() for x in self._fixed}
        self._tally = Tally()
        for layer in self._layers.values():
            layer.num_values = layer.num_bytes = 0
            layer.shares = None

    def _end_step(self) -> None:
        """Take in what the last step measured, and choose bounds."""
        if not self._num_steps:
            return
        before, after = self._tally.before, self._tally.after
        layers = self._layers.values()
        if self._measuring:
            self._measuring = False
            self._measures.read(self._layers, self._named, self._optimizer, self._scaler)
            if self.settings.adaptive:
                self._controller.choose(layers, before, after)
            elif self.settings.memory_ratio is not None:
                self._controller.scale(layers, before, after)
        elif self.settings.adaptive and self._controller.is_off(before, after):
            self._controller.choose(layers, before, after)

    # ---- what a user reads

    @property
    def report(self) -> dict[str, Any]:
        """What the step that ran last saved: all bytes, by function and by layer, with bounds and predicted noise.

        ``kept_bytes`` says what became of them. ``error_bound`` is that of the next step, ``predicted_sigma`` the
        noise of the gradient when it was last measured, at ``measured_bound``; where it is None nothing was yet.
        """
        tally = self._tally
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
        deviation ``measured``, which the error of the layer's own input makes, all else being exact; the ``predicted``
        one; that of a ``whole_step``, in which errors of the gradients of batch normalisation come from the layers
        behind; and the mean absolute ``gradient``. For that time, inputs and output gradients of all layers are held.

        Raises:
            UsageError: called inside the context.
        """
        from trimtab.train.check import check

        return check(self, loss)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"expected a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise UsageError(f"module {name or type(module).__name__!r} {_COMPILED}")


_COMPILED = (
    "went through torch.compile, which fuses the functions whose saved tensors COMET tells apart; use it without "
    "torch.compile"
)


def _is_compiled() -> bool:
    """Whether code that `torch.compile` made is saving a tensor."""
    frame, depth = sys._getframe(2), 0
    while frame is not None and depth < 3:  # torch.autograd.Function.apply stands between
        if frame.f_globals.get("__name__", "").startswith("torch._functorch._aot_autograd"):
            return True
        frame, depth = frame.f_back, depth + 1
    return False


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in trained for parameter in model.parameters()):
        raise UsageError("the optimizer has none of the model's parameters; pass the one that trains this model")


def resident_peak() -> int | None:
    """Return the largest memory that this process has had resident, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
