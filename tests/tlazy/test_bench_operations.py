"""What is measured: each operation computes what stock torch does, and knows its sizes."""

import re

import pytest
import torch

import tlazy.nn.functional
from tests.tlazy.benchmarks import OPERATIONS, draw, identity
from tlazy.bench.networks import Network
from tlazy.bench.operations import Conv1d, ConvTranspose1d, Linear
from tlazy.bench.shapes import parse_shape
from tlazy.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("name", ["mlp", "fcn"])
def test_torchs_compiler_takes_a_stock_network_whole(name):
    """In the oldest version too, with nothing of it looked at before but its tensors."""
    network = Network(name, 2, 1, 16)
    x, *state = network.tensors(draw())
    expected = network.stock(x, *(t.clone() for t in state))
    compiled = torch.compile(network.stock, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, *state), expected)


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
