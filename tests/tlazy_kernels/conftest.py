from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import EMULATED
from tests.interpreter import overflow_is_an_error
from tests.tlazy_kernels.sharing import most_of_the_memory
from tlazy_kernels.environment import INTERPRETED

if EMULATED:
    from ttsem import ops

    _load_whole_blocks = ops.OPS["tt.descriptor_load"]

    @ops.register("tt.descriptor_load")
    def _load_blocks(interp: Any, op: Any, args: list[Any]) -> list[Any]:
        """As ttsem 0.1.0, but without the dimensions of size 1 that the compiler has dropped."""
        (block,) = _load_whole_blocks(interp, op, args)
        return [block.reshape(ops._rty(op).shape)]


@pytest.fixture(autouse=True)
def _well_defined_float32() -> Iterator[None]:
    """Float32 means float32: neither products may round to tf32, as convolutions may by default."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = "ieee"
    yield
    matmul.fp32_precision, conv.fp32_precision = before


@pytest.fixture(autouse=True)
def _poisoned_allocations() -> Iterator[None]:
    """Fill new memory with NaN, so that an output's element that no program writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def vast(device: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """Gives a tensor's copy whose first dimension, of 3, has a stride of 2**30 elements.

    Index and stride fit in int32, their product does not. Only a few pages of the storage are ever
    touched. In the interpreter an integer that overflows is then an error.
    """
    if EMULATED:
        pytest.skip("needs a GPU's memory, or a CPU's, which is backed lazily")
    storages = []

    def spread_out(x: Tensor) -> Tensor:
        assert len(x) == 3
        torch.use_deterministic_algorithms(False)  # it would fill, and so back, all of it
        storage = torch.empty(2**31 + x[0].numel(), dtype=x.dtype, device=device)
        torch.use_deterministic_algorithms(True)
        storages.append(storage.untyped_storage())
        return storage.as_strided(x.shape, (2**30, *x[0].contiguous().stride())).copy_(x)

    with most_of_the_memory() if device == "cuda" else nullcontext():
        if device == "cuda" and torch.cuda.mem_get_info()[0] < 30 << 30:
            pytest.skip("needs 30 GiB of free GPU memory")
        if device == "cpu" and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 10 << 30:
            pytest.skip("a system with less than 10 GiB may refuse to reserve the address range")
        with overflow_is_an_error() if INTERPRETED else nullcontext():
            yield spread_out
        for storage in storages:
            storage.resize_(0)  # a failed test's tensors live on in its traceback
