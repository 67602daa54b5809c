"""Benchmarks: right before fast, honest about what ran, and the same twice."""

import itertools
import random
import re
import time

import pytest
import torch

import tlazy.nn.functional
from tlazy import report
from tlazy.bench import correctness, measuring, peers, suites
from tlazy.bench.chains import CHAINS, LinearChain
from tlazy.bench.machine import Ceilings, float32, measure_ceilings
from tlazy.bench.measuring import Settings, measure
from tlazy.bench.networks import Network
from tlazy.bench.operations import Conv1d, ConvTranspose1d, Draw, Linear, Unsupported
from tlazy.bench.record import Record, compare, load
from tlazy.bench.suites import Problem, depthwise, parse_shape
from tlazy.bench.timing import HostTimer, summarize
from tlazy.errors import UserError
from tlazy.models import MODELS
from tlazy_kernels.roofline import Cost

CPU = torch.device("cpu")
OPERATIONS = [
    Linear(7, 5, 3, activation="gelu"),
    Linear(7, 5, 3, bias=False),
    Conv1d(2, 6, 11, 4, 3, 2, 1, 2, 2, activation="silu"),
    Conv1d(2, 6, 11, 4, 3, padding="causal", layout="nlc"),
    depthwise(2, 6, 11, 4),
    depthwise(2, 6, 11, 4, padding="same", bias=False),
    ConvTranspose1d(2, 6, 11, 4, 3, 2, 1, 2, activation="gelu"),
    ConvTranspose1d(2, 6, 11, 4, 5, bias=False, layout="nlc"),
    *(LinearChain(7, 5, 3, then=name) for name in CHAINS),
    *(Network(name, 3, 2, 16, 4) for name in MODELS),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other are slow where the machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(dtype=torch.float64):
    return Draw(CPU, dtype, torch.Generator().manual_seed(0))


def identity(operation):
    return f"{operation.op} {'-'.join(map(str, operation.shape().values()))}"


class SteadyTimer:
    """Says what each call takes, with a jitter of a percent, without a clock."""

    def __init__(self, microseconds=100.0, seed=0):
        self.microseconds, self.random = microseconds, random.Random(seed)

    def prepare(self, calls):
        calls[0]()

        def sample(seconds):
            jitter = [self.random.uniform(0.99, 1.01) for _ in range(25)]
            return [self.microseconds * 1e-6 * factor for factor in jitter]

        return sample, ""


def measured(problem, path=None, timer=None, peers=("tlazy", "eager"), **settings):
    """A record of one problem."""
    record = Record("tlazy bench", CPU, Ceilings(1e10, {"float32": 1e11}), path)
    settings = Settings(CPU, peers=peers, timer=timer or SteadyTimer(), **settings)
    assert measure([problem], record, settings)
    return record


def small_linear(**changes):
    operation = Linear(48, 32, 16, activation="relu")
    return Problem("shape", "small", operation, torch.float32, **changes)


def rows_by_peer(record):
    return {row["peer"]: row for row in record.rows}


# Operations


@pytest.mark.parametrize("operation", OPERATIONS, ids=identity)
def test_tlazy_computes_what_stock_torch_does(operation):
    tensors = operation.tensors(draw())
    expected = operation.stock(*tensors)
    assert torch.allclose(operation.fused(*tensors), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS, ids=identity)
def test_the_least_traffic_is_what_goes_in_and_comes_out(operation):
    tensors = operation.tensors(draw())
    if isinstance(operation, Network):
        assert operation.cost(torch.float64, "forward").bytes == sum(t.nbytes for t in tensors)
        return
    moved = sum(t.nbytes for t in tensors) + operation.stock(*tensors).nbytes
    assert operation.cost(torch.float64, "forward").bytes == moved
    both = operation.cost(torch.float64, "forward") + operation.cost(torch.float64, "backward")
    assert operation.cost(torch.float64, "full") == both


def test_a_channels_last_input_lies_so_in_memory():
    x, *_ = Conv1d(2, 6, 11, 4, 3, layout="nlc").tensors(draw())
    assert x.shape == (2, 6, 11)
    assert x.transpose(1, 2).is_contiguous()


def test_random_data_is_fresh_and_never_constant():
    source = draw()
    first, second = (Linear(7, 5, 3).tensors(source) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert not torch.equal(a, b)
        assert a.std() > 0


def test_a_stock_network_has_torchs_layers_alone():
    network = Network("mlp", 3, 2, 16)
    kinds = {type(module) for module in network.stock_net.modules()}
    assert torch.nn.Linear in kinds
    assert tlazy.nn.Linear not in kinds
    assert tlazy.nn.Linear in {type(module) for module in network.net.modules()}


@pytest.mark.parametrize(
    ("op", "text", "expected"),
    [
        ("linear", "4,5,6", Linear(4, 5, 6)),
        ("linear", "4,k=6,n=5,bias=false", Linear(4, 5, 6, bias=False)),
        ("conv1d", "2,3,50,4,5,padding=same", Conv1d(2, 3, 50, 4, 5, padding="same")),
        ("depthwise", "2,8,50,4", Conv1d(2, 8, 50, 8, 4, 1, "causal", 1, 8)),
        ("model", "fcn,4,1,64", Network("fcn", 4, 1, 64)),
        ("conv_transpose1d", "2,3,50,4,5,2", ConvTranspose1d(2, 3, 50, 4, 5, 2)),
    ],
)
def test_a_shape_is_sizes_in_order_then_by_name(op, text, expected):
    assert parse_shape(op, text) == expected


@pytest.mark.parametrize(
    ("op", "text", "message"),
    [
        ("linear", "4,5", "missing a required argument: 'k'; linear takes m,n,k"),
        ("linear", "4,5,6,true,7", "too many"),
        ("linear", "4,5,6,q=7", "unexpected keyword argument 'q'"),
        ("linear", "4,0,6", "n must be a whole number of at least 1, got 0"),
        ("linear", "4,-5,6", "n must be a whole number of at least 1, got -5"),
        ("linear", "4,5.5,6", "n must be a whole number, got 5.5"),
        ("linear", "4,5,6,bias=3", "bias must be true or false, got 3"),
        ("linear", "", "missing a required argument"),
        ("conv1d", "2,3,4,5,9", "--shape 2,3,4,5,9: "),
        ("conv1d", "2,3,50,4,5,groups=2", "--shape 2,3,50,4,5,groups=2: "),
        ("conv1d", "2,3,50,4,5,padding=some", "padding must be one of valid, same, causal"),
        ("conv1d", "2,3,50,4,5,2,padding=same", "padding='same' is not supported for strided"),
        ("conv1d", "2,3,50,4,5,padding=1,padding=2", "padding is given twice"),
        ("conv1d", "2,2,50,4,5,groups=3", "in_channels (=2) must be divisible by groups (=3)"),
        ("conv1d", "2,3,50,4,5,groups=3", "out_channels (=4) must be divisible by groups (=3)"),
        ("model", "lstm,4,1,64", "model must be one of fcn, resnet, inception, mlp, got lstm"),
        ("model", "4,4,1,64", "model must be one of fcn, resnet, inception, mlp, got 4"),
    ],
)
def test_an_impossible_shape_is_refused_with_its_reason(op, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_shape(op, text)


# Suites


@pytest.mark.parametrize("name", list(suites.SUITES))
def test_problems_of_a_suite_have_names_of_their_own_and_possible_shapes(name):
    problems = list(suites.SUITES[name]())
    assert len({problem.name for problem in problems}) == len(problems)
    for problem in problems:
        assert problem.suite == name
        suites.check(problem.operation, problem.name)


def test_the_goals_ask_level_1_of_kernelbench_for_float32s_full_accuracy():
    for suite, exact in (("goals", True), ("kernelbench", False)):
        posed = [p for p in suites.SUITES[suite]() if "KernelBench 1/" in p.name]
        assert [problem.exact for problem in posed] == [exact] * 5


@pytest.mark.parametrize(("exact", "within"), [(True, "ieee"), (False, "tf32")])
def test_full_float32_is_switched_on_around_a_problem_that_asks_for_it(exact, within):
    conv = torch.backends.cudnn.conv
    seen = set()

    class Looking(SteadyTimer):
        def prepare(self, calls):
            seen.add(conv.fp32_precision)
            return super().prepare(calls)

    with float32(conv, "tf32"):
        measured(small_linear(passes=("forward",), exact=exact), timer=Looking())
        assert seen == {within}
        assert conv.fp32_precision == "tf32"


@pytest.mark.parametrize("name", list(suites.SUITES))
def test_a_small_suite_has_the_same_problems_at_sizes_for_a_laptop(name):
    for problem in suites.SUITES[name]():
        if problem.operation.op == "model" and problem.name != "mlp":
            continue  # counting a network's operations takes a second
        small = problem.small().operation
        assert small.op == problem.operation.op
        cost = small.cost(torch.float32, "forward")
        assert cost.flops <= 2 * suites.SMALL_FLOPS or small.halved() is None
        suites.check(small, problem.name)


@pytest.mark.parametrize(
    ("name", "microseconds"),
    [
        ("wav2vec2 layer 0", 246),
        ("wav2vec2 layer 1", 1019),
        ("wav2vec2 positional", 191),
        ("Whisper layer 1", 60),
        ("Whisper layer 2", 299),
        ("FCN layer 2", 54),
        ("InceptionTime k39", 13),
        ("TCN k3 d32", 17),
        ("WaveNet dilation 64", 85),
        ("EnCodec down 4/2", 23),
        ("DAC residual k7 d9", 51),
        ("UNet1D 256", 27),
        ("Conformer depthwise", 15),
        ("Mamba short convolution", 125),
    ],
)
def test_floors_of_the_goals_are_those_that_were_worked_out_by_hand(name, microseconds):
    (problem,) = (p for p in suites.SUITES["goals"]() if p.name == name)
    cost = problem.operation.cost(torch.bfloat16, "forward")
    floor = Ceilings(4.3e12, {"bfloat16": 790e12}).floor(cost, "bfloat16", "H200")
    assert floor * 1e6 == pytest.approx(microseconds, rel=0.045)


def test_kernelbench_has_its_convolutions_and_its_linear_problems():
    names = [problem.name.split()[1] for problem in suites.SUITES["kernelbench"]()]
    level2 = (9, 12, 29, 40, 53, 59, 63, 68, 70, 76, 81, 86, 95)
    assert sorted(names) == sorted(
        [f"1/{n}" for n in (67, 76, 64, 74, 79)] + [f"2/{n}" for n in level2]
    )


# Timing


def test_the_host_timer_takes_turns_with_the_inputs_and_divides_by_the_calls():
    now, calls = [0.0], []

    def call(i):
        calls.append(i)
        now[0] += 30e-6

    sample, _ = HostTimer(lambda: now[0]).prepare([lambda i=i: call(i) for i in range(3)])
    samples = sample(0.01)
    assert samples == pytest.approx([30e-6] * len(samples))
    assert calls == [i % 3 for i in range(len(calls))]
    assert len(samples) > 20


def test_the_spread_holds_three_fifths_of_the_samples():
    timing = summarize([float(i) for i in range(101)])
    assert (timing.median, timing.q20, timing.q80, timing.samples) == (50.0, 20.0, 80.0, 101)


def test_input_sets_do_not_fit_the_last_level_cache(monkeypatch):
    monkeypatch.setattr(measuring.machine, "last_level_cache", lambda device: 10_000)
    operation = Linear(16, 16, 16)
    sets = measuring.input_sets(operation, draw(torch.float32), gradients=True)
    held = sum(t.nbytes for tensors, _ in sets for t in tensors)
    assert held + sum(gradient.nbytes for _, gradient in sets) >= 2 * 10_000
    pointers = [tensors[0].data_ptr() for tensors, _ in sets]
    assert len(set(pointers)) == len(sets)


# Measuring


@pytest.mark.parametrize("which", ["forward", "backward", "full"])
def test_a_row_has_all_that_a_report_needs(which, tmp_path):
    path = tmp_path / "record.json"
    record = measured(small_linear(passes=(which,)), path)
    record.finish()
    content = report.load(path)
    assert content == record.content
    for row in content["rows"]:
        assert row["status"] == "ok"
        assert row["backend"] == "aten"
        assert row["pass"] == which
        assert 0 < row["error"] < 1e-5
        assert row["median_us"] == pytest.approx(100, rel=0.01)
        assert row["tflops"] == pytest.approx(row["flops"] / row["median_us"] / 1e6)
        assert row["floor_fraction"] == pytest.approx(row["floor_us"] / row["median_us"])
    assert [row["peer"] for row in content["rows"]] == ["tlazy", "eager"]


def wrong_by_a_percent(x, weight, bias=None, **options):
    return torch.relu(torch.nn.functional.linear(x, weight, bias)) * 1.01


def with_a_nan(x, weight, bias=None, **options):
    y = torch.relu(torch.nn.functional.linear(x, weight, bias))
    return y + torch.where(torch.arange(y.shape[1]) == 5, float("nan"), 0.0)


def of_another_shape(x, weight, bias=None, **options):
    return torch.relu(torch.nn.functional.linear(x, weight, bias))[1:]


@pytest.mark.parametrize("kernel", [wrong_by_a_percent, with_a_nan, of_another_shape])
def test_a_wrong_kernel_gets_no_time(kernel, monkeypatch):
    monkeypatch.setattr(tlazy.nn.functional, "linear", kernel)
    record = measured(small_linear(passes=("forward",)))
    wrong, right = record.rows
    assert (wrong["peer"], wrong["status"], wrong["median_us"]) == ("tlazy", "wrong", None)
    assert "relative error" in wrong["note"]
    assert right["status"] == "ok"
    report.check(record.content)


def test_a_kernel_with_a_wrong_gradient_gets_no_time(monkeypatch):
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 0.99

    stock = torch.nn.functional.linear
    kernel = lambda x, w, b, activation: Halved.apply(torch.relu(stock(x, w, b)))  # noqa: E731
    monkeypatch.setattr(tlazy.nn.functional, "linear", kernel)
    record = measured(small_linear(passes=("forward", "full")))
    found = {(row["pass"], row["status"]) for row in record.rows if row["peer"] == "tlazy"}
    assert found == {("forward", "ok"), ("full", "wrong")}


def test_outputs_left_unwritten_are_not_mistaken_for_right_ones():
    wanted = [torch.randn(500, 500, dtype=torch.float64)]
    right = wanted[0].float()
    del right
    correctness.poison(wanted, torch.float32)
    assert not correctness.error([torch.empty(500, 500)], wanted) <= 1e-4


@pytest.mark.parametrize("operation", OPERATIONS[:6], ids=identity)
def test_float64_by_parts_is_float64_at_once(operation, monkeypatch):
    tensors = [t.requires_grad_() for t in operation.tensors(draw())]
    gradient = operation.output_gradient(draw(), operation.stock(*tensors))
    whole = correctness.expected(operation, tensors, gradient, "full")
    monkeypatch.setattr(correctness, "PART_BYTES", 200)
    parts = correctness.expected(operation, tensors, gradient, "full")
    assert correctness.error(parts, whole) < 1e-14
    parts[-1][-1] *= 1.5
    assert correctness.error(parts, whole) > 1e-3


def test_a_kernel_that_raises_is_failed_with_its_reason(monkeypatch):
    def broken(*tensors, **options):
        raise RuntimeError("out of\n registers")

    monkeypatch.setattr(tlazy.nn.functional, "linear", broken)
    tlazy_row, eager = measured(small_linear(passes=("forward",))).rows
    assert (tlazy_row["status"], tlazy_row["note"]) == ("failed", "out of registers")
    assert eager["status"] == "ok"


def test_what_a_peer_cannot_do_is_unsupported_with_its_reason():
    names = ("eager", "eager-channels-last", "causal-conv1d", "fla", "cudnn-benchmark")
    rows = rows_by_peer(measured(small_linear(passes=("forward",)), peers=names))
    assert rows["eager-channels-last"]["note"] == "channels last is a memory layout of convolutions"
    for name in names[1:]:
        assert rows[name]["status"] == "unsupported"
        assert rows[name]["note"]


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "causal_conv1d", None)
    with pytest.raises(Unsupported, match="cannot import causal_conv1d"):
        peers.PEERS["causal-conv1d"](depthwise(2, 8, 50, 4), torch.empty(0))


def test_channels_last_of_eager_agrees_with_float64():
    conv = Conv1d(2, 6, 40, 4, 3, 2, 1, activation="gelu")
    problem = Problem("shape", "conv", conv, torch.float32, ("backward", "full"))
    for row in measured(problem, peers=("eager", "eager-channels-last")).rows:
        assert row["status"] == "ok", row["note"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_checked_by_its_own_tolerance(dtype):
    for row in measured(
        Problem("shape", "linear", Linear(33, 20, 70, activation="gelu"), dtype)
    ).rows:
        assert row["status"] == "ok", row["note"]
        assert row["error"] <= correctness.TOLERANCES[row["dtype"]]


@pytest.mark.parametrize("name", ["mlp", "fcn"])
def test_a_network_is_measured_forward_and_backward(name):
    problem = Problem("shape", name, Network(name, 4, 1, 16), torch.float32, ("forward", "full"))
    for row in measured(problem).rows:
        assert row["status"] == "ok", row["note"]


def test_peers_take_turns_on_the_same_inputs():
    order = []

    class Watching(SteadyTimer):
        def prepare(self, calls):
            who = len({id(sample) for sample, _ in order}) if order else 0
            sample, note = super().prepare(calls)
            number = next(counter)
            return lambda seconds: (order.append((sample, number)), sample(seconds))[1], note + str(
                who
            )

    counter = itertools.count()
    measured(small_linear(passes=("forward",)), timer=Watching(), rounds=3)
    assert [number for _, number in order] == [0, 1, 1, 0, 0, 1]


def test_a_clock_that_stands_still_gives_no_time():
    for row in measured(small_linear(), timer=SteadyTimer(0.0)).rows:
        assert (row["status"], row["median_us"]) == ("failed", None)
        assert row["note"] == "the clock gave 0.0 seconds for a call"


class Drifting:
    """Says that all calls take longer each time that somebody comes to measure them."""

    def __init__(self, levels):
        self.levels = iter(levels)

    def prepare(self, calls):
        calls[0]()
        level = next(self.levels) * 1e-6
        return lambda seconds: [level] * 10, ""


def test_a_second_visit_comes_after_all_other_problems_and_widens_the_spread():
    seen = []
    problem = small_linear(passes=("forward", "full"))
    record = measured(
        problem,
        timer=Drifting([100, 100, 100, 100, 130, 130, 100, 100]),
        visits=2,
        notify=lambda problem, which: seen.append(which),
    )
    assert seen == ["forward", "full"] * 2
    for row in record.rows:
        assert row["samples"] == 40
        assert (row["q20_us"], row["q80_us"]) == pytest.approx(
            (100, 130) if row["pass"] == "forward" else (100, 100)
        )


def test_visits_share_the_samples_of_one(monkeypatch):
    asked = []

    class Noting(SteadyTimer):
        def prepare(self, calls):
            sample, note = super().prepare(calls)
            return lambda seconds: (asked.append(seconds), sample(seconds))[1], note

    for visits in (1, 2):
        measured(small_linear(passes=("forward",)), timer=Noting(), visits=visits, seconds=0.2)
        assert sum(asked) == pytest.approx(2 * 0.2)
        asked.clear()


def test_what_is_wrong_at_the_second_visit_loses_its_time(monkeypatch):
    right = tlazy.nn.functional.linear

    def again(problem, which):
        if seen:
            monkeypatch.setattr(tlazy.nn.functional, "linear", wrong_by_a_percent)
        seen.append(which)

    seen = []
    record = measured(small_linear(passes=("forward",)), visits=2, notify=again)
    ours, eager = record.rows
    assert (ours["status"], ours["median_us"], ours["samples"]) == ("wrong", None, 0)
    assert eager["status"] == "ok"
    assert tlazy.nn.functional.linear is not right


def test_nothing_starts_after_the_deadline():
    record = Record("tlazy bench", CPU, Ceilings())
    settings = Settings(CPU, deadline=time.monotonic() - 1, timer=SteadyTimer())
    assert not measure([small_linear()], record, settings)
    assert record.rows == []


def test_a_record_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "record.json"
    first = measured(small_linear(passes=("forward",)), path)
    again = Record.reopen(path)
    seen = []
    settings = Settings(
        CPU,
        peers=("tlazy", "eager"),
        timer=SteadyTimer(),
        notify=lambda p, which: seen.append(which),
    )
    assert measure([small_linear()], again, settings)
    assert seen == ["full"]
    assert again.rows[:2] == first.rows


# Records and their comparison


def test_the_file_is_whole_after_every_row(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    contents = []

    class Stopping(SteadyTimer):
        def prepare(self, calls):
            contents.append(report.load(path))
            if len(contents) == 3:
                raise KeyboardInterrupt
            return super().prepare(calls)

    with pytest.raises(KeyboardInterrupt):
        measured(small_linear(), path, timer=Stopping())
    content = load(path)
    assert not content["complete"]
    assert [row["status"] for row in content["rows"]] == ["ok", "ok", "failed"]
    assert content["rows"][2]["note"] == measuring.TRIED
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_two_runs_on_a_quiet_machine_agree_within_the_spread():
    runs = [measured(small_linear(), timer=SteadyTimer(seed=seed)) for seed in (1, 2)]
    assert compare(runs[0].content, runs[1].content) == []
    assert compare(runs[1].content, runs[0].content) == []
    for old, new in zip(runs[0].rows, runs[1].rows, strict=True):
        assert old["q20_us"] <= new["median_us"] <= old["q80_us"]


def test_a_deliberately_slowed_kernel_is_flagged(monkeypatch):
    problem = small_linear(passes=("forward",))
    timer = HostTimer()
    before = measured(problem, timer=timer, seconds=0.05)
    fast = tlazy.nn.functional.linear

    def slowed(*tensors, **options):
        time.sleep(0.02)
        return fast(*tensors, **options)

    monkeypatch.setattr(tlazy.nn.functional, "linear", slowed)
    after = measured(problem, timer=timer, seconds=0.05)
    flagged = {row["peer"]: row for row in compare(before.content, after.content)}
    assert "times as long" in flagged["tlazy"]["why"]
    assert flagged["tlazy"]["was_us"] == before.rows[0]["median_us"]
    assert "eager" not in {row["peer"] for row in compare(after.content, before.content)}


@pytest.mark.parametrize(
    ("factor", "is_flagged"), [(1.5, True), (1.1, True), (1.03, False), (0.5, False)]
)
def test_only_what_is_slower_beyond_spread_and_five_percent_is_flagged(factor, is_flagged):
    old = measured(small_linear(), timer=SteadyTimer(100))
    new = measured(small_linear(), timer=SteadyTimer(100 * factor))
    assert bool(compare(old.content, new.content)) == is_flagged


def test_what_was_right_and_is_wrong_now_is_flagged(monkeypatch):
    old = measured(small_linear(passes=("forward",)))
    monkeypatch.setattr(tlazy.nn.functional, "linear", wrong_by_a_percent)
    new = measured(small_linear(passes=("forward",)))
    (flagged,) = compare(old.content, new.content)
    assert flagged["why"].startswith("was ok, is wrong: relative error")


def test_records_of_different_devices_are_not_compared():
    old, new = (measured(small_linear(passes=("forward",))) for _ in range(2))
    new.content["machine"]["device"] = "NVIDIA H200"
    with pytest.raises(UserError, match=r"records of different devices: .* and NVIDIA H200"):
        compare(old.content, new.content)


# Ceilings


def test_the_floor_comes_from_what_was_measured_else_from_the_datasheet():
    cost = Cost(flops=10**12, bytes=10**9)
    assert Ceilings(1e12, {"bfloat16": 1e14}).floor(cost, "bfloat16", "NVIDIA H200") == 1e-2
    datasheet = Ceilings().floor(cost, "bfloat16", "NVIDIA H200")
    assert datasheet == pytest.approx(1e12 / 989e12)
    assert Ceilings().floor(cost, "bfloat16", "a CPU") is None


def test_float32_accuracy_by_three_tf32_products_bounds_float32():
    ceilings = Ceilings(1e15, {"float32": 5e13, "tf32": 4.5e14})
    assert ceilings.floor(Cost(15 * 10**13, 1), "float32", "") == pytest.approx(1.0)


def test_ceilings_are_measured_in_every_precision_asked_for():
    ceilings = measure_ceilings(CPU, ["float32", "bfloat16"], SteadyTimer(1000))
    assert ceilings.bandwidth == pytest.approx(2 * 2**27 / 1e-3, rel=0.02)
    assert set(ceilings.matmul) == {"float32", "bfloat16"}
    assert all(
        rate == pytest.approx(2 * 1024**3 / 1e-3, rel=0.02) for rate in ceilings.matmul.values()
    )
