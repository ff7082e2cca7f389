"""`xfer classes add`: a bundle with further classes by their names, whole or not at all, the old ones to the bit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import xfer
from tests.xfer.command import status
from xfer import more_classes
from xfer.bundle import open_model
from xfer.checkpoint import damage
from xfer.encoders import hash_ngram

IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made(shards_root, tmp_path_factory) -> Callable[..., Path]:
    """A bundle of a run with this head; made once."""
    folder, known = tmp_path_factory.mktemp("classes"), dict[str, Path]()

    def make(name: str, bits: int = 4, **head: object) -> Path:
        if name not in known:
            data = {"root": str(shards_root), "sources": {"paint": {"path": "paint"}}, "image_size": 32}
            values = {
                "name": name,
                "output": str(folder),
                "data": data | {"batch_size": 12, "workers": 0, "validation": 0},
                "model": {"branches": {"only": {"backbone": "resnet10"}}, "fusion": {"width": 16}, "head": head},
                "train": {"steps": 1},
                "quantize": {"calibration": 16, "groups": {"head": bits}},
            }
            known[name] = Path(xfer.fit(values, quiet=True).quantize().path)
        return known[name]

    return make


@pytest.fixture
def bundle(made) -> Path:
    return made("labels", kind="labels")


def test_a_class_stands_behind_the_others_and_they_say_what_they_said(bundle, tmp_path, capsys):
    out = tmp_path / "new" / "bundle"
    assert status("classes", "add", str(bundle), "squares", "zebra", "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "squares: nearest by name is square (0.69)" in said
    assert "zebra: nearest by name is " in said
    assert "its name has about nothing in common" in said
    assert "nothing of what they mean" in said
    before, after = open_model(bundle), open_model(out)
    assert after.classes == (*before.classes, "squares", "zebra")
    assert after.bits == before.bits
    old = len(before.classes)
    with torch.no_grad():
        logits, more = before.model(IMAGES), after.model(IMAGES)
    assert torch.allclose(more[:, :old], logits, atol=1e-6)
    assert torch.equal(after.model.head.weight[:old], before.model.head.weight)
    names = hash_ngram(after.classes)
    assert torch.equal(after.model.state_dict()["table.vectors"][old:], names[old:])
    assert torch.equal(after.model.state_dict()["table.vectors"][:old], hash_ngram(before.classes))
    table, head = before.model.table, before.model.head
    rows, bias = table.named(names[old:], head.weight, head.bias, 0.1)
    assert torch.cosine_similarity(after.model.head.weight[old:], rows).min() > 0.97, "but for 4 bits"
    assert torch.equal(after.model.head.bias[old:].detach(), bias)
    card = (out / "card.md").read_text()
    assert f"- classes: {', '.join(after.classes)}" in card
    assert "- zebra: nearest by name is " in card
    assert yaml.safe_load((out / "labels.yaml").read_text())["classes"] == list(after.classes)
    assert damage(out) == []
    picture = str(tmp_path / "noise.png")
    Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).save(picture)
    capsys.readouterr()
    assert status("predict", str(out), picture, "--top", "9") == 0
    assert "zebra" in capsys.readouterr().out


def test_rows_in_float_and_a_bundle_in_its_own_place(made, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(made("float", 32, kind="labels", delta_penalty=1), bundle)
    before = open_model(bundle)
    assert status("classes", "add", str(bundle), "starfish", "--out", str(bundle)) == 0
    after = open_model(bundle)
    assert after.classes == (*before.classes, "starfish")
    weight = after.model.head.weight.detach()
    row, star = weight[-1], weight[before.classes.index("star")]
    assert row.norm() == pytest.approx(before.model.head.weight.norm(dim=1).mean().item(), rel=1e-4)
    assert torch.cosine_similarity(row, star, dim=0) > 0.5
    capsys.readouterr()
    assert status("classes", "add", str(bundle), "cross stitch", "lone star") == 0
    assert open_model(tmp_path / "bundle-and-cross_stitch-and-lone_star").classes[-2:] == ("cross stitch", "lone star")


@pytest.mark.parametrize(
    ("names", "faults"),
    [
        ([], ["give the name of a class"]),
        ([""], ["must not be empty"]),
        (
            [" ", "star", "new", "new"],
            ["must not be empty", "star: is a class of this model already", "new: is given tw"],
        ),
    ],
)
def test_names_that_cannot_be_added_are_refused_all_at_once(bundle, tmp_path, capsys, names, faults):
    assert status("classes", "add", str(bundle), *names, "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    for fault in faults:
        assert fault in said
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_table_or_is_no_bundle_is_refused(made, tmp_path, capsys):
    def refused(*arguments: str) -> str:
        assert status("classes", "add", *arguments) == 2
        return capsys.readouterr().err

    linear, free = made("linear", kind="linear"), made("free", kind="labels", delta_penalty=0)
    assert "has the head linear, which has no table of names" in refused(str(linear), "new")
    assert "delta_penalty: 0, so its rows have nothing to do with names" in refused(str(free), "new")
    assert f"is a run; classes are added to its bundle: xfer quantize {free.parent}" in refused(str(free.parent), "new")
    assert "no such folder" in refused(str(tmp_path / "none"), "new")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    labels = made("labels", kind="labels")
    assert "exists and is no bundle" in refused(str(labels), "new", "--out", str(tmp_path / "mine"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "notes.txt"]


def test_a_write_that_fails_leaves_no_bundle_behind(bundle, tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(more_classes, "write_manifest", full)
    assert status("classes", "add", str(bundle), "new", "--out", str(tmp_path / "out")) == 1
    assert list(tmp_path.iterdir()) == []
