"""Plans are made once for a kind of call, and told apart by all that they depend on."""

from __future__ import annotations

import contextvars
import inspect
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest
import torch
import triton
from triton.runtime.jit import JITFunction

from tests import EMULATED
from tests.tlazy_kernels.agreement import random
from tests.tlazy_kernels.subprocesses import launched
from tlazy_kernels import environment, handles, launch, linear, matmul, tuned
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight
from tlazy_kernels.environment import dot_precision
from tlazy_kernels.linear import linear_forward
from tlazy_kernels.parsing import one_at_a_time
from tlazy_kernels.targets import STAND_IN


@pytest.fixture
def plans(monkeypatch) -> dict:
    """The plans made from here on."""
    found: dict = {}
    monkeypatch.setattr(launch, "_plans", found)
    return found


@pytest.fixture
def x(device) -> torch.Tensor:
    return random(32, 32, dtype=torch.float32, device=device)


def test_calls_of_one_kind_share_a_plan(plans, x):
    for _ in range(3):
        linear_forward(x.clone(), x + 1)
    assert len(plans) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda x: linear_forward(x[:16], x),
        lambda x: linear_forward(x, x[:16]),
        lambda x: linear_forward(x.t(), x),
        lambda x: linear_forward(x.half(), x.half()),
        lambda x: linear_forward(x.flatten()[1:].as_strided((31, 32), (32, 1)), x),
        lambda x: linear_forward(x, x, x[0]),
        lambda x: linear_forward(x, x, activation="relu"),
        lambda x: linear_forward(x, x, save_preactivation=True),
        lambda x: linear_forward(x, x, config=TileConfig(16, 16, 16)),
    ],
    ids=["rows", "outputs", "strides", "dtype", "alignment", "bias", "relu", "saving", "tile"],
)
def test_calls_of_different_kinds_do_not(other, plans, x):
    linear_forward(x, x)
    other(x)
    assert len(plans) == 2


def test_a_precision_switched_between_calls_is_followed(plans, x, monkeypatch):
    own = dot_precision(torch.float32, "matmul")
    linear_forward(x, x)
    monkeypatch.setattr(linear, "dot_precision", lambda dtype, family: "tf32")
    linear_forward(x, x)
    assert {plan.steps[0].constants["PRECISION"] for plan in plans.values()} == {own, "tf32"}


def test_a_tensor_elsewhere_is_refused_after_the_same_call_worked(plans, x):
    linear_forward(x, x)
    elsewhere = torch.empty_like(x, device="meta")
    if elsewhere.device == x.device:
        pytest.skip("under ttsem every tensor says that it is on one device")
    with pytest.raises(RuntimeError, match="same device"):
        linear_forward(x, elsewhere)


def test_a_new_number_of_rows_is_no_new_specialization(plans, x):
    """Triton compiles anew for integers that become 1 or a multiple of 16, unless told not to."""
    for rows in (17, 18, 31):
        linear_forward(x[:rows], x)
    steps = [plan.steps[0] for plan in plans.values()]
    assert len({repr((step.constants, step.options)) for step in steps}) == 1
    names = _parameters(steps[0].kernel)[5:]
    varying = {
        name
        for name, *values in zip(names, *(step.scalars for step in steps), strict=False)
        if len(set(values)) > 1
    }
    assert varying <= {"M", *matmul._VARYING}


def test_plans_do_not_pile_up_without_end(plans, x, monkeypatch):
    monkeypatch.setattr(launch, "MOST_PLANS", 5)
    for rows in range(1, 20):
        linear_forward(x[:rows], x)
    assert len(plans) <= 5


def test_a_refused_call_leaves_no_plan(plans, x):
    with pytest.raises(RuntimeError):
        linear_forward(x, x[:, 1:])
    with pytest.raises(RuntimeError):
        linear_forward(x.double(), x.double())
    assert plans == {}


def test_outputs_of_one_plan_are_different_tensors(plans, x):
    first, second = linear_forward(x, x)[0], linear_forward(x + 1, x)[0]
    assert first.data_ptr() != second.data_ptr()
    assert not torch.equal(first, second)


class Handle(launch.CompiledKernel):
    """A compiled kernel that only notes its launches."""

    def __init__(self) -> None:
        self.launches: list[tuple] = []
        self._run = lambda *arguments: self.launches.append(arguments)
        self.module = self.function = "function"
        self.packed_metadata = "metadata"

    def __del__(self) -> None:
        pass


class Kernel:
    """A device function whose first launch gives its handle."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.launches: list[tuple] = []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.launches.append((grid, arguments, options))
            return self.handle

        return run


def test_a_kept_handle_is_launched_with_all_arguments_in_the_kernels_order(plans, x):
    """As Triton's own way does: grid, stream, handle, hooks, then every parameter's value."""
    linear_forward(x, x, x[0], activation="relu")
    (plan,) = plans.values()
    (step,) = plan.steps
    names = _parameters(step.kernel)
    handle = Handle()
    kernel = step.kernel = Kernel(handle)
    linear_forward(x, x, x[0], activation="relu")
    assert handle.launches == []
    y, _ = linear_forward(x, x, x[0], activation="relu")
    ((grid, arguments, options),) = kernel.launches
    (launched,) = handle.launches
    assert launched[:3] == grid
    assert launched[4:9] == ("function", "metadata", None, None, None)
    values = dict(zip(names, launched[9:], strict=True))
    assert values["a_ptr"] == values["b_ptr"] == x.data_ptr()
    assert values["out_ptr"] == y.data_ptr()
    scalars = dict(zip(names, arguments, strict=False))
    for name in ("M", "N", "K", "programs"):
        assert values[name] == scalars[name]
    for name in names[len(arguments) :]:
        assert values[name] == options[name]


def test_scratch_memory_comes_from_torch_while_triton_launches_and_then_from_whom_it_came_before(
    plans, x
):
    linear_forward(x, x)
    (plan,) = plans.values()
    seen, mine = [], lambda size, alignment, stream: torch.empty(size)
    context = contextvars.copy_context()
    context.run(triton.set_allocator, mine)

    class Asking:
        def __getitem__(self, grid):
            return self.launch

        def launch(self, *_, **__):
            seen.append(_allocator().get()(256, 128, None))

    plan.steps[0].handle, plan.steps[0].kernel = None, Asking()
    context.run(linear_forward, x, x)
    (memory,) = seen
    assert (memory.dtype, memory.numel(), memory.device) == (torch.int8, 256, x.device)
    assert context[_allocator()] is mine

    def fail(*_, **__):
        raise RuntimeError("no launch")

    plan.steps[0].kernel.launch = fail
    with pytest.raises(RuntimeError, match="no launch"):
        context.run(linear_forward, x, x)
    assert context[_allocator()] is mine


def _allocator() -> contextvars.ContextVar:
    return triton.runtime._allocation._allocator


def _parameters(kernel) -> list[str]:
    """Of a device function, or of the interpreter's stand-in for one."""
    return list(inspect.signature(kernel.fn).parameters)


@pytest.mark.compiles
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, as Triton does")
@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends the driver that is there")
def test_what_is_compiled_ahead_is_launched_by_the_next_call_without_compiling():
    assert launched()["ahead"] == {
        "compiled inside": 3,  # a product that both calls share, and a sum of its parts for each
        "launched inside": 0,
        "compiled after": 0,
        "launched after": 4,
    }


def test_a_plan_that_was_only_compiled_runs_later(plans, x):
    """Also in the interpreter, which has nothing to compile."""
    with launch.compiling_ahead():
        linear_forward(x, x)
    (plan,) = plans.values()
    assert plan.steps[0].handle is None
    y, _ = linear_forward(x, x)
    torch.testing.assert_close(y, x @ x.T)


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends the driver that is there")
def test_the_driver_gets_from_a_kept_handle_what_it_gets_from_tritons_first_launch():
    """By Triton's real launcher, whose arguments differ from version to version."""
    found = launched()
    calls = found["launches"]
    assert [call["warm"] for call in calls] == [False] * 9 + [True] * 18
    for call in calls:
        assert call["launches"] == 1
        assert call["launched"] == call["planned"]
        assert call["stream"] == 0x77
        assert call["passed"] == call["expected"], call
        has, needs = call["scratch"]
        assert has == needs
        assert call.get("past Python", True), "Triton's launcher has a form of its own here"
    for cold, warm in zip(calls[:9], calls[9:18], strict=True):
        assert cold["kernel"] == warm["kernel"]
        assert cold["scratch bytes"] == warm["scratch bytes"]
    assert any(call["scratch bytes"] > 128 for call in calls)  # for more than one program
    assert found["unloaded"] == 0


def test_launchers_that_are_not_known_are_left_to_triton(monkeypatch):
    """A launcher of another kind, one of another version, and one that a tool watches."""

    def way(**changed) -> str:
        known = {
            "__module__": "triton.backends.nvidia.driver",
            "launch_cooperative_grid": False,
            "launch_pdl": False,
            "global_scratch_size": 0,
            "profile_scratch_size": 0,
            "num_ctas": 1,
            "launch": None,
            "arg_annotations": [],
            "kernel_signature": b"",
        }
        handle = Handle()
        handle._run = type(changed.pop("name", "CudaLauncher"), (), known | changed)()
        return handles.handle_of(handle, (1, 1, 1), ()).__qualname__.partition(".")[0]

    assert way() == "_by_cuda"
    assert way(name="HIPLauncher") == "_by_triton"
    assert way(__module__="triton.backends.another.driver") == "_by_triton"
    assert way(profile_scratch_size=1) == "_by_triton"
    assert way(gsan_enabled=True) == "_by_triton"
    monkeypatch.setattr(handles, "VERSION", (3, 10))
    assert way() == "_by_triton"


def test_what_cannot_be_hashed_is_refused_by_the_checks(plans, x):
    signal, weight = x.unsqueeze(0), x.unsqueeze(2)
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        conv1d_forward(signal, weight, padding_mode=["zeros"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation must be None or one of"):
        conv1d_forward(signal, weight, activation=["relu"])  # type: ignore[arg-type]
    assert plans == {}


def test_a_profiler_that_listens_gets_the_long_way(plans, x, monkeypatch):
    linear_forward(x, x)
    (plan,) = plans.values()
    launches: list = []
    plan.steps[0].handle = lambda *launched: launches.append(launched)
    seen = []
    launch.triton.knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        y, _ = linear_forward(x, x)
    finally:
        launch.triton.knobs.runtime.launch_enter_hook.remove(seen.append)
    assert launches == []
    torch.testing.assert_close(y, x @ x.t())


@pytest.mark.skipif(EMULATED, reason="ttsem pretends a GPU in the main thread only")
def test_threads_share_plans_and_never_outputs(plans, x):
    linear_forward(x, x)
    (plan,) = plans.values()
    launches: list = []
    plan.steps[0].handle = lambda *launched: launches.append(launched)
    outputs: list[torch.Tensor] = []

    def work() -> None:
        for _ in range(50):
            outputs.append(linear_forward(x, x)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 1
    assert len(launches) == len(outputs) == 200
    assert len({y.data_ptr() for y in outputs}) == 200


@pytest.fixture
def device_with_a_table(tmp_path, monkeypatch, plans, x):
    """A device named "Tested", and a function that writes its table of one tile."""
    target = replace(STAND_IN, name="Tested")
    monkeypatch.setattr(launch, "target_of", lambda device: target)

    def write(config: TileConfig, device: str = "Tested") -> str:
        with tuned.asked() as keys:
            linear_forward(x, x)
        plans.clear()
        file = tmp_path / "tiles.json"
        entries = [{"key": key, "config": asdict(config)} for key in keys]
        file.write_text(json.dumps({"device": device, "entries": entries}))
        monkeypatch.setenv(tuned.VARIABLE, str(file))
        tuned._tiles.cache_clear()
        return keys[0]

    yield write
    tuned._tiles.cache_clear()


def test_a_measured_tile_goes_before_the_chooser(device_with_a_table, plans, x):
    key = device_with_a_table(TileConfig(16, 16, 16, num_warps=1))
    precision = dot_precision(torch.float32, "matmul")
    assert key == f"linear_forward float32 32 32 32 {precision} rows-columns None False"
    linear_forward(x, x)
    (plan,) = plans.values()
    assert plan.steps[0].constants["BLOCK_M"] == 16
    plans.clear()
    linear_forward(x[:31], x)  # other sizes
    (plan,) = plans.values()
    assert plan.steps[0].constants["BLOCK_M"] != 16


def test_tables_of_other_devices_are_not_used(device_with_a_table, plans, x):
    device_with_a_table(TileConfig(16, 16, 16, num_warps=1), device="Another")
    linear_forward(x, x)
    (plan,) = plans.values()
    assert plan.steps[0].constants["BLOCK_M"] != 16


@pytest.mark.parametrize(
    "text", ["", "[]", '{"device": "Tested"}', '{"device": "Tested", "entries": [{}]}']
)
def test_a_file_that_is_no_table_is_named(text, device_with_a_table, plans, x, tmp_path):
    device_with_a_table(TileConfig(16, 16, 16))
    (tmp_path / "tiles.json").write_text(text)
    with pytest.raises(ValueError, match=r"tiles\.json is not a table of tiles"):
        linear_forward(x, x)
    assert plans == {}


def test_every_launcher_with_tiles_looks_for_measured_ones(plans, x):
    signal = x.unsqueeze(0)
    for groups in (1, 32):
        weight = random(32, 32 // groups, 3, dtype=x.dtype, device=x.device)
        settings = (1, (1, 1), 1, groups)
        with tuned.asked() as keys:
            conv1d_forward(signal, weight, None, *settings)
            conv1d_grad_input(signal, weight, 32, *settings)
            conv1d_grad_weight(signal, signal, 3, *settings)
        precision = dot_precision(torch.float32, "conv")
        sizes = f"1 32 32 32 {32 // groups} 3 32 1 1 1 1 {groups} {precision} first aligned"
        names = ("conv1d_forward", "conv1d_grad_input", "conv1d_grad_weight")
        assert keys == [f"{name} float32 {sizes}" for name in names]


def test_compiling_ahead_is_refused_inside_itself_and_goes_on():
    with launch.compiling_ahead():
        with pytest.raises(RuntimeError, match="already active"), launch.compiling_ahead():
            pass
        assert launch._compiled_ahead.get() == []
    assert launch._compiled_ahead.get() is None


def test_other_threads_launch_while_one_compiles_ahead(x):
    with launch.compiling_ahead(), ThreadPoolExecutor(1) as pool:
        y, _ = pool.submit(linear_forward, x, x).result()
    torch.testing.assert_close(y, x @ x.T)


def test_kernels_are_parsed_by_one_thread_at_a_time(monkeypatch):
    """A second one would find the first in CPython's parser, which 3.11 does not stand."""
    inside, most = [], []

    def parse(kernel):
        inside.append(kernel)
        time.sleep(0.01)
        most.append(len(inside))
        inside.remove(kernel)

    monkeypatch.setattr(JITFunction, "parse", parse)
    with one_at_a_time(), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda kernel: JITFunction.parse(kernel), range(8)))
    assert most == [1] * 8
    assert JITFunction.parse is parse


@pytest.mark.parametrize(("limit", "expected"), [("max 100000", 8), ("150000 100000", 1), ("", 8)])
def test_a_container_has_as_many_cores_as_it_may_use(limit, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda process: {*range(8)})
    monkeypatch.setattr(environment, "QUOTA", tmp_path / "cpu.max")
    assert environment.cores() == 8
    environment.QUOTA.write_text(limit)
    assert environment.cores() == expected
