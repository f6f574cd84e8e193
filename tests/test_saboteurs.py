"""Saboteurs still fit the code that they spoil; `python -m tests.saboteurs` shows that each is caught."""

import ast
import re

import pytest
from conftest import ROOT
from saboteurs import Patch, patches

PATCHES = patches()
TESTS = ROOT / "tests"
CASES = "".join(file.read_text() for file in sorted((TESTS / "malformed").glob("*.yaml")))
"""Their names are parameters of tests."""


def test_there_are_enough_and_each_has_a_name_of_its_own():
    assert len({patch.name for patch in PATCHES}) == len(PATCHES) >= 60
    assert len({patch.removes for patch in PATCHES}) == len(PATCHES)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_a_saboteur_changes_its_file_and_names_tests_that_are_there(patch: Patch):
    source = (ROOT / patch.file).read_text()
    spoilt = patch.applied(source)
    assert spoilt != source
    if patch.file.endswith(".py"):
        assert ast.dump(ast.parse(spoilt)) != ast.dump(ast.parse(source)), "more than spaces and comments"
    assert patch.tests
    for test in patch.tests:
        found = re.fullmatch(r"(test_\w+\.py)::(test_\w+)(?:\[(.+)\])?", test)
        assert found is not None, test
        file, name, case = found.groups()
        text = (TESTS / file).read_text()
        assert f"\ndef {name}(" in text, test
        assert case is None or f'"{case}"' in text or f"name: {case}," in CASES, test
