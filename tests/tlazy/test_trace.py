import io
import json
import random
import sys
import threading
import weakref

import numpy
import pytest
import torch

import tlazy
from tests.tlazy.lazy_models import LazyScale, Scale
from tests.tlazy.snapshot import refused, snapshot
from tlazy import nn


def mixed():
    return nn.Sequential(
        torch.nn.LazyConv2d(4, 3),
        torch.nn.LazyBatchNorm2d(),
        torch.nn.Dropout(0.5),
        torch.nn.Sequential(torch.nn.Flatten(), nn.LazyLinear(6, activation="gelu")),
        torch.nn.LazyLinear(2),
    )


IMAGE = tlazy.Spec(2, 3, 6, 6)


def test_a_trace_changes_nothing():
    net = mixed()
    net.register_buffer("steps", torch.zeros(()))
    net.lock = threading.Lock()
    before = snapshot(net)
    python = random.getstate()
    plan = tlazy.trace(net, IMAGE)
    assert snapshot(net) == before
    assert random.getstate() == python
    assert [row.outputs for row in plan.rows] == [
        [(2, 2)],
        [(2, 4, 4, 4)],
        [(2, 4, 4, 4)],
        [(2, 4, 4, 4)],
        [(2, 6)],
        [(2, 64)],
        [(2, 6)],
        [(2, 2)],
    ]


def test_a_trace_of_an_eager_model_leaves_running_statistics_alone():
    net = nn.Sequential(nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    net(torch.randn(5, 3))
    before = snapshot(net)
    tlazy.trace(net, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert snapshot(net) == before
    assert int(net[1].num_batches_tracked) == 1


class Writes(nn.Module):
    """Does everything to itself that a forward can do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(3)
        self.eager = torch.nn.Linear(3, 3)
        self.register_buffer("total", torch.zeros(3))
        self.seen, self.count, self.state = [], 0, {"last": None}
        self.call_layer = lambda x: self.layer(x)
        self.alias = [self.layer]

    def forward(self, x):
        self.count += 1
        self.seen.append(x.shape)
        self.state["last"] = x
        self.training = False
        y = self.alias[0](x) + self.call_layer(x)
        self.total += y.sum(0).detach()
        with torch.no_grad():
            self.eager.weight.zero_()
        torch.manual_seed(3)
        random.random()
        return self.eager(y) + torch.rand(3)


def test_what_a_forward_writes_to_its_module_stays_in_the_trace():
    net = Writes()
    before = snapshot(net)
    python = random.getstate()
    tlazy.trace(net, tlazy.Spec(2, 5))
    assert snapshot(net) == before
    assert random.getstate() == python
    assert net.seen == []
    assert net.state == {"last": None}


def test_hooks_shape_the_trace_and_what_they_record_stays_in_it():
    recorded = []
    net = nn.Sequential(torch.nn.Identity(), nn.LazyLinear(2))
    net[0].register_forward_hook(lambda module, args, out: out.flatten(1))
    net[1].register_forward_hook(lambda module, args, out: recorded.append(type(out)))
    plan = tlazy.trace(net, tlazy.Spec(4, 3, 5))
    assert plan.rows[-1].inputs == [(4, 15)]
    assert recorded == []
    assert net(torch.ones(4, 3, 5)).shape == (4, 2)
    assert recorded == [torch.Tensor]


def test_a_hook_that_removes_itself_waits_for_the_call_itself():
    net, seen = nn.Sequential(torch.nn.Identity(), nn.LazyLinear(2)), []

    def once(module, args, out):
        seen.append(type(out))
        for handle in handles:
            handle.remove()

    handles = [net[i].register_forward_hook(once, always_call=True) for i in (1, 0)]
    before = snapshot(net)
    tlazy.trace(net, tlazy.Spec(4, 3))
    assert snapshot(net) == before
    net(torch.ones(4, 3))
    net(torch.ones(4, 3))
    assert seen == [torch.Tensor]
    assert not any(module._forward_hooks_always_called for module in net)


def test_hooks_for_all_modules_see_nothing_of_a_trace():
    seen = []
    handles = [
        torch.nn.modules.module.register_module_forward_pre_hook(
            lambda m, x: seen.append(type(x[0]))
        ),
        torch.nn.modules.module.register_module_forward_hook(lambda m, x, y: seen.append(type(y))),
    ]
    try:
        net = mixed()
        plan = tlazy.trace(net, IMAGE)
        assert seen == []
        assert len(plan.rows) == 8
        net(torch.ones(2, 3, 6, 6))
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [torch.Tensor] * 16


def test_whatever_a_forward_counts_with_or_draws_from_stays_as_it_was():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LazyLinear(2)
            self.layer.parent = weakref.proxy(self)
            self.array, self.bytes = numpy.zeros(3), bytearray(2)
            self.draws, self.old = numpy.random.default_rng(0), numpy.random.RandomState(0)
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x):
            self.layer.parent.array += 1
            self.bytes[0] += 1
            self.draws.random(), self.old.rand()
            x = x + torch.rand(x.shape, generator=self.generator)
            return self.layer(x) if x.sum() > 0 else x

    net = Counts()

    def state():
        drawn = str((net.draws.bit_generator.state, net.old.get_state()))
        return net.array.tolist(), net.bytes[0], drawn, net.generator.get_state().tolist()

    before = state()
    with pytest.warns(UserWarning, match="run once for real"):  # so that torch's generator draws
        tlazy.trace(net, torch.ones(4, 3))
    assert state() == before
    assert net.layer.parent.layer is net.layer


def test_a_nested_tensor_is_refused_with_a_way_out():
    net = mixed()
    ragged = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    with refused(net, RuntimeError, match=r"nested tensor.*tlazy\.materialize\(model"):
        net(ragged)


def allocated(action):
    """Bytes that the CPU's allocator hands out, whatever modes and tensor classes stand above."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        action()
    return sum(max(event.cpu_memory_usage, 0) for event in profile.events())


def test_a_trace_computes_nothing():
    net = nn.Sequential(nn.LazyLinear(512), torch.nn.LazyBatchNorm1d(), torch.nn.LazyLinear(512))
    x = torch.ones(512, 512)
    assert allocated(lambda: tlazy.trace(net, x)) < 20_000  # states of random generators
    assert allocated(lambda: net(x)) > 5 * 512 * 512 * 4


def test_a_model_larger_than_any_memory_is_traced():
    net = nn.Sequential(*(nn.LazyLinear(1 << 20) for _ in range(8)))
    plan = tlazy.trace(net, tlazy.Spec(8192, 1 << 20))
    assert plan.totals["params"] == 8 * ((1 << 40) + (1 << 20))
    assert plan.totals["flops"] == 8 * 2 * 8192 << 40


def test_counts_agree_with_torchs_flop_counter_and_parameters():
    from torch.utils.flop_counter import FlopCounterMode

    net = mixed()
    plan = tlazy.materialize(net, IMAGE)
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(2, 3, 6, 6))
    assert plan.totals["flops"] == counter.get_total_flops()
    assert plan.totals["params"] == sum(p.numel() for p in net.parameters())
    linear = plan.rows[-1]
    assert linear.bytes == 4 * (2 * 6 + 2 * 6 + 2 + 2 * 2)
    with torch.inference_mode():
        assert tlazy.trace(net, IMAGE).totals == plan.totals


class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.LazyLinear(3), nn.LazyLinear(3)
        self.never = nn.LazyLinear(1)

    def forward(self, batch, scale=1, *, mask):
        return {"sum": self.left(batch["x"]) + self.right(batch["y"][0]) * scale, "mask": mask}


@pytest.mark.parametrize(
    "make", [torch.ones, tlazy.Spec, lambda *s: torch.empty(*s, device="meta")]
)
def test_inputs_may_be_nested_real_meta_or_specs(make):
    net = Pair()
    plan = tlazy.trace(net, {"x": make(2, 4), "y": [make(2, 5)]}, 2, mask=make(2, 3))
    assert plan.rows[0].inputs == [(2, 4), (2, 5), (2, 3)]
    assert plan.output["sum"].shape == (2, 3)
    assert plan.output["sum"].device.type == "meta"
    assert plan.unvisited == ["never"]
    assert "not reached, still lazy: never" in str(plan)
    plan.materialize()
    assert (net.left.in_features, net.right.in_features) == (4, 5)
    assert net.never.has_uninitialized_params()


def test_a_spec_has_a_dtype_and_a_device():
    spec = tlazy.Spec(2, 5, dtype=torch.float64)
    assert repr(spec) == "Spec(2, 5, dtype=torch.float64, device='cpu')"
    plan = tlazy.trace(nn.LazyLinear(3, dtype=torch.float64), spec)
    assert plan.output.dtype is torch.float64
    assert tlazy.Spec((2, 5)).shape == tlazy.Spec(torch.Size([2, 5])).shape == spec.shape
    for sizes in ((2, -1), ((2, -1),)):
        with pytest.raises(RuntimeError, match="negative"):
            tlazy.Spec(*sizes)


def test_a_shared_layer_has_a_row_per_call_and_its_parameters_count_once():
    layer = nn.LazyLinear(5)
    plan = tlazy.trace(nn.Sequential(layer, torch.nn.ReLU(), layer), tlazy.Spec(2, 5))
    assert [(row.path, row.params) for row in plan.rows] == [("", 0), ("0", 30), ("1", 0), ("0", 0)]


def test_the_table_has_a_line_per_call_and_the_totals_last():
    plan = tlazy.trace(mixed(), IMAGE)
    lines = str(plan).splitlines()
    assert len(lines) == len(plan.rows) + 6
    for word in ("path", "layer", "input", "output", "params", "FLOPs", "bytes"):
        assert word in lines[1]
    assert "2x3x6x6" in str(plan)
    assert f"{plan.totals['params']:,}" in lines[-2]
    assert f"{plan.totals['flops']:,}" in lines[-2]
    assert repr(plan) == f"<Trace of Sequential: 8 calls, {plan.totals['params']:,} params>"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_piped_table_is_plain_text_with_one_line_per_call(encoding, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    piped = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", piped)
    net = nn.Sequential()
    net.add_module("[red]" + "x" * 300, nn.LazyLinear(2))
    net.unused = nn.Sequential()
    print(tlazy.trace(net, tlazy.Spec(4, 3)), flush=True)
    text = piped.buffer.getvalue().decode(encoding)
    assert ("┏" in text) is (encoding == "utf-8")
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if f"[red]{'x' * 300} " in line and " 4x2 " in line]


def test_rich_fits_the_table_to_its_console():
    from rich.console import Console

    console = Console(width=60, record=True, file=io.StringIO(), force_terminal=True)
    plan = tlazy.trace(Pair(), {"x": IMAGE, "y": [IMAGE]}, mask=IMAGE)
    console.print(plan)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 60
    assert "not reached, still lazy: never" in text


def test_a_trace_as_a_dict_is_ready_for_json():
    plan = tlazy.trace(mixed(), IMAGE)
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["totals"] == plan.totals
    assert data["rows"][1]["path"] == "0"
    assert data["unvisited"] == []


def test_an_error_in_the_forward_names_the_module_and_keeps_its_type():
    net = nn.Sequential(nn.LazyLinear(4), torch.nn.Sequential(torch.nn.Linear(5, 3)))
    with refused(net, RuntimeError, match=r"\n  in 1\.0 \(Linear\)"):
        tlazy.trace(net, tlazy.Spec(2, 3))


def test_materialize_works_on_anyones_tree():
    net = torch.nn.Sequential(*mixed())
    tlazy.materialize(net, IMAGE)
    assert net(torch.randn(2, 3, 6, 6)).shape == (2, 2)
    assert net[0].in_channels == 3
    assert not any(module._forward_pre_hooks for module in net.modules())
    tlazy.materialize(net, IMAGE)  # nothing is left to do


CHANGES = {
    "materialized": (
        lambda net: net(torch.ones(2, 3)),
        r"0 has become a Linear, from a LazyLinear",
    ),
    "replaced": (lambda net: net.__setitem__(0, nn.LazyLinear(4)), "0 has become another LazyLin"),
    "added": (lambda net: net.append(nn.LazyLinear(5)), "3 has been added"),
    "removed": (lambda net: net.pop(2), "2 has been removed"),
    "a setting": (lambda net: setattr(net[0], "out_features", 9), "out_features from 4 to 9"),
    "a shape": (
        lambda net: setattr(net[1], "weight", torch.nn.Parameter(torch.ones(5, 4))),
        r"1 has changed the shape of its weight from \(4, 4\) to \(5, 4\)",
    ),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_a_plan_whose_model_has_changed_is_refused_and_changes_nothing(change, words):
    net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4), nn.LazyLinear(2))
    plan = tlazy.trace(net, tlazy.Spec(2, 3))
    change(net)
    for arguments in ({}, {"seed": 1}, {"device": "meta"}, {"checkpoint": "nowhere"}):
        with refused(net, RuntimeError, match=rf"{words}.*call tlazy\.trace\(model"):
            plan.materialize(**arguments)


def test_modes_types_and_values_may_change_between_a_trace_and_its_plan():
    net = nn.Sequential(nn.LazyLinear(4), torch.nn.BatchNorm1d(4), nn.LazyLinear(2))
    net.seen = (torch.ones(2),)
    plan = tlazy.trace(net, tlazy.Spec(2, 3))
    net.seen = (torch.ones(2),)
    net.eval().double()
    net[1].weight.data.zero_()
    plan.materialize()
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_a_plan_serves_once():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.LazyLinear(3)]  # not in the tree

        def forward(self, x):
            return self.layers[0](x)

    for net in (nn.LazyLinear(3), Hidden()):
        plan = tlazy.trace(net, tlazy.Spec(2, 3))
        plan.materialize(seed=0)
        with refused(net, RuntimeError, match=r"since the trace|serve only once"):
            plan.materialize(seed=1)


def test_a_failed_materialize_of_anyones_tree_changes_nothing():
    net = torch.nn.Sequential(*mixed())
    with refused(net, ValueError, match=r"expected 4D input.*\n  in 1 \(LazyBatchNorm2d\)"):
        tlazy.materialize(net, tlazy.Spec(2, 3, 6))


def test_parameters_that_exist_are_left_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    before = snapshot(net[0])
    tlazy.materialize(net, tlazy.Spec(5, 3), seed=1, init=lambda m: torch.nn.init.ones_(m.weight))
    assert snapshot(net[0])[0] == before[0]


def test_device_and_dtype_of_new_parameters_can_be_chosen():
    net = nn.Sequential(nn.LazyLinear(3), torch.nn.LazyBatchNorm1d())
    held = list(net.parameters())
    plan = tlazy.trace(net, tlazy.Spec(2, 5))

    def fail(module):
        raise ArithmeticError

    with refused(net, ArithmeticError):
        plan.materialize(device="meta", init=fail)
    plan.materialize(device="meta", dtype=torch.float16)
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True))
    assert {(p.device.type, p.dtype) for p in held} == {("meta", torch.float16)}
    assert type(net[0]) is nn.Linear
    assert net[1].running_mean.is_meta


def test_an_initializer_sees_each_new_layer_once_with_its_shape_and_class():
    net = mixed()
    net[4].requires_grad_(False)
    seen = []

    def init(module):
        seen.append(type(module))
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.constant_(module.weight, module.in_features)

    tlazy.materialize(net, IMAGE, init=init)
    assert seen == [torch.nn.Conv2d, torch.nn.BatchNorm2d, nn.Linear, torch.nn.Linear]
    assert net[3][1].weight.unique().tolist() == [64.0]
    assert net[4].weight.unique().tolist() == [6.0]
    assert net[3][1].bias.abs().max() <= 64**-0.5


def test_a_layer_of_a_users_own_goes_through_the_same_trace():
    net = nn.Sequential(LazyScale(), nn.LazyLinear(2))
    net(torch.ones(4, 5))
    assert type(net[0]) is Scale
    assert net[0].weight.tolist() == [3.0] * 5
    assert net[0].width == 5


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(5, 4, 2, batch_first=True, dropout=0.1)
        self.head = nn.LazyLinear(2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(2)

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)


class Batched(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(2)

    def forward(self, x):
        return torch.func.vmap(self.layer)(x)


class Gradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(1)

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.layer(x).sum(), x, create_graph=True)[0]


def normed():
    norm = torch.nn.utils.parametrizations
    return nn.Sequential(norm.spectral_norm(torch.nn.Linear(5, 6)), nn.LazyLinear(2))


def transformer():
    layer = torch.nn.TransformerEncoderLayer(5, 1, 8, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.LazyLinear(2))


def compiled():
    inner = torch.compile(torch.nn.Linear(5, 4), backend="eager")
    net = nn.Sequential(inner, nn.LazyLinear(2))
    net.compile(backend="eager")
    return net


def graph():
    return torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(5, 2), torch.nn.ReLU()))


@pytest.mark.parametrize(
    "make", [Recurrent, Checkpointed, Batched, Gradient, normed, transformer, compiled, graph]
)
@pytest.mark.parametrize("training", [True, False])
def test_all_kinds_of_networks_are_traced_without_a_change(make, training):
    net = make().train(training)
    x = torch.randn(3, 7, 5)
    before = snapshot(net)
    plan = tlazy.trace(net, x)
    assert snapshot(net) == before
    plan.materialize()
    assert net(x).shape == plan.output.shape


@pytest.mark.parametrize(
    "call",
    [
        lambda model: tlazy.trace(model, torch.ones(2, 3)),
        lambda model: tlazy.materialize(model, torch.ones(2, 3)),
        lambda model: tlazy.initialize(model, seed=0),
        lambda model: tlazy.save(model, "never.safetensors"),
        lambda model: tlazy.load(model, "never.safetensors"),
        tlazy.dematerialize,
    ],
)
@pytest.mark.parametrize(
    ("model", "what"),
    [
        ([torch.nn.Linear(3, 4)], "a list"),
        ("never.safetensors", "a str"),
        (nn.LazyLinear, "the class LazyLinear"),
    ],
)
def test_what_is_no_module_is_refused_by_name_and_type(call, model, what):
    with pytest.raises(TypeError, match=f"model must be a torch.nn.Module, got {what}"):
        call(model)
