"""Small drawn sources, built once, and a recipe over them that trains in seconds."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

# Tiny models on several threads wait for each other; processes that tests start inherit it. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray gives its workers the lowest priority but four: beside anything else they would wait for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")

from shards.generate import generate
from shards.ingest.build import build

STYLES = {
    "paint": ["circle", "square", "star"],
    "outline": ["circle", "star", "cross"],
    "neon": ["circle", "square", "star", "cross"],
}


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and so would the commands that tests start and stop with it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what tests/slow.txt lists (see tests/slow.py)."""
    listed = set((Path(__file__).parent / "slow.txt").read_text().split())
    for item in items:
        if item.nodeid.split("[")[0] in listed:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folders: <style>/<class>/*.jpg, 30 images a class."""
    folder = tmp_path_factory.mktemp("images")
    generate(folder, STYLES, per_class=30, side=40)
    return folder


@pytest.fixture(scope="session")
def shards_root(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, built: one folder of shards for each style."""
    folder = tmp_path_factory.mktemp("shards")
    for style in STYLES:
        build(images / style, folder / style, name=style, shard_mb=0.05, processes=1)
    return folder


@pytest.fixture
def recipe_values(shards_root: Path, tmp_path: Path) -> dict[str, Any]:
    """A two-branch recipe as plain values, on two sources, with a third as the target. Runs go to tmp_path/runs."""
    return {
        "name": "tiny",
        "output": str(tmp_path / "runs"),
        "data": {
            "root": str(shards_root),
            "sources": {"paint": {"path": "paint"}, "outline": {"path": "outline"}},
            "test": {"neon": {"path": "neon"}},
            "validation": 0.2,
            "image_size": 32,
            "batch_size": 12,
            "workers": 0,
        },
        "model": {
            "branches": {"fine": {"backbone": "resnet10"}, "coarse": {"backbone": "resnet10", "size": 16}},
            "fusion": {"width": 16},
        },
        "train": {
            "steps": 4,
            "warmup": 1,
            "learning_rate": 0.01,
            "log_every": 1,
            "save_every": 2,
            "evaluate_every": 4,
            "freeze_batchnorm": True,
        },
        "quantize": {"calibration": 16},
    }


@pytest.fixture
def pretrained(recipe_values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A recipe of one branch with weights: random ones, whose features tell the drawn shapes apart well enough. The
    newest checkpoint is the model, whatever it scores.
    """
    import torch
    from safetensors.torch import save_file

    from xfer.backbone import Branch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        save_file(Branch("resnet10").state_dict(), tmp_path / "weights.safetensors")
    recipe_values["model"] = {
        "branches": {"only": {"backbone": "resnet10", "weights": str(tmp_path / "weights.safetensors")}},
        "fusion": {"width": 512},
    }
    recipe_values["train"] |= {"learning_rate": 1e-4, "select": "last"}
    return recipe_values
