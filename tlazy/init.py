"""Seeded initialization that does not depend on the order of anything else."""

from __future__ import annotations

import hashlib
import math

import torch


def draw_seed() -> int:
    """Draw one 64-bit seed from the global CPU generator, as every tlazy layer does once."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def keyed_seed(seed: int, path: str) -> int:
    """The 64-bit seed of the module at `path` under `seed`: the same in every process.

    >>> keyed_seed(0, "head") == keyed_seed(0, "head") != keyed_seed(0, "body")
    True
    """
    digest = hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def fan_in_uniform_(weight: torch.Tensor, bias: torch.Tensor | None, *, seed: int) -> None:
    """Fill `weight` and `bias` as ``torch.nn.Linear`` and ``torch.nn.Conv1d`` do.

    Both are drawn from U(-b, b) with b = 1/sqrt(fan_in), which is what
    ``kaiming_uniform_(a=sqrt(5))`` comes to (He et al. 2015, arXiv:1502.01852). The values come
    from a private CPU generator, so they are the same on every device.

    Args:
        weight: shape (out, in, *kernel); fan_in is the product of all but the first dimension.
        bias: shape (out,), or None.
        seed: 64-bit seed of the private generator.
    """
    fan_in = math.prod(weight.shape[1:])
    bound = 1.0 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for parameter in (weight, bias):
        if parameter is None or parameter.is_meta:
            continue
        values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        values.uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            parameter.copy_(values)
