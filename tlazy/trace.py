"""Shapes of a whole model without computing anything: ``trace``, ``Trace``, ``materialize``."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.nn.parameter import Parameter, is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tlazy import checkpoint as checkpoints
from tlazy import init as initialization
from tlazy.isolation import no_modes, same_randomness_after
from tlazy.nn import container
from tlazy.nn.lazy import arm
from tlazy.nn.placeholder import blank
from tlazy.nn.staging import (
    Staging,
    Undo,
    is_pending,
    make_lazy_again,
    materializing,
    pending_modules,
)
from tlazy.shadow import Shadow
from tlazy.structure import refuse_changed, structure

_UNTRACEABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


if torch.__version__ < "2.13" and torch.cuda.device_count() == 0:
    # Without a GPU, fake tensors of torch 2.11 keep what this makes in the thread that first needs
    # it, and crash when that thread is gone; the one that imports tlazy stays.
    torch._C._ensureCUDADeviceGuardSet()


class UntraceableError(RuntimeError):
    """Raised where shapes alone do not lead through a forward.

    It asks for the values of a tensor, uses an operator that says nothing about its output's shape,
    or has parts compiled by TorchScript.
    """


class Spec:
    """An input without data: what ``tlazy.trace`` needs to know of a tensor.

    Args:
        shape: sizes, one by one.
        dtype, device: of the tensor that it stands for.

    >>> Spec(8, 3, 150)
    Spec(8, 3, 150, dtype=torch.float32, device='cpu')
    """

    def __init__(
        self, *shape: int, dtype: torch.dtype = torch.float32, device: Any = "cpu"
    ) -> None:
        if any(size < 0 for size in shape):
            raise RuntimeError(f"sizes of a Spec must not be negative, got {shape}")
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.device = torch.device(device)

    def __repr__(self) -> str:
        sizes = "".join(f"{size}, " for size in self.shape)
        return f"Spec({sizes}dtype={self.dtype}, device='{self.device}')"


@dataclasses.dataclass
class Row:
    """One call of one module.

    Attributes:
        path: in the model, "" for the model itself.
        layer: name of the class (the eager one, for a lazy layer).
        inputs, outputs: shapes of the tensors that went in and came out.
        params: elements of the module's own parameters, 0 when an earlier row has counted them.
        flops: floating-point operations of matrix products and convolutions, without those of the
            modules inside.
        bytes: least memory traffic: own parameters and, for a module without modules inside,
            inputs and outputs.
        input_dtypes, output_dtypes: names such as "float32", one per shape.
    """

    path: str
    layer: str
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    params: int = 0
    flops: int = 0
    bytes: int = 0
    input_dtypes: list[str] = dataclasses.field(default_factory=list)
    output_dtypes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _LazyCall:
    """The first call of a lazy module, which decides its shapes."""

    path: str
    module: torch.nn.Module
    args: tuple[Any, ...]  # meta tensors for tensors
    kwargs: dict[str, Any]

    @property
    def seed(self) -> int | None:
        """Drawn by its constructor, or when it came into a tlazy tree."""
        return self.module.__dict__.get("_seed")


class Trace:
    """What one call of a model would do, and the plan for the parameters that it still lacks.

    Attributes:
        rows: one :class:`Row` per module call, in the order of the calls.
        output: what the model would return, with meta tensors for tensors.
        unvisited: paths of lazy modules that the call does not reach; they stay lazy.
        dry_run: why a copy of the model had to compute, "" where shapes alone were enough.

    ``print(plan)`` shows a table, with the columns' sums in its last line.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        rows: list[Row],
        output: Any,
        calls: list[_LazyCall],
        dry_run: str = "",
    ) -> None:
        self.model = model
        self.dry_run = dry_run
        self.rows = rows
        self.output = output
        self._calls = calls
        self._structure = structure(model)
        reached = {id(call.module) for call in calls}
        self.unvisited = [
            path for path, module in pending_modules(model).items() if id(module) not in reached
        ]

    @property
    def totals(self) -> dict[str, int]:
        """Sums of params, flops and bytes over all rows."""
        return {
            name: sum(getattr(row, name) for row in self.rows)
            for name in ("params", "flops", "bytes")
        }

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain lists, numbers and strings, ready for JSON."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {
            "rows": rows,
            "totals": self.totals,
            "unvisited": list(self.unvisited),
            "dry_run": self.dry_run,
        }

    def materialize(
        self,
        seed: int | None = None,
        init: Callable[[torch.nn.Module], Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the parameters of every lazy module that the trace reached, all or nothing.

        Parameters that exist already are left alone, except by `checkpoint`, which fills all. A
        plan serves once, and for the model as it was traced: ``tlazy.initialize`` and
        ``tlazy.load`` give new values afterwards.

        Args:
            seed: key each layer's values by (seed, path) instead of the seed that it drew when it
                was constructed.
            init: called once with each new layer, after its default initialization.
            checkpoint: safetensors file to take the values from; nothing is initialized then.
            device, dtype: of the new tensors, where they should not be their placeholders' own.

        Raises:
            ValueError: for `checkpoint` together with `seed` or `init`.
            RuntimeError: where the model is no longer what was traced; says what has changed.
            RuntimeError, OSError, safetensors.SafetensorError: as :func:`tlazy.load`.
        """
        if checkpoint is not None and (seed is not None or init is not None):
            raise ValueError("a checkpoint leaves nothing to seed or init: give one or the other")
        with materializing, same_randomness_after(only_on_failure=True):
            staging = self._stage(seed, init, device, dtype, initialize=checkpoint is None)
            if checkpoint is None:
                staging.commit(self.model)
            else:
                checkpoints.fill(self.model, checkpoint, staging)

    def commit(self) -> Undo:
        """:meth:`materialize`; returns a function that takes it back, for use right away."""
        with materializing, same_randomness_after(only_on_failure=True):
            return self._stage().commit(self.model)

    def _stage(
        self,
        seed: int | None = None,
        init: Callable[[torch.nn.Module], Any] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        initialize: bool = True,
    ) -> Staging:
        refuse_changed(self.model, self._structure)
        staging = Staging(device, dtype)
        # A layer of torch's that a list got unseen has drawn no seed. What is drawn now must not
        # come from the global generator, in the middle of a forward: a neighbour has a seed.
        spare = next((call.seed for call in self._calls if call.seed is not None), None)
        for call in self._calls:
            if not is_pending(call.module):  # it is in the model unregistered
                raise RuntimeError(f"{call.path} is no longer lazy: its plan can serve only once")
            base = seed if seed is not None else spare if call.seed is None else None
            key = call.seed if base is None else initialization.keyed_seed(base, call.path)
            with _naming(call.path, call.module):
                staging.add(
                    call.module, call.args, call.kwargs, initialize=initialize, seed=key, init=init
                )
        return staging

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console
        from rich.table import Table

        table = Table(show_footer=True)
        totals = self.totals
        for name in ("path", "layer", "input", "output"):
            table.add_column(name, footer="total" if name == "path" else "")
        for name, total in totals.items():
            title = "FLOPs" if name == "flops" else name
            table.add_column(title, justify="right", footer=f"{total:,}")
        for row in self.rows:
            numbers = (
                f"{getattr(row, name) or '':,}" if getattr(row, name) else "" for name in totals
            )
            table.add_row(row.path, row.layer, _shapes(row.inputs), _shapes(row.outputs), *numbers)
        text = StringIO()
        Console(file=text, width=200, color_system=None, markup=False).print(table)
        if self.unvisited:
            text.write(f"not reached, still lazy: {', '.join(self.unvisited)}\n")
        if self.dry_run:
            text.write(f"shapes by one real dry run: {self.dry_run}\n")
        return text.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        params = self.totals["params"]
        return f"<Trace of {type(self.model).__name__}: {len(self.rows)} calls, {params:,} params>"


def trace(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Trace:
    """Run `model` on shapes alone: nothing is computed and nothing about the model changes.

    The forward of a copy runs, whose tensors have no data; hooks run with it. What a forward
    writes to a global variable is not undone. A forward that depends on the values of tensors, or
    has parts compiled by TorchScript, is run once for real instead, as a copy with the values that
    materializing will give it; a warning says so.

    Args:
        model: any module; lazy ones, tlazy's or torch's, become known.
        args, kwargs: as for calling `model`. A :class:`Spec`, a real or a meta tensor can stand
            for each tensor, inside of lists, tuples and dicts too.

    Raises:
        UntraceableError: where shapes alone do not lead through the forward, and they are all that
            there is.
        whatever the forward raises, with the path of the module added.

    >>> import torch, tlazy
    >>> from tlazy import nn
    >>> net = nn.Sequential(nn.LazyConv1d(8, 3), torch.nn.Flatten(), nn.LazyLinear(2))
    >>> plan = tlazy.trace(net, tlazy.Spec(4, 5, 12))
    >>> plan
    <Trace of Sequential: 4 calls, 290 params>
    >>> net[2].in_features
    0
    """
    with (
        no_modes(),
        same_randomness_after(),
        _unseen_by_checkpointing(),
        _quiet_fake_tensors(),
    ):
        try:
            return _Tracer(model, (args, kwargs)).run(args, kwargs)
        except UntraceableError as error:
            if not _has_data(model, (args, kwargs)):
                raise
            reason = str(error)
        warnings.warn(f"{reason}. It is run once for real instead", stacklevel=2)
        return _DryRun(model, reason).run(args, kwargs)


def materialize(
    model: torch.nn.Module,
    *args: Any,
    seed: int | None = None,
    init: Callable[[torch.nn.Module], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> Trace:
    """Trace `model` on an example input and create all its parameters, all or nothing.

    Args:
        args, kwargs: the example, as for :func:`trace`.
        seed, init, checkpoint, device, dtype: as for :meth:`Trace.materialize`.

    Returns:
        the trace.

    >>> import torch, tlazy
    >>> net = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), torch.nn.LazyBatchNorm2d())
    >>> plan = tlazy.materialize(net, tlazy.Spec(2, 3, 8, 8), seed=0)
    >>> net[1]
    BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    plan = trace(model, *args, **kwargs)
    plan.materialize(seed, init, checkpoint, device, dtype)
    return plan


def dematerialize(model: torch.nn.Module) -> list[str]:
    """Make every layer of `model` lazy again that a trace, a first call or a file has shaped.

    For after a wrong first batch. Parameters stay the objects that they are, so an optimizer goes
    on holding them; its state for them, and their gradients, have lost their meaning: the latter
    are dropped here. What the layers get afterwards is drawn from the seeds of their construction.
    Layers of a copy (deepcopy, pickle) that was made afterwards are not known to have been lazy.

    Returns:
        the paths of these layers.

    Raises:
        RuntimeError: where a layer is no longer what materializing made it, as after sharding;
            nothing has changed then.

    >>> import torch, tlazy
    >>> from tlazy import nn
    >>> net = nn.Sequential(nn.LazyLinear(4), torch.nn.ReLU())
    >>> net(torch.randn(2, 1000)).shape
    torch.Size([2, 4])
    >>> tlazy.dematerialize(net)
    ['0']
    >>> net(torch.randn(2, 3)).shape
    torch.Size([2, 4])
    """
    paths = make_lazy_again(model)
    for module in model.modules():
        if isinstance(module, container.Module):
            arm(module, module)
    return paths


class _Tracer:
    """Runs a shadow of `model` under fake tensors and writes down what happens."""

    dry_run = ""

    def __init__(self, model: torch.nn.Module, inputs: Any) -> None:
        self.model = model
        self.mode: Any = FakeTensorMode(allow_non_fake_inputs=True)
        self.home = _home_device(model, inputs)
        self.rows: list[Row] = []
        self.calls: list[_LazyCall] = []
        self.stack: list[tuple[Row, torch.nn.Module]] = []
        self.counted: set[int] = set()
        self.shapes = Staging(device="meta")
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise UntraceableError(f"{path} is a ScriptModule, which cannot be traced")
        self._copy(model)

    def _copy(self, model: torch.nn.Module) -> None:
        self.shadow = Shadow(model, self._fake)
        for module in self.shadow.modules():
            module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
            module.register_forward_hook(self._leave)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
        args, kwargs = tree_map(self._fake, (args, kwargs))
        try:
            with self.mode, _FlopCounter(self._count):
                output = self.shadow.root(*args, **kwargs)
        except _UNTRACEABLE as error:
            raise UntraceableError(
                f"the forward of {self._place()} cannot be traced, because it depends on the "
                f"values of tensors or on an operator without a fake implementation: {error}"
            ) from error
        except Exception as error:
            _add_place(error, self._place())
            raise
        return Trace(self.model, self.rows, self._meta(output), self.calls, self.dry_run)

    def _fake(self, value: Any) -> Any:
        """The fake of a tensor or a Spec; a placeholder stays one; anything else is itself."""
        if isinstance(value, Tensor) and is_lazy(value):
            return blank(value, value.device, value.dtype)
        if isinstance(value, Tensor) and not value.is_meta and not _is_wrapped(value):
            return self.mode.from_tensor(value, static_shapes=True)
        if isinstance(value, (Tensor, Spec)):
            device = self.home if value.device.type == "meta" else value.device
            with self.mode:
                empty = torch.empty(_known(value.shape), dtype=value.dtype, device=device)
            if isinstance(value, Parameter):
                return Parameter(empty, value.requires_grad)
            return empty.requires_grad_(getattr(value, "requires_grad", False))
        return value

    def _enter(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        row = Row(self.shadow.path(module), type(module).__name__, _sizes((args, kwargs)))
        row.input_dtypes = _dtypes((args, kwargs))
        self.stack.append((row, module))
        self.rows.append(row)
        if is_pending(module):
            self._infer(module, args, kwargs)
            row.layer = type(module).__name__
        own = [p for p in module._parameters.values() if p is not None]
        row.bytes = sum(p.nbytes for p in own if not is_lazy(p))
        if not module._modules:
            row.bytes += _nbytes((args, kwargs))
        fresh = [p for p in own if not is_lazy(p) and id(p) not in self.counted]
        row.params = sum(p.numel() for p in fresh)
        self.counted.update(map(id, fresh))

    def _infer(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        """Give a lazy module of the shadow its shapes, and remember the call for the real one."""
        args, kwargs = self._meta((args, kwargs))
        self.calls.append(
            _LazyCall(self.shadow.path(module), self.shadow.original(module), args, kwargs)
        )
        placeholders = {**module._parameters, **module._buffers}
        twin = self._shaped(module, args, kwargs)
        for name, value in {**twin._parameters, **twin._buffers}.items():
            placeholder = placeholders.get(name)
            if placeholder is None or not is_lazy(placeholder) or value is None:
                continue
            fake = self._on(value, placeholder.device)
            self.shadow.replace(placeholder, fake)
        for name, value in twin.__dict__.items():
            if name not in ("_parameters", "_buffers", "_modules"):
                module.__dict__[name] = value
        module.__class__ = type(twin)
        module.__dict__.pop("_initialize_hook", None)

    def _shaped(self, module: torch.nn.Module, args: Any, kwargs: Any) -> torch.nn.Module:
        return self.shapes.add(module, args, kwargs, initialize=False)

    def _on(self, value: Tensor, device: torch.device) -> Tensor:
        with no_modes():
            device = self.home if device.type == "meta" else device
            with self.mode:
                fake = torch.empty(value.shape, dtype=value.dtype, device=device)
            if isinstance(value, Parameter):
                return Parameter(fake, value.requires_grad)
            return fake

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        row, entered = self.stack.pop()
        while entered is not module:  # a forward has caught what a module inside of it raised
            row, entered = self.stack.pop()
        row.outputs, row.output_dtypes = _sizes(output), _dtypes(output)
        if not module._modules:
            row.bytes += _nbytes(output)

    def _count(self, flops: int) -> None:
        if self.stack:
            self.stack[-1][0].flops += flops

    def _meta(self, tree: Any) -> Any:
        def convert(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="meta"
            )

        with no_modes():
            return tree_map(convert, tree)

    def _place(self) -> str:
        if not self.stack:
            return type(self.model).__name__
        return _named(*((row := self.stack[-1][0]).path, row.layer))


class _DryRun(_Tracer):
    """Runs a copy of `model` with real tensors where values decide about the way."""

    def __init__(self, model: torch.nn.Module, reason: str) -> None:
        self.model = model
        self.dry_run = reason
        self.mode = nullcontext()
        self.rows = []
        self.calls = []
        self.stack = []
        self.counted = set()
        self._copy(model)

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if is_lazy(value):
            return blank(value, value.device, value.dtype)
        duplicate = value.detach().clone()
        if isinstance(value, Parameter):
            return Parameter(duplicate, value.requires_grad)
        return duplicate.requires_grad_(value.requires_grad)

    def _shaped(self, module: torch.nn.Module, args: Any, kwargs: Any) -> torch.nn.Module:
        staging = Staging()
        twin = staging.add(module, args, kwargs)
        staging.finish()
        return twin

    def _on(self, value: Tensor, device: torch.device) -> Tensor:
        moved = value.detach().to(device)
        return Parameter(moved, value.requires_grad) if isinstance(value, Parameter) else moved


class _FlopCounter(TorchDispatchMode):
    """Counts by torch's own formulas; FlopCounterMode itself would put hooks on every module."""

    def __init__(self, count: Callable[[int], None]) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.count = count
        self.formulas = flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "prim":  # attributes such as x.device: the fake tensor knows
            return NotImplemented
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None:
            # In inference mode compound operators arrive whole.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.count(int(formula(*args, **kwargs, out_val=out)))
        return out


@contextmanager
def _quiet_fake_tensors() -> Iterator[None]:
    """Keep fake tensors from logging the exceptions that they raise."""
    logger = logging.getLogger(FakeTensor.__module__)
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


@contextmanager
def _unseen_by_checkpointing() -> Iterator[None]:
    """Hide what the trace saves for backward: activation checkpointing counts such tensors."""
    autograd: Any = torch._C._autograd
    if not autograd._saved_tensors_hooks_is_enabled():  # as inside of torch.func.grad
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
        yield


def _itself(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _naming(path: str, module: torch.nn.Module) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _add_place(error, _named(path, type(module).__name__))
        raise


def _named(path: str, layer: str) -> str:
    return f"{path} ({layer})" if path else layer


def _add_place(error: Exception, place: str) -> None:
    """Say in the message where an error came from; the exception stays the one it is."""
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n  in {place}; no parameter has been created or changed",)


def _home_device(model: torch.nn.Module, inputs: Any) -> torch.device:
    """Where tensors of the meta device are taken to be: with the first one that is elsewhere."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, (Tensor, Spec))]
    tensors += [*model.parameters(), *model.buffers()]
    elsewhere = (t.device for t in tensors if t.device.type != "meta")
    return next(elsewhere, torch.device("cpu"))


def _known(shape: Iterable[Any]) -> list[int]:
    """Sizes as they are in the call at hand, where a compiler has symbols for them."""
    return [size.node.hint if isinstance(size, torch.SymInt) else size for size in shape]


def _is_wrapped(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _has_data(model: torch.nn.Module, inputs: Any) -> bool:
    """Whether there are values to compute with everywhere."""
    leaves = tree_leaves(inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    tensors += [*model.parameters(), *model.buffers()]
    empty = any(isinstance(leaf, Spec) for leaf in leaves)
    return not empty and not any(tensor.is_meta or _is_wrapped(tensor) for tensor in tensors)


def _dtypes(tree: Any) -> list[str]:
    leaves = tree_leaves(tree)
    return [str(leaf.dtype).removeprefix("torch.") for leaf in leaves if isinstance(leaf, Tensor)]


def _sizes(tree: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _nbytes(tree: Any) -> int:
    leaves = tree_leaves(tree)
    return sum(
        prod(leaf.shape) * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor)
    )


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
