"""The published networks that `tlazy train` offers, built from lazy layers only.

Each builder takes the number of classes, nothing else: channels and length come from the data.
Input has shape (N, C, L), output is logits of shape (N, classes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tlazy import nn


def fcn(classes: int) -> nn.Module:
    """The fully convolutional network of Wang et al. 2017 (arXiv:1611.06455).

    Convolutions of 128, 256 and 128 channels with kernels of 8, 5 and 3 steps, each followed by
    batch norm and ReLU, then the mean over time and a linear layer.

    Shape: (N, C, L) to (N, classes), any L.
    """
    return nn.Sequential(
        *_conv_norm_relu(128, 8),
        *_conv_norm_relu(256, 5),
        *_conv_norm_relu(128, 3),
        *_head(classes),
    )


def resnet(classes: int) -> nn.Module:
    """The residual network of Wang et al. 2017 (arXiv:1611.06455).

    Three residual blocks of 64, 128 and 128 channels, each of three convolutions with kernels of
    8, 5 and 3 steps, then the mean over time and a linear layer.

    Shape: (N, C, L) to (N, classes), any L.
    """
    blocks = [
        Residual(
            nn.Sequential(
                *_conv_norm_relu(channels, 8),
                *_conv_norm_relu(channels, 5),
                nn.LazyConv1d(channels, 3, padding="same"),
                torch.nn.LazyBatchNorm1d(),
            ),
            channels,
        )
        for channels in (64, 128, 128)
    ]
    return nn.Sequential(*blocks, *_head(classes))


def inception(classes: int) -> nn.Module:
    """One network of InceptionTime, Fawaz et al. 2019 (arXiv:1909.04939), which averages five.

    Six inception modules of 4 x 32 channels with kernels of 40, 20 and 10 steps, a residual
    connection around every three of them, then the mean over time and a linear layer. The
    bottleneck is there for one input channel too, where the authors' code leaves it out.

    Shape: (N, C, L) to (N, classes), any L.
    """
    blocks = [
        Residual(nn.Sequential(Inception(), Inception(), Inception(relu=False)), 4 * 32)
        for _ in range(2)
    ]
    return nn.Sequential(*blocks, *_head(classes))


def mlp(classes: int) -> nn.Module:
    """The multilayer perceptron of Wang et al. 2017 (arXiv:1611.06455).

    Three layers of 500 units with ReLU; dropout of 0.1 on the input, 0.2 and 0.2 between them and
    0.3 before the last linear layer.

    Shape: (N, C, L) to (N, classes), for the one L that the first call brings.
    """
    return nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Dropout(0.1),
        nn.LazyLinear(500, activation="relu"),
        torch.nn.Dropout(0.2),
        nn.LazyLinear(500, activation="relu"),
        torch.nn.Dropout(0.2),
        nn.LazyLinear(500, activation="relu"),
        torch.nn.Dropout(0.3),
        nn.LazyLinear(classes),
    )


class Residual(nn.Module):
    """``relu(body(x) + norm(conv(x)))`` with a pointwise convolution as the shortcut.

    Args:
        body: a module from (N, C, L) to (N, channels, L).
        channels: what `body` puts out.
    """

    def __init__(self, body: torch.nn.Module, channels: int) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Sequential(
            nn.LazyConv1d(channels, 1, bias=False), torch.nn.LazyBatchNorm1d()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Inception(nn.Module):
    """Three long convolutions behind a bottleneck, and a pooled pointwise one, side by side.

    Args:
        channels: of each of the four branches, and of the bottleneck.
        relu: whether a ReLU follows the batch norm; a residual block adds the shortcut first.

    Shape: (N, C, L) to (N, 4 * channels, L).
    """

    def __init__(self, channels: int = 32, *, relu: bool = True) -> None:
        super().__init__()
        self.bottleneck = nn.LazyConv1d(channels, 1, bias=False)
        self.long = torch.nn.ModuleList(
            nn.LazyConv1d(channels, kernel, padding="same", bias=False) for kernel in (40, 20, 10)
        )
        self.pooled = nn.Sequential(
            torch.nn.MaxPool1d(3, stride=1, padding=1), nn.LazyConv1d(channels, 1, bias=False)
        )
        self.norm = torch.nn.LazyBatchNorm1d()
        self.relu = torch.nn.ReLU() if relu else torch.nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.bottleneck(x)
        branches = [conv(narrow) for conv in self.long] + [self.pooled(x)]
        return self.relu(self.norm(torch.cat(branches, dim=1)))


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "fcn": fcn,
    "resnet": resnet,
    "inception": inception,
    "mlp": mlp,
}


def _conv_norm_relu(channels: int, kernel: int) -> list[torch.nn.Module]:
    return [
        nn.LazyConv1d(channels, kernel, padding="same"),
        torch.nn.LazyBatchNorm1d(),
        torch.nn.ReLU(),
    ]


def _head(classes: int) -> list[torch.nn.Module]:
    return [torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), nn.LazyLinear(classes)]
