"""Tests of both packages."""

import sys

# Under ``python -m ttsem.sanitize pytest``, where the GPU is pretended.
EMULATED = "ttsem" in sys.modules
