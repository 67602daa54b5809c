"""The search for tiles: it climbs, refuses wrong tiles, and keeps its table."""

import itertools
import json
import math
import time
from dataclasses import replace

import pytest
import torch

from tlazy.bench import measuring, tuning
from tlazy.bench.operations import Conv1d, Linear
from tlazy.bench.suites import Problem, depthwise
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
    monkeypatch.setattr(measuring.machine, "last_level_cache", lambda device: 1)
    monkeypatch.setattr(tuning, "SEEDS", (TileConfig(16, 16, 16), TileConfig(32, 16, 16)))
    monkeypatch.setattr(tuning, "DEPTHWISE_SEEDS", (TileConfig(16, 16, 1),))
    monkeypatch.setattr(tuning, "neighbours", lambda config: iter(()))


def problem(operation=None, name="small"):
    return Problem("shape", name, operation or Linear(20, 12, 16, activation="gelu"), torch.float32)


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
    now = itertools.count()
    times = tuning.search(
        [TileConfig(16, 16, 16, stage) for stage in range(1, 9)],
        lambda config: 1.0,
        deadline=3,
        clock=lambda: next(now),
    )
    assert len(times) == 4


@interpreted
def test_input_sets_hold_a_gradient_for_the_launchers_that_read_one(tmp_path, monkeypatch):
    drawn = []

    def noting(*args):
        sets = measuring.input_sets(*args)
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
    conv = Conv1d(1, 16, 20, 16, 3, padding="same", activation="relu")
    problems = [problem(), problem(conv, "conv"), problem(depthwise(1, 16, 20, 3), "short")]
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
    (plan,) = launch._plans.values()
    assert plan.steps[0].constants["BLOCK_N"] == 16
    launch.forget_plans()


@interpreted
def test_the_launchers_own_choice_stands_where_nothing_beats_it(tmp_path):
    found = tuning.tune([problem()], CPU, tmp_path / "tiles.json", timer=Counting(1, 1))
    assert [entry["config"] for entry in found] == [None] * 3


@interpreted
def test_what_looks_no_tile_up_is_left_out(tmp_path):
    first_layer = Conv1d(2, 1, 400, 16, 10, 5, bias=False)
    found = tuning.tune(
        [problem(first_layer), problem()], CPU, tmp_path / "tiles.json", timer=Counting(100, -1)
    )
    assert "conv1d_forward" not in {entry["launcher"] for entry in found}
    assert "linear_forward" in {entry["launcher"] for entry in found}
    long = replace(problem(depthwise(1, 2, 96, 12), "long"), dtype=torch.float16)
    assert tuning.tune([long], CPU, tmp_path / "tiles.json", timer=Counting(100, -1)) == []


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
