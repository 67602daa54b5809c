"""What a launch needs to know about its surroundings."""

from __future__ import annotations

import torch
import triton

SUPPORTED_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})

# Read once, like ``@triton.jit`` does: changing the variable later changes nothing.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
