"""Memory is PyTorch's own, by a shorter way, except where somebody wants to know of it."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests import EMULATED
from tests.tlazy_kernels.agreement import random
from tlazy_kernels import memory
from tlazy_kernels.conv1d import conv1d_grad_input
from tlazy_kernels.launch import Buffer
from tlazy_kernels.linear import linear_forward

CALL = ((3, 4), (1, 3), torch.float16)


@pytest.fixture
def _unfilled():
    """As users have it: the tests of this folder have new memory filled with NaN."""
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def like(device) -> torch.Tensor:
    return torch.empty(0, device=device)


@pytest.mark.skipif(EMULATED, reason="under ttsem all of PyTorch's functions are overridden")
@pytest.mark.usefixtures("_unfilled")
def test_the_short_way_gives_what_torchs_function_gives(like):
    empty = memory.allocator(like)
    assert empty is (memory._empty_on_cuda if like.is_cuda else memory._empty_on_cpu)
    for inference in (False, True):
        with torch.inference_mode(inference):
            found = empty(*CALL)
            expected = torch.empty_strided(*CALL[:2], dtype=CALL[2], device=like.device)
        for what in ("shape", "dtype", "device", "requires_grad", "layout"):
            assert getattr(found, what) == getattr(expected, what)
        assert (found.stride(), type(found)) == (expected.stride(), type(expected))
        assert found.is_inference() == expected.is_inference() == inference


@pytest.mark.usefixtures("_unfilled")
def test_kernels_fill_memory_that_nobody_has_filled(device):
    x, weight = (random(*shape, dtype=torch.float32, device=device) for shape in ((5, 7), (9, 7)))
    for _ in range(2):
        torch.testing.assert_close(linear_forward(x, weight)[0], x @ weight.t())


def test_memory_is_poisoned_where_the_tests_want_it(like):
    assert memory.allocator(like)(*CALL).isnan().all()


@pytest.mark.usefixtures("_unfilled")
@pytest.mark.parametrize("kind", [TorchFunctionMode, TorchDispatchMode])
def test_modes_see_new_memory(kind, like):
    seen = []

    def note(self, func, types, args=(), kwargs=None):
        seen.append(func.__name__)
        return func(*args, **(kwargs or {}))

    name = "__torch_function__" if kind is TorchFunctionMode else "__torch_dispatch__"
    with type("Noting", (kind,), {name: note})():
        memory.allocator(like)(*CALL)
    names = [name.partition(".")[0] for name in seen if name != "__get__"]  # like's device
    assert names[0] == "empty_strided"  # ttsem fills what it gives


def test_integers_of_any_kind_are_sizes(device):
    numpy = pytest.importorskip("numpy", reason="one kind is numpy's")
    buffer = Buffer.of((numpy.int64(3), torch.tensor(4)), torch.float32)  # type: ignore[arg-type]
    assert {type(size) for size in (*buffer.shape, *buffer.strides)} == {int}
    assert (buffer.shape, buffer.strides) == ((3, 4), (4, 1))
    with pytest.raises(TypeError):
        Buffer.of((3.0,), torch.float32)  # type: ignore[arg-type]
    grad, weight = (
        random(*size, dtype=torch.float32, device=device) for size in ((2, 4, 9), (4, 3, 2))
    )
    torch.use_deterministic_algorithms(False)
    found = conv1d_grad_input(grad, weight, numpy.int64(10))  # type: ignore[arg-type]
    torch.testing.assert_close(found, conv1d_grad_input(grad, weight, 10))
