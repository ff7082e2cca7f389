"""The verbs of one process as a user runs them: a run, its evaluation, its bundle, its predictions; and bad input."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from tests.xfer.command import status


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory):
    """A small trained run."""
    shards_root = request.getfixturevalue("shards_root")
    out = tmp_path_factory.mktemp("runs")
    values = {
        "name": "tiny",
        "output": str(out),
        "data": {
            "root": str(shards_root),
            "sources": {"paint": {"path": "paint"}, "outline": {"path": "outline"}},
            "test": {"neon": {"path": "neon"}},
            "image_size": 32,
            "batch_size": 24,
            "workers": 0,
        },
        "model": {"branches": {"only": {"backbone": "resnet10"}}, "fusion": {"width": 16}},
        "train": {"steps": 25, "warmup": 5, "learning_rate": 0.02},
    }
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    assert status("fit", str(path)) == 0
    return out / "tiny"


def test_evaluate_counts_every_held_out_image_once_and_logs_the_opening_of_test_data(trained, capsys):
    assert status("evaluate", str(trained)) == 0
    assert "95 % interval" in capsys.readouterr().out
    first = json.loads((trained / "evaluation.json").read_text())
    assert first["test"]["neon"]["count"] == 120
    assert status("evaluate", str(trained), "--split", "test") == 0
    assert json.loads((trained / "evaluation.json").read_text())["test_reads"] == first["test_reads"] + 1


def test_quantize_shrinks_the_file_and_keeps_the_model(trained, capsys):
    sizes = {}
    for bits in (8, 4):
        out = trained / f"bundle{bits}"
        assert status("quantize", str(trained), f"quantize.bits={bits}", "--out", str(out)) == 0
        sizes[bits] = (out / "weights.safetensors").stat().st_size
    full = next(trained.glob("checkpoints/*/model.safetensors")).stat().st_size
    assert sizes[8] < 0.27 * full
    assert sizes[4] < 0.15 * full
    assert status("evaluate", str(trained), "--split", "validation") == 0
    assert status("evaluate", str(trained / "bundle8"), "--split", "validation") == 0
    before = json.loads((trained / "evaluation.json").read_text())["validation"]
    after = json.loads((trained / "evaluation-bundle8.json").read_text())["validation"]
    for source in before:
        assert abs(before[source]["correct"] - after[source]["correct"]) <= 1


def test_layer_groups_take_their_own_bits(trained):
    out = trained / "mixed"
    assert status("quantize", str(trained), "quantize.bits=8", "quantize.groups.layer4=4", "--out", str(out)) == 0
    rows = [row.split(" | ") for row in (out / "card.md").read_text().splitlines()]
    bits = {row[0].lstrip("| "): row[2] for row in rows if len(row) > 3}
    assert bits["branches.only.layer4.0.conv1"] == "4"
    assert bits["branches.only.layer1.0.conv1"] == "8"


def test_predict_names_the_file_that_is_no_image_and_goes_on(trained, images, tmp_path, capsys):
    bad = tmp_path / "note.jpg"
    bad.write_text("not an image")
    good = next((images / "paint" / "circle").glob("*.jpg"))
    assert status("predict", str(trained), str(bad), str(good), "--json") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "error" in lines[0]
    assert set(lines[1]["classes"]) <= {"circle", "square", "star", "cross"}


def test_predict_searches_folders_as_build_does_and_counts_what_it_leaves_out(trained, images, tmp_path, capsys):
    good = next((images / "paint" / "circle").glob("*.jpg")).read_bytes()
    places = ("a.jpg", "b.JPEG", "album.jpg/c.jpg", "._a.jpg", ".hidden.jpg", ".ipynb_checkpoints/a.jpg")
    for name in (*places, "d.gif", "e.TIFF", "f.heic", "g.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(good)
    assert status("predict", str(trained), str(tmp_path), "--json") == 0
    said = capsys.readouterr()
    named = sorted(json.loads(line)["image"] for line in said.out.splitlines())
    assert named == [str(tmp_path / name) for name in ("a.jpg", "album.jpg/c.jpg", "b.JPEG")]
    assert "2 .gif, 1 .heic, 1 .tiff" in said.err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.jp2").write_bytes(good)
    assert status("predict", str(trained), str(tmp_path / "other")) == 2
    assert "it has 1 .jp2" in capsys.readouterr().err
    assert status("predict", str(trained), str(tmp_path), "--top", "0") == 2


def test_scores_on_other_data_are_kept_beside_those_on_the_own(trained, shards_root, capsys):
    path = trained / "evaluation.json"
    assert status("evaluate", str(trained)) == 0
    own = json.loads(path.read_text())
    other = f"data.test={{outline2: {{path: {shards_root}/outline, where: {{hash: [0, 0.5]}}}}}}"
    only = [other, "data.sources={paint: {path: paint}}"]
    for _ in range(2):
        assert status("evaluate", str(trained), *only, "--split", "test") == 0
    after = json.loads(path.read_text())
    assert (after["test"], after["validation"]) == (own["test"], own["validation"])
    (one,) = after["others"]
    assert one["split"] == "test"
    assert one["changes"] == only
    assert one["sources"]["outline2"]["version"] == own["validation"]["outline"]["version"]
    # The same data at another place are the own data still.
    assert status("evaluate", str(trained), f"data.root={shards_root}/../{shards_root.name}") == 0
    assert len(json.loads(path.read_text())["others"]) == 1


def test_a_copied_bundle_is_evaluated_on_named_data(trained, shards_root, tmp_path, capsys):
    assert status("quantize", str(trained), "--out", str(tmp_path / "copied")) == 0
    assert status("evaluate", str(tmp_path / "copied")) == 2
    assert "--data FOLDER" in capsys.readouterr().err
    folders = ["--data", f"{shards_root}/neon", "--data", f"{shards_root}/paint/train"]
    assert status("evaluate", str(tmp_path / "copied"), *folders) == 0
    text = capsys.readouterr().out
    assert "120" in next(line for line in text.splitlines() if "neon" in line)
    assert "mean of sources" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied"]
    assert status("evaluate", str(trained), *folders[:2]) == 0
    assert json.loads((trained / "evaluation.json").read_text())["others"][-1]["split"] == "data"
    assert status("evaluate", str(trained), "--data", str(tmp_path)) == 2
    assert status("evaluate", str(trained), *folders[:2], "--split", "test") == 2


def test_data_that_shares_no_class_or_has_none_is_not_evaluated_on(trained, tmp_path, capsys):
    from tests.shards.kinds import cells, zoo

    before = (trained / "evaluation.json").read_bytes() if (trained / "evaluation.json").exists() else b""
    assert status("evaluate", str(trained), "--data", str(zoo(tmp_path)), "--data", str(cells(tmp_path))) == 2
    text = capsys.readouterr().err
    for part in ("cat, dog, owl", "circle, cross, square, star", "detection"):
        assert part in text
    assert status("evaluate", str(trained), f"data.test={{t: {{path: {tmp_path}/zoo}}}}", "--split", "test") == 2
    assert "shares no class" in capsys.readouterr().err
    detection = f"data.sources.odd={{path: {tmp_path}/cells}}"
    assert status("quantize", str(trained), detection, "--out", str(tmp_path / "b")) == 2
    assert "data.sources.odd" in capsys.readouterr().err
    assert ((trained / "evaluation.json").read_bytes() if before else b"") == before


def test_changes_without_effect_on_an_evaluation_are_refused(trained, capsys):
    assert status("evaluate", str(trained), "train.steps=3") == 2
    assert "train.steps=3" in capsys.readouterr().err


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As a full disk: whatever would make a file larger fails, in the middle of it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("verb", "size", "path"),
    [
        ("fit", 100_000, "full/checkpoints/step-00000002"),
        ("fit", 100, "full/recipe.yaml"),
        ("quantize", 100_000, "full-bundle"),
        ("evaluate", 100, "evaluation.json"),
        ("report", 100, "report.html"),
    ],
)
def test_a_full_disk_is_one_message_that_names_the_path(trained, recipe_values, tmp_path, capsys, verb, size, path):
    recipe_values |= {"name": "full"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_values))
    arguments = {"fit": [str(tmp_path / "r.yaml")], "quantize": [str(trained), "--out", str(tmp_path / "full-bundle")]}
    before = {file: file.read_bytes() for file in trained.iterdir() if file.is_file()}
    with no_file_larger_than(size):
        assert status(verb, *arguments.get(verb, [str(trained)])) == 1
    text = capsys.readouterr().err
    assert text.splitlines()[-1].startswith("xfer: ")
    assert path in text.splitlines()[-1]
    assert "Traceback" not in text
    assert {file: file.read_bytes() for file in trained.iterdir() if file.is_file()} == before
    left = [file.name for file in tmp_path.rglob("*") if file.name.startswith(".") and file.name != ".lock"]
    assert not left
    assert not list(tmp_path.rglob("step-*"))
    assert not (tmp_path / "full-bundle").exists()


@pytest.mark.parametrize(
    "theirs", [["labels.yaml"], ["weights.safetensors", "labels.yaml", "recipe.yaml"], ["a/b.txt"]]
)
def test_a_folder_that_is_no_bundle_is_never_written_to(trained, tmp_path, theirs, capsys):
    for name in theirs:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("mine")
    assert status("quantize", str(trained), "--out", str(tmp_path / "mine")) == 2
    assert "is no bundle; it is left alone" in capsys.readouterr().err
    assert {str(p.relative_to(tmp_path / "mine")) for p in (tmp_path / "mine").rglob("*") if p.is_file()} == set(theirs)
    assert all((tmp_path / "mine" / name).read_text() == "mine" for name in theirs)


def test_an_older_bundle_is_replaced_but_not_with_something_of_the_user_in_it(trained, tmp_path, capsys):
    out = tmp_path / "bundle"
    assert status("quantize", str(trained), "--out", str(out)) == 0
    old = (out / "weights.safetensors").read_bytes()
    assert (out / "weights.safetensors").stat().st_mode == (out / "card.md").stat().st_mode
    (out / "notes.txt").write_text("mine")
    assert status("quantize", str(trained), "quantize.bits=4", "--out", str(out)) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (out / "weights.safetensors").read_bytes() == old
    (out / "notes.txt").unlink()
    assert status("quantize", str(trained), "quantize.bits=4", "--out", str(out)) == 0
    assert (out / "weights.safetensors").stat().st_size < 0.7 * len(old)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_damaged_bundle_is_refused(trained, capsys):
    out = trained / "damaged"
    assert status("quantize", str(trained), "--out", str(out)) == 0
    weights = out / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert status("predict", str(out), str(out / "card.md")) == 2
    assert "sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], "nonsense"),
        (["fit", "no-such.yaml"], "no such file"),
        (["evaluate", "no-such-run"], "no such folder"),
        (["predict", "."], "neither a run folder"),
        (["quantize"], "give a run folder, or --weights"),
        (["tune", "no-such.yaml"], "no such file"),
        (["report", "no-such-run"], "no such folder"),
        (["train", "no-such.yaml"], "no such file"),
    ],
)
def test_wrong_input_is_one_readable_message_and_status_2(arguments, expected, capsys):
    assert status(*arguments) == 2
    captured = capsys.readouterr()
    assert expected in captured.err + captured.out
    assert "Traceback" not in captured.err


def test_a_typo_in_every_section_is_named_at_once(recipe_values, tmp_path, capsys):
    recipe_values["data"]["batchsize"] = 3
    recipe_values["model"]["branches"]["fine"]["backbon"] = "resnet18"
    recipe_values["model"]["fusion"]["kind"] = "sum"
    recipe_values["train"]["step"] = 5
    recipe_values["quantize"]["bits"] = 9
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    assert status("fit", str(path)) == 2
    text = capsys.readouterr().err
    for part in ("batch_size", "backbone", "'wsum'", "'steps'", "quantize.bits"):
        assert part in text


def test_fusion_weights_have_to_name_the_branches(recipe_values, tmp_path, capsys):
    recipe_values["model"]["fusion"]["weights"] = {"fine": 1, "cuarse": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    assert status("fit", str(path)) == 2
    assert "cuarse" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"fine": -1, "coarse": 2}, "model.fusion.weights.fine: must be at least 0, got -1"),
        ({"fine": "much", "coarse": 2}, "model.fusion.weights.fine: must be a number, got 'much'"),
        (
            "left-out",
            "model.fusion.weights: must be a weight for each branch, such as {a: 1, b: 2}, or left_out, got 'left-out'",
        ),
        (3, "or left_out, got 3"),
    ],
)
def test_each_form_of_the_fusion_weights_has_its_one_fault(recipe_values, tmp_path, capsys, weights, said):
    recipe_values["model"]["fusion"]["weights"] = weights
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    assert status("fit", str(path)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "faults" not in err


def test_help_needs_neither_torch_nor_ray_and_says_what_each_verb_does():
    import subprocess
    import sys

    from xfer.__main__ import VERBS

    code = (
        "import sys, contextlib; from xfer.__main__ import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "print({'torch', 'ray', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    for arguments in ([], ["--help"], ["fit", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.rstrip().endswith("set()")
        if arguments != ["fit", "--help"]:
            lines = {line.strip("│ ").split("  ")[0]: line.strip("│ ") for line in done.stdout.splitlines()}
            assert all(len(lines[verb]) > len(verb) + 20 for verb in VERBS)


@pytest.mark.parametrize(
    "verb", ["fit", "train", "evaluate", "features", "predict", "quantize", "tune", "report", "demo"]
)
def test_the_help_of_every_verb_teaches(verb, capsys):
    assert status(verb, "--help") == 0
    text = capsys.readouterr().out
    assert verb == "demo" or f"xfer {verb} " in text.split("Parameters")[0].split("Usage:")[1].split("\n", 1)[1]


@pytest.mark.parametrize("arguments", [["--debug", "fit", "no.yaml"], ["fit", "no.yaml", "--debug"]])
def test_debug_prints_the_traceback_too(arguments, capsys):
    assert status(*arguments) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "no.yaml: no such file" in text


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (IndexError("list index out of range"), 1, "fault of xfer"),
        (OSError(28, "No space left on device", "/full/x"), 1, "xfer: /full/x: No space left on device"),
        (ValueError("no"), 1, "ValueError: no"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
)
def test_whatever_happens_ends_in_one_message_and_no_traceback(monkeypatch, capsys, error, code, message):
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("shards.settings.read_yaml", broken)
    assert status("fit", "some.yaml") == code
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text


def test_a_typo_in_a_job_or_a_study_is_refused_with_the_faults_of_the_data(recipe_values, tmp_path, capsys):
    recipe_values["data"]["sources"]["paint"]["path"] = "pain"
    job = {"recipe": recipe_values, "cluster": {"worker": 2, "zero_stage": True}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert status("train", str(tmp_path / "job.yaml")) == 2
    text = capsys.readouterr().err
    for part in ("did you mean 'workers'?", "pain: no such folder"):
        assert part in text
    study = {"job": "job.yaml", "space": {"quantize.bits": {"choise": [4, 8]}}, "search": {"trails": 3}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert status("tune", str(tmp_path / "study.yaml")) == 2
    text = capsys.readouterr().err
    for part in ("did you mean 'workers'?", "'choice'", "'trials'", "pain: no such folder"):
        assert part in text


def test_default_folders_are_absolute_too(recipe_values):
    """Workers run in another folder: a relative default would be another place there."""
    from xfer.config import Recipe

    del recipe_values["output"], recipe_values["data"]["root"]
    recipe = Recipe.model_validate(recipe_values)
    assert recipe.output.startswith("/")
    assert recipe.data.root.startswith("/")


@pytest.mark.parametrize(
    ("verb", "text", "said"),
    [
        ("fit", "recipe: r.yaml\ncluster: {workers: 2}\n", "this is a job and no recipe: xfer train"),
        ("fit", "job: j.yaml\nspace: {}\n", "this is a study and no recipe: xfer tune"),
        ("train", "data: {}\nmodel: {}\n", "this is a recipe and no job: xfer fit"),
        ("tune", "recipe: {data: {}}\n", "this is a job and no study: xfer train"),
        ("fit", "", "must hold keys and values, found nothing: it is empty"),
        ("fit", "- a\n", "must hold keys and values, found a list"),
    ],
)
def test_a_document_of_another_kind_is_named_with_its_verb(tmp_path, monkeypatch, capsys, verb, text, said):
    monkeypatch.chdir(tmp_path)
    for name, content in (("r.yaml", "data: {}\n"), ("j.yaml", "recipe: r.yaml\n"), ("given.yaml", text)):
        (tmp_path / name).write_text(content)
    assert status(verb, "given.yaml") == 2
    assert said in capsys.readouterr().err


def test_a_folder_is_no_document_and_no_report(tmp_path, trained, capsys):
    (tmp_path / "recipe.yaml").write_text("data: {}")
    for words, said in (
        (("fit", str(tmp_path)), f"{tmp_path}: a folder, and no YAML file; there is recipe.yaml"),
        (("report", str(tmp_path / "none")), f"{tmp_path / 'none'}: no such folder"),
    ):
        assert status(*words) == 2
        assert said in capsys.readouterr().err
    assert status("quantize", str(trained), "--out", str(tmp_path / "b")) == 0
    assert status("report", str(tmp_path / "b")) == 2
    assert "a bundle; its report is that of the run" in capsys.readouterr().err
