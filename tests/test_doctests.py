"""The examples in the docstrings run and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import tlazy
import tlazy_kernels

MODULES = [
    info.name
    for package in (tlazy, tlazy_kernels)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not info.name.endswith("__main__")
]


def run_examples(name: str) -> doctest.TestResults:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in ("matplotlib", "jinja2", "sktime"):
            pytest.skip(f"{name} needs {error.name}, which an extra brings")
        raise
    return doctest.testmod(module)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    assert run_examples(name).failed == 0


def test_the_public_names_have_examples():
    names = ("tlazy.dispatch", "tlazy.nn.functional", "tlazy.nn.linear", "tlazy.nn.conv")
    assert all(run_examples(name).attempted for name in names)
