"""What ``tlazy bench`` does: check everything it was asked for, measure, show, write."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tlazy
from tlazy.bench import machine, peers, shapes, suites, tuning
from tlazy.bench.lost import DeviceLost
from tlazy.bench.measuring import identities, measure
from tlazy.bench.networks import Network
from tlazy.bench.operations import LAYOUTS, PASSES, Conv1d, ConvTranspose1d, Linear
from tlazy.bench.problems import SINGLE, Problem
from tlazy.bench.record import Record
from tlazy.bench.settings import Settings
from tlazy.bench.stopping import Stopped, stoppable
from tlazy.errors import UserError
from tlazy.outputs import check_writable
from tlazy.report.earlier import Changes, changes, check_same_device, common
from tlazy.report.record import load
from tlazy_kernels import tuned
from tlazy_kernels.reference import ACTIVATIONS
from tlazy_kernels.roofline import Precision

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
VISITS = 4
EXTRA = "pip install 'tlazy[plot]'"


@dataclass(frozen=True)
class Options:
    """What a user asks of ``tlazy bench``; see the command's help. None: not given."""

    op: str | None = None
    shape: str | None = None
    suite: str | None = None
    dtype: str | None = None
    passes: str | None = None
    activation: str | None = None
    layout: str | None = None
    peer: str | None = None
    device: str = "auto"
    json: Path | None = None
    html: Path | None = None
    compare: Path | None = None
    tune: bool = False
    minutes: float | None = None


@dataclass(frozen=True)
class Plan:
    """Options that were found sound, ready to run."""

    problems: list[Problem]
    settings: Settings
    old: dict[str, Any] | None


def plan(options: Options) -> Plan:
    """Check all options, before anything is measured or written.

    Raises:
        UserError: for the first that is wrong.
    """
    from tlazy.run import check_device, pick_device

    _check_choices(options)
    if not options.tune:
        check_tiles()
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        raise UserError(f"--minutes must be positive and finite, got {options.minutes}")
    if options.tune and not torch.cuda.is_available():
        raise UserError("--tune searches tiles on a GPU, and torch sees none here")
    check_device(options.device)
    device = pick_device(options.device)
    if options.tune and device.type != "cuda":
        raise UserError("--tune searches tiles on a GPU: leave --device cpu out")
    names = None if options.peer is None else peers.parse_peers(options.peer, device)
    problems = _problems(options, device)
    _check_outputs(options)
    deadline = float("inf")
    if options.minutes is not None:
        deadline = time.monotonic() + 60 * options.minutes
    settings = Settings(device, peers=names, deadline=deadline, visits=VISITS)
    old = None
    if options.compare is not None:
        old = load(options.compare)
        check_same_device(old["machine"], machine.machine(device))
        asked = identities(problems, settings)
        if not common(old, asked):
            raise UserError(
                f"--compare {options.compare} has a time for none of the {len(asked)} measurements "
                f"asked for; it was made by: {old['command']}"
            )
    return Plan(problems, settings, old)


def run(options: Options, command: str) -> int:
    """Do what the options ask for, and return the exit code.

    0: done. 1: ``--compare`` found something slower or wrong, or the device was lost. 130, 143:
    stopped by Ctrl-C or SIGTERM, after the table of what was measured until then.

    Raises:
        UserError: as :func:`plan`; where the record cannot be written any more, after the table
            too; and where nothing could be compared that ``--compare`` asks for.
    """
    checked = plan(options)
    try:
        with stoppable():
            return _tune(options, checked) if options.tune else _bench(options, checked, command)
    except Stopped as stopped:
        return stopped.exit_code


def _bench(options: Options, checked: Plan, command: str) -> int:
    from tlazy.bench import table

    device = checked.settings.device
    print(_first_line(device), flush=True)
    ceilings = machine.measure_ceilings(device, precisions(checked.problems, device))
    result = Record(command, device, ceilings, options.json)
    result.write()
    ended = _measure(checked, result)
    lost = isinstance(ended, DeviceLost)
    if lost:
        print(f"tlazy bench: {ended}", file=sys.stderr)
    table.show(result.content)
    compared = None
    if checked.old is not None:
        compared = changes(checked.old, result.content, str(options.compare))
        table.show_changes(compared)
    try:
        _write_html(options.html, result.content, compared)
    finally:
        if ended is not None and not lost:
            raise ended
    if compared is not None and not compared.compared:
        raise UserError(f"nothing was compared: {compared.summary}")
    return int(lost or bool(compared and compared.worse))


def _measure(checked: Plan, result: Record) -> Stopped | UserError | DeviceLost | None:
    """Measure into the record; what ended that early, if anything."""
    from tlazy.bench.progress import progress

    try:
        with progress(checked.problems, checked.settings.visits) as notify:
            settings = dataclasses.replace(checked.settings, notify=notify)
            if measure(checked.problems, result, settings):
                result.finish()
    except (Stopped, UserError, DeviceLost) as error:
        return error
    return None


def precisions(problems: Iterable[Problem], device: torch.device) -> list[Precision]:
    """The precisions whose ceilings the floors of `problems` need."""
    found = set()
    for problem in problems:
        with machine.full_float32(problem.exact):
            found.add(machine.precision_of(problem.dtype, device, problem.operation.op))
    return sorted(found)


def suite_problems(name: str, device: torch.device) -> list[Problem]:
    """A suite as it is measured on `device`: on a CPU small, and in float32."""
    return _fitted(in_dtype(suites.SUITES[name](), device), device)


def in_dtype(
    problems: Iterable[Problem], device: torch.device, dtype: torch.dtype | None = None
) -> list[Problem]:
    """The problems in `dtype`; where it is not given as they are, but on a CPU in float32."""
    if dtype is None and device.type == "cpu":
        dtype = torch.float32
    if dtype is None:
        return list(problems)
    return [dataclasses.replace(problem, dtype=dtype) for problem in problems]


def _fitted(problems: Iterable[Problem], device: torch.device) -> list[Problem]:
    """The problems at sizes for `device`."""
    return [problem.small() if device.type == "cpu" else problem for problem in problems]


def check_tiles() -> None:
    """Raise UserError where TLAZY_TILES names what is no table; a CPU would never look at it."""
    try:
        tuned.check_named_tables()
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_choices(options: Options) -> None:
    for option, value, choices in (
        ("OP", options.op, tuple(shapes.BUILDERS)),
        ("--suite", options.suite, tuple(suites.SUITES)),
        ("--dtype", options.dtype, tuple(DTYPES)),
        ("--pass", options.passes, PASSES),
        ("--activation", options.activation, ("none", *ACTIVATIONS)),
        ("--layout", options.layout, LAYOUTS),
    ):
        if value is not None and value not in choices:
            raise UserError(f"{option} must be one of {', '.join(choices)}, got {value!r}")


def _problems(options: Options, device: torch.device) -> list[Problem]:
    """The problems that the options choose."""
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    if options.shape is not None:
        found = [_adjusted(_one_problem(options, device, dtype), options)]
    else:
        suite = options.suite or _suite_of(options.op)
        chosen = [p for p in suites.SUITES[suite]() if options.op in (None, p.operation.op)]
        if not chosen:
            raise UserError(f"the suite {suite} has no problem of {options.op}")
        chosen = [_adjusted(problem, options) for problem in chosen]
        found = _fitted(in_dtype(chosen, device, dtype), device)
    if options.passes is not None:
        which: Any = options.passes
        found = [dataclasses.replace(problem, passes=(which,)) for problem in found]
    if options.shape is not None:
        _check_memory(found[0], device)
    return found


def _suite_of(op: str | None) -> str:
    """The suite for an operation alone: whole networks are in `models` only."""
    return "models" if op == "model" else "goals"


def _one_problem(options: Options, device: torch.device, dtype: torch.dtype | None) -> Problem:
    if options.op is None:
        raise UserError(f"--shape needs an operation: one of {', '.join(shapes.BUILDERS)}")
    if options.suite is not None:
        raise UserError("--suite and --shape exclude each other")
    operation = shapes.parse_shape(options.op, options.shape or "")
    if dtype is None:
        networks_and_cpus = operation.op == "model" or device.type == "cpu"
        dtype = torch.float32 if networks_and_cpus else torch.bfloat16
    return Problem(SINGLE, f"{operation.op} {options.shape}", operation, dtype)


def _check_memory(problem: Problem, device: torch.device) -> None:
    """Refuse what cannot fit: inputs, outputs and gradients, and the same again in float64."""
    operation = problem.operation
    needed = operation.cost(problem.dtype, "full").bytes
    needed += operation.cost(torch.float64, "full").bytes
    if isinstance(operation, Network):
        # A backward pass needs what every layer put out, a forward pass one at a time.
        kept = max if problem.passes == ("forward",) else sum
        needed += kept(_put_out(operation)) * torch.float64.itemsize
    there = machine.machine(device)["memory_bytes"]
    if needed > there:
        raise UserError(
            f"--shape needs about {needed / 2**30:,.0f} GiB with its check in float64; "
            f"{device.type} has {there / 2**30:,.0f} GiB"
        )


def _put_out(network: Network) -> list[int]:
    """The elements that each innermost layer of the network puts out."""
    net = network.net
    traced = tlazy.trace(net, tlazy.Spec(network.batch, network.channels, network.length))
    layers = (row for row in traced.rows if not list(net.get_submodule(row.path).children()))
    return [sum(map(math.prod, layer.outputs)) for layer in layers]


def _adjusted(problem: Problem, options: Options) -> Problem:
    """The problem with the activation and the layout that the options ask for."""
    changes: dict[str, Any] = {}
    operation = problem.operation
    if options.activation is not None:
        if type(operation) not in (Linear, Conv1d, ConvTranspose1d):
            raise UserError(f"--activation is not for {operation.op} ({problem.name})")
        changes["activation"] = None if options.activation == "none" else options.activation
    if options.layout is not None:
        if operation.layout is None:
            raise UserError(f"--layout is not for {operation.op} ({problem.name})")
        changes["layout"] = options.layout
    replaced: Any = operation
    return dataclasses.replace(problem, operation=dataclasses.replace(replaced, **changes))


def _check_outputs(options: Options) -> None:
    if options.tune:
        for option, value in (
            ("--pass", options.passes),
            ("--peer", options.peer),
            ("--html", options.html),
            ("--compare", options.compare),
        ):
            if value is not None:
                raise UserError(f"--tune writes a table of tiles: it takes --json, not {option}")
    given = [("--json", options.json), ("--html", options.html)]
    for option, path in given:
        if path is None:
            continue
        check_writable(option, path)
        old = options.compare
        if old is not None and old.exists() and path.exists() and path.samefile(old):
            raise UserError(f"{option} {path} is the file to compare with")
    if options.html is not None:
        if options.json is not None and options.html.absolute() == options.json.absolute():
            raise UserError(f"--json and --html are the same file: {options.html}")
        if importlib.util.find_spec("jinja2") is None:
            raise UserError(f"--html needs jinja2: {EXTRA}")


def _first_line(device: torch.device) -> str:
    name = machine.machine(device)["device"]
    if device.type == "cuda":
        return f"{name}: Triton kernels beside their peers"
    why = "measured as asked" if torch.cuda.is_available() else "there is no GPU here"
    return f"{name}: {why}; tlazy runs ATen on a CPU, so both sides are ATen"


def _tune(options: Options, checked: Plan) -> int:
    device = checked.settings.device
    path = options.json or Path(f"tiles-{slug(machine.machine(device)['device'])}.json")
    check_writable("--json", path)
    deadline = checked.settings.deadline
    try:
        found = tuning.tune(checked.problems, device, path, deadline, notify=print)
    except (DeviceLost, Stopped) as ended:
        why = "stopped" if isinstance(ended, Stopped) else ended
        print(f"tlazy bench: {why}; {path} has what was found until then", file=sys.stderr)
        return ended.exit_code if isinstance(ended, Stopped) else 1
    print(f"{len(found)} tiles written to {path}")
    return 0


def slug(name: str) -> str:
    """A device's name as a part of a path.

    >>> slug("NVIDIA H200")
    'nvidia-h200'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _write_html(path: Path | None, content: dict[str, Any], compared: Changes | None) -> None:
    if path is None:
        return
    from tlazy.report import write_html

    write_html(content, path, compared)
    print(f"report written to {path}")


def command_line(arguments: Sequence[str]) -> str:
    """The command as its user typed it, for the record."""
    import shlex

    return shlex.join(["tlazy", *arguments])
