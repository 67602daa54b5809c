"""Searches tiles for a problem's launchers, and keeps the best as a JSON table of one device.

The table: ``{"format": 1, "device": name, "versions": {...}, "entries": [...]}``, an entry for each
(launcher, shape, dtype, activation, layout) with the fields of the best ``TileConfig`` under
``"config"`` (null where the launcher's own choice is best), its ``"median_us"``, and
``"default_us"``, what the launcher's own choice takes in the same run. ``"key"`` is what the
launcher looks its tile up by, and there is one entry of each: a table that TLAZY_TILES names is
used from then on, as ``tlazy_kernels.tuned`` says. Under ``"outcomes"`` stands what became of each
search of the last run, by its name, among them those that found nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tlazy.bench import correctness, machine
from tlazy.bench.inputs import InputSet, input_sets
from tlazy.bench.lost import raise_if_lost
from tlazy.bench.operations import Conv1d, Draw, Linear, Operation, Pass, Unsupported
from tlazy.bench.problems import Problem
from tlazy.bench.rows import TRIED
from tlazy.bench.timing import Sampler, Timer, own_stream, settle_for, summarize, timer_for
from tlazy.errors import UserError, reason
from tlazy.files import replacing
from tlazy.nn.functional import causal_padding
from tlazy_kernels import conv1d, launch, linear, tuned
from tlazy_kernels.configs import TileConfig

FORMAT = 1
SECONDS_EACH = 0.02
# A search that is shorter than a few compilations finds nothing: rather leave later ones out.
LEAST_SEARCH = 8.0
SECONDS_LAST = 0.2
# How many of the best are timed again, in turns with the launcher's own choice.
FINALISTS = 4
SEEDS = tuple(
    TileConfig(*sizes)
    for sizes in (
        (128, 256, 64, 8, 3),
        (128, 256, 64, 4, 3, True),
        (128, 128, 64, 8, 3),
        (128, 128, 32, 4, 3),
        (64, 128, 64, 4, 4),
        (64, 64, 32, 4, 2),
        (16, 64, 64, 4, 4),
    )
)
DEPTHWISE_SEEDS = tuple(
    TileConfig(*sizes)
    for sizes in ((64, 32, 1, 4), (128, 16, 1, 4), (32, 64, 1, 4), (16, 16, 1, 4))
)
RANGES = {"rows": (16, 256), "cols": (16, 256), "depth": (16, 128), "num_warps": (2, 8)}
MOST_STAGES = 5
# Larger tiles spill whatever else is chosen.
LARGEST_TILE = 2**15

T = TypeVar("T")


class Launcher(NamedTuple):
    """A launcher on a problem's tensors.

    Attributes:
        name: the launcher's own.
        place: of its output among the output and the gradients of input and weight.
        run: from tensors, gradient and config to its output.
    """

    name: str
    place: int
    run: Callable[[list[Tensor], Tensor, TileConfig | None], Tensor]

    @property
    def which(self) -> Pass:
        """The pass whose tensors it reads."""
        return "backward" if self.place else "forward"


def tune(
    problems: Sequence[Problem],
    device: torch.device,
    path: Path,
    deadline: float = float("inf"),
    timer: Timer | None = None,
    notify: Callable[[str], object] = lambda line: None,
    skip: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Search each problem's launchers, and write the table before and after each.

    Entries of other problems that the table already holds stay. The time until the deadline (on
    ``time.monotonic``'s scale) is shared evenly, where it is enough for all. A search that fails
    is left out.

    Args:
        timer: None for the device's own.
        notify: told in a line what became of each search.
        skip: names of :func:`outcomes` that are not searched again.

    Returns:
        the entries found in this run.

    Raises:
        DeviceLost: where the device cannot go on; the table holds what was found until then.
        UserError: where `path` holds something else, or cannot be written.
    """
    table = _open(path, machine.machine(device)["device"])
    said = {name: what for name, what in table["outcomes"].items() if name in skip}
    table["outcomes"] = said
    work = [
        (name, problem, launcher)
        for problem in problems
        for launcher in launchers(problem.operation)
        if (name := f"{launcher.name}, {problem.name}") not in skip
    ]
    found = []
    for i, (name, problem, launcher) in enumerate(work):
        now = time.monotonic()
        if now > deadline:
            break
        until = min(deadline, now + max(LEAST_SEARCH, (deadline - now) / (len(work) - i)))
        said[name] = TRIED
        _write(table, path)
        try:
            entry = _search_one(problem, launcher, device, timer or timer_for(device), until)
            gain = entry["default_us"] / entry["median_us"]
            said[name] = f"{gain:.2f}x over the default tile"
            found.append(entry)
            others = [other for other in table["entries"] if other["key"] != entry["key"]]
            table["entries"] = [*others, entry]
        except Exception as error:  # torch's, Triton's and the driver's are any
            said[name] = f"left out: {reason(error)}"
            raise_if_lost(device, f"{name}: {reason(error)}")
        finally:
            _write(table, path)
        notify(f"{launcher.name:20} {problem.name:32} {said[name]}")
    return found


def outcomes(path: Path) -> dict[str, str]:
    """What became of each search, by name, as the table in `path` says; none without a table."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # `tune` says what is wrong with it
        return dict(json.loads(path.read_text(encoding="utf-8"))["outcomes"])
    return {}


def launchers(operation: Operation) -> Iterator[Launcher]:
    """The launchers that an operation's forward and backward passes use."""
    activation = operation.activation
    if isinstance(operation, Linear):
        yield _launcher("linear_forward", 0, linear, _linear_forward, activation=activation)
        yield _launcher("linear_grad_input", 1, linear, lambda t, g: (g, t[1]))
        yield _launcher("linear_grad_weight", 2, linear, lambda t, g: (g, t[0]))
    elif isinstance(operation, Conv1d):
        settings = (operation.stride, _zeros(operation), operation.dilation, operation.groups)
        taps, length = operation.kernel_size, operation.length
        yield _launcher(
            "conv1d_forward",
            0,
            conv1d,
            lambda t, g: (*_linear_forward(t, g), *settings),
            activation=activation,
        )
        yield _launcher("conv1d_grad_input", 1, conv1d, lambda t, g: (g, t[1], length, *settings))
        yield _launcher("conv1d_grad_weight", 2, conv1d, lambda t, g: (g, t[0], taps, *settings))


def search(
    seeds: Sequence[TileConfig],
    evaluate: Callable[[TileConfig], float | None],
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
    prepare: Callable[[Sequence[TileConfig]], object] = lambda configs: None,
) -> dict[TileConfig, float]:
    """Climb from the best of `seeds` to its best neighbour until none is better.

    Args:
        evaluate: seconds of a tile; None where it does not run or is wrong.
        prepare: called with the tiles that are evaluated next.

    Returns:
        seconds of every tile that works, of those tried before the deadline.
    """
    tried: dict[TileConfig, float | None] = {}

    def works() -> dict[TileConfig, float]:
        return {config: taken for config, taken in tried.items() if taken is not None}

    frontier: list[TileConfig] = list(seeds)
    while frontier and clock() <= deadline:
        prepare(frontier)
        for config in frontier:
            if clock() > deadline:
                return works()
            tried[config] = evaluate(config)
        times = works()
        if not times:
            return {}
        best = min(times, key=lambda config: times[config])
        frontier = [config for config in neighbours(best) if config not in tried]
    return works()


def neighbours(config: TileConfig) -> Iterator[TileConfig]:
    """The tiles with one size doubled or halved, or one stage more or less."""
    for name, (least, most) in RANGES.items():
        value = getattr(config, name)
        if name == "depth" and value == 1:
            continue
        for other in (2 * value, value // 2):
            if least <= other <= most:
                changed = replace(config, **{name: other})
                if changed.rows * changed.cols <= LARGEST_TILE:
                    yield changed
    if config.depth > 1:
        for stages in (config.num_stages + 1, config.num_stages - 1):
            if 1 <= stages <= MOST_STAGES:
                yield replace(config, num_stages=stages)


def _launcher(
    name: str, place: int, module: Any, arguments: Callable[..., tuple], **options: Any
) -> Launcher:
    launcher = getattr(module, name)

    def run(tensors: list[Tensor], gradient: Tensor, config: TileConfig | None) -> Tensor:
        output = launcher(*arguments(tensors, gradient), **options, config=config)
        return output[0] if isinstance(output, tuple) else output

    return Launcher(name, place, run)


def _linear_forward(tensors: list[Tensor], gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, *bias = tensors
    return x, weight, bias[0] if bias else None


def _zeros(operation: Conv1d) -> tuple[int, int]:
    """The zeros (left, right) of the operation's padding."""
    total = causal_padding(operation.kernel_size, operation.dilation)
    if operation.padding == "causal":
        return total, 0
    if operation.padding == "same":
        return total // 2, total - total // 2
    around = 0 if isinstance(operation.padding, str) else operation.padding
    return around, around


class _Contest:
    """One launcher on a problem's tensors: its tiles are compared with float64, then timed."""

    def __init__(
        self, problem: Problem, launcher: Launcher, device: torch.device, timer: Timer
    ) -> None:
        self.launcher, self.device, self.timer = launcher, device, timer
        self.dtype = problem.dtype
        generator = torch.Generator(device)
        generator.seed()
        draw = Draw(device, problem.dtype, generator)
        self.sets = input_sets(problem.operation, draw, launcher.which)
        self.exact = _exact(problem.operation, launcher, self.sets[0])
        precision = machine.precision_of(problem.dtype, device, problem.operation.op)
        self.tolerance = correctness.TOLERANCES[precision]

    def prepare(self, config: TileConfig | None) -> Sampler:
        """What times the tile, or the launcher's own choice, once it was found right.

        Raises:
            ArithmeticError: where it is wrong.
            Exception: what a tile that does not fit raises in the compiler or at the launch.
        """
        correctness.poison([self.exact], self.dtype)
        found = self.launcher.run(*self.sets[0], config)
        (error,) = correctness.errors([found], [self.exact])
        if not error <= self.tolerance:  # a NaN is neither
            raise ArithmeticError(f"relative error {error:.1e}, allowed {self.tolerance:.0e}")
        calls = [partial(self.launcher.run, *one, config) for one in self.sets]
        return self.timer.prepare(calls)[0]

    def compile(self, configs: Sequence[TileConfig]) -> None:
        """Compile the tiles' kernels together: one by one takes longer than all else."""
        with launch.compiling_ahead():
            for config in configs:
                with suppress(Exception):  # where it is tried, it says what is wrong
                    self.launcher.run(*self.sets[0], config)

    def seconds(self, config: TileConfig) -> float:
        """What the tile takes, roughly."""
        return summarize(self.prepare(config)(SECONDS_EACH)).median

    def attempt(self, function: Callable[[TileConfig], T], config: TileConfig) -> T | None:
        """What the function makes of a tile; None where the tile does not run or is wrong."""
        try:
            return function(config)
        except Exception:
            settle_for(self.device)()  # where the device is lost, no other tile would run either
            return None


def _search_one(
    problem: Problem, launcher: Launcher, device: torch.device, timer: Timer, deadline: float
) -> dict[str, Any]:
    """The best tile of one launcher as an entry.

    Raises:
        Unsupported: where it looks no tile up.
        Exception: where not even its own choice works, or the device is lost.
    """
    operation = problem.operation
    with machine.full_float32(problem.exact), own_stream(device), _without_tables():
        contest = _Contest(problem, launcher, device, timer)
        with tuned.asked() as keys:
            own = contest.prepare(None)
        if not keys:
            raise Unsupported("a kernel of another kind serves it, without tiles")
        seeds = DEPTHWISE_SEEDS if operation.op == "depthwise" else SEEDS
        times = search(
            seeds,
            lambda config: contest.attempt(contest.seconds, config),
            deadline,
            prepare=contest.compile,
        )
        best = sorted(times, key=lambda config: times[config])[:FINALISTS]
        finalists = {config: contest.attempt(contest.prepare, config) for config in best}
        return {
            "launcher": launcher.name,
            "key": keys[0],
            "problem": problem.name,
            "shape": operation.shape(),
            "dtype": str(problem.dtype).removeprefix("torch."),
            "activation": operation.activation,
            "layout": operation.layout,
            "tried": len(times),
            **_final(own, finalists),
        }


def _exact(operation: Operation, launcher: Launcher, one: InputSet) -> Tensor:
    """What the launcher should make of these tensors, in float64.

    A gradient that it reads is that of what the activation gets.
    """
    tensors, gradient = one
    leaves = [t.detach().requires_grad_(i < launcher.place) for i, t in enumerate(tensors)]
    if launcher.place:
        changed: Any = operation
        operation = replace(changed, activation=None)

    outputs = correctness.expected(operation, leaves, gradient, launcher.which)
    return outputs[launcher.place]


@contextmanager
def _without_tables() -> Iterator[None]:
    """Inside, launchers plan anew, and choose their tiles as they do without TLAZY_TILES."""
    before = os.environ.pop(tuned.VARIABLE, None)
    launch.forget_plans()
    try:
        yield
    finally:
        launch.forget_plans()
        if before is not None:
            os.environ[tuned.VARIABLE] = before


def _final(
    own: Sampler,
    finalists: Mapping[TileConfig, Sampler | None],
) -> dict[str, Any]:
    """Time the launcher's own choice and the finalists in turns; the best of them."""
    samplers: dict[TileConfig | None, Sampler]
    samplers = {None: own, **{c: sample for c, sample in finalists.items() if sample}}
    samples: dict[TileConfig | None, list[float]] = {config: [] for config in samplers}
    for _ in range(3):
        for config, sample in samplers.items():
            samples[config] += sample(SECONDS_LAST / 3)
    medians = {config: summarize(taken).median * 1e6 for config, taken in samples.items()}
    best = min(medians, key=lambda config: medians[config])
    return {
        "config": None if best is None else asdict(best),
        "median_us": medians[best],
        "default_us": medians[None],
    }


def _open(path: Path, device: str) -> dict[str, Any]:
    """The table in `path`, or an empty one."""
    if path.exists():
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            sound = table["format"] == FORMAT and all(entry["key"] for entry in table["entries"])
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise UserError(f"{path} is there, and no table of tiles")
        if table["device"] != device:
            raise UserError(f"{path} holds tiles of {table['device']}, not of {device}")
    else:
        table = {"format": FORMAT, "device": device, "entries": []}
    return {"outcomes": {}, **table, "versions": machine.versions()}


def _write(table: Mapping[str, Any], path: Path) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
