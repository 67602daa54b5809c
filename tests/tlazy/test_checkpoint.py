import copy
import json
import os
import resource
import struct
from pathlib import Path

import hypothesis
import hypothesis.strategies
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model

import tlazy
from tests.tlazy.snapshot import refused, snapshot
from tlazy import nn


def lazy(features=3, kernel=3, bias=True):
    return nn.Sequential(
        nn.LazyConv1d(4, kernel, groups=2, bias=bias),
        torch.nn.LazyBatchNorm1d(),
        torch.nn.LazyConvTranspose1d(6, 2),
        torch.nn.Flatten(),
        nn.LazyLinear(features),
    )


X = torch.arange(2 * 4 * 9.0).reshape(2, 4, 9).sin()


@pytest.fixture
def net():
    model = lazy()
    model(X)
    return model.eval()


@pytest.fixture
def path(tmp_path, net):
    tlazy.save(net, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_a_lazy_model_takes_shapes_classes_and_values_from_the_file(net, path, monkeypatch):
    fresh = lazy()
    held = list(fresh.parameters())
    with monkeypatch.context() as patch:
        for owner, name in (
            (tlazy.init, "fan_in_uniform_"),
            (torch.nn.init, "kaiming_uniform_"),
            (torch.nn.Linear, "forward"),
            (nn.Linear, "forward"),
        ):
            patch.setattr(owner, name, None)
        tlazy.load(fresh, path)
    assert repr(fresh) == repr(net)
    assert all(a is b for a, b in zip(held, fresh.parameters(), strict=True))
    assert torch.equal(fresh.eval()(X), net(X))
    assert not any(module._forward_pre_hooks for module in fresh.modules())
    torch.export.export(fresh, (X,))


def test_an_eager_model_is_filled_too(net, path):
    net[0].weight.data.zero_()
    tlazy.load(net, path)
    assert net[0].weight.abs().sum() > 0


def test_a_file_of_save_model_loads(net, tmp_path):
    save_model(net, str(tmp_path / "theirs.safetensors"))
    fresh = lazy()
    tlazy.load(fresh, tmp_path / "theirs.safetensors")
    assert torch.equal(fresh.eval()(X), net(X))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            lambda: lazy(features=5),
            r"4\.weight.*\(3, 48\).*\(5, 48\)",
        ),
        (lambda: lazy(kernel=5), r"0\.weight.*\(4, 2, 3\).*\(4, 2, 5\)"),
        (lambda: lazy(bias=False), r"unexpected.*0\.bias"),
        (lambda: nn.Sequential(*lazy(), nn.LazyLinear(1)), r"missing.*5\.weight, 5\.bias"),
        (lambda: nn.Sequential(*lazy()[:4], nn.Linear(7, 3)), r"4\.weight.*\(3, 7\).*\(3, 48\)"),
    ],
)
def test_a_file_that_contradicts_the_model_changes_nothing(model, words, path):
    fresh = model()
    with refused(fresh, RuntimeError, match=words):
        tlazy.load(fresh, path)


def test_a_weight_of_wrong_dimension_is_refused(tmp_path):
    file = tmp_path / "flat.safetensors"
    for shape in ((4,), (4, 3, 2), ()):
        save_file({"0.weight": torch.ones(shape), "0.bias": torch.ones(4)}, file)
        for layer in (nn.LazyLinear(4), nn.LazyConv1d(4, 1), torch.nn.LazyLinear(4)):
            if isinstance(layer, torch.nn.Conv1d) and len(shape) == 3:
                continue
            fresh = nn.Sequential(layer)
            with refused(fresh, RuntimeError, match=r"size mismatch for 0\.weight"):
                tlazy.load(fresh, file)


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_a_truncated_file_is_one_clear_error(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    fresh = lazy()
    with refused(fresh, SafetensorError, match="is not a whole safetensors file"):
        tlazy.load(fresh, path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    fresh = lazy()
    with refused(fresh, FileNotFoundError, match="nowhere"):
        tlazy.load(fresh, tmp_path / "nowhere.safetensors")


def test_an_error_while_copying_makes_lazy_layers_lazy_again(path, monkeypatch):
    fresh = lazy()

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", fail)
        with refused(fresh, KeyboardInterrupt):
            tlazy.load(fresh, path)
    tlazy.load(fresh, path)


def test_a_lazy_model_is_not_saved(tmp_path):
    net, empty = lazy(), nn.Linear(2, 3, device="meta")
    with refused(net, ValueError, match=r"0\.weight has no shape yet.*tlazy\.materialize\(model"):
        tlazy.save(net, tmp_path / "x.safetensors")
    with refused(empty, ValueError, match="meta"):
        tlazy.save(empty, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(path, net, monkeypatch):
    old = path.read_bytes()

    def fail(model, name):
        Path(name).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_model", fail)
    with refused(net, OSError, match="disk full"):
        tlazy.save(net, path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_an_os_error_that_names_the_file(path, net, full_disk):
    old = path.read_bytes()
    large = nn.Sequential(nn.Linear(64, 64))
    with full_disk(), refused(large, OSError, match=r"File too large: .*weights\.safetensors"):
        tlazy.save(large, path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_saved_file_has_the_mode_of_any_new_file(tmp_path, net):
    before = os.umask(0o022)
    try:
        tlazy.save(net, tmp_path / "weights.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def tied():
    first, second = nn.LazyLinear(5), nn.LazyLinear(5, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, second)


def test_tied_weights_are_written_once_and_tied_again(tmp_path):
    net = tied()
    x = torch.ones(2, 5)
    expected = net(x)
    tlazy.save(net, tmp_path / "tied.safetensors")
    assert len(load_file(tmp_path / "tied.safetensors")) == 2
    fresh = tied()
    tlazy.load(fresh, tmp_path / "tied.safetensors")
    assert fresh[0].weight is fresh[1].weight
    assert torch.equal(fresh(x), expected)
    apart = nn.Sequential(nn.LazyLinear(5), nn.LazyLinear(5, bias=False))
    tlazy.load(apart, tmp_path / "tied.safetensors")
    assert torch.equal(apart(x), expected)


def test_a_plan_is_filled_from_a_file(net, path):
    fresh = lazy()
    tlazy.trace(fresh, X).materialize(checkpoint=path)
    assert torch.equal(fresh.eval()(X), net(X))


def test_a_plan_and_a_file_that_disagree_change_nothing(path):
    fresh = lazy()
    with refused(fresh, RuntimeError, match=r"4\.weight.*\(3, 42\).*\(3, 48\)"):
        tlazy.materialize(fresh, X[..., :8], checkpoint=path)
    with pytest.raises(ValueError, match="one or the other"):
        tlazy.materialize(fresh, X, checkpoint=path, seed=1)


def test_values_are_converted_to_the_models_dtype(net, path):
    fresh = lazy().double()
    tlazy.load(fresh, path)
    assert fresh[0].weight.dtype is torch.float64
    assert torch.equal(fresh[0].weight, net[0].weight.double())


def linear(width=4):
    return nn.Sequential(nn.LazyLinear(width), nn.LazyLinear(2))


def sharded(folder):
    """Two files and their index, as the large models of Hugging Face come."""
    net = linear()
    net(torch.ones(2, 3))
    keys = list(net.state_dict())
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shards = dict(zip(names, (keys[:3], keys[3:]), strict=True))
    for name, held in shards.items():
        save_file({key: net.state_dict()[key] for key in held}, folder / name)
    weight_map = {key: name for name, held in shards.items() for key in held}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return net, index, weight_map


def test_row_11_the_shards_of_an_index_are_loaded(tmp_path):
    net, index, _ = sharded(tmp_path)
    fresh = linear()
    tlazy.load(fresh, index)
    assert torch.equal(fresh(X[0, :, :3]), net(X[0, :, :3]))
    again = linear()
    tlazy.materialize(again, X[0, :, :3], checkpoint=index)
    assert torch.equal(again[1].weight, net[1].weight)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError|JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'weight_map'"),
        ('{"weight_map": [1]}', "AttributeError"),
        ('{"weight_map": {"0.weight": 3}}', "0.weight is said to be in 3"),
        ('{"weight_map": {"0.weight": "../x.safetensors"}}', "not a file beside it"),
        ('{"weight_map": {"0.weight": "/etc/passwd"}}', "not a file beside it"),
        ('{"weight_map": {"0.weight": ".."}}', "not a file beside it"),
        (r'{"weight_map": {"0.weight": "\ud800"}}', "UnicodeEncodeError"),
        ('{"weight_map": {"9.weight": "model-00001-of-00002.safetensors"}}', "9.weight is in"),
    ],
)
def test_row_11_an_index_that_is_none_changes_nothing(text, words, tmp_path):
    _, index, _ = sharded(tmp_path)
    index.write_text(text)
    fresh = linear()
    with refused(fresh, SafetensorError, match=words):
        tlazy.load(fresh, index)


def test_row_11_a_missing_or_broken_shard_changes_nothing(tmp_path):
    _, index, _ = sharded(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    fresh = linear()
    shard.write_bytes(shard.read_bytes()[:-1])
    with refused(fresh, SafetensorError, match=r"00002\.safetensors is not a whole"):
        tlazy.load(fresh, index)
    shard.unlink()
    with refused(fresh, FileNotFoundError, match="00002"):
        tlazy.load(fresh, index)


def header(content, length=None, data=b""):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HUGE = 1 << 60
HOSTILE = {
    "a header longer than the file": header({}, length=1000),
    "a header of exabytes": header({}, length=HUGE),
    "no JSON": header(b"\xff" * 40),
    "nested JSON": header(b"[" * 100_000),
    "a tensor beyond the end": header(
        {"0.weight": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}}, data=b"\0" * 47
    ),
    "a shape that is no such size": header(
        {"0.weight": {"dtype": "F32", "shape": [HUGE, 9], "data_offsets": [0, 4]}},
        data=b"\0" * 4,
    ),
    "an end before the begin": header(
        {"0.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, data=b"\0" * 4
    ),
    "overlapping tensors": header(
        {
            "0.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "0.bias": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        data=b"\0" * 4,
    ),
    "an unknown type": header(
        {"0.weight": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}, data=b"\0" * 4
    ),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_row_11_a_hostile_file_is_one_clear_error_and_takes_no_memory(content, tmp_path):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    fresh = linear()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = r"hostile\.safetensors is not a whole safetensors"
    with refused(fresh, SafetensorError, match=words):
        tlazy.load(fresh, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 20_000  # kilobytes


TYPES = {
    "C64": (192, RuntimeError, r"0\.weight is of type torch\.complex64.*torch\.float32"),
    "F4": (12, RuntimeError, r"0\.weight is of type .*torch\.float32"),
    "F6_E2M3": (18, SafetensorError, "F6_E2M3"),
    "BOOL": (24, None, ""),
    "I64": (192, None, ""),
    "F8_E4M3": (24, None, ""),
}


@pytest.mark.parametrize("make", [nn.LazyLinear, lambda width: nn.Linear(6, width)])
@pytest.mark.parametrize("kind", TYPES)
def test_row_11_a_type_becomes_the_models_or_is_refused(kind, make, tmp_path):
    size, error, words = TYPES[kind]
    weight = {"dtype": kind, "shape": [4, 6], "data_offsets": [0, size]}
    bias = {"dtype": "F32", "shape": [4], "data_offsets": [size, size + 16]}
    path = tmp_path / "w.safetensors"
    path.write_bytes(header({"0.weight": weight, "0.bias": bias}, data=b"\1" * (size + 16)))
    net = nn.Sequential(make(4))
    if error is None:
        tlazy.load(net, path)
        assert net[0].weight.dtype is torch.float32
    else:
        with refused(net, error, match=words if make is nn.LazyLinear else None):
            tlazy.load(net, path)


@pytest.mark.parametrize("wide", [1 << 61, 1 << 63])
def test_row_11_a_shape_that_no_tensor_has_is_refused(wide, tmp_path):
    weight = {"dtype": "F32", "shape": [0, wide], "data_offsets": [0, 0]}
    path = tmp_path / "w.safetensors"
    path.write_bytes(header({"0.weight": weight}))
    net = nn.Sequential(nn.LazyLinear(0, bias=False))
    with refused(net, RuntimeError, match=rf"0\.weight \(0, {wide}\)"):
        tlazy.load(net, path)


def test_row_11_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    _, index, _ = sharded(tmp_path)
    index.write_text('{"weight_map": {"0.weight": "pipe"}}')
    net = linear()
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", index):
        with refused(net, OSError, match=r"not a regular file: '(/dev/zero|.*pipe|.*0)'"):
            tlazy.load(net, path)


def test_row_11_a_state_that_is_no_tensor_is_not_saved(tmp_path):
    class Stateful(nn.Linear):
        def get_extra_state(self):
            return {"steps": 1}

        def set_extra_state(self, state):
            self.state = state

    net = nn.Sequential(Stateful(3, 4))
    with refused(net, ValueError, match=r"0\._extra_state is a dict.*torch\.save"):
        tlazy.save(net, tmp_path / "w.safetensors")


def test_row_06_what_is_loaded_in_inference_mode_trains(path):
    fresh = lazy()
    with torch.inference_mode():
        tlazy.load(fresh, path)
    fresh(X).sum().backward()
    assert all(p.grad is not None for p in fresh.parameters())


@hypothesis.given(data=hypothesis.strategies.data())
def test_row_11_a_file_with_any_changed_byte_loads_or_is_refused(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    net = linear()
    net(torch.ones(2, 3))
    tlazy.save(net, folder / "w.safetensors")
    content = bytearray((folder / "w.safetensors").read_bytes())
    place = data.draw(hypothesis.strategies.integers(0, min(len(content), 400) - 1))
    content[place] = data.draw(hypothesis.strategies.integers(0, 255))
    (folder / "w.safetensors").write_bytes(content)
    fresh = linear()
    before = snapshot(fresh)
    try:
        tlazy.load(fresh, folder / "w.safetensors")
    except (SafetensorError, RuntimeError):
        assert snapshot(fresh) == before
    else:
        assert fresh(torch.ones(2, 3)).shape == (2, 2)


def test_row_11_lazy_parameters_map_the_file_and_training_does_not_write_to_it(tmp_path):
    net, path = linear(512), tmp_path / "w.safetensors"
    net(torch.ones(2, 512))
    tlazy.save(net, path)
    content = path.read_bytes()
    fresh, other = linear(512), linear(512)
    tlazy.load(fresh, path)
    tlazy.load(other, path)
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    fresh(torch.ones(2, 512)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(fresh[0].weight, net[0].weight)
    assert torch.equal(other[0].weight, net[0].weight)
    assert path.read_bytes() == content
    tlazy.save(fresh, path)  # over the file that both are mapped from
    assert torch.equal(other[0].weight, net[0].weight)
    copied = copy.deepcopy(fresh)
    copied[0].weight.data.zero_()
    assert fresh[0].weight.abs().sum() > 0


def test_row_11_two_parameters_never_share_what_one_tensor_in_the_file_gives(tmp_path):
    save_model(tied_pair(), str(tmp_path / "tied.safetensors"))
    apart = nn.Sequential(nn.LazyLinear(5, False), nn.LazyLinear(5, False))
    tlazy.load(apart, tmp_path / "tied.safetensors")
    apart[0].weight.data.zero_()
    assert apart[1].weight.abs().sum() > 0


def tied_pair():
    first, second = torch.nn.Linear(5, 5, False), torch.nn.Linear(5, 5, False)
    second.weight = first.weight
    return torch.nn.Sequential(first, second)


def test_row_11_meta_parameters_are_filled(net, path):
    fresh = lazy()
    tlazy.trace(fresh, X).materialize(device="meta")
    held = list(fresh.parameters())
    tlazy.load(fresh, path)
    assert all(a is b for a, b in zip(held, fresh.parameters(), strict=True))
    assert torch.equal(fresh.eval()(X), net(X))


@pytest.mark.parametrize("fatal", range(6))
def test_row_11_an_interrupt_at_any_copy_restores_eager_parameters_too(fatal, path):
    half = lazy()
    half[0](X)  # eager now, the rest lazy
    half.register_buffer("seen", torch.zeros(1))
    del half.seen
    before = snapshot(half)
    copies = iter(range(fatal))

    class Interrupt(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            copying = func is torch.ops.aten.copy_.default
            if copying and next(copies, None) is None and not self.raised:
                self.raised = True
                raise KeyboardInterrupt
            return func(*args, **(kwargs or {}))

    mode = Interrupt()
    mode.raised = False
    try:
        with mode:
            tlazy.load(half, path)
    except KeyboardInterrupt:
        assert snapshot(half) == before
    else:
        assert fatal >= 2
    tlazy.load(half, path)
    assert type(half[4]) is nn.Linear


class Knows(nn.LazyModuleMixin, torch.nn.Module):
    """A user's own lazy class, which keeps what it learns from its tensors."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.parameter.UninitializedParameter()

    def initialize_parameters(self, x):
        self.weight.materialize((x.shape[-1],))
        self.home = self.weight.device
        self.register_buffer("scale", torch.ones_like(self.weight), persistent=False)

    def input_for(self, shapes):
        return torch.empty(1, shapes["weight"][0], device="meta")

    def forward(self, x):
        return x * self.weight * self.scale


@pytest.mark.parametrize("assign", [False, True])
def test_what_a_users_own_class_makes_while_loading_is_no_stand_in(assign):
    net = nn.Sequential(Knows())
    net.load_state_dict({"0.weight": torch.arange(3.0)}, assign=assign)
    assert net[0].home.type == "cpu"
    assert torch.equal(net(torch.ones(2, 3)), torch.arange(3.0).expand(2, 3))
