from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model

import tlazy
from tests.tlazy.snapshot import snapshot
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
    before = snapshot(fresh)
    with pytest.raises(RuntimeError, match=words):
        tlazy.load(fresh, path)
    assert snapshot(fresh) == before


def test_a_weight_of_wrong_dimension_is_refused(tmp_path):
    file = tmp_path / "flat.safetensors"
    for shape in ((4,), (4, 3, 2), ()):
        save_file({"0.weight": torch.ones(shape), "0.bias": torch.ones(4)}, file)
        for layer in (nn.LazyLinear(4), nn.LazyConv1d(4, 1), torch.nn.LazyLinear(4)):
            if isinstance(layer, torch.nn.Conv1d) and len(shape) == 3:
                continue
            fresh = nn.Sequential(layer)
            before = snapshot(fresh)
            with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
                tlazy.load(fresh, file)
            assert snapshot(fresh) == before


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_a_truncated_file_is_one_clear_error(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    fresh = lazy()
    before = snapshot(fresh)
    with pytest.raises(SafetensorError, match="is not a whole safetensors file"):
        tlazy.load(fresh, path)
    assert snapshot(fresh) == before


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tlazy.load(lazy(), tmp_path / "nowhere.safetensors")


def test_an_error_while_copying_makes_lazy_layers_lazy_again(path, monkeypatch):
    fresh = lazy()
    before = snapshot(fresh)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", fail)
        with pytest.raises(KeyboardInterrupt):
            tlazy.load(fresh, path)
    assert snapshot(fresh) == before
    tlazy.load(fresh, path)


def test_a_lazy_model_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet.*tlazy\.materialize\(model"):
        tlazy.save(lazy(), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="meta"):
        tlazy.save(nn.Linear(2, 3, device="meta"), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(path, net, monkeypatch):
    old = path.read_bytes()

    def fail(model, name):
        Path(name).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("tlazy.checkpoint.save_model", fail)
    with pytest.raises(OSError, match="disk full"):
        tlazy.save(net, path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


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
    before = snapshot(fresh)
    with pytest.raises(RuntimeError, match=r"4\.weight.*\(3, 42\).*\(3, 48\)"):
        tlazy.materialize(fresh, X[..., :8], checkpoint=path)
    assert snapshot(fresh) == before
    with pytest.raises(ValueError, match="one or the other"):
        tlazy.materialize(fresh, X, checkpoint=path, seed=1)


def test_values_are_converted_to_the_models_dtype(net, path):
    fresh = lazy().double()
    tlazy.load(fresh, path)
    assert fresh[0].weight.dtype is torch.float64
    assert torch.equal(fresh[0].weight, net[0].weight.double())
