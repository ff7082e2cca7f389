"""The training loops in `examples/`, and the Python that the pages in `docs/` begin with, run on small drawn data."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from shards.settings import dump

ROOT = Path(__file__).parent.parent


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folders(shards_root):
    return [str(shards_root / "paint"), str(shards_root / "outline")]


def test_the_plain_loop_goes_on_from_its_checkpoint(folders, tmp_path):
    loop, saved = example("loop_pytorch"), tmp_path / "saved.pt"
    whole = loop.main(folders, tmp_path / "whole.pt", epochs=2, steps=3)
    assert 0 <= whole <= 1
    import torch

    loop.main(folders, saved, epochs=1, steps=3)
    loop.main(folders, saved, epochs=2, steps=3)
    assert torch.load(saved, weights_only=True)["loader"]["position"] == 2 * 3 * 16


def test_lightnings_loop(folders, tmp_path):
    pytest.importorskip("lightning")
    assert example("loop_lightning").main(folders, tmp_path, epochs=2).global_step == 20


def test_accelerates_loop(folders, tmp_path):
    pytest.importorskip("accelerate")
    loop = example("loop_accelerate")
    assert loop.main(folders, tmp_path / "saved", steps=3) > 0
    assert loop.main(folders, tmp_path / "saved", steps=3) > 0


@pytest.mark.parametrize("page", ["docs/shards.md", "docs/xfer.md", "README.md"])
def test_the_first_python_of_a_page_runs(page, images, shards_root, recipe_values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shards_root, tmp_path / "data")
    for ours, theirs in (("paint", "photos"), ("outline", "drawings")):
        shutil.copytree(shards_root / ours, tmp_path / "data" / theirs)
    (tmp_path / "my").mkdir()
    for picture in ("cat.jpg", "my/image.jpg"):
        shutil.copy(next((images / "paint" / "circle").glob("*.jpg")), tmp_path / picture)
    recipe_values["model"]["branches"] = {"only": {"backbone": "resnet10"}}
    (tmp_path / "recipe.yaml").write_text(dump(_recipe(recipe_values)))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    exec(compile(blocks[0].replace("steps=1000", "steps=2").replace('steps": 300', 'steps": 4'), page, "exec"), {})


def _recipe(values):
    from xfer.config import Recipe

    return Recipe.model_validate(values)
