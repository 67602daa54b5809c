"""Sets of inputs: random tensors, so many that no call finds its own in the cache."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from torch import Tensor

from tlazy.bench import machine
from tlazy.bench.operations import Draw, Operation, Pass, bytes_held

MOST_SETS = 256
# What a pass reads of all input sets together is this many times the last-level cache. Of what is
# read in turns a cache that drops lines at random still holds a fifth at twice its size, and a
# fiftieth at four times.
CACHES = 4
# Where outputs are so much larger that this many caches hold fewer sets with their outputs, those
# are enough: outputs pass through the cache too, and would fill the memory.
CACHES_WITH_OUTPUTS = 8 * CACHES
# How many lengths are new to a convolution, and by how many samples at most: drawn anew, because
# what an earlier run has met is no longer new to its process.
NEW_LENGTHS, MOST_LONGER = 8, 1000

# An operation's tensors, and the gradient of its output; for a forward pass a single number in its
# place, as large as the output only in shape.
InputSet = tuple[list[Tensor], Tensor]


def input_set(
    operation: Operation, draw: Draw, which: Pass, *, gradients: bool = False
) -> InputSet:
    """Random tensors, which take gradients or not, and the gradient of the output."""
    tensors = operation.tensors(draw)
    for tensor in operation.differentiable(tensors):
        tensor.requires_grad_(gradients)
    if which == "forward":
        return tensors, draw.normal().expand(operation.output_shape())
    return tensors, operation.output_gradient(draw)


def input_sets(
    operation: Operation, draw: Draw, which: Pass, *, gradients: bool = False
) -> list[InputSet]:
    """So many of them that the last-level cache has lost one when its turn comes again."""
    tensors, gradient = first = input_set(operation, draw, which, gradients=gradients)
    both = bytes_held([*tensors, gradient])
    read = bytes_held(tensors) if which == "forward" else both
    cache = machine.last_level_cache(draw.device)
    count = min(MOST_SETS, -(-CACHES * cache // read), -(-CACHES_WITH_OUTPUTS * cache // both))
    return [first, *(_copied(first, which) for _ in range(count - 1))]


def sets_of_new_lengths(operation: Any, draw: Draw, which: Pass, seed: int) -> list[InputSet]:
    """One of the operation's own length, then one of each length that nobody has met."""
    longer = random.Random(seed).sample(range(MOST_LONGER), NEW_LENGTHS)
    lengths = operation.length, *(operation.length + 1 + more for more in longer)
    return [input_set(replace(operation, length=n), draw, which) for n in lengths]


def _copied(one: InputSet, which: Pass) -> InputSet:
    """The same values elsewhere in memory: drawing others took more than half of a CPU's suite."""
    tensors, gradient = one
    copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    return copies, gradient if which == "forward" else gradient.clone()
