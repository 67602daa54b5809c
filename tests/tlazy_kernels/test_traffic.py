"""What launches declare to a profiler, and how a launcher's memory traffic is added up.

That the sums stay near the least bytes is in test_compile.py, from the launches themselves.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tlazy_kernels import launch, splits
from tlazy_kernels.recording import recorded


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float16, device="meta")


def test_each_element_counts_once_and_stride_zero_as_one():
    args = {"a": meta(3, 5), "b": meta(1, 5).expand(7, 5), "c": meta(1).expand(7, 5)}
    assert launch.metadata("k", 12, args, "a") == {"name": "k", "flops16": 12, "bytes": 30}
    assert launch.metadata("k", 12, args, "a", "b", "c")["bytes"] == 30 + 10 + 2
    float32 = {"a": meta(3, 5).float()}
    assert launch.metadata("k", 12, float32, "a") == {"name": "k", "flops32": 12, "bytes": 60}


def test_a_copy_that_a_launcher_makes_is_counted_read_and_written():
    x = meta(4, 6)
    with recorded() as recording:
        x.t().contiguous()
    assert recording.bytes == 2 * x.nbytes


@pytest.mark.compiles  # ttsem fills new memory, which then counts
@pytest.mark.parametrize(
    "call",
    [lambda x: x.t(), lambda x: x[1:, None], lambda x: x.new_empty(1000), torch.empty_like],
    ids=["transposed", "sliced", "new_empty", "empty_like"],
)
def test_views_and_empty_memory_move_nothing(call):
    with recorded() as recording:
        call(meta(4, 6))
    assert recording.bytes == 0


def test_partial_sums_are_counted_as_read_and_their_sum_as_written():
    args = {"partial_ptr": meta(3, 10).float(), "out_ptr": meta(10), "bias_ptr": meta(10)}
    args |= {"parts": 3, "rows": 1, "columns": 10, "HAS_BIAS": False, "SAVE_PREACTIVATION": False}
    fact = splits._sum_metadata((), SimpleNamespace(name="sum"), args)
    assert fact["bytes"] == 4 * 30 + 2 * 10
