"""The list of ``mutants.py`` is kept up with the kernels; that each is caught, it says itself."""

import ast
from pathlib import Path

import pytest

from tests.mutations import MUTANTS, mutated

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_changes_one_place_of_a_kernel_and_has_tests(mutant):
    text = (ROOT / mutant.path).read_text()
    ast.parse(mutated(mutant, text))
    assert (ROOT / mutant.tests).is_file()


def test_every_file_with_a_kernel_has_a_mutant():
    files = (ROOT / "kernels/tlazy_kernels").glob("*.py")
    kernels = {path.stem for path in files if "_kernel(\n" in path.read_text()}
    assert kernels <= {mutant.file for mutant in MUTANTS}
