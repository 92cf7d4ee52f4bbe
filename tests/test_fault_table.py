"""The table of faults must not promise a test that is not there."""

import ast
from functools import cache

import pytest

from tests.conftest import ROOT
from tests.fault_table import FAULTS, Fault, as_markdown

COUNTS = {"N": 23, "A": 28, "P": 14, "D": 14, "C": 8}


@cache
def names_in(module: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_fault_is_in_the_table_once():
    numbers = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
    assert sorted(fault.id for fault in FAULTS) == sorted(numbers)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_every_fault_has_tests_that_are_there(fault: Fault):
    assert fault.tests
    for test in fault.tests:
        module, _, name = test.partition("::")
        assert name in names_in(module), test


def test_the_table_for_people_is_the_same():
    assert as_markdown() in (ROOT / "CONTRIBUTING.md").read_text()
