"""`xfer report` of a run: what it says first, what it shows."""

import base64
import io
import json
import re
import resource
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import xfer
from shards.loading.open import open_data
from shards.loading.reader import read_sample
from shards.loading.transforms import centre
from shards.text import duration, size
from tests.xfer.command import status
from xfer.bundle import open_model


def page(folder) -> str:
    assert status("report", str(folder)) == 0
    return (folder / "report.html").read_text()


def test_the_first_line_is_the_number_and_what_training_gained_over_the_probe(pretrained):
    run = xfer.fit(pretrained, quiet=True)
    lead = page(run.folder).split("<h1>")[1].split("</p>")[0]
    assert "Validation accuracy" in lead
    assert "the linear probe it began as" in lead
    assert status("evaluate", str(run.folder)) == 0
    whole = page(run.folder)
    lead = whole.split("<h1>")[1].split("</p>")[0]
    assert "Test accuracy" in lead
    assert "95 % interval" in lead
    assert "the linear probe it began as" in lead
    for text in ("What is taken for what", "neon: how many images of a class, by answer", "<h2>Recipe</h2>"):
        assert text in whole
    assert "probe_images: null" in whole
    (run.folder / "report.html").unlink()
    assert run.report().read_text() == whole


def test_a_run_that_is_its_probe_has_a_report_too(pretrained):
    whole = page(xfer.fit(pretrained, {"transfer.mode": "feature"}, quiet=True).folder)
    assert "No steps: the linear probe is the model." in whole
    assert "Validation accuracy" in whole
    assert "training loss" not in whole


def mistakes_of(page: str, title: str = "Its surest mistakes") -> list[tuple[str, str]]:
    section = page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    return re.findall(r"<img src=\"data:image/png;base64,([^\"]+)\" alt=\"([^\"]+)\"", section)


def test_the_surest_mistakes_are_shown_with_what_they_are(recipe_values):
    recipe_values["train"] |= {"steps": 3}
    run = xfer.fit(recipe_values, quiet=True)
    assert "Its surest mistakes" not in page(run.folder), "nothing was evaluated yet"
    assert status("evaluate", str(run.folder)) == 0
    kept = json.loads((run.folder / "evaluation.json").read_text())

    # By hand: every image of the test source, one by one.
    trained, neon = open_model(run.folder), open_data(run.recipe.data).test[0]
    wrong = []
    for i in range(neon.num_samples):
        sample = read_sample(neon, i)
        with torch.inference_mode():
            probabilities = trained.model(centre(sample.image, 32).image[None])[0].softmax(0)
        answer, truth = trained.classes[int(probabilities.argmax())], neon.classes[sample.label]
        if answer != truth:
            wrong.append((float(probabilities.max()), i, truth, answer))
    wrong.sort(reverse=True)
    found = kept["test"]["neon"]["mistakes"]
    assert len(found) == 12 < len(wrong)
    assert [one["confidence"] for one in found] == pytest.approx([one[0] for one in wrong[:12]], abs=1e-4)
    assert [(one["row"], one["truth"], one["answer"]) for one in found[:1]] == [wrong[0][1:]]

    shown = mistakes_of(page(run.folder))
    assert len(shown) == 12
    assert {alt.partition(":")[0] for _, alt in shown} == {"paint", "outline", "neon"}, "sources take turns"
    confidence, i, truth, answer = wrong[0]
    data = next(data for data, alt in shown if alt == f"neon: {truth}, taken for {answer} ({100 * confidence:.0f} %)")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    expected = centre(read_sample(neon, i).image, image.shape[0]).image.permute(1, 2, 0).numpy()
    assert (image == expected).all()


def test_those_of_a_bundle_and_of_the_runs_without_a_source_are_shown_too(recipe_values):
    recipe_values["data"]["validation"] = "leave_one_source_out"
    run = xfer.fit(recipe_values, {"train.steps": 2}, quiet=True)
    bundle = run.quantize(bits=2)
    assert status("evaluate", str(bundle.path)) == 0
    whole = page(run.folder)
    assert "Its surest mistakes" not in whole, "the run itself was not evaluated"
    sizes = {}
    kept = json.loads((run.folder / "evaluation-bundle.json").read_text())["test"]
    for title, scores, subsets in (
        ("The surest mistakes of bundle", kept, open_data(run.recipe.data).test),
        ("The surest mistakes on sources left out", run.left_out, open_data(run.recipe.data).train),
    ):
        shown = mistakes_of(whole, title)
        sizes[title] = len(shown)
        for subset in subsets:
            surest = scores[subset.name]["mistakes"][0]
            said = f"{surest['truth']}, taken for {surest['answer']} ({100 * surest['confidence']:.0f} %)"
            data = next(data for data, alt in shown if alt == f"{subset.name}: {said}")
            image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
            assert (image == centre(read_sample(subset, surest["row"]).image, 224).image.permute(1, 2, 0).numpy()).all()
    assert set(sizes.values()) == {12}


def test_a_mistake_that_is_damaged_or_gone_is_said_and_the_rest_is_shown(recipe_values, shards_root, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards_root, copy)
    recipe_values["data"]["root"] = str(copy)
    recipe_values["train"] |= {"steps": 2}
    run = xfer.fit(recipe_values, quiet=True)
    assert status("evaluate", str(run.folder)) == 0
    for shard in (copy / "neon").glob("*.tar"):
        shard.write_bytes(b"\0" * shard.stat().st_size)
    whole = page(run.folder)
    assert "not shown, its bytes changed since the build" in whole
    assert {alt.partition(":")[0] for _, alt in mistakes_of(whole)} == {"paint", "outline"}
    shutil.rmtree(copy)
    whole = page(run.folder)
    assert whole.count("not shown, its source is not there any more") == 12
    assert mistakes_of(whole) == []


def test_what_a_run_cost_adds_up_over_its_starts(recipe_values):
    recipe_values["train"] |= {"steps": 5, "log_every": 4, "save_every": 3, "evaluate_every": 3}
    run = xfer.fit(recipe_values, quiet=True)
    # Stopped behind step 3 and gone on with: as often as that happens, every step is on record once.
    (run.folder / "checkpoints" / "step-00000005" / "manifest.json").unlink()
    xfer.fit(recipe_values, quiet=True)
    rows = run.metrics
    assert [len(row["losses"]) for row in rows if "losses" in row] == [3, 1, 1]
    whole = page(run.folder)
    cells = dict(re.findall(r"<tr>\s*<td>([^<]+)</td><td>([^<]+)</td>", whole.split("What it cost")[1]))
    assert cells["images"] == "60"  # 5 steps of 12
    seconds = sum(row["seconds"] for row in rows if "losses" in row)
    assert cells["training"] == duration(seconds)
    assert sum(row["seconds"] * row["images_per_s"] for row in rows if "losses" in row) == pytest.approx(60)
    assert cells["evaluation"] == duration(sum(row["evaluation_seconds"] for row in rows if "accuracy" in row))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert 0.5 * peak < rows[-1]["memory_mb"] <= peak
    assert cells["memory"] == size(1e6 * rows[-1]["memory_mb"])
    newest = run.folder / "checkpoints" / "step-00000005"
    assert cells["checkpoint"] == size(sum(file.stat().st_size for file in newest.iterdir()))
