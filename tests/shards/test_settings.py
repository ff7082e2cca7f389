"""Configuration as its users meet it: every fault at once, each with its path."""

import pickle
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from shards.settings import ConfigError, SchemaError, Strict, dump, full_path, get, load, read_yaml, replace


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
    for part in ("did you mean 'seed'?", "'x'", "workers", "sources.a: must be a section of keys and values, got 3"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "given twice"),
        ("- 1\n", "must hold keys and values"),
        ("a: [1\n", "not a YAML file"),
        ("", "must hold keys and values"),
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
    for text, message in (("a: " + "[" * 9999, "more than 100 brackets"), ("a: 0x_", "not a YAML file")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_yaml(tmp_path / "x.yaml")


class Kinds(Strict):
    """One key for each kind of constraint."""

    least: int = Field(default=1, ge=1)
    more: float = Field(default=1.0, gt=0)
    most: int = Field(default=1, le=8)
    less: float = Field(default=0.5, lt=1)
    switch: bool = False
    choice: Literal["sgd", "adamw"] = "sgd"
    stage: Literal[0, 1, 2] = 0
    text: str = "x"
    names: tuple[str, ...] = Field(default=("a",), min_length=1)
    pair: tuple[float, float] = (0, 1)
    kind: Literal["wsum", "gate", "concat"] = "wsum"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "a"
    weights: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], float] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("least: 0", "least: must be at least 1, got 0"),
        ("least: 1.5", "least: must be a whole number, got 1.5"),
        ("least: '3'", "least: must be a whole number, got '3'"),
        ("least: true", "least: must be a whole number, got true"),
        ("least:", "least: must be a whole number, got null"),
        ("least: [1]", "least: must be a whole number, got [1]"),
        ("more: 0", "more: must be more than 0, got 0"),
        ("more: yes", "more: must be a number, got true"),
        ("more: .inf", "more: must be a finite number, got Infinity"),
        ("more: .nan", "more: must be a finite number, got NaN"),
        ("most: 9", "most: must be at most 8, got 9"),
        ("less: 1", "less: must be less than 1, got 1"),
        ("switch: 1", "switch: must be true or false, got 1"),
        ("switch: 'no'", "switch: must be true or false, got 'no'"),
        ("choice: adam", "choice: must be 'sgd' or 'adamw', got 'adam'; did you mean 'adamw'?"),
        ("kind: wsun", "kind: must be 'wsum', 'gate' or 'concat', got 'wsun'; did you mean 'wsum'?"),
        ("stage: 3", "stage: must be 0, 1 or 2, got 3"),
        ("stage: true", "stage: must be a number, got true"),
        ("names: []", "names: must have at least 1 value(s), got []"),
        ("names: cat", "names: must be a list, got 'cat'"),
        ("pair: [1]", "pair: must have more values, got [1]"),
        ("pair: [1, 2, 3]", "pair: must have at most 2 values, got [1, 2, 3]"),
        ("name: a b", "name: must be made of letters, digits, _ and -, got 'a b'"),
        ("weights: {a b: 1}", "weights.a b: must be made of letters, digits, _ and -, got 'a b'"),
        ("weights: {a: true}", "weights.a: must be a number, got true"),
        ("weights: 3", "weights: must be a section of keys and values, got 3"),
        ("laest: 1", "laest: unknown key; did you mean 'least'?"),
        ("qqq: 1", "qqq: unknown key; known here: choice, kind, least"),
    ],
)
def test_every_kind_of_fault_says_what_must_be_and_what_was_given(tmp_path, text, message):
    (tmp_path / "k.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "k.yaml", Kinds)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith(message)
    key, value = text.split(":", 1)
    if not value.strip().startswith("{"):  # an override is read as the file is
        (tmp_path / "k.yaml").write_text("least: 1\n")
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "k.yaml", Kinds, [f"{key}={value.strip()}"])
        assert caught.value.faults[0].startswith(message)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("names: [cat, no]", ("names.1", "false")),
        ("names: [true]", ("names.0", "true")),
        ("names: [007]", ("names.0", "got 7", "'007'")),
        ("names: [1e3]", ("names.0", "1000")),
        ("text: off", ("text", "false")),
        ("name: 007", ("name", "7")),
        ("weights: {no: 1}", ("weights", "false")),
        ("weights: {7: 1}", ("weights", "7")),
    ],
)
def test_names_that_yaml_takes_for_something_else_are_to_be_quoted(tmp_path, text, named):
    (tmp_path / "k.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match="quotes") as caught:
        load(tmp_path / "k.yaml", Kinds)
    assert all(word in str(caught.value) for word in named)


def test_words_survive_being_written_and_read(tmp_path):
    names = ("no", "true", "007", "1e3", "2024-01-01", "null", "1_000", ".5", "~", "Zoë", "12:30:00")
    config = Kinds(names=names, more=1e-7)
    (tmp_path / "k.yaml").write_text(dump(config))
    assert load(tmp_path / "k.yaml", Kinds) == config


def test_numbers_with_an_exponent_are_numbers_and_dates_are_text(tmp_path):
    (tmp_path / "k.yaml").write_text("more: 1e-3\nleast: 1e3\nless: 5E-1\nnames: [2024-01-01]\n")
    config = load(tmp_path / "k.yaml", Kinds)
    assert (config.more, config.least, config.less, config.names) == (0.001, 1000, 0.5, ("2024-01-01",))


def test_a_bad_override_does_not_hide_the_other_faults(file):
    with pytest.raises(SchemaError) as caught:
        load(file, Outer, ["novalue", "workers=many", "middle.data.seed.x=1"])
    assert len(caught.value.faults) == 3


def test_sections_that_are_sound_can_still_be_checked(file):
    with pytest.raises(SchemaError) as caught:
        load(file, Outer, ["workers=many"])
    assert caught.value.sections["data"] == load(file, Outer).middle.data


class Pair(Strict):
    """Whose values have to go together."""

    low: int = 0
    high: int = 1
    choice: Literal[0, 1] = 0
    names: dict[str, int] = Field(default_factory=lambda: {"a": 1})

    @model_validator(mode="after")
    def _ordered(self) -> "Pair":
        if self.low >= self.high:
            raise ValueError(f"high: must be above low, {self.low}, got {self.high}")
        if not self.names:
            raise ValueError("names: must not be empty")
        return self


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "{high: -1, hihg: 5, choice: true, names: {}}",
            ["hihg: unknown", "high: must be above", "names: must not", "choice: must"],
        ),
        ("{low: 3, high: x}", ["high: must be a whole number"]),  # not: 3 is above 1
        ("{low: x, high: -1, names: {}}", ["low: must be", "names: must not be empty"]),  # not: 0 is above -1
        ("{names: {b: x}}", ["names.b: must be a whole number"]),  # not: it is empty
        ("{names: 5, high: 0}", ["names: must be a section", "high: must be above"]),
    ],
)
def test_what_a_fault_hides_is_told_and_not_what_only_follows_from_it(tmp_path, text, lines):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(SchemaError) as caught:
        load(tmp_path / "p.yaml", Pair)
    assert len(caught.value.faults) == len(lines), caught.value.faults
    for fault, line in zip(caught.value.faults, lines, strict=True):
        assert fault.startswith(line)


def test_faults_cross_processes_with_what_is_sound(file):
    with pytest.raises(SchemaError) as caught:
        load(file, Outer, ["workers=many"])
    other = pickle.loads(pickle.dumps(caught.value))
    assert (other.faults, other.origin, str(other)) == (caught.value.faults, caught.value.origin, str(caught.value))
    assert other.sections == caught.value.sections
    plain = pickle.loads(pickle.dumps(ConfigError(["one", "two"], "here")))
    assert (plain.faults, plain.origin) == (["one", "two"], "here")
