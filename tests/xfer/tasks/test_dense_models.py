"""What a detector and a segmenter say of files, and how their branches become one map."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shards.loading.frame import frame_of
from shards.settings import ConfigError
from tests.xfer.tasks.conftest import Values
from tests.xfer.tasks.runs import ALIKE, BOXES, EVERY, KINDS, fit, verb
from xfer.config import Recipe
from xfer.model import DenseModel, build_model
from xfer.model_config import ModelConfig
from xfer.surface import load

each = pytest.mark.parametrize("kind", KINDS)
every = pytest.mark.parametrize("kind", EVERY)


def picture(scenes, number: int = 1) -> Image.Image:
    """One that is clearly wider than high."""
    with Image.open(scenes / "paint" / "images" / f"{number:05d}.jpg") as file:
        return file.convert("RGB").resize((150, 90))


def same(one, other) -> bool:
    """Whether two answers are equal to the bit."""
    parts = [(one, other)] if isinstance(one, Tensor) else list(zip(one, other, strict=True))
    return all(torch.equal(a, b) for a, b in parts)


@each
@pytest.mark.parametrize("way", ["wide", "high"])
def test_path_picture_and_arrays_have_one_answer_in_pixels_of_the_original(trained, scenes, tmp_path, kind, way):
    image = picture(scenes)
    image = image if way == "wide" else image.transpose(Image.Transpose.ROTATE_90)
    path = tmp_path / "picture.png"
    image.save(path)
    array = np.array(image)
    model = load(trained(kind).folder)
    first, *others = model.predict([path, image, array, torch.from_numpy(array).permute(2, 0, 1)])
    assert all(same(first, other) for other in others)
    if kind in BOXES:
        boxes = first.boxes
        assert len(boxes) == len(first.scores) == len(first.labels) > 0
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([image.width, image.height] * 2)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.max() > 64, "more than the square's pixels"
        assert (first.scores.diff() <= 0).all()
        assert first.labels.max() < len(model.classes) == (2 if kind in ALIKE else 3)
    else:
        assert first.shape == (image.height, image.width)
        assert first.dtype == torch.uint8
        assert 1 < len(first.unique()) <= len(model.classes) == 4


@each
def test_the_verb_says_and_draws_what_the_model_says(trained, scenes, tmp_path, kind, capsys):
    path, recipe = tmp_path / "picture.png", trained(kind)
    picture(scenes).save(path)
    (answer,) = load(recipe.folder).predict(path)
    key = "boxes" if kind in BOXES else "pixels"
    verb("predict", recipe.folder, path, "--json", "--draw", tmp_path / "drawn")
    said = json.loads(capsys.readouterr().out)[key]
    if kind in BOXES:
        assert [one["box"] for one in said] == [[round(edge, 1) for edge in box] for box in answer.boxes.tolist()]
    else:
        assert sum(said.values()) == pytest.approx(1)
        verb("predict", recipe.folder, path, "--masks", tmp_path / "masks")
        assert torch.equal(torch.from_numpy(np.array(Image.open(tmp_path / "masks" / "picture.png"))), answer)
    with Image.open(tmp_path / "drawn" / "picture.png") as drawn:
        assert drawn.height >= 90
        assert drawn.width >= 150


def test_pictures_and_masks_keep_sub_folders_and_none_takes_the_place_of_another(trained, scenes, tmp_path, capsys):
    """The same name in two sub-folders, another ending beside it, and an image that is named twice."""
    inside = tmp_path / "photos"
    places = [inside / "a" / "one.png", inside / "b" / "one.png", inside / "b" / "one.bmp"]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(scenes).save(path)
    to = "--draw", tmp_path / "drawn", "--masks", tmp_path / "masks"
    verb("predict", trained("fpn").folder, inside, places[0], *to, "--json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in (places[0], places[2], places[1], places[0])]
    for kind, folder in (("drawn", tmp_path / "drawn"), ("mask", tmp_path / "masks")):
        names = ["a/one.png", "b/one.png", "b/one-2.png", "a/one.png"]
        assert [row[kind] for row in rows] == [str(folder / name) for name in names]
        found = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
        assert found == set(names)


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_boxes_come_back_from_the_square_to_their_places(resize):
    """Of an image of 150 x 90: the corner of what the square shows is the image's corner."""
    frame = frame_of(150, 90, 64, resize)
    whole = frame.to_original(torch.tensor([[0.0, 0.0, frame.columns, frame.rows]]))
    assert whole.tolist() == [[0, 0, 150, 90]]


def branches(kind: str, **given: dict) -> ModelConfig:
    weights = {name: one.pop("weight") for name, one in given.items()}
    return ModelConfig.model_validate(
        {
            "branches": {name: {"backbone": "resnet10", **one} for name, one in given.items()},
            "fusion": {"width": 32, "weights": weights},
            "head": {"kind": kind},
        }
    )


def built(config: ModelConfig, like: DenseModel | None = None) -> DenseModel:
    """With random statistics of BatchNorm and, where it has the same parts, the weights of another one."""
    model = build_model(config, 3, 0).eval()
    assert isinstance(model, DenseModel)
    drawn = torch.Generator().manual_seed(0)
    for name, value in sorted(model.state_dict().items()):
        if name.endswith("running_mean"):
            value.copy_(0.1 * torch.randn(value.shape, generator=drawn))
    if like is not None:
        state = {n: v for n, v in like.state_dict().items() if n in model.state_dict() and not n.startswith("fusion.")}
        model.load_state_dict(state, strict=False)
    return model


def parts(output) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [output[name] for name in sorted(output)]


IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@every
def test_a_branch_of_all_the_weight_is_the_model_of_that_branch_alone(kind):
    both = built(branches(kind, a={"weight": 1}, b={"weight": 0, "size": 48}))
    alone = built(branches(kind, a={"weight": 1}), both)
    for one, other in zip(parts(both(IMAGES)), parts(alone(IMAGES)), strict=True):
        assert torch.equal(one, other)
    other = built(branches(kind, a={"weight": 0.5}, b={"weight": 0.5, "size": 48}), both)
    assert any(not torch.equal(one, two) for one, two in zip(parts(other(IMAGES)), parts(both(IMAGES)), strict=True))


@torch.no_grad()
@each
def test_the_order_of_branches_changes_nothing(kind):
    one = built(branches(kind, a={"weight": 0.7}, b={"weight": 0.3}))
    other = built(branches(kind, b={"weight": 0.3}, a={"weight": 0.7}), one)
    for a, b in zip(parts(one(IMAGES)), parts(other(IMAGES)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["fcos", "fpn"])
def test_branches_of_two_sizes_train_together_with_their_gate(values: Values, kind):
    given = values(kind)
    given["model"]["branches"] = {"fine": {"backbone": "resnet10"}, "coarse": {"backbone": "resnet10", "size": 32}}
    given["model"]["fusion"]["kind"] = "gate"
    recipe = Recipe.model_validate(given)
    found = fit(recipe)
    assert found[-1] < found[0]
    gamma = load(recipe.folder).model.fusion.get_parameter("gamma")
    assert gamma.abs().max() > 0, "every level learns by one gate"


def test_a_picture_lies_in_a_segmenters_square_as_in_training(trained, scenes):
    """The answer on a picture that is already the square's size is the largest logit, resized alone."""
    model = load(trained("fpn").folder)
    image = picture(scenes).resize((64, 64))
    (answer,) = model.predict(image)
    with torch.no_grad():
        logits = model.model(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
        expected = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear")[0].argmax(0)
    assert (answer == expected).float().mean() > 0.999


def test_images_are_named_by_a_file(trained, scenes, tmp_path, capsys):
    path = tmp_path / "one picture.png"
    picture(scenes).save(path)
    (tmp_path / "names").write_text(f"  {path} \r\n\n")
    verb("predict", trained("fcos").folder, "--list", tmp_path / "names", "--json")
    assert json.loads(capsys.readouterr().out)["image"] == str(path)
    for text, reason in (("gone.png\n", "gone.png: no such file"), (None, "cannot be read")):
        (tmp_path / "names").unlink()
        if text:
            (tmp_path / "names").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            verb("predict", trained("fcos").folder, "--list", tmp_path / "names")
