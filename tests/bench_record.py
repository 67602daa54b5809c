"""Made-up records of `tlazy bench`, for tests of what shows them."""

from __future__ import annotations

from typing import Any

H200 = "NVIDIA H200"


def row(peer: str = "tlazy", median: float | None = 100.0, **changes: Any) -> dict[str, Any]:
    """A row with a time of `median` microseconds, or of another status without one."""
    timed = median is not None
    made = {
        "suite": "goals",
        "op": "conv1d",
        "problem": "wav2vec2 layer 0",
        "shape": {"batch": 32, "in": 1, "length": 160000, "out": 512, "kernel": 10, "stride": 5},
        "dtype": "bfloat16",
        "pass": "forward",
        "activation": "gelu",
        "layout": "ncl",
        "peer": peer,
        "backend": "triton" if peer == "tlazy" else "aten",
        "status": "ok" if timed else "failed",
        "note": "",
        "error": 1e-3 if timed else None,
        "median_us": median,
        "q20_us": median * 0.98 if timed else None,
        "q80_us": median * 1.03 if timed else None,
        "samples": 100 if timed else 0,
        "flops": 10_485_760_000,
        "bytes": 1_058_816_000,
        "tflops": 10_485.76 / median if timed else None,
        "gbps": 1_058_816 / median if timed else None,
        "floor_us": 246.0,
        "floor_fraction": 246.0 / median if timed else None,
        "peak_memory_bytes": 2**30 if timed else None,
    }
    return made | changes


def record(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A record of `rows`, complete and from an H200 where `changes` do not say otherwise."""
    made = {
        "format": 1,
        "command": "tlazy bench --suite goals",
        "started": "2026-11-23T05:00:00Z",
        "complete": True,
        "machine": {
            "device": H200,
            "kind": "cuda",
            "processor": "Intel Xeon",
            "cores": 16,
            "memory_bytes": 128 * 2**30,
        },
        "versions": {
            "python": "3.12.3",
            "tlazy": "0.1.0",
            "torch": "2.11.0",
            "triton": "3.6.0",
            "cuda": "12.8",
            "driver": None,
            "numpy": "2.3.1",
        },
        "ceilings": {"bandwidth": 4.3e12, "matmul": {"bfloat16": 785e12}},
        "rows": list(rows),
    }
    return made | changes


def cpu_record(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A record from a machine without a GPU."""
    made = record(*rows, ceilings={"bandwidth": None, "matmul": {}})
    made["machine"] |= {"device": "Intel Xeon", "kind": "cpu"}
    return made | changes
