"""Linear, Conv1d and ConvTranspose1d are torch.nn's layers with one argument more."""

import inspect
import io
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize, prune

import tlazy
from tlazy import nn
from tlazy_kernels.reference import ACTIVATIONS

LAYERS = {
    "linear": (nn.Linear, torch.nn.Linear, (7, 4), (5, 7)),
    "conv1d": (nn.Conv1d, torch.nn.Conv1d, (6, 4, 3), (2, 6, 11)),
    "conv_transpose1d": (nn.ConvTranspose1d, torch.nn.ConvTranspose1d, (6, 4, 3, 2), (2, 6, 11)),
}


@pytest.fixture(params=LAYERS)
def pair(request):
    return LAYERS[request.param]


def test_layer_is_torchs_layer_with_its_signature_plus_activation(pair):
    ours, torchs, *_ = pair
    assert issubclass(ours, torchs)
    parameters = dict(inspect.signature(ours).parameters)
    assert parameters.pop("activation").kind is inspect.Parameter.KEYWORD_ONLY
    assert list(parameters) == list(inspect.signature(torchs).parameters)


def test_weights_move_between_both_by_state_dict(pair):
    ours, torchs, args, shape = pair
    theirs, mine = torchs(*args), ours(*args)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(shape)
    assert torch.equal(mine(x), theirs(x))
    theirs.load_state_dict(ours(*args).state_dict())


def test_repr_is_torchs_with_the_activation_at_the_end(pair):
    ours, torchs, args, _ = pair
    assert repr(ours(*args)) == repr(torchs(*args))
    assert repr(ours(*args, activation="relu")) == f"{repr(torchs(*args))[:-1]}, activation='relu')"


def test_initial_weights_have_torchs_distribution():
    torch.manual_seed(0)
    for ours, torchs, args in (
        (nn.Linear, torch.nn.Linear, (64, 4096)),
        (nn.Conv1d, torch.nn.Conv1d, (16, 4096, 4)),
        (nn.ConvTranspose1d, torch.nn.ConvTranspose1d, (256, 4096, 4, 1, 0, 0, 256)),
    ):
        mine, theirs = ours(*args), torchs(*args)
        for name in ("weight", "bias"):
            a, b = getattr(mine, name).detach(), getattr(theirs, name).detach()
            assert abs(a.std() / b.std() - 1) < 0.05
            assert abs(a.mean()) < 0.01
            assert a.abs().max() <= 1 / 8 + 1e-6  # both have a fan-in of 64
            assert a.abs().max() > 0.12


def test_constructing_draws_one_number_from_the_global_generator(pair):
    ours, _, args, _ = pair
    torch.manual_seed(0)
    ours(*args)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    tlazy.init.draw_seed()
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_applied(pair, activation):
    ours, _, args, shape = pair
    layer = ours(*args, activation=activation)
    x = torch.randn(shape)
    with_it = layer(x)
    layer.activation = None
    torch.testing.assert_close(with_it, ACTIVATIONS[activation](layer(x)))


def test_unknown_activation_is_refused_at_construction(pair):
    ours, _, args, _ = pair
    with pytest.raises(ValueError, match="got 'swish'"):
        ours(*args, activation="swish")


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_conv1d_has_torchs_padding_modes(device, exact_fp32, mode, padding, backend):
    layer = nn.Conv1d(3, 4, 4, padding=padding, padding_mode=mode, device=device)
    theirs = torch.nn.Conv1d(3, 4, 4, padding=padding, padding_mode=mode)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 13)
    with tlazy.backend(backend):
        found = layer(x.to(device)).cpu()
    torch.testing.assert_close(found, theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_causal_conv1d_pads_the_left_in_every_mode(mode):
    layer = nn.Conv1d(3, 4, 3, padding="causal", dilation=2, padding_mode=mode)
    x = torch.randn(2, 3, 13)
    word = {"zeros": "constant"}.get(mode, mode)
    padded = torch.nn.functional.pad(x, (4, 0), mode=word)
    expected = torch.nn.functional.conv1d(padded, layer.weight, layer.bias, dilation=2)
    torch.testing.assert_close(layer(x), expected)
    assert "padding=causal" in repr(layer)


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize("shape", [(2, 6, 7), (6, 7)], ids=["batched", "unbatched"])
@pytest.mark.parametrize("size", [15, 16, 17])
def test_conv_transpose1d_chooses_its_length_as_torchs(device, exact_fp32, backend, shape, size):
    layer = nn.ConvTranspose1d(6, 4, 5, 3, padding=4, groups=2, dilation=2, device=device)
    theirs = torch.nn.ConvTranspose1d(6, 4, 5, 3, padding=4, groups=2, dilation=2)
    theirs.load_state_dict(layer.state_dict())
    smallest = layer(torch.zeros(shape, device=device)).shape[-1]
    assert smallest == theirs(torch.zeros(shape)).shape[-1]
    size += smallest - 15
    x = torch.randn(shape)
    for output_size in ([size], [4, size], (2, 4, size)):
        if len(output_size) > 1 and len(output_size) != len(shape):
            continue
        with tlazy.backend(backend):
            found = layer(x.to(device), output_size=output_size).cpu()
        expected = theirs(x, output_size=list(output_size))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output_size", [[18], [14], [3, 3, 3, 3]], ids=str)
def test_conv_transpose1d_refuses_lengths_that_torchs_refuses(output_size):
    for lib in (nn, torch.nn):
        layer = lib.ConvTranspose1d(3, 4, 3, stride=3)
        with pytest.raises(ValueError, match=r"output.size"):
            layer(torch.zeros(2, 3, 5), output_size=output_size)


@pytest.mark.parametrize(
    "settings",
    [{"padding_mode": "reflect"}, {"groups": 2}, {"groups": 0}],
    ids=str,
)
def test_conv_transpose1d_refuses_at_construction_what_torchs_refuses(settings):
    errors = []
    for lib in (nn, torch.nn):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            lib.ConvTranspose1d(3, 4, 3, **settings)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("padding", ["same", "valid", "causal"])
def test_conv_transpose1d_refuses_padding_in_words_before_torchs_does(padding):
    with pytest.raises(TypeError):  # torch's tells when it is called
        torch.nn.ConvTranspose1d(3, 4, 3, padding=padding)(torch.zeros(2, 3, 5))
    words = rf"padding must be an int or have one element, got '{padding}': a transposed"
    for make in (partial(nn.ConvTranspose1d, 3), nn.LazyConvTranspose1d):
        with pytest.raises(TypeError, match=words):
            make(4, 3, padding=padding)


def test_an_unknown_padding_of_conv1d_is_refused_with_all_known_ones():
    with pytest.raises(ValueError, match="Invalid padding string 'full'"):
        torch.nn.Conv1d(3, 4, 3, padding="full")
    known = r"should be an int or one of \('valid', 'same', 'causal'\)"
    for make in (partial(nn.Conv1d, 3), nn.LazyConv1d):
        with pytest.raises(ValueError, match=rf"Invalid padding string 'full', {known}"):
            make(4, 3, padding="full")


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_network_compiles_whole_and_trains_alike(device, exact_fp32, backend):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding="same", activation="gelu"),
        nn.Conv1d(4, 4, 3, groups=4, padding="causal", activation="relu"),
        nn.ConvTranspose1d(4, 3, 2, stride=2, output_padding=1, activation="silu"),
        torch.nn.Flatten(),
        nn.Linear(3 * 23, 5, activation="silu"),
    ).to(device)
    x = torch.randn(2, 3, 11, device=device)
    parameters = list(net.parameters())
    with tlazy.backend(backend):
        y = net(x)
        expected = [y, *torch.autograd.grad(y.square().sum(), parameters)]
        y = torch.compile(net, fullgraph=True)(x)
        found = [y, *torch.autograd.grad(y.square().sum(), parameters)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 2, "output_padding": 1},
        {"padding": 2, "output_padding": 4, "dilation": 5},
    ],
    ids=str,
)
def test_one_graph_of_conv_transpose1d_serves_every_length(device, exact_fp32, settings):
    torch.compiler.reset()
    layer = nn.ConvTranspose1d(3, 4, 3, activation="gelu", device=device, **settings)
    compiled = CompileCounterWithBackend("aot_eager")
    calls = layer, torch.compile(layer, fullgraph=True, dynamic=True, backend=compiled)
    with tlazy.backend("triton"):
        for length in (5, 7, 16):
            x = torch.randn(2, 3, length, device=device, requires_grad=True)
            outputs = [call(x) for call in calls]
            leaves = [x, *layer.parameters()]
            expected, found = (torch.autograd.grad(y.square().sum(), leaves) for y in outputs)
            torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert compiled.frame_count == 1


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_network_exports_and_gives_the_same(device, backend):
    net = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding="same", activation="gelu"), nn.ConvTranspose1d(4, 2, 3, 2)
    ).to(device)
    x = torch.randn(2, 3, 11, device=device)
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 2: torch.export.Dim("length", min=5)}
    with tlazy.backend(backend):
        program = torch.export.export(net, (x,), dynamic_shapes=(sizes,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    ours = {"tlazy.conv1d_forward.default", "tlazy.conv_transpose1d_forward.default"}
    assert called & ours == (ours if backend == "triton" else set())
    x = torch.randn(5, 3, 14, device=device)
    with tlazy.backend(backend):
        torch.testing.assert_close(program.module()(x), net(x))


def test_fx_keeps_the_calls_whole():
    up = nn.ConvTranspose1d(4, 4, 3)
    net = nn.Sequential(nn.Conv1d(3, 4, 3, activation="relu"), up, nn.Linear(11, 2))
    graph = torch.fx.symbolic_trace(net)
    x = torch.randn(2, 3, 11)
    assert torch.equal(graph(x), net(x))
    targets = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    F = tlazy.nn.functional
    assert {F.conv1d, F.conv_transpose1d, F.linear} <= targets


def test_layers_can_be_built_of_fake_tensors(pair):
    ours, _, args, _ = pair
    with torch._subclasses.FakeTensorMode():
        assert ours(*args).weight.shape == ours(*args).weight.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize(
    "layer",
    [
        partial(nn.LazyLinear, 9),
        partial(nn.LazyConv1d, 4, 3, stride=2, dilation=2, padding=1),
        partial(nn.LazyConv1d, 4, 4, padding="same", padding_mode="reflect"),
        partial(nn.LazyConv1d, 6, 3, padding="causal", groups=3),
        partial(nn.LazyConvTranspose1d, 6, 4, stride=2, padding=1, groups=3),
    ],
)
def test_a_materialized_layer_can_be_scripted_and_saved(layer, activation):
    net = nn.Sequential(layer(activation=activation))
    x = torch.randn(2, 3, 9, dtype=torch.float64)
    expected = net.double()(x)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(net), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    torch.testing.assert_close(loaded(x), expected)
    assert loaded.state_dict().keys() == net.state_dict().keys()


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_weight_that_is_made_of_parameters_is_what_counts(pair):
    """Where it is parametrized or pruned it is no parameter of its layer any more."""
    make, _, sizes, shape = pair
    layer, x = make(*sizes, bias=False), torch.randn(shape)
    plain = layer(x)
    parametrize.register_parametrization(layer, "weight", Doubled())
    torch.testing.assert_close(layer(x), 2 * plain)
    parametrize.remove_parametrizations(layer, "weight")
    prune.custom_from_mask(layer, "weight", torch.zeros_like(layer.weight))
    assert not layer(x).any()
