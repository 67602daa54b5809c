"""Named lists of problems, the most important first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tlazy.bench.chains import LinearChain
from tlazy.bench.networks import Network
from tlazy.bench.operations import Conv1d, ConvTranspose1d, Linear, depthwise
from tlazy.bench.problems import Problem, Timed


def _goals() -> Iterator[Problem]:
    """The goals of the project, each with the problems that stand for it; those of the CPU, calls
    and materialization, are measured by ``pytest perf``."""
    p = "goals"
    yield Problem(p, "linear 8192 gelu", Linear(8192, 8192, 8192, activation="gelu"))
    mamba = depthwise(8, 4096, 4096, 4)
    silu = dataclasses.replace(mamba, activation="silu", layout="nlc")
    yield Problem(p, "Mamba short convolution", silu, passes=("forward", "backward"))
    yield Problem(p, "wav2vec2 layer 0", _gelu(Conv1d(32, 1, 160000, 512, 10, 5, bias=False)))
    wide = Conv1d(32, 512, 31999, 512, 3, 2, bias=False)
    yield Problem(p, "wav2vec2 layer 1", _gelu(wide))
    yield Problem(p, "tall and skinny gelu", Linear(65536, 1024, 1024, activation="gelu"))
    yield from _small_m(p)
    fcn = Conv1d(256, 128, 512, 256, 5, padding="same", activation="relu")
    yield Problem(p, "FCN layer 2", fcn)
    conformer = depthwise(32, 512, 1000, 31, padding="same")
    yield Problem(p, "Conformer depthwise", dataclasses.replace(conformer, activation="silu"))
    for posed in _level1(p):
        yield dataclasses.replace(posed, name=f"{posed.name}, full float32", exact=True)
    yield Problem(p, "linear 4096 relu", Linear(4096, 4096, 4096, activation="relu"))
    yield Problem(p, "linear 4096 gelu_tanh", Linear(4096, 4096, 4096, activation="gelu_tanh"))
    yield Problem(p, "linear 4096 gelu float16", _gelu(Linear(4096, 4096, 4096)), torch.float16)
    yield Problem(p, "linear 4096 float32", Linear(4096, 4096, 4096), torch.float32)
    last = dataclasses.replace(wide, activation="gelu", layout="nlc")
    yield Problem(p, "wav2vec2 layer 1, channels last", last)
    yield Problem(p, "wav2vec2 positional", _gelu(Conv1d(32, 768, 499, 768, 128, 1, 64, groups=16)))
    yield Problem(p, "Whisper layer 1", _gelu(Conv1d(16, 128, 3000, 1280, 3, padding=1)))
    yield Problem(p, "Whisper layer 2", _gelu(Conv1d(16, 1280, 3000, 1280, 3, 2, 1)))
    yield Problem(p, "WaveNet dilation 64", Conv1d(8, 256, 16000, 512, 2, 1, "causal", 64))
    yield Problem(p, "EnCodec down 4/2", Conv1d(16, 64, 24000, 128, 4, 2, 1))
    yield Problem(p, "DAC residual k7 d9", Conv1d(16, 64, 44100, 64, 7, 1, 27, 9))
    unet = Conv1d(256, 256, 128, 256, 5, padding="same")
    yield Problem(p, "UNet1D 256", unet)
    yield Problem(p, "InceptionTime k39", Conv1d(128, 32, 1000, 32, 39, padding="same", bias=False))
    tcn = Conv1d(32, 128, 4096, 128, 3, 1, "causal", 32, activation="relu")
    yield Problem(p, "TCN k3 d32", tcn)
    yield from _calls(p)
    short = dataclasses.replace(mamba, layout="ncl")
    yield Problem(p, "short convolution, (N, C, L)", short, passes=("forward", "backward"))
    dilated = depthwise(8, 1024, 8192, 7, dilation=8)
    yield Problem(p, "depthwise k7 d8", dilated)


def _calls(suite: str) -> Iterator[Problem]:
    """What a call costs beside its work: launching it, and meeting a new length."""
    timed: Timed
    for name, operation in (
        ("linear", Linear(16, 64, 64, activation="relu")),
        ("conv1d", Conv1d(1, 64, 64, 64, 3, padding=1, activation="relu")),
        ("depthwise", depthwise(1, 64, 64, 4)),
    ):
        for timed in ("host", "host with grad"):
            title = f"{name} call, {timed}"
            yield Problem(suite, title, operation, passes=("forward",), timed=timed)
    audio = _gelu(Conv1d(16, 256, 4000, 256, 3, padding="same"))
    yield Problem(suite, "conv1d at new lengths", audio, passes=("forward",), timed="new length")


def _small_m(suite: str) -> Iterator[Problem]:
    for m in (512, 128, 33, 1):
        yield Problem(suite, f"linear M={m}", Linear(m, 4096, 4096, activation="gelu"))
    yield Problem(suite, "linear irregular", Linear(317, 3001, 1537, activation="relu"))


def _models() -> Iterator[Problem]:
    """Layers of real networks, then whole networks."""
    p = "models"
    yield Problem(p, "BERT-base MLP up", _gelu(Linear(16384, 3072, 768)))
    yield Problem(p, "BERT-base MLP down", Linear(16384, 768, 3072))
    gpt = Linear(8192, 16384, 4096, activation="gelu_tanh")
    yield Problem(p, "GPT MLP up 4096", gpt)
    yield Problem(p, "Llama gate 4096", Linear(8192, 11008, 4096, bias=False, activation="silu"))
    yield Problem(p, "Whisper large MLP up", _gelu(Linear(24000, 5120, 1280)))
    for layer, (length, taps) in enumerate(((15999, 3), (7999, 3), (3999, 2)), start=2):
        feature = Conv1d(16, 512, length, 512, taps, 2, bias=False)
        yield Problem(p, f"wav2vec2 layer {layer}", _gelu(feature))
    yield Problem(p, "Whisper small layer 1", _gelu(Conv1d(16, 80, 3000, 768, 3, padding=1)))
    yield Problem(p, "Whisper small layer 2", _gelu(Conv1d(16, 768, 3000, 768, 3, 2, 1)))
    conformer = depthwise(16, 256, 800, 31, padding="same")
    yield Problem(p, "Conformer-S depthwise", dataclasses.replace(conformer, layout="nlc"))
    yield Problem(p, "Conformer pointwise", Conv1d(16, 256, 800, 512, 1))
    mamba = dataclasses.replace(depthwise(16, 1536, 2048, 4), activation="silu", layout="nlc")
    yield Problem(p, "Mamba-130M short convolution", mamba)
    for dilation in (1, 16, 512):
        gate = Conv1d(8, 64, 16000, 128, 2, 1, "causal", dilation)
        yield Problem(p, f"WaveNet gate dilation {dilation}", gate)
    yield Problem(p, "WaveNet skip 1x1", Conv1d(8, 64, 16000, 256, 1, activation="relu"))
    for dilation in (1, 8):
        tcn = Conv1d(32, 25, 784, 25, 7, 1, "causal", dilation, activation="relu")
        yield Problem(p, f"TCN sequential MNIST dilation {dilation}", tcn)
    for layer, (channels, filters, taps) in enumerate(((1, 128, 8), (128, 256, 5), (256, 128, 3))):
        fcn = Conv1d(128, channels, 512, filters, taps, padding="same")
        yield Problem(p, f"FCN layer {layer + 1}", fcn)
    for taps in (10, 20, 40):
        inception = Conv1d(64, 32, 512, 32, taps, padding="same", bias=False)
        yield Problem(p, f"InceptionTime k{taps}", inception)
    yield Problem(p, "EnCodec first", Conv1d(16, 1, 24000, 32, 7, padding="causal"))
    yield Problem(p, "EnCodec down 16/8", Conv1d(16, 256, 600, 512, 16, 8, 4))
    yield Problem(p, "DAC down 16/8", Conv1d(16, 256, 5512, 512, 16, 8, 4))
    yield Problem(p, "DAC residual k7 d3", Conv1d(16, 128, 22050, 128, 7, 1, 9, 3))
    yield Problem(p, "UNet1D 64", Conv1d(64, 64, 4096, 64, 5, padding="same", activation="silu"))
    up = ConvTranspose1d(64, 256, 128, 128, 4, 2, 1)
    yield Problem(p, "UNet1D up", up)
    for name in ("fcn", "inception", "resnet", "mlp"):
        network = Network(name, 64, 1, 512)
        yield Problem(p, name, network, torch.float32, ("forward", "full"))


def _level1(suite: str) -> Iterator[Problem]:
    """KernelBench level 1: one-dimensional convolutions in float32, forward."""
    for number, operation in (
        (67, Conv1d(32, 64, 131072, 128, 3, bias=False)),
        (76, Conv1d(64, 64, 524280, 128, 3, 3, 0, 4, bias=False)),
        (64, ConvTranspose1d(64, 128, 65536, 128, 3, bias=False)),
        (74, ConvTranspose1d(32, 32, 131072, 64, 5, 1, 0, 3, bias=False)),
        (79, ConvTranspose1d(16, 32, 131072, 64, 3, 2, 1, 2, bias=False)),
    ):
        yield Problem(
            suite, f"KernelBench 1/{number}", operation, torch.float32, passes=("forward",)
        )


def _kernelbench() -> Iterator[Problem]:
    """KernelBench (arXiv:2502.10517): its one-dimensional convolutions, and linear layers with
    elementwise operations behind them; float32, forward. Inputs here are normally distributed."""
    p = "kernelbench"
    yield from _level1(p)
    for number, then, m, size in (
        (76, "add-relu", 1024, 8192),
        (86, "divide-gelu", 1024, 8192),
        (63, "relu-divide", 1024, 8192),
        (9, "subtract-multiply-relu", 1024, 8192),
        (59, "silu-scale", 128, 32768),
        (81, "silu-divide-clamp-tanh-clamp", 1024, 8192),
        (95, "add-silu-tanh-gelu-hardtanh", 1024, 8192),
        (40, "scale-residual", 16384, 4096),
        (53, "scale-hardtanh-gelu", 2048, 8192),
        (70, "sigmoid-scale-residual", 1024, 8192),
        (12, "multiply-leaky_relu", 1024, 8192),
        (29, "mish-mish", 1024, 8192),
        (68, "minimum-subtract", 128, 16384),
    ):
        chain = LinearChain(m, size, size, then=then)
        yield Problem(p, f"KernelBench 2/{number}", chain, torch.float32, passes=("forward",))


def _sweep() -> Iterator[Problem]:
    """Squares and tall matrices, and convolutions over channels."""
    p = "sweep"
    for size in (4096, 8192, 2048, 1024, 16384, 512):
        square = Linear(size, size, size, activation="gelu")
        yield Problem(p, f"square {size}", square, passes=("forward",))
    for m in (65536, 16384, 262144, 4096, 1024):
        tall = Linear(m, 1024, 1024, activation="gelu")
        yield Problem(p, f"tall {m}", tall, passes=("forward",))
    for channels in (256, 64, 512, 128, 32):
        conv = Conv1d(16, channels, 16384, channels, 3, padding="same", activation="gelu")
        yield Problem(p, f"conv1d {channels} channels", conv, passes=("forward",))


def _gelu(operation: Any) -> Any:
    return dataclasses.replace(operation, activation="gelu")


SUITES: dict[str, Callable[[], Iterator[Problem]]] = {
    "goals": _goals,
    "kernelbench": _kernelbench,
    "models": _models,
    "sweep": _sweep,
}
