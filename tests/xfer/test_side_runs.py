"""Runs whose models take side inputs: trained, resumed, scored both ways, packed, exported, and asked about images."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import xfer
from shards.ingest.build import build
from shards.loading.batch import Slot
from shards.settings import ConfigError
from shards.sources import SourceOptions
from tests.xfer.command import status
from xfer import run as runs
from xfer.begin import begin
from xfer.bundle import open_model
from xfer.checkpoint import chosen, latest_checkpoint
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.export.session import check_installed
from xfer.history import read_metrics, scores, with_side_text
from xfer.prepare import prepare
from xfer.surface import Run

FIELDS = {"hint": "category", "price": "number"}


@pytest.fixture(scope="module")
def root(images, tmp_path_factory) -> Path:
    """The drawn shapes with a category that is the class for most images, and a number of half of them."""
    folder = tmp_path_factory.mktemp("side")
    rows = ["file,hint,price"]
    for number, path in enumerate(sorted((images / "paint").glob("*/*.jpg"))):
        hint = path.parent.name if number % 5 else "none"
        rows.append(f"{path.parent.name}/{path.stem},h-{hint},{number % 9 if number % 2 else ''}")
    (folder / "side.csv").write_text("\n".join(rows))
    build(images / "paint", folder / "paint", SourceOptions(side_table=folder / "side.csv"), name="paint", processes=1)
    return folder


@pytest.fixture(scope="module")
def values(root, tmp_path_factory) -> dict[str, Any]:
    data = {"root": str(root), "sources": {"paint": {"path": "paint"}}, "validation": 0.3}
    return {
        "name": "side",
        "output": str(tmp_path_factory.mktemp("runs")),
        "data": data | {"image_size": 16, "batch_size": 12, "workers": 0},
        "model": {
            "branches": {"only": {"backbone": "resnet10", "train_from": "none"}},
            "fusion": {"width": 16},
            "side": {"fields": FIELDS, "leak_limit": 1},
        },
        "train": {"steps": 60, "optimizer": "adamw", "learning_rate": 0.02, "evaluate_every": 60, "save_every": 30},
        "quantize": {"calibration": 16},
    }


@pytest.fixture(scope="module")
def run(values) -> Run:
    return xfer.fit(values, quiet=True)


def changed(values: dict[str, Any], name: str, **sections: dict[str, Any]) -> Recipe:
    merged = {**values, "name": name, **{key: {**values.get(key, {}), **given} for key, given in sections.items()}}
    return Recipe.model_validate(merged)


def test_both_scores_are_kept_and_what_is_told_is_learned(run):
    row = read_metrics(run.folder)[-1]
    assert row["with_side"]["paint"] > row["accuracy"]["paint"] + 0.2
    assert scores([row])[60] == pytest.approx((row["with_side"]["paint"] + row["accuracy"]["paint"]) / 2)
    assert "on images alone" in with_side_text(run.folder)


def test_the_best_checkpoint_is_that_of_the_best_mean_of_both(values):
    recipe = changed(values, "best", train={"select": "best", "steps": 4, "evaluate_every": 1})
    prepare(recipe)
    begin(recipe)
    runs.fit(recipe, Slot(), build_engine, lambda row: None)
    means = scores(read_metrics(recipe.folder))
    best = max(means, key=lambda step: (means[step], -step))
    assert chosen(recipe.folder / "checkpoints") == f"step-{best:08d}"


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(values):
    folders = []
    for name, stops in (("whole", (4,)), ("cut", (2, 4))):
        for steps in stops:
            recipe = changed(values, name, train={"steps": 4, "schedule": "constant", "save_every": 2})
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})
            begin(recipe)
            runs.fit(recipe, Slot(), build_engine, lambda row: None)
        folders.append(recipe.folder)
    whole, cut = (latest_checkpoint(folder / "checkpoints") for folder in folders)
    assert whole
    assert cut
    assert all(torch.equal(value, cut.model()[name]) for name, value in whole.model().items())


def test_a_run_goes_on_with_the_side_inputs_that_it_began_with_alone(run, values):
    with pytest.raises(ConfigError, match=r"model\.side: was fields="):
        prepare(changed(values, "side", model={**values["model"], "side": {"fields": {"hint": "category"}}}))


def test_the_part_that_is_seen_without_is_what_dropout_says(values):
    ends = {}
    for dropout in (0.0, 0.9):
        side = {"fields": {"hint": "category"}, "leak_limit": 1, "dropout": dropout}
        recipe = changed(
            values, f"dropout{10 * dropout:.0f}", model={**values["model"], "side": side}, train={"steps": 3}
        )
        begin(recipe)
        runs.fit(recipe, Slot(), build_engine, lambda row: None)
        ends[dropout] = open_model(recipe.folder).model.side.film.weight
    assert not torch.allclose(ends[0.0], ends[0.9])


@pytest.fixture(scope="module")
def bundle(run) -> Path:
    return Path(run.quantize().path)


def test_a_bundle_says_what_its_run_says_of_both_and_holds_no_value(run, bundle):
    first, second = open_model(run.folder), open_model(bundle)
    rows = [one.model.side.encode([{"hint": "h-star", "price": 4}, {}], 2) for one in (first, second)]
    assert torch.equal(rows[0].nan_to_num(9), rows[1].nan_to_num(9))
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(first.model(images, rows[0]), second.model(images, rows[1]), atol=0.2)
    assert b"h-star" not in b"".join(file.read_bytes() for file in bundle.iterdir())
    assert "- side inputs: hint (category), price (number)" in (bundle / "card.md").read_text()


def test_predict_sees_side_inputs_where_it_is_given_some(run, bundle, images, root, capsys):
    def said(*options: str) -> dict[str, dict[str, float]]:
        assert status("predict", str(bundle), str(images / "paint"), "--json", "--top", "1", *options) == 0
        rows = map(json.loads, capsys.readouterr().out.splitlines())
        return {row["image"]: row["classes"] for row in rows}

    def right(answers: dict[str, dict[str, float]]) -> float:
        return sum(Path(path).parent.name in one for path, one in answers.items()) / len(answers)

    alone, both = said(), said("--side", str(root / "side.csv"))
    assert right(both) > right(alone) + 0.2
    path = next(iter(alone))
    model = xfer.load(bundle)
    assert model.predict(path, top=1)[0] == pytest.approx(alone[path])
    assert model.predict(path, 1, {})[0] == pytest.approx(alone[path])
    told = model.predict([path, path], 1, [{"hint": "h-star"}, {}])
    assert told[1] == pytest.approx(alone[path])
    assert told[0] != told[1]
    with pytest.raises(ConfigError, match="one mapping for each of 2 images, got 1"):
        model.predict([path, path], 1, [{}])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("who,hint\na,b\n", "no column with the images' names found"),
        ("file,colour\nstar,b\n", "has none of the columns hint, price; it has colour"),
        ("file,hint\nnowhere,b\n", "no row is of any image"),
        ("file,hint\nstar/0000,b\nstar/0000,c\n", "has a row already, in line 2"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_what_would(bundle, images, tmp_path, text, what, capsys):
    (tmp_path / "side.csv").write_text(text)
    assert status("predict", str(bundle), str(images / "paint"), "--side", str(tmp_path / "side.csv")) == 2
    assert what in capsys.readouterr().err


def test_what_of_a_table_counts_as_missing_is_said(bundle, images, tmp_path, capsys):
    some = sorted((images / "paint" / "star").glob("*.jpg"))[:3]
    rows = ["file,hint", *(f"{path.stem},{hint}" for path, hint in zip(some[:2], ("h-star", "new"), strict=True))]
    (tmp_path / "side.csv").write_text("\n".join(rows))
    assert status("predict", str(bundle), *map(str, some), "--side", str(tmp_path / "side.csv")) == 0
    said = capsys.readouterr().err
    assert "side.csv has no column price: missing for all images" in said
    assert "1 of 3 images have no row in side.csv: seen without side inputs" in said
    assert "hint: 1 of 2 values are not known from training, and count as missing" in said


def test_a_model_of_images_alone_refuses_side_inputs(values, images, root, capsys):
    recipe = changed(values, "plain", model={**values["model"], "side": None}, train={"steps": 1})
    begin(recipe)
    runs.fit(recipe, Slot(), build_engine, lambda row: None)
    path = next((images / "paint" / "star").glob("*.jpg"))
    assert status("predict", str(recipe.folder), str(path), "--side", str(root / "side.csv")) == 2
    assert "takes no side inputs (model.side)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="takes no side inputs"):
        xfer.load(recipe.folder).predict(path, side={"hint": "h-star"})
    assert "with_side" not in read_metrics(recipe.folder)[-1]


def test_evaluation_and_report_have_images_alone_first(run, capsys):
    assert status("evaluate", str(run.folder)) == 0
    head = next(line for line in capsys.readouterr().out.splitlines() if "accuracy" in line)
    assert head.index("accuracy") < head.index("with side inputs")
    kept = json.loads((run.folder / "evaluation.json").read_text())["validation"]["paint"]
    assert kept["with_side"]["accuracy"] > kept["accuracy"] + 0.2
    page = run.report().read_text()
    assert "<h2>Side inputs</h2><p>Validation accuracy on images alone" in page
    assert "<th>with side inputs</th>" in page


def test_an_exported_file_says_what_the_model_says_of_images_alone_and_that_it_does(bundle, capsys):
    try:
        check_installed()
    except ConfigError:
        pytest.skip("onnx is not installed")
    copy = bundle.parent / "exported"
    shutil.copytree(bundle, copy)
    assert status("export", str(copy), "--onnx") == 0
    said = capsys.readouterr().out
    assert "100.0 % of the answers are the same" in said
    assert "it sees images alone: side inputs (hint, price) count as missing" in said


def test_a_class_that_is_added_by_name_is_taken_out_of_texts_too(values, root, tmp_path):
    model = {**values["model"], "head": {"kind": "labels"}, "side": {"fields": {"hint": "text"}, "leak_limit": 1}}
    recipe = changed(values, "named", model=model, train={"steps": 1})
    begin(recipe)
    runs.fit(recipe, Slot(), build_engine, lambda row: None)
    path = Path(Run(recipe.folder).quantize().path)
    assert status("classes", "add", str(path), "octagon", "--out", str(tmp_path / "more")) == 0
    before, after = (open_model(one).model.side for one in (path, tmp_path / "more"))
    text = [{"hint": "Octagons"}]
    assert not before.encode(text, 1).isnan().any()
    assert after.encode(text, 1).isnan().all()


def test_a_recipe_in_a_file_is_refused_with_the_kinds_there_are(values, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    assert status("fit", str(path), "model.side.fields={hint: words}") == 2
    assert "model.side.fields.hint: must be 'category', 'number' or 'text', got 'words'" in capsys.readouterr().err
