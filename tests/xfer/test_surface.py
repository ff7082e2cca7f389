"""`xfer.fit` and `xfer.load` as a script uses them."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import xfer
from shards.decode import DecodeError


def test_a_recipe_becomes_a_run_a_bundle_and_predictions(recipe_values, images):
    recipe_values["model"]["branches"] = {"only": {"backbone": "resnet10"}}
    run = xfer.fit(recipe_values, {"train.steps": 3}, quiet=True)
    assert run.metrics[-1]["step"] == 3
    assert "3 of 3 steps" in repr(run)
    scores = run.evaluate()
    assert {name: score.accuracy for name, score in scores.items()} == run.metrics[-1]["accuracy"]
    assert set(run.evaluate("test")) == {"neon"}

    bundle = run.quantize(bits=4)
    assert bundle.weights_bytes < run.model.weights_bytes / 4
    again = xfer.load(run.folder / "bundle")
    assert again.classes == ("circle", "cross", "square", "star")
    file = next((images / "paint" / "circle").glob("*.jpg"))
    array = np.asarray(Image.open(file))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    answers = again.predict([file, str(file), array, tensor, Image.open(file)], top=4)
    assert all(answer == answers[0] for answer in answers)
    assert sum(answers[0].values()) == pytest.approx(1, abs=1e-4)
    assert again.predict(file, top=1) == [dict([next(iter(answers[0].items()))])]
    (broken := run.folder / "broken.jpg").write_bytes(b"text")
    with pytest.raises(DecodeError, match=r"broken\.jpg"):
        run.predict([file, broken])
    with pytest.raises(xfer.ConfigError, match=r"images\[1\]"):
        again.predict([file, array.astype(float)])
    for wrong, got in (([None], "NoneType"), (3, "int"), (torch.stack([tensor] * 2), r"uint8 \[2, 3, 40, 40\]")):
        with pytest.raises(xfer.ConfigError, match=rf"images\[0\]: must be a path, .* got {got}; several images are"):
            again.predict(wrong)


def test_one_change_may_be_given_as_text(recipe_values, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    assert xfer.fit(path, "train.steps=1", quiet=True).metrics[-1]["step"] == 1


def test_faults_are_those_of_the_verb(recipe_values, tmp_path):
    with pytest.raises(xfer.ConfigError) as caught:
        xfer.fit(recipe_values, {"train.steps": 0, "train.stepz": 1})
    assert "train.steps: must be at least 1, got 0" in str(caught.value)
    assert "stepz" in str(caught.value)
    with pytest.raises(xfer.ConfigError, match="neither"):
        xfer.load(tmp_path)
