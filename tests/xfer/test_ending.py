"""What `xfer fit` and `xfer train` say at the end."""

import pytest

from xfer.cli.ending import on_unseen_sources
from xfer.config import Recipe


@pytest.mark.parametrize(
    ("sources", "validation", "said"),
    [("ab", 0.1, False), ("abc", 0.1, True), ("abc", ["c"], False), ("abc", "leave_one_source_out", False)],
)
def test_what_choosing_by_unseen_sources_would_cost_is_said_where_nobody_asked_for_it(sources, validation, said):
    data = {"sources": {name: {"path": name} for name in sources}, "validation": validation}
    recipe = Recipe.model_validate({"data": data, "model": {"branches": {"main": {"backbone": "resnet18"}}}})
    text = on_unseen_sources(recipe)
    assert ("data.validation=leave_one_source_out" in text and "3 more runs" in text) == said
    assert bool(text) == said
