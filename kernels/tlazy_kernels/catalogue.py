"""The launches that are looked at without a GPU: every kernel, at sizes that its users have.

The sizes are large, as where speed matters: on meta tensors they cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tlazy_kernels import (
    checks,
    conv1d,
    conv_transpose1d,
    depthwise,
    epilogue,
    linear,
    matmul,
    roofline,
)
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.roofline import Cost
from tlazy_kernels.targets import Target

# By the names that tables and options have for them: float32 in full, and where PyTorch's switches
# let its products round to tf32, as they do convolutions' by default.
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

# A tile that one warp group copies while another multiplies, of which the chooser picks none yet.
SPECIALIZED = TileConfig(128, 128, 64, num_warps=4, num_stages=3, specialized=True)


@dataclass(frozen=True)
class Case:
    """A call of a launcher, to be recorded, and what it must cost at least.

    Attributes:
        serves: whether the call is possible on a target.
    """

    name: str
    call: Callable[[], Any]
    least: Cost
    serves: Callable[[Target], bool] = lambda target: True


def switch_precision(name: str) -> torch.dtype:
    """The dtype of a name of DTYPES, and PyTorch's switches as that means them."""
    precision = "tf32" if name == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    return DTYPES[name]


def cases(dtype: torch.dtype) -> Iterator[Case]:
    """Every kernel at least once, with the tiles that it gets by itself. The first case of a kernel
    has its costliest epilogue.

    Dense and first layers' rows of samples are whole vectors of 16 bytes but no multiple of 16
    elements, which is all that Triton asks of a size by itself. Rows that no vector divides are
    copied once before a product that reads them often: those are not among these cases.
    """
    yield from _linear(dtype, rows=262_144, inputs=1024, outputs=1024, activation="gelu")
    # Rows of the output that no descriptor can have.
    pointers = _linear(dtype, 262_144, 1024, 1022, activation="gelu", tag=" by pointers")
    yield from _only("forward", pointers)
    if dtype.itemsize == 2:
        yield from _specialized(dtype)
    yield from _conv1d("conv1d", dtype, (64, 128, 32_760), (128, 128, 9), activation="gelu")
    # An odd length, whose last row of a stride is not whole.
    last: dict[str, Any] = {"channels_last": True, "tag": " channels last"}
    yield from _conv1d(
        "conv1d", dtype, (32, 512, 31_999), (512, 512, 3), stride=2, activation="gelu", **last
    )
    # Whole rows, of which one descriptor has those of both residues, and as many taps for each.
    even: dict[str, Any] = {"channels_last": True, "tag": " even channels last"}
    whole = list(
        _conv1d(
            "conv1d", dtype, (32, 512, 32_000), (512, 512, 4), stride=2, activation="gelu", **even
        )
    )
    yield from (*_only("forward", whole), *_only("grad_input", whole))
    # Groups that share a tile.
    small: dict[str, Any] = {"channels_last": True, "tag": " small groups channels last"}
    yield from _conv1d("conv1d", dtype, (32, 256, 8192), (256, 8, 3), activation="gelu", **small)
    # Too few taps and filters for a copy, samples that the stride takes apart: read by pointers.
    strided: dict[str, Any] = {"stride": 2, "activation": "gelu", "tag": " strided"}
    few = list(_conv1d("conv1d", dtype, (64, 64, 32_784), (64, 64, 3), **strided))
    yield from (*_only("forward", few), *_only("grad_weight", few))
    yield from _depthwise(dtype, activation="gelu")
    yield from _depthwise(dtype, activation="gelu", **last)
    yield from _only("grad", _conv1d("depthwise", dtype, (32, 2048, 4096), (2048, 1, 4), **strided))
    yield from _conv1d("depthwise_long", dtype, (32, 512, 8192), (512, 1, 31), activation="gelu")
    audio: dict[str, Any] = {"stride": 5, "activation": "gelu"}
    first = _conv1d("first_layer", dtype, (32, 1, 160_040), (512, 1, 10), **audio)
    yield from (case for case in first if "grad_input" not in case.name)
    yield _conv_transpose1d(dtype, (32, 256, 8192), (256, 128, 8), stride=4, activation="gelu")
    yield _epilogue(dtype, "gelu")
    yield _epilogue(dtype, "gelu", length=32_759, for_tiles=True)


def thorough_cases(dtype: torch.dtype) -> Iterator[Case]:
    """All activations, and other layouts and sizes."""
    yield from cases(dtype)
    for name in (None, *(a for a in checks.ACTIVATIONS if a != "gelu")):
        named: dict[str, Any] = {"activation": name, "tag": f" {name}"}
        yield from _only("forward", _linear(dtype, 131_072, 1024, 1024, **named))
        for noun, weight in (("conv1d", (2048, 32, 3)), ("depthwise", (2048, 1, 4))):
            yield from _only("forward", _conv1d(noun, dtype, (32, 2048, 4096), weight, **named))
        yield _epilogue(dtype, name)
    # No multiple of 16 samples: each row's address is its own, and full tiles need most registers.
    odd: dict[str, Any] = {"activation": "gelu", "tag": " full odd"}
    yield from _conv1d("conv1d", dtype, (32, 128, 32_761), (128, 128, 9), **odd)
    yield from _linear(dtype, rows=8, inputs=1000, outputs=10, activation=None, tag=" small")
    yield from _conv1d(
        "conv1d", dtype, (32, 100, 1021), (60, 25, 3), stride=2, activation="relu", tag=" odd"
    )
    long: dict[str, Any] = {"channels_last": True, "tag": " long channels last"}
    yield from _conv1d("depthwise", dtype, (32, 512, 8192), (512, 1, 31), activation="gelu", **long)
    yield from _conv1d(
        "depthwise", dtype, (32, 33, 1021), (66, 1, 31), stride=2, activation="relu", tag=" odd"
    )


def _only(part: str, found: Iterable[Case]) -> Iterator[Case]:
    return (case for case in found if part in case.name)


def _linear(
    dtype: torch.dtype,
    rows: int,
    inputs: int,
    outputs: int,
    *,
    activation: str | None,
    config: TileConfig | None = None,
    tag: str = "",
) -> Iterator[Case]:
    x, weight, bias, grad = (
        _meta(*shape, dtype=dtype)
        for shape in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    )
    sizes = (rows, outputs, inputs, dtype)
    yield Case(
        f"linear_forward{tag}",
        lambda: linear.linear_forward(
            x, weight, bias, activation=activation, save_preactivation=True, config=config
        ),
        roofline.linear_forward(*sizes, bias=True, save_preactivation=True),
    )
    yield Case(
        f"linear_grad_input{tag}",
        lambda: linear.linear_grad_input(grad, weight, config=config),
        roofline.linear_grad_input(*sizes),
    )
    yield Case(
        f"linear_grad_weight{tag}",
        lambda: linear.linear_grad_weight(grad, x, config=config),
        roofline.linear_grad_weight(*sizes),
    )


def _specialized(dtype: torch.dtype) -> Iterator[Case]:
    tile: dict[str, Any] = {"activation": "gelu", "config": SPECIALIZED, "tag": " specialized"}
    for case in _only("forward", _linear(dtype, 262_144, 1024, 1024, **tile)):
        yield replace(case, serves=lambda target: matmul.specializes(target, SPECIALIZED))


def _conv1d(
    noun: str,
    dtype: torch.dtype,
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    *,
    activation: str | None,
    stride: int = 1,
    channels_last: bool = False,
    config: TileConfig | None = None,
    tag: str = "",
) -> Iterator[Case]:
    """The three passes of a convolution whose output, at stride 1, is as long as its input."""
    taps, groups, length = weight_shape[2], x_shape[1] // weight_shape[1], x_shape[2]
    settings = (stride, ((taps - 1) // 2, taps // 2), 1, groups)
    x, weight = (_meta(*shape, dtype=dtype) for shape in (x_shape, weight_shape))
    bias = _meta(weight_shape[0], dtype=dtype)
    shape = checks.conv1d_shape(x, weight, bias, *settings, activation)
    grad = _meta(*shape, dtype=dtype)
    if channels_last:
        x, grad = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, grad))
    costs: dict[str, Any] = {"dtype": dtype, "out_length": shape[2]}
    yield Case(
        f"{noun}_forward{tag}",
        lambda: conv1d.conv1d_forward(
            x,
            weight,
            bias,
            *settings,
            activation=activation,
            save_preactivation=True,
            config=config,
        ),
        roofline.conv1d_forward(x_shape, weight_shape, **costs, bias=True, save_preactivation=True),
    )
    yield Case(
        f"{noun}_grad_input{tag}",
        lambda: conv1d.conv1d_grad_input(grad, weight, length, *settings, config=config),
        roofline.conv1d_grad_input(x_shape, weight_shape, **costs),
    )
    yield Case(
        f"{noun}_grad_weight{tag}",
        lambda: conv1d.conv1d_grad_weight(grad, x, taps, *settings, config=config),
        roofline.conv1d_grad_weight(x_shape, weight_shape, **costs),
    )


def _depthwise(
    dtype: torch.dtype, *, activation: str | None, channels_last: bool = False, tag: str = ""
) -> Iterator[Case]:
    """All gradients of a short causal filter in one pass, and its passes one by one."""
    shape, weight_shape = (32, 2048, 4096), (2048, 1, 4)
    settings: dict[str, Any] = {"channels_last": channels_last, "tag": tag}
    x, weight = _meta(*shape, dtype=dtype), _meta(*weight_shape, dtype=dtype)
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    sizes = (shape[2], weight_shape[2], 1, (3, 0), 1, shape[1])
    yield Case(
        f"depthwise_backward{tag}",
        lambda: depthwise.depthwise_backward(x, x, x, weight, *sizes, activation=activation),
        roofline.depthwise_backward(
            shape, weight_shape, dtype, out_length=shape[2], activation=activation is not None
        ),
    )
    yield from _conv1d("depthwise", dtype, shape, weight_shape, activation=activation, **settings)


def _conv_transpose1d(
    dtype: torch.dtype,
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    *,
    stride: int,
    activation: str | None,
    tag: str = "",
) -> Case:
    """One that makes its input `stride` times as long; its gradients are conv1d's launches."""
    x, weight, bias = (_meta(*s, dtype=dtype) for s in (x_shape, weight_shape, weight_shape[1:2]))
    settings = (stride, (weight_shape[2] - stride) // 2, 0, 1, 1)
    shape = checks.conv_transpose1d_shape(x, weight, bias, *settings, activation)
    return Case(
        f"conv_transpose1d_forward{tag}",
        lambda: conv_transpose1d.conv_transpose1d_forward(
            x, weight, bias, *settings, activation=activation, save_preactivation=True
        ),
        roofline.conv_transpose1d_forward(
            x_shape,
            weight_shape,
            dtype,
            groups=1,
            out_length=shape[2],
            bias=True,
            save_preactivation=True,
        ),
    )


def _epilogue(
    dtype: torch.dtype, activation: str | None, length: int = 32_760, *, for_tiles: bool = False
) -> Case:
    shape = (32, 128, length)
    grad = _meta(*shape, dtype=dtype)
    saved = grad if activation else None
    return Case(
        f"epilogue_backward {activation}" + " for tiles odd" * for_tiles,
        lambda: epilogue.epilogue_backward(grad, saved, activation, True, for_tiles),
        roofline.epilogue_backward(shape, dtype, activation=activation is not None),
    )


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
