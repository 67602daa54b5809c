"""The analytic floors: against counts by hand, and against published networks' layers."""

import pytest
import torch

from tlazy_kernels import checks, roofline
from tlazy_kernels.roofline import DEVICES, Cost, Device, datasheet

# An H200 as measured (a large copy; a large cuBLAS product), not as on its datasheet.
MEASURED = Device("measured", 4.3e12, {"bfloat16": 790e12, "tf32": 395e12}, "copy and cuBLAS")


def conv(batch, channels, filters, taps, length, *, stride=1, padding=(0, 0), dilation=1, groups=1):
    x = torch.empty(batch, channels, length, device="meta")
    weight = torch.empty(filters, channels // groups, taps, device="meta")
    shape = checks.conv1d_shape(x, weight, None, stride, padding, dilation, groups, None)
    return roofline.conv1d_forward(x.shape, weight.shape, torch.bfloat16, out_length=shape[2])


@pytest.mark.parametrize(
    ("cost", "microseconds"),
    [
        pytest.param(conv(32, 1, 512, 10, 160000, stride=5), 246, id="wav2vec2 layer 0"),
        pytest.param(conv(32, 512, 512, 3, 31999, stride=2), 1019, id="wav2vec2 layer 1"),
        pytest.param(conv(16, 128, 1280, 3, 3000, padding=(1, 1)), 60, id="Whisper layer 0"),
        pytest.param(conv(16, 1280, 1280, 3, 3000, padding=(1, 1), stride=2), 299, id="Whisper 1"),
        pytest.param(conv(256, 128, 256, 5, 512, padding=(2, 2)), 54, id="FCN layer 1"),
        pytest.param(
            conv(8, 4096, 4096, 4, 4096, padding=(3, 0), groups=4096), 125, id="Mamba depthwise"
        ),
    ],
)
def test_floor_of_a_known_layer_is_what_was_worked_out_elsewhere(cost, microseconds):
    assert cost.floor(MEASURED, "bfloat16") * 1e6 == pytest.approx(microseconds, rel=0.01)


@pytest.mark.parametrize(
    ("shape", "filters", "taps", "settings", "milliseconds"),
    [
        pytest.param((32, 32, 131072), 64, 5, (1, 0, 0, 3, 1), 0.375, id="KernelBench 1/74"),
        pytest.param((16, 32, 131072), 64, 3, (2, 1, 0, 2, 1), 0.312, id="KernelBench 1/79"),
    ],
)
def test_floor_of_a_transposed_convolution_is_what_was_worked_out_elsewhere(
    shape, filters, taps, settings, milliseconds
):
    x = torch.empty(shape, device="meta")
    weight = torch.empty(shape[1], filters, taps, device="meta")
    out = checks.conv_transpose1d_shape(x, weight, None, *settings, None)
    cost = roofline.conv_transpose1d_forward(
        shape, weight.shape, torch.float32, groups=1, out_length=out[2]
    )
    assert cost.floor(MEASURED, "tf32") * 1e3 == pytest.approx(milliseconds, rel=0.01)


def test_a_transposed_convolution_costs_what_its_adjoints_input_gradient_costs():
    x, weight, samples = (2, 6, 11), (6, 4, 3), 23
    cost = roofline.conv_transpose1d_forward(x, weight, torch.float16, groups=2, out_length=samples)
    assert cost == roofline.conv1d_grad_input((2, 8, samples), weight, torch.float16, out_length=11)


def test_floor_is_the_longer_of_arithmetic_and_traffic():
    device = Device("d", bandwidth=10.0, rates={"float16": 100.0}, source="made up")
    assert Cost(flops=1000, bytes=20).floor(device, "float16") == 10
    assert Cost(flops=100, bytes=200).floor(device, "float16") == 20


def test_linear_gradients_cost_as_much_arithmetic_as_the_forward():
    forward = roofline.linear_forward(5, 7, 11, torch.float32)
    assert roofline.linear_grad_input(5, 7, 11, torch.float32) == forward
    assert roofline.linear_grad_weight(5, 7, 11, torch.float32) == forward
    assert forward == Cost(2 * 5 * 7 * 11, 4 * (5 * 11 + 7 * 11 + 5 * 7))


def test_bias_and_preactivation_add_their_bytes():
    plain = roofline.linear_forward(5, 7, 11, torch.float16)
    whole = roofline.linear_forward(5, 7, 11, torch.float16, bias=True, save_preactivation=True)
    assert whole.bytes - plain.bytes == 2 * (7 + 5 * 7)


def test_samples_that_the_stride_skips_are_not_read():
    dense = conv(1, 1, 1, 2, 1000, stride=2)
    skipping = conv(1, 1, 1, 2, 1000, stride=10)
    assert dense.bytes == 2 * (1000 + 2 + 500)
    assert skipping.bytes == 2 * (200 + 2 + 100)


def test_every_device_has_a_source_and_rates_in_the_physical_order():
    assert {"H200", "H100", "A100", "L4", "MI300X"} <= set(DEVICES)
    for name, device in DEVICES.items():
        assert device.name == name
        assert device.source
        rates = device.rates
        assert rates["bfloat16"] >= rates["tf32"] >= rates["float32"]
        assert 1e11 < device.bandwidth < 1e13


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_device_is_found_by_what_torch_calls_it(name, known):
    assert datasheet(name) is DEVICES[known]


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA L40S",
        "NVIDIA H100 PCIe",
        "NVIDIA H200 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "Intel(R) Xeon(R) CPU, 2 threads",
        "",
    ],
)
def test_no_datasheet_is_guessed_for_a_namesake(name):
    assert datasheet(name) is None
