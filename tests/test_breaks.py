"""The breaks of `make mutants` fit the code as it is: one that does not would stop a run of an hour."""

from pathlib import Path

import pytest

from tests.mutants.breaks import BREAKS

ROOT = Path(__file__).parents[1]


def test_each_has_a_name_of_its_own():
    assert len({broken.name for broken in BREAKS}) == len(BREAKS)


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_it_applies_and_its_tests_are_there(broken):
    assert broken.apply((ROOT / broken.file).read_text())
    for test in broken.tests:
        path, _, name = test.partition("::")
        assert name.partition("[")[0] in ((ROOT / path).read_text() if name else "")
        assert (ROOT / path).exists()
