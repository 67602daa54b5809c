"""Chooses how kernels run in the tests, before anything imports them.

Triton reads ``TRITON_INTERPRET`` when ``@triton.jit`` decorates, so it has to be set here: only
where there is no GPU. Under ``python -m ttsem.sanitize pytest`` a GPU is pretended and the kernels
are compiled, so the interpreter stays off there too.

Of ``pytest -n 2`` each process takes its share of the cores: threads that wait for one of another
process's cost several times what they save. OpenMP reads its variable when torch is imported.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    share = max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
