"""Configuration as its users meet it: every fault at once, each with its path."""

import pytest
from pydantic import Field

from shards.settings import ConfigError, Strict, dump, full_path, get, load, read_yaml, replace


class Source(Strict):
    weight: float = 1.0


class Inner(Strict):
    seed: int = 0
    sources: dict[str, Source] = Field(default_factory=dict)


class Middle(Strict):
    data: Inner = Inner()


class Outer(Strict):
    middle: Middle = Field(json_schema_extra={"document": True})
    workers: int = 1


@pytest.fixture
def file(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "middle.yaml").write_text("data: {seed: 3, sources: {a: {weight: 2}}}\n")
    path = tmp_path / "outer.yaml"
    path.write_text("middle: parts/middle.yaml\nworkers: 2\n")
    return path


def test_a_document_may_name_another_by_relative_path(file):
    assert load(file, Outer).middle.data.seed == 3


def test_overrides_reach_inner_documents_by_short_or_full_path(file):
    assert load(file, Outer, ["data.seed=4"]).middle.data.seed == 4
    assert load(file, Outer, ["middle.data.sources.a.weight=5", "workers=7"]).workers == 7
    assert full_path(Outer, "data.seed") == "middle.data.seed"
    assert get(load(file, Outer), "data.sources.a.weight") == 2


def test_every_fault_is_named_at_once(file):
    with pytest.raises(ConfigError) as caught:
        load(file, Outer, ["data.sed=1", "data.seed=x", "workers=many", "data.sources.a=3"])
    text = str(caught.value)
    assert len(caught.value.faults) == 4
    for part in ("did you mean 'seed'?", "'x'", "workers", "sources.a: expected a section"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "given twice"),
        ("- 1\n", "expected a mapping"),
        ("a: [1\n", "not a YAML file"),
        ("", "expected a mapping"),
    ],
)
def test_files_that_are_not_a_mapping_are_refused(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load(path, Outer)


def test_a_missing_file_suggests_its_neighbour(file):
    with pytest.raises(ConfigError, match=r"did you mean .*outer\.yaml"):
        load(file.with_name("outter.yaml"), Outer)


def test_dump_reads_back_equal(file, tmp_path):
    config = replace(load(file, Outer), {"data.sources.b": {"weight": 3}})
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(tmp_path / "again.yaml", Outer) == config


@pytest.mark.parametrize("override", ["novalue", "=3"])
def test_an_override_has_the_form_path_equals_value(file, override):
    with pytest.raises(ConfigError, match="written dotted"):
        load(file, Outer, [override])


def test_hostile_yaml_is_refused_at_once(tmp_path):
    """Read from folders of others too: PyYAML would take minutes, or leave errors of its own."""
    for text, message in (("a: " + "[" * 9999, "more than 100 brackets"), ("a: 2026-13-32", "not a YAML file")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_yaml(tmp_path / "x.yaml")
