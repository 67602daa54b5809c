"""Chooses how kernels run in the tests, before anything imports them.

Triton reads ``TRITON_INTERPRET`` when ``@triton.jit`` decorates, so it has to be set here: only
where there is no GPU. Under ``python -m ttsem.sanitize pytest`` a GPU is pretended and the kernels
are compiled, so the interpreter stays off there too.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
