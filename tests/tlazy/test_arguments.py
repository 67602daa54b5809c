"""Wrong arguments of the public functions are refused by name, before anything happens."""

import re
import traceback

import pytest
import torch

import tlazy
from tests.tlazy.snapshot import refused
from tlazy import nn

X = torch.ones(2, 3)


def plan(net, **arguments):
    tlazy.trace(net, X).materialize(**arguments)


def materialize(net, **arguments):
    tlazy.materialize(net, X, **arguments)


WRONG = {
    "seed": (lambda call, net: call(net, seed="x"), "seed must be an integer, got a str ('x')"),
    "seed of a half": (lambda call, net: call(net, seed=0.5), "got a float (0.5)"),
    "init": (lambda call, net: call(net, init="ones"), "init must be a function of a module"),
    "checkpoint": (
        lambda call, net: call(net, checkpoint=5),
        "checkpoint must be the path of a safetensors file, got an int (5)",
    ),
    "dtype": (
        lambda call, net: call(net, dtype="float32"),
        "dtype must be a torch.dtype, such as torch.float32, got a str ('float32')",
    ),
    "integers": (
        lambda call, net: call(net, dtype=torch.int64),
        "dtype must be floating-point or complex, as parameters are, got torch.int64",
    ),
    "device": (
        lambda call, net: call(net, device=0.5),
        "device must be a torch.device or its name, such as 'cpu' or 'cuda:0', got a float (0.5)",
    ),
}


@pytest.mark.parametrize("call", [plan, materialize])
@pytest.mark.parametrize(("wrong", "words"), WRONG.values(), ids=WRONG)
def test_materializing_refuses_an_argument_by_name_value_and_way_out(call, wrong, words):
    net = nn.Sequential(nn.LazyLinear(4))
    with refused(net, TypeError, match=re.escape(words)):
        wrong(call, net)


def test_a_device_that_torch_does_not_know_is_refused_as_torch_does():
    net = nn.Sequential(nn.LazyLinear(4))
    for call in (lambda: materialize(net, device="gpu"), lambda: tlazy.Spec(2, device="gpu")):
        with refused(net, RuntimeError, match=r"device must be .*, got a str \('gpu'\)"):
            call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net: tlazy.initialize(net, seed="x"), "seed must be an integer"),
        (lambda net: tlazy.initialize(net, seed=None), "seed must be an integer, got None"),
        (lambda net: tlazy.initialize(net, 0, init=5), "init must be a function .*got an int"),
        (lambda net: tlazy.save(net, 5), "path must be the path of .*, got an int"),
        (lambda net: tlazy.save(net, None), "path must be the path of .*, got None"),
        (lambda net: tlazy.load(net, X), "path must be the path of .*, got a Tensor"),
    ],
)
def test_what_writes_values_refuses_an_argument_by_name(call, words):
    net = nn.Sequential(nn.Linear(3, 4))
    with refused(net, TypeError, match=words):
        call(net)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: tlazy.Spec("8,3"),
            "shape must be integers, as in Spec(8, 3) or Spec((8, 3)), got '8,3'",
        ),
        (lambda: tlazy.Spec(8.0, 3), "got 8.0, 3"),
        (lambda: tlazy.Spec(["a"]), "got ['a']"),
        (lambda: tlazy.Spec((8, 3), 2), "got (8, 3), 2"),
        (lambda: tlazy.Spec(None), "got None"),
        (lambda: tlazy.Spec(), "got nothing; Spec(()) stands for a tensor of one value"),
        (lambda: tlazy.Spec(8, dtype=float), "dtype must be a torch.dtype, such as torch.float32"),
        (lambda: tlazy.Spec(8, device=None), "device must be a torch.device or its name"),
    ],
)
def test_a_spec_refuses_what_is_no_shape_dtype_or_device(make, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        make()


def test_a_spec_takes_any_integers_and_the_empty_shape():
    import numpy

    assert tlazy.Spec(numpy.int64(8), 3).shape == (8, 3)
    assert tlazy.Spec([8, 3]).shape == (8, 3)
    assert tlazy.Spec(()).shape == ()
    with pytest.raises(
        RuntimeError, match=r"shape must not have negative sizes, got \(-1, 3\): pass"
    ):
        tlazy.Spec(-1, 3)


@pytest.mark.parametrize("x", ["cpu", torch.device("cpu"), tlazy.Spec(2), None])
def test_backend_of_takes_a_tensor(x):
    with pytest.raises(TypeError, match=r"^x must be a torch\.Tensor, got "):
        tlazy.backend_of(x)


NO_TENSORS = {
    "a shape": (((8, 3),), r"\(8, 3\): pass a tensor, or for a trace tlazy\.Spec\(8, 3\)"),
    "sizes": ((8, 3), r"8, 3: pass a tensor, or for a trace tlazy\.Spec\(8, 3\)"),
    "a text": (("8,3",), r"'8,3': pass a tensor, or for a trace tlazy\.Spec\(\*shape\)"),
    "nothing": ((), r"nothing: pass a tensor"),
    "the class": ((tlazy.Spec,), r"<class 'tlazy\.spec\.Spec'>: pass a tensor"),
}


def trees():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LazyLinear(2)

        def forward(self, *x):
            return self.layer(*x)

    return {
        "Sequential": nn.Sequential(nn.LazyConv1d(4, 3), nn.LazyLinear(2)),
        "LazyLinear": nn.LazyLinear(2),
        "BatchNorm1d": torch.nn.Sequential(torch.nn.LazyBatchNorm1d()),
        "Net": Net(),
    }


def called(net, *inputs):
    return net(*inputs)


@pytest.mark.parametrize("inputs", NO_TENSORS)
@pytest.mark.parametrize(
    ("call", "tree"),
    [(call, tree) for call in (tlazy.trace, tlazy.materialize, called) for tree in trees()
     if (call, tree) != (called, "BatchNorm1d")],  # a tree of torch's alone
)  # fmt: skip
def test_inputs_without_a_tensor_are_refused_in_one_line(call, tree, inputs):
    net, (args, words) = trees()[tree], NO_TENSORS[inputs]
    with refused(net, TypeError, match=rf"takes a tensor, and was called with {words}") as caught:
        call(net, *args)
    assert "\n" not in str(caught.value)
    assert len(list(traceback.TracebackException.from_exception(caught.value).format())) < 20


def test_a_forward_that_takes_no_tensors_is_traced():
    class Positions(torch.nn.Module):
        def forward(self, length):
            return torch.ones(length)

    class Breaks(torch.nn.Module):
        def forward(self, length):
            return length.nothing

    assert tlazy.trace(Positions(), 5).output.shape == (5,)
    with pytest.raises(AttributeError, match=r"'nothing'\n  in Breaks, called with 5\n"):
        tlazy.trace(Breaks(), 5)


def test_what_a_model_makes_of_inputs_without_a_tensor_fails_in_its_own_words():
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 4)

        def forward(self, text):
            return self.fc(torch.ones(2, len(text)))

    with pytest.raises(RuntimeError, match=r"(?s)reduction dim.*in fc \(Linear\), called with"):
        tlazy.trace(Counts(), "abcde")
    with pytest.raises(NotImplementedError):
        tlazy.trace(torch.nn.ModuleList(), 3)


def test_a_forward_that_forgets_the_tensor_is_shown_in_the_traceback():
    class Forgets(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LazyLinear(2)

        def forward(self, x):
            return self.layer(x.shape[-1])  # here

    words = (
        r"input must be a torch\.Tensor, got an int \(3\)\n  in layer \(LazyLinear\), called with 3"
    )
    with pytest.raises(TypeError, match=words) as caught:
        Forgets()(X)
    assert any("# here" in line for line in traceback.format_exception(caught.value))
