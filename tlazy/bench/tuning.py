"""Searches tiles for a problem's launchers, and keeps the best as a JSON table of one device.

The table: ``{"format": 1, "device": name, "versions": {...}, "entries": [...]}``, an entry for each
(launcher, shape, dtype, activation, layout) with the fields of the best ``TileConfig`` under
``"config"`` (null where the launcher's own choice is best), its ``"median_us"``, and
``"default_us"``, what the launcher's own choice takes in the same run. ``"key"`` is what the
launcher looks its tile up by: a table that TLAZY_TILES names is used from then on, as
``tlazy_kernels.tuned`` says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tlazy.bench import correctness, machine
from tlazy.bench.measuring import input_sets
from tlazy.bench.operations import Conv1d, Draw, Linear, Operation, Pass
from tlazy.bench.suites import Problem
from tlazy.bench.timing import Sampler, Timer, own_stream, settle_for, summarize, timer_for
from tlazy.errors import UserError
from tlazy.files import replacing
from tlazy.nn.functional import causal_padding
from tlazy_kernels import conv1d, launch, linear, reference, tuned
from tlazy_kernels.configs import TileConfig

FORMAT = 1
KEY = ("launcher", "shape", "dtype", "activation", "layout")
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

Launch = Callable[..., Any]


class Launcher(NamedTuple):
    """A launcher on a problem's tensors.

    Attributes:
        name: the launcher's own.
        run: from (tensors, gradient) and ``config=`` to its output.
        twin: the same from ``tlazy_kernels.reference``, without a config.
    """

    name: str
    run: Launch
    twin: Launch

    @property
    def which(self) -> Pass:
        """The pass whose tensors it reads."""
        return "forward" if self.name.endswith("forward") else "backward"


def tune(
    problems: Sequence[Problem],
    device: torch.device,
    path: Path,
    deadline: float = float("inf"),
    timer: Timer | None = None,
) -> list[dict[str, Any]]:
    """Search each problem's launchers, and write the table after each.

    Entries of other problems that the table already holds stay. The time until the deadline (on
    ``time.monotonic``'s scale) is shared evenly, where it is enough for all.

    Returns:
        the entries found in this run.

    Raises:
        UserError: where `path` holds something else, or cannot be written.
    """
    table = _open(path, machine.machine(device)["device"])
    work = [
        (problem, launcher) for problem in problems for launcher in launchers(problem.operation)
    ]
    found = []
    for i, (problem, launcher) in enumerate(work):
        now = time.monotonic()
        if now > deadline:
            break
        with own_stream(device):
            until = min(deadline, now + max(LEAST_SEARCH, (deadline - now) / (len(work) - i)))
            entry = _search_one(problem, launcher, device, timer or timer_for(device), until)
        if entry is not None:
            found.append(entry)
            table["entries"] = [e for e in table["entries"] if _key(e) != _key(entry)]
            table["entries"].append(entry)
            _write(table, path)
    return found


def launchers(operation: Operation) -> Iterator[Launcher]:
    """The launchers that an operation's forward and backward passes use."""
    activation = operation.activation
    if isinstance(operation, Linear):
        yield _launcher("linear_forward", linear, _linear_forward, activation=activation)
        yield _launcher("linear_grad_input", linear, lambda t, g: (g, t[1]))
        yield _launcher("linear_grad_weight", linear, lambda t, g: (g, t[0]))
    elif isinstance(operation, Conv1d):
        settings = (operation.stride, _zeros(operation), operation.dilation, operation.groups)
        taps, length = operation.kernel_size, operation.length
        yield _launcher(
            "conv1d_forward",
            conv1d,
            lambda t, g: (*_linear_forward(t, g), *settings),
            activation=activation,
        )
        yield _launcher("conv1d_grad_input", conv1d, lambda t, g: (g, t[1], length, *settings))
        yield _launcher("conv1d_grad_weight", conv1d, lambda t, g: (g, t[0], taps, *settings))


def search(
    seeds: Sequence[TileConfig],
    evaluate: Callable[[TileConfig], float | None],
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[TileConfig, float]:
    """Climb from the best of `seeds` to its best neighbour until none is better.

    Args:
        evaluate: seconds of a tile; None where it does not run or is wrong.

    Returns:
        seconds of every tile that works, of those tried before the deadline.
    """
    tried: dict[TileConfig, float | None] = {}

    def works() -> dict[TileConfig, float]:
        return {config: taken for config, taken in tried.items() if taken is not None}

    frontier: list[TileConfig] = list(seeds)
    while frontier:
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


def _launcher(name: str, module: Any, arguments: Callable[..., tuple], **options: Any) -> Launcher:
    launch, twin = getattr(module, name), getattr(reference, name)

    def run(tensors: list[Tensor], gradient: Tensor, config: TileConfig | None) -> Tensor:
        return _first(launch(*arguments(tensors, gradient), **options, config=config))

    def exact(tensors: list[Tensor], gradient: Tensor) -> Tensor:
        return _first(twin(*arguments(tensors, gradient), **options))

    return Launcher(name, run, exact)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


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


def _search_one(
    problem: Problem, launcher: Launcher, device: torch.device, timer: Timer, deadline: float
) -> dict[str, Any] | None:
    """The best tile of one launcher as an entry.

    None where not even its own choice works, or where it looks no tile up: a kernel of another
    kind serves this problem.
    """
    operation = problem.operation
    generator = torch.Generator(device)
    generator.seed()
    sets = input_sets(operation, Draw(device, problem.dtype, generator), launcher.which)
    tensors, gradient = sets[0]
    wanted = launcher.twin([t.double() for t in tensors], gradient.double())
    tolerance = correctness.TOLERANCES[machine.precision_of(problem.dtype, device, operation.op)]

    def sampler(config: TileConfig | None) -> Sampler | None:
        try:
            correctness.poison([wanted], problem.dtype)
            found = launcher.run(tensors, gradient, config)
            if not correctness.errors([found], [wanted])[0] <= tolerance:
                return None
            calls = [lambda one=one: launcher.run(*one, config) for one in sets]
            return timer.prepare(calls)[0]
        except Exception:  # a tile that does not fit fails in the compiler or at the launch
            settle_for(device)()  # where the device is lost, no other tile would run either
            return None

    def evaluate(config: TileConfig) -> float | None:
        sample = sampler(config)
        return None if sample is None else summarize(sample(SECONDS_EACH)).median

    launch.forget_plans()
    with tuned.asked() as keys:
        own = sampler(None)
    if own is None or not keys:
        return None
    seeds = DEPTHWISE_SEEDS if operation.op == "depthwise" else SEEDS
    times = search(seeds, evaluate, deadline)
    best = sorted(times, key=lambda config: times[config])[:FINALISTS]
    return {
        "launcher": launcher.name,
        "key": keys[0],
        "problem": problem.name,
        "shape": operation.shape(),
        "dtype": str(problem.dtype).removeprefix("torch."),
        "activation": operation.activation,
        "layout": operation.layout,
        "tried": len(times),
        **_final(own, {config: sampler(config) for config in best}),
    }


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


def _key(entry: Mapping[str, Any]) -> str:
    return json.dumps([entry[name] for name in KEY], sort_keys=True)


def _open(path: Path, device: str) -> dict[str, Any]:
    """The table in `path`, or an empty one."""
    if path.exists():
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            sound = table["format"] == FORMAT and all(map(_key, table["entries"]))
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise UserError(f"{path} is there, and no table of tiles")
        if table["device"] != device:
            raise UserError(f"{path} holds tiles of {table['device']}, not of {device}")
        return {**table, "versions": machine.versions()}
    return {"format": FORMAT, "device": device, "versions": machine.versions(), "entries": []}


def _write(table: Mapping[str, Any], path: Path) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
