"""What is taken from Triton's interpreter is given back where a test asks for it."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from tests.interpreter import overflow_is_an_error
from tlazy_kernels.environment import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="on a GPU nothing is interpreted")


@triton.jit
def _product_kernel(out_ptr, a, b):
    tl.store(out_ptr, a * b)


def test_an_integer_that_overflows_is_an_error_where_that_is_asked_for():
    out = torch.zeros(1, dtype=torch.int32)
    with overflow_is_an_error():
        _product_kernel[(1,)](out, 2, 2**29)
        assert out.item() == 2**30
        with pytest.raises((AssertionError, InterpreterError), match="int32 overflow"):
            _product_kernel[(1,)](out, 2, 2**30)
    _product_kernel[(1,)](out, 2, 2**30)
