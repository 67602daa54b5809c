"""Where kernels run in the tests, and how thoroughly.

There are three ways: on a GPU where there is one, in Triton's interpreter where there is none, and
under ``python -m ttsem.sanitize pytest``, which pretends a GPU, executes what the compiler makes
of the kernels on the CPU and fails a test whose kernel leaves its tensors or races.
"""

from __future__ import annotations

import signal
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch

from tests import EMULATED
from tests.interpreter import quicken
from tlazy_kernels.environment import INTERPRETED

try:
    import hypothesis
except ModuleNotFoundError:
    # A GPU machine has torch, triton and pytest: there the tests that search are skipped, alone.
    hypothesis = stand_in = ModuleType("hypothesis")  # type: ignore[assignment]
    skip = pytest.mark.skip(reason="hypothesis is not installed")
    stand_in.given = lambda *args, **named: skip  # type: ignore[attr-defined]
    stand_in.__spec__ = ModuleSpec("hypothesis", None)  # torch's compiler asks every module for it
    stand_in.__getattr__ = lambda name: MagicMock()  # type: ignore[method-assign]
    stand_in.strategies = MagicMock()  # type: ignore[attr-defined]
    sys.modules |= {"hypothesis": stand_in, "hypothesis.strategies": stand_in.strategies}

if INTERPRETED:
    quicken()

# Ctrl-C ends a program in the foreground of a shell, where tests that raise it want to be.
signal.signal(signal.SIGINT, signal.default_int_handler)

for profile, examples in (("default", 6 if EMULATED else 20), ("thorough", 1000)):
    hypothesis.settings.register_profile(
        profile, max_examples=examples, derandomize=profile == "default", deadline=None
    )
hypothesis.settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    if "thorough" in config.option.markexpr:
        hypothesis.settings.load_profile("thorough")
    config.addinivalue_line("markers", "thorough: takes minutes; runs only with -m thorough")
    config.addinivalue_line("markers", "emulated: needs ttsem, which pretends the GPU")
    # Overflow and NaN are tested on purpose; the interpreter's numpy warns of them.
    for module in ("triton.runtime.interpreter", "numpy"):
        config.addinivalue_line("filterwarnings", f"ignore::RuntimeWarning:{module}")
    config.addinivalue_line("markers", "compiles: compiles offline, where the kernels are not run")
    if getattr(config.option, "dist", None) == "load":  # of pytest -n: what tests of a file share
        config.option.dist = "loadfile"  # is made in one process,
        config.option.loadscopereorder = False  # and long files are not left to the end


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _is_left_out(item, config.option.markexpr)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _is_left_out(item: pytest.Item, selected: str) -> bool:
    if item.get_closest_marker("thorough") and "thorough" not in selected:
        return True
    return item.get_closest_marker("compiles" if EMULATED else "emulated") is not None


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: "cuda" on a GPU and under ttsem, else "cpu", in the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def gpu(monkeypatch):
    """Pretended; whoever only times calls uses its clocks."""
    from tests.fake_gpu import FakeGPU
    from tlazy.bench import timing

    gpu = FakeGPU()
    gpu.install(monkeypatch)
    timing._stream.cache_clear()
    yield gpu
    timing._stream.cache_clear()
