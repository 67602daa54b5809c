"""Prints as JSON what each case of the catalogue declares to launch, move and compute, everywhere.

Nothing is compiled. Run as a program, where the interpreter is off:
``python -m tests.tlazy_kernels.declared``.
"""

from __future__ import annotations

import json

from tlazy_kernels.catalogue import DTYPES
from tlazy_kernels.inspect import named, recordings
from tlazy_kernels.targets import TARGETS


def main() -> None:
    found = [
        {
            "name": case.name,
            "target": target,
            "dtype": dtype,
            "launches": [name for name, _ in named(case, recording)],
            "flops": recording.flops,
            "bytes": recording.bytes,
            "least_flops": case.least.flops,
            "least_bytes": case.least.bytes,
        }
        for case, target, dtype, recording in recordings(list(TARGETS), list(DTYPES))
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
