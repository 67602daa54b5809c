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


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_examples_are_there():
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(doctest.testmod(module).attempted for module in modules) > 20
