"""The search for tiles: it climbs, refuses wrong tiles, and keeps its table."""

import itertools
import json
import math
import time
from dataclasses import replace

import pytest
import torch

from tlazy.bench import correctness, inputs, machine, rows, tuning
from tlazy.bench import lost as losing
from tlazy.bench.operations import Conv1d, Linear, depthwise
from tlazy.bench.problems import Problem
from tlazy.errors import UserError
from tlazy_kernels import launch, linear, tuned
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.environment import INTERPRETED
from tlazy_kernels.targets import STAND_IN

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs the launchers in the interpreter")


class Counting:
    """Says that each next sampler's calls take longer."""

    def __init__(self, first=1.0, step=1.0):
        self.times = itertools.count(first, step)

    def prepare(self, calls):
        calls[0]()
        taken = next(self.times) * 1e-6
        return lambda seconds: [taken] * 3, ""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(machine, "last_level_cache", lambda device: 1)
    monkeypatch.setattr(tuning, "SEEDS", (TileConfig(16, 16, 16), TileConfig(32, 16, 16)))
    monkeypatch.setattr(tuning, "DEPTHWISE_SEEDS", (TileConfig(16, 16, 1),))
    monkeypatch.setattr(tuning, "neighbours", lambda config: iter(()))


def problem(operation=None, name="small", **options):
    operation = operation or Linear(20, 12, 16, activation="gelu")
    return Problem("shape", name, operation, torch.float32, **options)


LINEAR = ("linear_forward", "linear_grad_input", "linear_grad_weight")
CONV = Conv1d(4, 16, 20, 16, 3, padding="same", activation="relu")


def test_the_search_climbs_to_the_best_tile_and_skips_what_does_not_run(monkeypatch):
    monkeypatch.undo()
    best = TileConfig(64, 128, 64, 8, 4)

    def seconds(config):
        if config.rows == 256:
            return None
        pairs = ((getattr(config, n), getattr(best, n)) for n in ("rows", "cols", "depth"))
        apart = sum(abs(math.log2(a / b)) for a, b in pairs)
        return 1 + apart + abs(config.num_stages - 4) + abs(config.num_warps - 8)

    times = tuning.search([TileConfig(16, 16, 16), TileConfig(256, 16, 16)], seconds, math.inf)
    assert min(times, key=times.get) == best
    assert len(times) < 100
    assert all(config.rows != 256 for config in times)


def test_the_search_ends_at_its_deadline():
    """Each tile takes a second, which the first four have."""
    prepared, tried = [], []

    def seconds(config):
        tried.append(config)
        return 1.0

    times = tuning.search(
        [TileConfig(16, 16, 16, stage) for stage in range(1, 9)],
        seconds,
        deadline=3.5,
        clock=lambda: len(tried),
        prepare=prepared.append,
    )
    assert [*times] == tried
    assert len(tried) == 4
    assert len(prepared) == 1


def test_the_search_prepares_all_that_it_tries_next(monkeypatch):
    monkeypatch.undo()
    prepared = []

    def seconds(config):
        assert config in prepared[-1]
        return config.rows + config.cols

    times = tuning.search(
        [TileConfig(32, 32, 16)],
        seconds,
        math.inf,
        prepare=lambda configs: prepared.append([*configs]),
    )
    assert {*times} == {config for configs in prepared for config in configs}
    assert len(prepared) > 2


@interpreted
def test_tiles_are_compiled_before_they_are_tried(tmp_path, monkeypatch):
    compiled, launched = [], []
    run = launch.Step.run

    def noted(step, tensors, empty):
        (launched if launch._compiled_ahead.get() is None else compiled).append(step.constants)
        run(step, tensors, empty)

    monkeypatch.setattr(launch.Step, "run", noted)
    tuning.tune([problem()], CPU, tmp_path / "tiles.json", timer=Counting(1, 1))
    own, tried = launched[0], [constants for constants in launched if constants in compiled]
    assert own not in compiled
    assert len(compiled) == 2 * len(LINEAR)
    assert all(constants in tried for constants in compiled)


@interpreted
def test_input_sets_hold_a_gradient_for_the_launchers_that_read_one(tmp_path, monkeypatch):
    drawn = []

    def noting(*args):
        sets = inputs.input_sets(*args)
        drawn.append(sets[0][1].untyped_storage().nbytes() > 4)
        return sets

    monkeypatch.setattr(tuning, "input_sets", noting)
    found = tuning.tune([problem()], CPU, tmp_path / "tiles.json", timer=Counting(1, 1))
    names = [entry["launcher"] for entry in found]
    assert dict(zip(names, drawn, strict=True)) == {
        "linear_forward": False,
        "linear_grad_input": True,
        "linear_grad_weight": True,
    }


@interpreted
def test_the_table_holds_the_best_tile_of_every_launcher(tmp_path):
    path = tmp_path / "tiles.json"
    problems = [problem(), problem(CONV, "conv"), problem(depthwise(1, 16, 20, 3), "short")]
    tuning.tune(problems, CPU, path, timer=Counting(100, -1))
    table = json.loads(path.read_text())
    assert {(e["problem"], e["launcher"]) for e in table["entries"]} == {
        (name, f"{op}_{what}")
        for name, op in (("small", "linear"), ("conv", "conv1d"), ("short", "conv1d"))
        for what in ("forward", "grad_input", "grad_weight")
    }
    for entry in table["entries"]:
        assert entry["median_us"] < entry["default_us"]
        TileConfig(**entry["config"])


@interpreted
def test_a_table_that_is_named_gives_the_launcher_its_tile(tmp_path, monkeypatch):
    path = tmp_path / "tiles.json"
    tuning.tune([problem()], CPU, path, timer=Counting(100, -1))
    table = json.loads(path.read_text())
    target = replace(STAND_IN, name=table["device"])
    monkeypatch.setattr(launch, "target_of", lambda device: target)
    monkeypatch.setenv(tuned.VARIABLE, str(path))
    for entry in table["entries"]:
        found = tuned.tuned(target, entry["launcher"], torch.float32, entry["key"].split()[2:])
        assert found == TileConfig(**entry["config"])
    launch.forget_plans()
    x, weight, bias = torch.ones(20, 16), torch.ones(12, 16), torch.ones(12)
    linear.linear_forward(x, weight, bias, activation="gelu")
    assert last_block() == 16
    launch.forget_plans()


def last_block():
    """BLOCK_N of the launch that was planned last."""
    return list(launch._plans.values())[-1].steps[0].constants["BLOCK_N"]


@interpreted
def test_the_launchers_own_choice_is_timed_without_the_table_that_is_named(tmp_path, monkeypatch):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    tuning.tune([problem()], CPU, first, timer=Counting(100, -1))
    target = replace(STAND_IN, name=json.loads(first.read_text())["device"])
    monkeypatch.setattr(launch, "target_of", lambda device: target)
    monkeypatch.setenv(tuned.VARIABLE, str(first))
    blocks = []

    class Noting(Counting):
        def prepare(self, calls):
            blocks.append(last_block())
            return super().prepare(calls)

    launch.forget_plans()
    x, weight = torch.ones(20, 16), torch.ones(12, 16)
    linear.linear_forward(x, weight, torch.ones(12), activation="gelu")
    assert last_block() == 16  # planned before, and not to be timed as the launcher's own choice
    tuning.tune([problem()], CPU, second, timer=Noting(100, -1))
    own, *tiles = blocks[: len(blocks) // len(LINEAR)]
    assert own != 16
    assert set(tiles) == {16}
    assert not launch._plans  # from here on the table counts again
    linear.linear_forward(x, weight, torch.ones(12), activation="gelu")
    assert last_block() == 16
    launch.forget_plans()


@interpreted
def test_the_launchers_own_choice_stands_where_nothing_beats_it(tmp_path):
    found = tuning.tune([problem()], CPU, tmp_path / "tiles.json", timer=Counting(1, 1))
    assert [entry["config"] for entry in found] == [None] * 3


@interpreted
def test_what_looks_no_tile_up_is_left_out(tmp_path):
    path = tmp_path / "tiles.json"
    first_layer = problem(Conv1d(1, 1, 30, 16, 10, 5, bias=False), "first")
    found = tuning.tune([first_layer, problem()], CPU, path, timer=Counting(100, -1))
    launchers = [entry["launcher"] for entry in found]
    assert launchers == ["conv1d_grad_input", *LINEAR]
    without = "left out: a kernel of another kind serves it, without tiles"
    assert tuning.outcomes(path)["conv1d_forward, first"] == without
    assert tuning.outcomes(path)["conv1d_grad_weight, first"] == without
    long = replace(problem(depthwise(1, 2, 96, 12), "long"), dtype=torch.float16)
    assert tuning.tune([long], CPU, path, timer=Counting(100, -1)) == []
    assert set(tuning.outcomes(path).values()) == {without}


@interpreted
def test_a_tile_that_computes_wrong_values_is_never_chosen(tmp_path, monkeypatch):
    right = linear.linear_forward

    def wrong_for_others(*args, config=None, **options):
        y, z = right(*args, config=config, **options)
        return (y, z) if config is None else (y * 1.01, z)

    monkeypatch.setattr(linear, "linear_forward", wrong_for_others)
    entry, *_ = tuning.tune([problem()], CPU, tmp_path / "tiles.json", timer=Counting(100, -1))
    assert (entry["launcher"], entry["config"], entry["tried"]) == ("linear_forward", None, 0)


@interpreted
def test_tuning_again_keeps_other_problems_and_replaces_its_own(tmp_path):
    path = tmp_path / "tiles.json"
    tuning.tune([problem()], CPU, path, timer=Counting())
    tuning.tune([problem(Linear(16, 16, 16))], CPU, path, timer=Counting())
    tuning.tune([problem()], CPU, path, timer=Counting())
    shapes = [entry["shape"]["m"] for entry in json.loads(path.read_text())["entries"]]
    assert shapes == [16, 16, 16, 20, 20, 20]


def test_nothing_starts_after_the_deadline(tmp_path):
    path = tmp_path / "tiles.json"
    assert tuning.tune([problem()], CPU, path, deadline=time.monotonic() - 1) == []
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no table of tiles"),
        ("no JSON", "no table of tiles"),
        ('{"format": 1, "device": "x", "entries": [3]}', "no table of tiles"),
        ('{"format": 1, "device": "NVIDIA H200", "entries": []}', "holds tiles of NVIDIA H200"),
    ],
)
def test_another_file_is_not_overwritten(text, message, tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        tuning.tune([problem()], CPU, path, timer=Counting())
    assert path.read_text() == text


@interpreted
def test_a_tile_of_one_precision_leaves_that_of_another(tmp_path, monkeypatch):
    def precision_on_a_gpu(dtype, family):
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"

    monkeypatch.setattr(linear, "dot_precision", precision_on_a_gpu)
    path = tmp_path / "tiles.json"
    keys = []
    for precision, exact in (("ieee", False), ("tf32", False), ("tf32", True)):
        with machine.float32(torch.backends.cuda.matmul, precision):
            found = tuning.tune([problem(exact=exact)], CPU, path, timer=Counting())
        keys.append([entry["key"] for entry in found])
    full, rounded, again = keys
    assert not set(full) & set(rounded)
    assert again == full
    assert sorted(e["key"] for e in json.loads(path.read_text())["entries"]) == sorted(
        full + rounded
    )


@interpreted
@pytest.mark.parametrize("cudnn_fails", [False, True])
def test_tiles_are_compared_with_float64_by_parts_and_without_cudnn_where_it_fails(
    cudnn_fails, tmp_path, monkeypatch
):
    stock, batches = Conv1d.stock, []

    def noting(self, x, *rest):
        if x.dtype == torch.float64:
            batches.append(len(x))
            if cudnn_fails and torch.backends.cudnn.enabled:
                raise RuntimeError("GET was unable to find an engine to execute this computation")
        return stock(self, x, *rest)

    monkeypatch.setattr(Conv1d, "stock", noting)
    monkeypatch.setattr(correctness, "PART_BYTES", 8 * CONV.in_channels * CONV.length)
    found = tuning.tune([problem(CONV)], CPU, tmp_path / "tiles.json", timer=Counting(100, -1))
    assert len(found) == 3
    assert all(entry["config"] for entry in found)
    assert set(batches) == {1}


@interpreted
def test_what_fails_is_left_out_with_a_line_and_the_next_is_searched(tmp_path, monkeypatch):
    path, lines = tmp_path / "tiles.json", []
    sets = inputs.input_sets

    def too_large(operation, *rest):
        if operation.m == 21:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 GiB")
        return sets(operation, *rest)

    monkeypatch.setattr(tuning, "input_sets", too_large)
    problems = [problem(Linear(21, 12, 16), "large"), problem()]
    found = tuning.tune(problems, CPU, path, timer=Counting(100, -1), notify=lines.append)
    assert [(entry["problem"], entry["launcher"]) for entry in found] == [
        ("small", name) for name in LINEAR
    ]
    said = dict.fromkeys(LINEAR, "left out: CUDA out of memory. Tried to allocate 3 GiB")
    assert [line.split(maxsplit=2) for line in lines[:3]] == [
        [name, "large", said[name]] for name in LINEAR
    ]
    assert tuning.outcomes(path) == {
        **{f"{name}, large": said[name] for name in LINEAR},
        **{
            f"{entry['launcher']}, small": f"{entry['default_us'] / entry['median_us']:.2f}x over "
            "the default tile"
            for entry in found
        },
    }
    assert [" ".join(line.split()) for line in lines[3:]] == [
        f"{name} small {tuning.outcomes(path)[f'{name}, small']}" for name in LINEAR
    ]


@interpreted
def test_a_launcher_whose_own_choice_is_wrong_is_left_out_with_its_error(tmp_path, monkeypatch):
    right = linear.linear_forward
    monkeypatch.setattr(
        linear, "linear_forward", lambda *args, **options: (right(*args, **options)[0] * 1.01, None)
    )
    path = tmp_path / "tiles.json"
    found = tuning.tune([problem()], CPU, path, timer=Counting(100, -1))
    assert tuple(entry["launcher"] for entry in found) == LINEAR[1:]
    assert tuning.outcomes(path)["linear_forward, small"] == (
        "left out: relative error 1.0e-02, allowed 1e-04"
    )


@interpreted
def test_a_tile_that_fails_while_it_is_timed_costs_itself_only(tmp_path):
    class Failing(Counting):
        tiles = 0

        def prepare(self, calls):
            sample, note = super().prepare(calls)
            self.tiles += 1
            return (self.fail if self.tiles == 2 else sample), note

        def fail(self, seconds):
            raise RuntimeError("CUDA error: misaligned address")

    found = tuning.tune([problem()], CPU, tmp_path / "tiles.json", timer=Failing(100, -1))
    assert [entry["tried"] for entry in found] == [1, 2, 2]


@interpreted
def test_a_lost_device_ends_the_run_and_the_next_one_goes_on_behind_it(tmp_path, monkeypatch):
    path, lost = tmp_path / "tiles.json", []
    right = linear.linear_grad_input

    def deadly(*args, config=None):
        assert tuning.outcomes(path)["linear_grad_input, small"] == rows.TRIED
        if config is not None and launch._compiled_ahead.get() is None:
            lost.append(config)
        return right(*args, config=config)

    def settle():
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    class Waiting(Counting):
        def prepare(self, calls):
            settle()
            return super().prepare(calls)

    monkeypatch.setattr(linear, "linear_grad_input", deadly)
    for module in (tuning, losing):
        monkeypatch.setattr(module, "settle_for", lambda device: settle)
    message = "the GPU fails after linear_grad_input, small: CUDA error: an illegal memory access"
    with pytest.raises(losing.DeviceLost, match=message):
        tuning.tune([problem()], CPU, path, timer=Waiting(100, -1))
    assert len(lost) == 1
    (entry,) = json.loads(path.read_text())["entries"]
    assert entry["launcher"] == "linear_forward"
    done = tuning.outcomes(path)
    assert list(done) == ["linear_forward, small", "linear_grad_input, small"]
    assert done["linear_grad_input, small"].startswith("left out: CUDA error")

    lost.clear()  # in a new process
    (found,) = tuning.tune([problem()], CPU, path, timer=Waiting(100, -1), skip=done)
    assert found["launcher"] == "linear_grad_weight"
    assert [e["launcher"] for e in json.loads(path.read_text())["entries"]] == [
        LINEAR[0],
        LINEAR[2],
    ]
    assert list(tuning.outcomes(path)) == [f"{name}, small" for name in LINEAR]


def test_where_there_is_no_table_nothing_was_searched(tmp_path):
    assert tuning.outcomes(tmp_path / "nowhere.json") == {}
    (tmp_path / "other.json").write_text("[]")
    assert tuning.outcomes(tmp_path / "other.json") == {}
