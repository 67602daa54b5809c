"""Keeps the registers that every case of the catalogue has with the installed version of Triton.

Run after a change of the kernels that is worth more registers, once with each version that has
baselines: ``python -m tests.tlazy_kernels.baselines``.
"""

from __future__ import annotations

import json

import triton

from tests.tlazy_kernels.gates import BASELINES
from tests.tlazy_kernels.subprocesses import BRIEF, WHOLE, inspected


def main() -> None:
    kept = json.loads(BASELINES.read_text()) if BASELINES.exists() else {}
    version = ".".join(triton.__version__.split(".")[:2])
    rows = [*inspected(WHOLE), *inspected(BRIEF)]
    kept[version] = {" ".join(row.key): row.registers for row in rows}
    BASELINES.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
