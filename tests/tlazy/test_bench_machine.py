"""What a device is called, and the floors that its datasheet gives."""

import pytest
import torch

from tlazy import run
from tlazy.bench import machine
from tlazy.bench.machine import Ceilings
from tlazy_kernels.roofline import DEVICES, Cost

COST = Cost(flops=10**12, bytes=10**9)


@pytest.mark.parametrize("name", ["NVIDIA L40S", "NVIDIA H100 PCIe", "NVIDIA GH200 480GB"])
def test_a_namesake_of_a_known_device_has_no_floor(name):
    assert Ceilings().floor(COST, "bfloat16", name) is None


def test_a_precision_without_a_rate_has_no_floor():
    assert Ceilings().floor(COST, "float64", "NVIDIA H200") is None
    assert Ceilings().floor(COST, "tf32", "NVIDIA H200") == COST.floor(DEVICES["H200"], "tf32")


def test_a_run_and_a_record_name_device_and_versions_alike():
    cpu = torch.device("cpu")
    plot = pytest.importorskip("tlazy.plot", reason="needs matplotlib")
    assert machine.machine(cpu)["device"] == plot.device_name(cpu) == machine.device_name(cpu)
    assert run.versions().items() <= machine.versions().items()
    assert {"torch", "numpy"} <= set(run.versions())
