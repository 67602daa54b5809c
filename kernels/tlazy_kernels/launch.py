"""The way from a call to its kernels: plan once, then launch from memory.

A launcher hands its tensors and settings to :func:`launch`, with a planner: a pure function that
checks them, chooses kernels and tiles, and says what to allocate and what to run. Its plan is kept
under a description of the call (shapes, strides, dtypes, alignments, settings, device), and each
step of it keeps a handle to the compiled kernel once Triton has given it. A warm call so costs one
look-up, its allocations, and the driver's launch; whatever is in the key was checked when the plan
was made.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from tlazy_kernels.environment import check_device, cores
from tlazy_kernels.handles import Handle, handle_of, with_scratch
from tlazy_kernels.memory import Allocator, allocator
from tlazy_kernels.parsing import one_at_a_time
from tlazy_kernels.targets import target_of

# Calls remembered. One is about 2 KiB; with variable-length inputs every length is one more.
MOST_PLANS = 16_384


class Buffer(NamedTuple):
    """Memory that a plan needs allocated, an output or a step's partial results: the arguments of
    an :data:`~tlazy_kernels.memory.Allocator`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(
        cls, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None
    ) -> Buffer:
        """Its sizes as plain integers, whatever kind they come as; contiguous without `strides`."""
        shape = tuple(map(operator.index, shape))
        if strides is None:
            sizes = [max(size, 1) for size in shape]
            strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        return cls(shape, tuple(map(operator.index, strides)), dtype)

    def described(self) -> Tensor:
        """A tensor without memory that is what will be allocated, for planners to look at."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


class Step:
    """One launch of a plan.

    Args:
        kernel: the device function.
        grid: programs in each of up to three dimensions.
        tensors: its first arguments: positions in the call's inputs followed by the plan's buffers.
        scalars: the arguments after those, up to the constants.
        constants: its ``tl.constexpr`` parameters, all of them, in the kernel's order.
        options: how it is compiled, such as ``num_warps``.
    """

    __slots__ = ("constants", "grid", "handle", "kernel", "options", "scalars", "tensors")

    def __init__(
        self,
        kernel: JITFunction,
        grid: Sequence[int],
        tensors: tuple[int, ...],
        scalars: tuple[int, ...],
        constants: Mapping[str, Any],
        **options: int,
    ) -> None:
        self.kernel = kernel
        x, y, z = (*grid, 1, 1)[:3]
        self.grid = x, y, z
        self.tensors = tensors
        self.scalars = scalars
        self.constants = constants
        self.options = options
        self.handle: Handle | None = None

    def run(self, tensors: Sequence[Tensor | None], empty: Allocator) -> None:
        """Launch by Triton's own way, which compiles and tells profilers, and keep a handle."""
        arguments = [*[tensors[i] for i in self.tensors], *self.scalars]
        ahead = _compiled_ahead.get()
        if ahead is not None:
            if isinstance(self.kernel, JITFunction):  # the interpreter's have nothing to compile
                settings: dict[str, Any] = {**self.constants, **self.options}
                ahead.append(self.kernel.warmup(*arguments, grid=self.grid, **settings))
            return
        launch = self.kernel[self.grid]
        found = with_scratch(empty, lambda: launch(*arguments, **self.constants, **self.options))
        if isinstance(found, CompiledKernel):  # neither the interpreter's nor a tool's
            values = (*self.scalars, *self.constants.values())
            self.handle = handle_of(found, self.grid, values)


class Plan(NamedTuple):
    """What a call allocates, launches and returns.

    Attributes:
        buffers: to allocate; None keeps the place of one that this call does without.
        steps: to launch, in order, on the current stream.
        outputs: which buffers are returned; None stands for an output that was not asked for.
    """

    buffers: tuple[Buffer | None, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int | None, ...]

    def renumbered(self, places: tuple[int, ...], inputs: int) -> Plan:
        """The same for a call that has only the inputs at `places`, of what were so many."""

        def moved(step: Step) -> Step:
            tensors = tuple(
                i - inputs + len(places) if i >= inputs else places.index(i) for i in step.tensors
            )
            scalars, constants = step.scalars, step.constants
            return Step(step.kernel, step.grid, tensors, scalars, constants, **step.options)

        return self._replace(steps=tuple(map(moved, self.steps)))

    def in_dtype(self, dtype: torch.dtype) -> Plan:
        """The same with outputs of `dtype`: kernels round to that of the tensor they fill."""
        buffers = [
            buffer._replace(dtype=dtype) if buffer and i in self.outputs else buffer
            for i, buffer in enumerate(self.buffers)
        ]
        return self._replace(buffers=tuple(buffers))


Planner = Callable[..., Plan]

_plans: dict[tuple, Plan] = {}
# Inside ``compiling_ahead`` its kernels: of a thread, as Triton's own mode is.
_compiled_ahead: ContextVar[list[Any] | None] = ContextVar("compiled_ahead", default=None)


def launch(planner: Planner, inputs: tuple[Tensor | None, ...], *settings: Any) -> list[Any]:
    """Run the plan of a call, which `planner` makes where there has been none like it.

    Args:
        planner: called with the target to plan for, the inputs and the settings. It may look at
            the inputs' descriptions, not at their data, and raises what is wrong with them.
        inputs: the first must be a tensor, on the device to run on.
        settings: hashable.

    Returns:
        the plan's outputs: tensors, or None for those not asked for.

    Raises:
        RuntimeError: where kernels cannot run on the first input's device or dtype.
        Exception: whatever the planner raises, before anything is allocated.
    """
    key = (
        planner,
        settings,
        *[  # all of a tensor that a plan may depend on
            x if x is None else (x.dtype, x.shape, x.stride(), x.data_ptr() % 16 == 0, x.device)
            for x in inputs
        ],
    )
    x: Any = inputs[0]
    try:
        plan = _plans.get(key)
    except TypeError:  # a setting that cannot be hashed: the planner's checks say what is wrong
        planner(target_of(x.device), *inputs, *settings)
        raise
    if plan is None:
        plan = _remember(key, planner(target_of(x.device), *inputs, *settings), x)
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        with torch.cuda.device_of(x):
            return _execute(plan, inputs, x)
    return _execute(plan, inputs, x)


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Inside, this thread's launchers compile what they would launch for the first time, instead.

    All of it is compiled at once, on as many cores as there are, and is ready when the block ends.
    What launchers return meanwhile is unset. A kernel that cannot be compiled says so where it is
    launched. A backward pass launches in a thread of its own, unless autograd is told not to.
    """
    compiled: list[Any] = []
    with one_at_a_time(), ThreadPoolExecutor(cores()) as pool:
        with triton.AsyncCompileMode(pool, ignore_errors=True):  # which refuses a second one
            before = _compiled_ahead.set(compiled)
            try:
                yield
            finally:
                _compiled_ahead.reset(before)
        if torch.cuda.device_count() <= 1:  # of several, a thread would load them on the first
            list(pool.map(_make_ready, compiled))


def _make_ready(kernel: Any) -> None:
    """Load it, and build what launches it, which for some versions of Triton takes a compiler."""
    with suppress(Exception):
        getattr(kernel, "result", lambda: kernel)().run  # noqa: B018


def forget_plans() -> None:
    """Plan each kind of call anew, as after a change of the tables of measured tiles."""
    _plans.clear()


def _remember(key: tuple, plan: Plan, x: Tensor) -> Plan:
    check_device(x)
    if len(_plans) >= MOST_PLANS:
        _plans.clear()
    _plans[key] = plan
    return plan


def _execute(plan: Plan, inputs: tuple[Tensor | None, ...], x: Tensor) -> list[Tensor | None]:
    """Run the plan on the current device and stream, which are those of `x`."""
    empty = allocator(x)
    tensors = [*inputs]
    for buffer in plan.buffers:
        tensors.append(empty(*buffer) if buffer else None)
    if plan.steps:
        profiled = _profiled()
        stream = torch._C._cuda_getCurrentRawStream(x.get_device()) if x.is_cuda else 0
        # Of a tensor Triton would ask the driver whether a kernel can read it.
        addresses = [None if t is None else t.data_ptr() for t in tensors]
        for step in plan.steps:
            if step.handle is None or profiled:
                step.run(tensors, empty)
            else:
                step.handle(stream, [addresses[i] for i in step.tensors], empty)
    first = len(inputs)
    return [None if i is None else tensors[first + i] for i in plan.outputs]


def _profiled() -> bool:
    """Whether a profiler wants to hear of launches; Triton then takes the long way itself."""
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)


def metadata(name: str, flops: int, args: Mapping[str, Any], *touched: str) -> dict[str, Any]:
    """What a profiler (Triton's proton) shows of one launch.

    A kernel's ``launch_metadata`` function calls it, which Triton does only where a profiler asks.

    Args:
        name: of the kernel, and what tells its launches apart.
        flops: 2 for each multiply-add with an element that exists.
        args: the launch's arguments by name.
        touched: names of the tensors that the kernel reads or writes; the first one's dtype is
            that of the arithmetic.

    Returns:
        ``name``, ``flops16`` or ``flops32``, and ``bytes``: each element of a tensor once,
        however often tiles come back to it.
    """
    tensors = [args[argument] for argument in touched]
    return {
        "name": name,
        f"flops{8 * tensors[0].element_size()}": flops,
        "bytes": sum(_distinct_elements(x) * x.element_size() for x in tensors),
    }


def _distinct_elements(x: Tensor) -> int:
    """Elements in memory: a dimension of stride 0 has one."""
    return math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
