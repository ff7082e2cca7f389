"""The list of breaks keeps up with the code: each still stands where it says, and so do its tests."""

from pathlib import Path

import pytest

from tests.mutants.breaks import BREAKS
from tests.mutants.broken import Break

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_a_break_still_applies(broken: Break):
    text = (ROOT / broken.file).read_text()
    assert broken.apply(text) != text
    for test in broken.tests:
        assert (ROOT / test.split("::")[0]).exists(), test


def test_names_are_unique_and_there_are_enough():
    assert len({broken.name for broken in BREAKS}) == len(BREAKS) >= 40
