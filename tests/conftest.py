"""Where kernels run in the tests, and how thoroughly.

There are three ways: on a GPU where there is one, in Triton's interpreter where there is none, and
under ``python -m ttsem.sanitize pytest``, which pretends a GPU, executes what the compiler makes
of the kernels on the CPU and fails a test whose kernel leaves its tensors or races.
"""

from __future__ import annotations

import pytest
import torch

from tests import EMULATED


def pytest_configure(config: pytest.Config) -> None:
    _configure_hypothesis("thorough" if "thorough" in config.option.markexpr else "default")
    config.addinivalue_line("markers", "thorough: takes minutes; runs only with -m thorough")
    config.addinivalue_line("markers", "emulated: needs ttsem, which pretends the GPU")
    # Overflow and NaN are tested on purpose; the interpreter's numpy warns of them.
    for module in ("triton.runtime.interpreter", "numpy"):
        config.addinivalue_line("filterwarnings", f"ignore::RuntimeWarning:{module}")
    config.addinivalue_line("markers", "compiles: compiles offline, where the kernels are not run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _is_left_out(item, config.option.markexpr)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _is_left_out(item: pytest.Item, selected: str) -> bool:
    if item.get_closest_marker("thorough") and "thorough" not in selected:
        return True
    return item.get_closest_marker("compiles" if EMULATED else "emulated") is not None


def _configure_hypothesis(profile: str) -> None:
    """Where it is not installed, its tests say so and are skipped."""
    try:
        import hypothesis
    except ImportError:
        return
    examples = 6 if EMULATED else 20
    hypothesis.settings.register_profile(
        "default", max_examples=examples, derandomize=True, deadline=None
    )
    hypothesis.settings.register_profile("thorough", max_examples=1000, deadline=None)
    hypothesis.settings.load_profile(profile)


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: "cuda" on a GPU and under ttsem, else "cpu", in the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"
