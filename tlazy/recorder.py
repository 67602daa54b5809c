"""Shapes of a whole model without computing anything: a copy of it runs on fake tensors."""

from __future__ import annotations

from collections.abc import Iterable
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
from torch.utils._pytree import tree_leaves, tree_map

from tlazy.failure import (
    UNCHANGED,
    Inputs,
    explain,
    failed_calls,
    pass_a_tensor,
    place_of,
    shown,
    takes_tensors,
    tensors_in,
)
from tlazy.flops import FlopCounter
from tlazy.isolation import no_modes
from tlazy.nn.pending import is_pending
from tlazy.nn.placeholder import blank
from tlazy.nn.staging import Staging
from tlazy.plan import LazyCall, Row, Trace
from tlazy.shadow import Shadow
from tlazy.spec import Spec

_UNTRACEABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
# What a fake tensor answers, in a RuntimeError, where a forward takes its values out of torch.
_LEAVES_TORCH = ".numpy() is not supported for tensor subclasses"


class UntraceableError(RuntimeError):
    """Raised where shapes alone do not lead through a forward.

    It asks for the values of a tensor, uses an operator that says nothing about its output's shape,
    or has parts compiled by TorchScript.
    """


class Recorder:
    """Runs a shadow of `model` under fake tensors and writes down what happens."""

    dry_run = ""

    def __init__(self, model: torch.nn.Module, inputs: Any) -> None:
        self.model = model
        self.mode: Any = FakeTensorMode(allow_non_fake_inputs=True)
        self.home = _home_device(model, inputs)
        self.rows: list[Row] = []
        self.calls: list[LazyCall] = []
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
            with self.mode, FlopCounter(self._count):
                output = self.shadow.root(*args, **kwargs)
        except _UNTRACEABLE as error:
            raise UntraceableError(
                f"the forward of {self._place()} cannot be traced, because it depends on the "
                f"values of tensors or on an operator without a fake implementation: {error}"
            ) from error
        except Exception as error:
            if isinstance(error, RuntimeError) and _LEAVES_TORCH in str(error):
                raise UntraceableError(
                    f"the forward of {self._place()} cannot be traced, because it takes the values "
                    f"of tensors elsewhere: {error}"
                ) from error
            self._explain(error, (args, kwargs))
            raise
        return Trace(self.model, self.rows, self._meta(output), self.calls, self.dry_run)

    def _explain(self, error: Exception, inputs: Inputs) -> None:
        """Say in the message which call has failed; raise what torch would, where that is another.

        Raises:
            TypeError: where the model was given none, and a module that takes tensors failed of it.
            NotImplementedError: for integers in a batch norm.
        """
        calls = ((m, given) for m, given in failed_calls(error) if self.shadow.knows(m))
        shell, given = next(calls, (self.shadow.root, inputs))
        path, module = self.shadow.path(shell), self.shadow.original(shell)
        if takes_tensors(module) and not tensors_in(inputs) and not tensors_in(given):
            raise TypeError(
                f"{place_of(self.model, path, module)} takes a tensor, and was called with "
                f"{shown(given)}: {pass_a_tensor(given)}; {UNCHANGED}"
            ) from None
        said = _as_torch_says(error, module, given)
        explain(said, self.model, path, module, given)
        if said is not error:
            raise said from None

    def _fake(self, value: Any) -> Any:
        """The fake of a tensor or a Spec; a placeholder stays one; anything else is itself."""
        if isinstance(value, Tensor) and is_lazy(value):
            return blank(value, value.device, value.dtype)
        if isinstance(value, Tensor) and value.is_nested:
            raise RuntimeError(
                "a nested tensor has no one shape to trace: call tlazy.materialize(model, "
                "example_input) with a dense example first"
            )
        if isinstance(value, Tensor) and not value.is_meta and not is_wrapped(value):
            return self.mode.from_tensor(value, static_shapes=True)
        if isinstance(value, (Tensor, Spec)):
            device = self.home if value.device.type == "meta" else value.device
            with self.mode:
                empty: Any = torch.empty(_known(value.shape), dtype=value.dtype, device=device)
            empty._is_param = isinstance(value, Parameter)
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
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            module._check_input_dim(*args, **kwargs)  # the lazy ones go by the sizes before that
        self.calls.append(
            LazyCall(self.shadow.path(module), self.shadow.original(module), args, kwargs)
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
                fake: Any = torch.empty(value.shape, dtype=value.dtype, device=device)
            # As Parameter() does with a tensor of another class, less its costly detach.
            fake._is_param = isinstance(value, Parameter)
            return fake.requires_grad_(value.requires_grad)

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
        path, module = "", self.model
        if self.stack:
            path, module = self.stack[-1][0].path, self.shadow.original(self.stack[-1][1])
        return place_of(self.model, path, module)


def _as_torch_says(error: Exception, module: torch.nn.Module, inputs: Inputs) -> Exception:
    """`error`, or what real tensors make of it where fake ones go another way."""
    norm = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    others = [x.dtype for x in tensors_in(inputs) if not x.is_floating_point()]
    if norm and type(error) is RuntimeError and others:
        return NotImplementedError(f'"batch_norm" not implemented for {others[0]}')
    return error


def _home_device(model: torch.nn.Module, inputs: Any) -> torch.device:
    """Where tensors of the meta device are taken to be: with the first one that is elsewhere."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, (Tensor, Spec))]
    tensors += [*model.parameters(), *model.buffers()]
    elsewhere = (t.device for t in tensors if t.device.type != "meta")
    return next(elsewhere, torch.device("cpu"))


def _known(shape: Iterable[Any]) -> list[int]:
    """Sizes as they are in the call at hand, where a compiler has symbols for them."""
    return [size.node.hint if isinstance(size, torch.SymInt) else size for size in shape]


def is_wrapped(tensor: Tensor) -> bool:
    """Whether the tensor is a fake one, or one of a ``torch.func`` transform."""
    return isinstance(tensor, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


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
