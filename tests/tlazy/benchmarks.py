"""What tests of the benchmarks share: operations, a clock that is none, a record of one problem."""

import random

import torch

from tlazy.bench.chains import CHAINS, LinearChain
from tlazy.bench.machine import Ceilings
from tlazy.bench.measuring import measure
from tlazy.bench.networks import Network
from tlazy.bench.operations import Conv1d, ConvTranspose1d, Draw, Linear, depthwise
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record
from tlazy.bench.settings import Settings
from tlazy.models import MODELS

CPU = torch.device("cpu")
OPERATIONS = [
    Linear(7, 5, 3, activation="gelu"),
    Linear(7, 5, 3, bias=False),
    Conv1d(2, 6, 11, 4, 3, 2, 1, 2, 2, activation="silu"),
    Conv1d(2, 6, 11, 4, 3, padding="causal", layout="nlc"),
    depthwise(2, 6, 11, 4),
    depthwise(2, 6, 11, 4, padding="same", bias=False),
    ConvTranspose1d(2, 6, 11, 4, 3, 2, 1, 2, activation="gelu"),
    ConvTranspose1d(2, 6, 11, 4, 5, bias=False, layout="nlc"),
    *(LinearChain(7, 5, 3, then=name) for name in CHAINS),
    *(Network(name, 3, 2, 16, 4) for name in MODELS),
]


def draw(dtype=torch.float64):
    return Draw(CPU, dtype, torch.Generator().manual_seed(0))


def identity(operation):
    return f"{operation.op} {'-'.join(map(str, operation.shape().values()))}"


class SteadyTimer:
    """Says what each call takes, with a jitter of a percent, without a clock."""

    def __init__(self, microseconds=100.0, seed=0):
        self.microseconds, self.random = microseconds, random.Random(seed)

    def prepare(self, calls):
        calls[0]()

        def sample(seconds):
            jitter = [self.random.uniform(0.99, 1.01) for _ in range(25)]
            return [self.microseconds * 1e-6 * factor for factor in jitter]

        return sample, ""


def measured(problem, path=None, timer=None, peers=("tlazy", "eager"), **settings):
    """A record of one problem."""
    record = Record("tlazy bench", CPU, Ceilings(1e10, {"float32": 1e11}), path)
    settings = Settings(CPU, peers=peers, timer=timer or SteadyTimer(), **settings)
    assert measure([problem], record, settings)
    return record


def small_linear(**changes):
    operation = Linear(48, 32, 16, activation="relu")
    return Problem("shape", "small", operation, torch.float32, **changes)


def rows_by_peer(record):
    return {row["peer"]: row for row in record.rows}


def wrong_by_a_percent(x, weight, bias=None, **options):
    return torch.relu(torch.nn.functional.linear(x, weight, bias)) * 1.01
