"""What training data tells of side inputs before a run: wrong fields, values that are missing, and the class itself."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.ingest.build import build
from shards.settings import ConfigError
from shards.sources import SourceOptions
from xfer.begin import begin, initial_model
from xfer.config import Recipe
from xfer.prepare import open_labelled, prepare
from xfer.side import SideInputs
from xfer.transfer.side import Told, leak_of, probe_leak, read_side

MAKERS = ("ann", "bob", "cid")


def rows_of(folder: Path) -> list[str]:
    """A row for every other image: fields that say nothing of the class, and some that say all of it."""
    lines = ["file,maker,price,note,code,title,kind,tags"]
    for number, path in enumerate(sorted(folder.glob("*/*.jpg"))):
        name = f"{path.parent.name}/{path.stem}"
        if number % 2 == 0:
            values = (
                MAKERS[number % 3],
                number % 7,
                "as new",
                f"c-{path.parent.name}",
                f"nice {path.parent.name}s",
                path.parent.name,
            )
            lines.append(",".join(map(str, (name, *values, f"tag{number}"))))
    return lines


@pytest.fixture(scope="module")
def root(images, tmp_path_factory) -> Path:
    """The drawn shapes with side inputs, and without."""
    folder = tmp_path_factory.mktemp("side")
    (folder / "side.csv").write_text("\n".join(rows_of(images / "paint")))
    table = SourceOptions(side_table=folder / "side.csv")
    build(images / "paint", folder / "paint", table, name="paint", processes=1)
    build(images / "outline", folder / "outline", name="outline", processes=1)
    return folder


@pytest.fixture
def recipe(recipe_values, root):
    recipe_values["data"] |= {"root": str(root), "sources": {"paint": {"path": "paint"}}, "test": {}}

    def make(fields: dict[str, str], sources: tuple[str, ...] = ("paint",), **side: Any) -> Recipe:
        values = {**recipe_values, "model": {**recipe_values["model"], "side": {"fields": fields, **side}}}
        values["data"] = {**values["data"], "sources": {one: {"path": one} for one in sources}}
        return Recipe.model_validate(values)

    return make


def faults(recipe: Recipe) -> list[str]:
    with pytest.raises(ConfigError) as error:
        prepare(recipe)
    return list(error.value.faults)


def test_fields_that_are_not_there_and_kinds_that_do_not_fit_are_told_together(recipe):
    colour, maker = faults(recipe({"colour": "category", "maker": "number", "price": "number"}))
    there = "code, kind, maker, note, price, tags, title"
    assert colour == f"model.side.fields.colour: no sample looked at has such a field; there are {there}"
    assert "model.side.fields.maker: must be category or text, got number:" in maker
    assert "is no number, and so are" in maker


def test_sources_without_side_inputs_are_refused_if_none_has_any_and_named_if_some_have(recipe, capsys):
    (told,) = faults(recipe({"maker": "category"}, ("outline",)))
    assert "no training source has side inputs (outline); xfer shards build takes them with" in told
    prepare(recipe({"maker": "category"}, ("outline", "paint")))
    assert "note: outline has no side inputs: all its samples are without" in capsys.readouterr().err


def test_a_run_that_trains_nothing_but_a_head_is_refused(recipe):
    wanted = recipe({"maker": "category"})
    for mode in ("feature", "quant"):
        changed = wanted.model_copy(update={"transfer": wanted.transfer.model_copy(update={"mode": mode})})
        assert any(f"left out with transfer.mode: {mode}" in fault for fault in faults(changed))


def test_only_classifiers_take_them(recipe_values):
    with pytest.raises(ValueError, match="only classifiers take side inputs"):
        Recipe.model_validate(
            {
                **recipe_values,
                "model": {"branches": {"a": {}}, "head": {"kind": "fpn"}, "side": {"fields": {"a": "text"}}},
            }
        )


def test_what_a_run_begins_with_is_told_kept_and_known_to_its_model(recipe, capsys):
    wanted = recipe({"maker": "category", "price": "number", "note": "text"})
    begin(wanted)
    said = capsys.readouterr().err
    assert "side input maker: category, 3 values; missing in" in said
    assert "side inputs alone name the class of" in said
    found = read_side(wanted.folder)
    assert sorted(found["fields"]["maker"]["values"]) == list(MAKERS)
    assert 0.4 < found["fields"]["price"]["missing"] < 0.6
    assert found["leak"]["leak"] < 0.3
    side = initial_model(wanted, open_labelled(wanted.data))[0].side
    assert side is not None
    rows = side.encode([{"maker": "ann", "price": found["fields"]["price"]["mean"]}], 1)
    assert rows[0, 0] == found["fields"]["maker"]["values"].index("ann")
    assert rows[0, 257] == 0


def test_a_field_that_is_the_class_is_refused_by_name_before_anything_is_written_unless_it_is_asked_for(recipe):
    with pytest.raises(ConfigError) as error:
        begin(recipe({"maker": "category", "code": "category"}, leak_limit=0.3))
    told = str(error.value)
    assert "most of it code (" in told
    assert "above model.side.leak_limit 0.3" in told
    assert "model.side.leak_limit: 1 it is trained all the same" in told
    wanted = recipe({"maker": "category", "code": "category"}, leak_limit=1)
    assert not wanted.folder.exists()
    begin(wanted)
    assert read_side(wanted.folder)["leak"]["by_field"]["code"] > 0.3


def test_the_probe_counts_what_side_inputs_add_to_the_most_frequent_class():
    targets = torch.tensor([0, 0, 0, 1, 2] * 60)
    masks = torch.ones(300, 3, dtype=torch.bool)
    pairs = (torch.randperm(300, generator=torch.Generator().manual_seed(0)) % 150).tolist()
    said = [
        {"same": t, "none": i % 4, "half": t if i % 2 else -1, "by heart": pairs[i]}
        for i, t in enumerate(targets.tolist())
    ]
    side = SideInputs(dict.fromkeys(said[0], "category"), 1, 3)
    for name, part in side.by_field:
        part.know(part.learn([one[name] for one in said]))
    leak = probe_leak(side, Told(said, targets, masks))
    assert (leak.majority, leak.accuracy, leak.value) == (0.6, 1.0, 1.0)
    assert leak.by_field["same"] == 1
    assert leak.by_field["none"] == 0
    assert leak.by_field["by heart"] < 0.1
    assert 0.3 < leak.by_field["half"] < 0.7
    assert "most of it same (1.00 alone)" in str(leak)
    assert leak_of(1.0, 1.0) == 0


def test_the_class_in_a_text_is_scrubbed_and_that_is_said(recipe, capsys):
    begin(recipe({"title": "text", "code": "text"}))
    said = capsys.readouterr().err
    assert re.search(r"side input title: text, names of classes taken out of \d\d texts; missing in", said)
    begin(recipe({"kind": "text"}))
    assert re.search(r"taken out of (\d\d) texts, and nothing is left of \1; missing", capsys.readouterr().err)


def test_a_value_of_each_sample_of_its_own_is_not_learned_by_heart(recipe, capsys):
    begin(recipe({"tags": "category", "maker": "category"}))
    assert "0 values, " in capsys.readouterr().err
