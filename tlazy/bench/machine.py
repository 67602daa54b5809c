"""What was measured on: the machine, its versions, and its two measured ceilings."""

from __future__ import annotations

import importlib
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tlazy
from tlazy.bench.timing import Timer, own_stream, timer_for
from tlazy.errors import counted
from tlazy_kernels.environment import cores
from tlazy_kernels.roofline import Cost, Device, Precision, datasheet

COPIED_BYTES = {"cuda": 2**31, "cpu": 2**27}
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}
SECONDS_EACH = 0.5


@dataclass
class Ceilings:
    """The most that a device was seen to do.

    Attributes:
        bandwidth: bytes per second of a large copy, read and written; None where not measured.
        matmul: FLOP/s of a large matrix product on random data, by precision.
    """

    bandwidth: float | None = None
    matmul: dict[str, float | None] = field(default_factory=dict)

    def floor(self, cost: Cost, precision: Precision, device_name: str) -> float | None:
        """The least seconds for `cost`: by what was measured, else by the device's datasheet."""
        rates = {name: rate for name, rate in self.matmul.items() if rate}
        # Three tf32 products make one of float32's accuracy, on units that a plain one may leave
        # idle: the faster of the two ways bounds both.
        if precision == "float32" and "tf32" in rates:
            rates["float32"] = max(rates.get("float32", 0.0), rates["tf32"] / 3)
        if self.bandwidth and precision in rates:
            rate = rates[precision]
            measured = Device(device_name, self.bandwidth, {precision: rate}, "measured here")
            return cost.floor(measured, precision)
        known = datasheet(device_name)
        return cost.floor(known, precision) if known and precision in known.rates else None


def precision_of(dtype: torch.dtype, device: torch.device, op: str) -> Precision:
    """What float32 means for `op` here by PyTorch's switches; other dtypes are themselves."""
    name: Any = str(dtype).removeprefix("torch.")
    if dtype is not torch.float32 or device.type != "cuda":
        return name
    backends: Any = torch.backends
    switch = backends.cuda.matmul if op == "linear" else backends.cudnn.conv
    return "tf32" if switch.fp32_precision == "tf32" else "float32"


@contextmanager
def float32(switch: Any, precision: str | None) -> Iterator[None]:
    """Set one of PyTorch's switches of float32's precision; None leaves it as it is."""
    before = switch.fp32_precision
    switch.fp32_precision = precision or before
    try:
        yield
    finally:
        switch.fp32_precision = before


@contextmanager
def full_float32(wanted: bool = True) -> Iterator[None]:
    """Where `wanted`, neither products nor convolutions of float32 may round to tf32."""
    backends: Any = torch.backends
    precision = "ieee" if wanted else None
    with float32(backends.cuda.matmul, precision), float32(backends.cudnn.conv, precision):
        yield


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Have ATen's own kernels compute. ``cudnn.flags`` raises where `full_float32` holds."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def measure_ceilings(
    device: torch.device, precisions: Iterable[Precision], timer: Timer | None = None
) -> Ceilings:
    """Measure a large copy, and a large matrix product in each of `precisions`.

    What the device cannot do (too little memory, an unknown dtype) stays None.
    """
    timer = timer or timer_for(device)
    wanted = set(precisions)
    if device.type == "cuda" and "float32" in wanted:
        wanted.add("tf32")
    with own_stream(device):
        ceilings = Ceilings(bandwidth=_or_none(partial(_copy_rate, device, timer)))
        for precision in sorted(wanted):
            ceilings.matmul[precision] = _or_none(partial(_matmul_rate, device, precision, timer))
    return ceilings


def _copy_rate(device: torch.device, timer: Timer) -> float:
    source = torch.empty(COPIED_BYTES[device.type] // 4, device=device).normal_()
    target = torch.empty_like(source)
    sample, _ = timer.prepare([lambda: target.copy_(source)])
    return 2 * source.nbytes / min(sample(SECONDS_EACH))


def _matmul_rate(device: torch.device, precision: Precision, timer: Timer) -> float:
    size = MATMUL_SIZE[device.type]
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    a, b = (torch.empty(size, size, device=device, dtype=dtype).normal_() for _ in range(2))
    how = "tf32" if precision == "tf32" else "ieee"
    with float32(torch.backends.cuda.matmul, how if device.type == "cuda" else None):
        sample, _ = timer.prepare([lambda: a @ b])
        return 2 * size**3 / min(sample(SECONDS_EACH))


def _or_none(measure: Any) -> float | None:
    try:
        rate = measure()
    except RuntimeError:
        return None
    return rate if math.isfinite(rate) and rate > 0 else None


def machine(device: torch.device) -> dict[str, Any]:
    """The device and its host, as a record holds them."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": device_name(device),
        "kind": device.type,
        "processor": processor(),
        "cores": cores(),
        "memory_bytes": memory,
    }


def device_name(device: torch.device) -> str:
    """The GPU's own name, or the processor's with the threads that torch may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()} CPU, {counted(torch.get_num_threads(), 'thread')}"


def processor() -> str:
    """The processor's own name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.+)$", text, re.M)
    return found.group(1).strip() if found else platform.machine()


def versions() -> dict[str, str | None]:
    """Versions of everything that computes; None for what is not there.

    ``"cuda"`` is what torch was built for, HIP on AMD.
    """
    return {
        "python": platform.python_version(),
        "tlazy": tlazy.__version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda or torch.version.hip,
        "driver": _driver(),
        "numpy": _version("numpy"),
    }


def _version(module: str) -> str | None:
    try:
        return str(importlib.import_module(module).__version__)
    except ImportError:
        return None


def _driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else None


def last_level_cache(device: torch.device) -> int:
    """Bytes of the last cache before memory; 32 MiB where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [2**20]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        units = {"K": 2**10, "M": 2**20}
        if text[:-1].isdigit() and text[-1] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes) if len(sizes) > 1 else 2**25
