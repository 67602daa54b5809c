"""What `tlazy bench` does on a GPU, on a pretended one: events, graphs, peers, a lost device."""

import itertools
import statistics
import sys
import threading
import weakref
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import triton

import tlazy.nn.functional
from perf import test_kernels as perf_kernels
from tests.fake_gpu import GPU, NAME, OnCPU
from tlazy import report
from tlazy.bench import correctness, inputs, machine, peers, rows, timing
from tlazy.bench.lost import DeviceLost
from tlazy.bench.machine import Ceilings, measure_ceilings
from tlazy.bench.measuring import measure
from tlazy.bench.operations import Conv1d, Linear, Unsupported, depthwise
from tlazy.bench.problems import SINGLE, Problem
from tlazy.bench.record import Record
from tlazy.bench.settings import Settings
from tlazy.bench.timing import DeviceTimer, FirstCallTimer, HostTimer, own_stream, summarize

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")


@pytest.fixture
def computing(gpu):
    """The pretended GPU, whose tensors the CPU computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with OnCPU(gpu):
        yield gpu
    torch.set_num_threads(before)


def timed(gpu, calls, seconds=0.01):
    with own_stream(GPU):
        sample, note = DeviceTimer(gpu.clock).prepare(calls)
        return summarize(sample(seconds)), note


# Timing


def test_a_long_call_is_timed_by_events_without_its_launch(gpu):
    timing, note = timed(gpu, [lambda: gpu.run(2e-3, launch=50e-6)])
    # Before the first of the queue the device waits for its launch.
    assert timing.median == pytest.approx(2e-3)
    assert timing.q80 < 2.06e-3
    assert note == ""


def test_a_call_shorter_than_its_launch_is_timed_in_a_graph(gpu):
    timing, note = timed(gpu, [lambda: gpu.run(4e-6, launch=30e-6)])
    assert timing.median == pytest.approx(4e-6, rel=0.2)
    assert note == "CUDA graph replay"


def test_a_call_of_many_launches_is_timed_in_a_graph_however_long_they_take(gpu):
    def network():
        for _ in range(100):
            gpu.run(8e-6, launch=20e-6)

    timing, note = timed(gpu, [network])
    assert timing.median == pytest.approx(800e-6, rel=0.05)
    assert note == "CUDA graph replay"


def test_what_cannot_be_captured_is_timed_with_its_launches_and_says_so(gpu):
    gpu.capturable = False
    timing, note = timed(gpu, [lambda: gpu.run(4e-6, launch=30e-6)])
    assert timing.median == pytest.approx(34e-6, rel=0.2)
    assert note == (
        "timed with its launches: no CUDA graph (operation not permitted when stream is capturing)"
    )


def test_a_call_that_waits_for_the_device_cannot_be_captured(gpu):
    def waiting():
        gpu.run(4e-6)
        gpu.synchronize()

    _, note = timed(gpu, [waiting])
    assert note == (
        "timed with its launches: no CUDA graph (operation not permitted when stream is capturing)"
    )
    assert not gpu.open_pools
    assert len(gpu.released_pools) == 1


@pytest.mark.parametrize("call", [10e-6, 0.4e-3, 3e-3])
def test_replays_take_no_longer_than_they_are_given_unless_one_does(gpu, call):
    def network():
        for _ in range(200):
            gpu.run(call / 200, launch=20e-6)

    with own_stream(GPU):
        sample, note = DeviceTimer(gpu.clock).prepare([network] * 50)
        assert note == "CUDA graph replay"
        begin = gpu.now
        samples = sample(0.05)
    assert samples
    assert samples == pytest.approx([call] * len(samples), rel=0.05)
    assert gpu.now - begin <= max(0.05, 50 * call) * 1.1


@pytest.mark.parametrize("sets", [1, 3, 50])
def test_a_graph_takes_turns_with_the_inputs(gpu, sets):
    order = []

    def call(i):
        order.append((i, gpu.captured is not None))
        gpu.run(4e-6)

    timed(gpu, [lambda i=i: call(i) for i in range(sets)])
    captured = [i for i, into_graph in order if into_graph]
    assert captured == [i % sets for i in range(len(captured))]
    assert len(captured) % sets == 0
    assert len(captured) >= timing.CALLS_IN_GRAPH


class Output:
    """What a call returns, so that a test knows for how long somebody keeps it."""


@pytest.mark.parametrize("sets", [1, 2, 7])
@pytest.mark.parametrize("seconds", [4e-6, 1e-3])
def test_while_calls_are_timed_each_keeps_one_result_and_none_afterwards(gpu, sets, seconds):
    kept = [lambda: None] * sets
    most = {True: 0, False: 0}

    def call(i):
        assert kept[i]() is None  # its memory is free for the next
        y = Output()
        kept[i] = weakref.ref(y)
        into_graph = gpu.captured is not None
        most[into_graph] = max(most[into_graph], sum(one() is not None for one in kept))
        gpu.run(seconds)
        return y

    with own_stream(GPU):
        sample, note = DeviceTimer(gpu.clock).prepare([lambda i=i: call(i) for i in range(sets)])
        assert most[False] == sets
        assert most[True] == (sets if note else 0)
        for _ in range(2):
            assert not any(one() for one in kept)
            most[False] = 0
            sample(0.01)
            assert most[False] == (0 if note else sets)


@pytest.mark.parametrize("seconds", [4e-6, 2e-3])
def test_what_a_call_reads_lives_for_as_long_as_it_may_be_timed(gpu, seconds):
    """A captured graph knows addresses alone."""
    read = Output()

    def call(read=read):
        gpu.run(seconds)

    alive = weakref.ref(read)
    with own_stream(GPU):
        sample, note = DeviceTimer(gpu.clock).prepare([call])
        del call, read
        assert alive() is not None
        assert note == ("CUDA graph replay" if seconds < timing.GRAPH_BELOW else "")
        sample(0.01)
        del sample
    assert alive() is None


def test_the_device_works_before_it_is_timed(gpu):
    ran = []

    def call():
        ran.append(gpu.now)
        gpu.run(1e-3)

    with own_stream(GPU):
        DeviceTimer(gpu.clock).prepare([call])
    assert gpu.now - ran[0] >= timing.WARM_UP


def test_one_stream_serves_all_and_is_never_the_default_one(gpu):
    seen = []
    for _ in range(3):
        with own_stream(GPU):
            seen.append(torch.cuda.current_stream())
    assert len(set(map(id, seen))) == 1
    assert not seen[0].default
    assert torch.cuda.current_stream().default


def test_the_hosts_time_leaves_out_the_devices(gpu):
    timer = HostTimer(gpu.clock, settle=gpu.synchronize)
    sample, _ = timer.prepare([lambda: gpu.run(9e-6, launch=12e-6)])
    assert summarize(sample(0.01)).median == pytest.approx(12e-6)


def test_first_calls_are_timed_once_each_and_again_for_comparison(gpu):
    seen = set()

    def call(length):
        gpu.run(50e-6, launch=142e-3 if length not in seen else 10e-6)
        seen.add(length)

    calls = [lambda length=length: call(length) for length in range(5)]
    sample, note = FirstCallTimer(gpu.clock, gpu.synchronize).prepare(calls)
    assert sample(1.0) == pytest.approx([142.05e-3] * 4)
    assert sample(1.0) == []
    assert note == "first calls; 60.0 us when called again"


def test_quantiles_of_equal_samples_lie_on_their_sides_of_the_median():
    times = [1e-7 * (1 + i / 997) for i in range(500)]
    for summary in (summarize([time] * 7) for time in times):
        assert summary.q20 <= summary.median <= summary.q80
    assert any(
        statistics.quantiles([time] * 7, method="inclusive", n=5)[0] > time for time in times
    )


# Measuring


def measured(*problems, peers=None, path=None):
    record = Record("tlazy bench", GPU, Ceilings(4e12, {"float16": 8e14, "float32": 4e13}), path)
    assert measure(problems, record, Settings(GPU, peers=peers, seconds=0.01))
    report.check(record.content)
    return {(row["problem"], row["pass"], row["peer"]): row for row in record.rows}


def half(name, operation, *passes, **options):
    return Problem("made up", name, operation, torch.float16, passes or ("forward",), **options)


class CausalConv1d(ModuleType):
    """Has the function of the causal-conv1d package, with its demands."""

    @staticmethod
    def causal_conv1d_fn(x, weight, bias=None, *, activation=None):
        assert x.stride(2) == 1 or x.stride(1) == 1
        assert weight.shape == (x.shape[1], weight.shape[-1])
        assert activation in (None, "silu", "swish")
        padded = F.pad(x, (weight.shape[-1] - 1, 0))
        y = F.conv1d(padded, weight.unsqueeze(1), bias, groups=x.shape[1])
        return y if activation is None else F.silu(y)


class FlashLinearAttention(ModuleType):
    """Has the convolution of flash-linear-attention: (batch, length, channels), and a state."""

    @staticmethod
    def causal_conv1d(x, weight, bias=None, *, activation=None):
        y = CausalConv1d.causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation=activation)
        return y.transpose(1, 2), None


@pytest.fixture
def libraries(monkeypatch):
    """Packages that have GPU builds only, in ATen."""
    monkeypatch.setitem(sys.modules, "causal_conv1d", CausalConv1d("causal_conv1d"))
    for name in ("fla", "fla.modules", "fla.modules.convolution"):
        monkeypatch.setitem(sys.modules, name, FlashLinearAttention(name))


@pytest.mark.parametrize("which", ["forward", "backward", "full"])
def test_every_peer_of_a_convolution_is_right_and_timed(computing, which):
    names = [name for name in peers.PEERS if name.startswith(("eager", "cudnn", "tlazy"))]
    conv = Conv1d(2, 6, 40, 4, 3, 2, 1, activation="gelu")
    rows = measured(half("conv", conv, which), peers=names)
    assert len(rows) == len(names) == 5
    for row in rows.values():
        assert row["status"] == "ok", row["note"]
        assert row["peak_memory_bytes"] == 4000
        assert "CUDA graph replay" in row["note"]
        assert row["floor_fraction"] > 0


@pytest.mark.parametrize(
    "operation", [Linear(4, 4, 4), Conv1d(1, 4, 9, 4, 3), depthwise(1, 4, 9, 3)]
)
def test_a_shape_by_itself_and_a_goal_are_measured_beside_the_compiler(operation):
    for suite in (SINGLE, "goals"):
        found = peers.default_peers(Problem(suite, "", operation), GPU)
        assert "compile" in found
        assert len(set(found)) == len(found)


@pytest.mark.parametrize("which", ["forward", "full"])
@pytest.mark.parametrize("layout", ["ncl", "nlc"])
def test_every_peer_of_a_short_convolution_is_right_and_timed(computing, libraries, which, layout):
    short = replace(depthwise(2, 8, 50, 4), layout=layout)
    problem = half("short", short, which)
    rows = measured(problem)
    assert {peer for *_, peer in rows} == set(peers.default_peers(problem, GPU))
    assert {row["status"] for row in rows.values()} == {"ok"}


@pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="the tutorial's kernel runs in the interpreter here"
)
@pytest.mark.parametrize("shape", [(70, 50, 33), (1030, 1024, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_tutorials_kernel_and_cublaslt_are_right_forward(gpu, shape, bias):
    operation = Linear(*shape, bias=bias, activation="relu")
    x, weight, *rest = (torch.randn(s) for s in (shape[::2], shape[1:], *[shape[1:2]] * bias))
    x, weight, *rest = (t.half() for t in (x, weight, *rest))
    wanted = operation.stock(*(t.double() for t in (x, weight, *rest)))
    with torch.no_grad():
        for name in ("triton-tutorial", *(["cublaslt"] if bias else [])):
            built = peers.PEERS[name](operation, x)
            torch.testing.assert_close(
                built.call(x, weight, *rest).double(), wanted, rtol=5e-3, atol=0.05
            )
    with torch.enable_grad(), pytest.raises(Unsupported, match="forward only"):
        peers.PEERS["triton-tutorial"](operation, x)


def test_what_searches_runs_in_a_thread_of_its_own_backward_too(computing, monkeypatch):
    seen = {}

    class Noting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            seen.setdefault(torch.backends.cudnn.benchmark, set()).add(threading.get_ident())
            return y.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen[torch.backends.cudnn.benchmark].add(threading.get_ident())
            return gradient

    stock = Conv1d.stock
    monkeypatch.setattr(Conv1d, "stock", lambda self, *t: Noting.apply(stock(self, *t)))
    conv = half("conv", Conv1d(2, 6, 40, 4, 3), "full")
    rows = measured(conv, peers=("eager", "cudnn-benchmark"))
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert len(seen[True]) == 1
    assert not seen[True] & seen[False]
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("peer", ["eager", "cudnn-benchmark"])
@pytest.mark.parametrize(("which", "forwards"), [("forward", 5), ("backward", 0), ("full", 5)])
def test_the_benchmark_of_kernels_times_the_pass_that_it_names(
    computing, monkeypatch, peer, which, forwards
):
    threads, stock = [], Conv1d.stock

    def noting(self, *tensors):
        if tensors[0].device.type != "meta":
            threads.append((threading.get_ident(), torch.is_grad_enabled()))
        return stock(self, *tensors)

    def pedantic(timed, **_):
        before = len(threads)
        for _ in range(5):
            timed()
        ran.append(len(threads) - before)

    ran = []
    monkeypatch.setattr(Conv1d, "stock", noting)
    benchmark = SimpleNamespace(pedantic=pedantic, extra_info={})
    problem = half("conv", Conv1d(2, 6, 40, 4, 3), which)
    perf_kernels.test_kernel(benchmark, problem, which, peer)
    assert ran == [forwards]
    ((thread, with_gradients),) = set(threads)
    assert (thread == threading.get_ident()) == (peer == "eager")
    assert with_gradients == (which != "forward")


def test_host_time_and_new_lengths_are_rows_without_a_floor(computing):
    linear = Linear(16, 8, 8, activation="relu")
    conv = Conv1d(2, 4, 50, 4, 3, padding=1)
    rows = measured(
        half("host", linear, timed="host"),
        half("graph", linear, timed="host with grad"),
        half("lengths", conv, timed="new length"),
    )
    for (problem, _, peer), row in rows.items():
        assert row["status"] == "ok", row["note"]
        assert row["flops"] is row["bytes"] is row["floor_us"] is row["tflops"] is None
        if peer == "tlazy" and problem == "lengths":
            assert row["samples"] == inputs.NEW_LENGTHS
            assert row["note"].startswith("first calls; ")
    assert ("lengths", "forward", "cudnn-benchmark") in rows


def test_ceilings_are_measured_off_the_default_stream(computing, monkeypatch):
    monkeypatch.setitem(machine.COPIED_BYTES, "cuda", 2**16)
    monkeypatch.setitem(machine.MATMUL_SIZE, "cuda", 16)
    monkeypatch.setattr(machine, "SECONDS_EACH", 0.001)
    before = torch.backends.cuda.matmul.fp32_precision
    ceilings = measure_ceilings(GPU, ["float32", "float16"])
    assert set(ceilings.matmul) == {"float32", "tf32", "float16"}
    assert ceilings.matmul["float16"] == pytest.approx(2 * 16**3 / 20e-6, rel=0.6)
    assert torch.backends.cuda.matmul.fp32_precision == before
    torch.backends.cuda.matmul.allow_tf32  # noqa: B018 - raises where old and new names mix


def test_rows_say_which_gpu(computing, tmp_path):
    path = tmp_path / "record.json"
    measured(half("linear", Linear(16, 8, 8)), peers=("tlazy", "eager"), path=path)
    content = report.load(path)
    assert content["machine"]["device"] == NAME
    assert content["machine"]["kind"] == "cuda"
    assert computing.emptied


def test_a_kernel_that_loses_the_device_costs_its_own_row_only(computing, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    record = Record("tlazy bench", GPU, Ceilings(), path)
    fused = tlazy.nn.functional.linear
    calls = itertools.count()

    def deadly(*tensors, **options):
        if next(calls) == 2:
            computing.lost = True
        return fused(*tensors, **options)

    monkeypatch.setattr(tlazy.nn.functional, "linear", deadly)
    problems = [half("first", Linear(16, 8, 8)), half("second", Linear(8, 8, 8))]
    settings = Settings(GPU, peers=("eager", "tlazy"), seconds=0.01)
    with pytest.raises(DeviceLost, match="the GPU fails after tlazy, first: CUDA error"):
        measure(problems, record, settings)
    (waiting, culprit) = report.load(path)["rows"]
    assert waiting["note"] == rows.UNFINISHED
    assert culprit["note"].startswith("CUDA error: an illegal memory access")

    computing.lost = False  # in a new process
    again = Record.reopen(path)
    assert measure(problems, again, settings)
    status = {(row["problem"], row["peer"]): row["status"] for row in again.rows}
    assert status == {
        ("first", "eager"): "ok",
        ("first", "tlazy"): "failed",
        ("second", "eager"): "ok",
        ("second", "tlazy"): "ok",
    }


def test_a_reference_that_loses_the_device_fails_its_group_at_once(
    computing, tmp_path, monkeypatch
):
    path = tmp_path / "record.json"
    expected = correctness.expected

    def deadly(operation, *rest):
        if operation.m == 16:
            computing.lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return expected(operation, *rest)

    monkeypatch.setattr(correctness, "expected", deadly)
    problems = [half("first", Linear(16, 8, 8)), half("second", Linear(8, 8, 8))]
    settings = Settings(GPU, peers=("eager", "tlazy"), seconds=0.01)
    with pytest.raises(DeviceLost, match="the GPU fails after eager, tlazy, first: CUDA error"):
        measure(problems, Record("tlazy bench", GPU, Ceilings(), path), settings)
    assert [row["status"] for row in report.load(path)["rows"]] == ["failed"] * 2
    computing.lost = False  # in a new process
    again = Record.reopen(path)
    assert measure(problems, again, settings)
    assert [row["status"] for row in again.rows] == ["failed"] * 2 + ["ok"] * 2
