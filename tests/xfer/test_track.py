"""Trackers, the real ones: what they hold of a run that was stopped and went on, read back with their own readers."""

import json
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

import xfer
from shards.format.whole import read_json
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.train import train_stream
from xfer.config import Recipe, TrackerName
from xfer.history import read_metrics
from xfer.run import RunRecord
from xfer.track import PACKAGES, TRACKERS, parameters, scalars

Curves = dict[str, list[tuple[int, float]]]


def of_tensorboard(folder: Path) -> tuple[int, Curves, str]:
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    curves: Curves = {}
    files, texts = list((folder / "tensorboard").iterdir()), ""
    for file in files:
        data, at = file.read_bytes(), 0
        while at < len(data):  # TFRecord: length, its checksum, content, its checksum
            (size,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    curves.setdefault(value.tag, []).append((event.step, value.simple_value))
                else:
                    texts += str(value)
    return len(files), curves, texts


def of_mlflow(folder: Path) -> tuple[int, Curves, str]:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder.parent / 'mlflow' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("xfer").experiment_id])
    (run,) = (run for run in runs if run.data.tags["folder"] == str(folder))
    assert run.info.status == "FINISHED"
    names = run.data.metrics
    curves = {key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)) for key in names}
    return len(runs), curves, str(run.data.params)


def of_wandb(folder: Path) -> tuple[int, Curves, str]:
    wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    files, curves, config = list(folder.glob("wandb/offline-run-*/run-*.wandb")), {}, ""
    for file in files:
        deadline = time.monotonic() + 60
        while True:  # W&B's own process writes the end of it some time after `finish` has returned
            records = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_records(file.read_bytes())]
            if any(record.HasField("exit") for record in records) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        for record in records:
            if record.HasField("run"):
                config += str(record.run.config)
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for key, value in row.items():
                if not key.startswith("_"):
                    curves.setdefault(key, []).append((row["_step"], value))
    return len(files), curves, config


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """A LevelDB log behind W&B's header of 7 bytes: blocks of 32 KiB; records whole (1) or in parts (2, 3, 4)."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


READERS = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb}


@pytest.fixture
def values(recipe_values) -> dict[str, Any]:
    recipe_values["model"] = {"branches": {"only": {"backbone": "resnet10"}}, "fusion": {"width": 16}}
    recipe_values["train"] |= {"log_every": 1, "save_every": 2, "evaluate_every": 2, "steps": 4}
    return recipe_values


def expected(rows: list[Mapping[str, Any]]) -> Curves:
    curves: Curves = {}
    for row in rows:
        for step, numbers in scalars(row):
            for name, value in numbers.items():
                curves.setdefault(name, []).append((step, value))
    return curves


def test_every_tracker_that_a_recipe_may_name_is_there_and_is_read_back_here():
    assert set(TRACKERS) == set(PACKAGES) == set(READERS) == set(get_args(TrackerName))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_stopped_run_is_one_run_without_a_step_twice_and_without_a_hole(values, name, capsys):
    pytest.importorskip(PACKAGES[name])
    run = xfer.fit(values, {"track": [name]}, quiet=True)
    before = read_json(run.folder / "track.json")
    # Stopped between the checkpoint of step 2 and that of step 4: steps 3 and 4 are on record and made again.
    (run.folder / "checkpoints" / "step-00000004" / "manifest.json").unlink()
    xfer.fit(values, {"track": [name], "train.steps": 5}, quiet=True)
    assert read_json(run.folder / "track.json") == before
    count, found, settings = READERS[name](run.folder)
    assert count == 1
    wanted = expected(read_metrics(run.folder))
    assert set(wanted) >= {
        "loss",
        "learning_rate",
        "images_per_s",
        "memory_mb",
        "evaluation_seconds",
        "accuracy/paint",
        "accuracy/outline",
    }
    assert [step for step, _ in wanted["loss"]] == [1, 2, 3, 4, 5]
    assert {key: [step for step, _ in curve] for key, curve in found.items()} == {
        key: [step for step, _ in curve] for key, curve in wanted.items()
    }
    assert all(len({step for step, _ in curve}) == len(curve) for curve in found.values())
    values_of = {key: [value for _, value in curve] for key, curve in found.items()}
    for key in ("loss", "accuracy/paint"):
        if (
            name != "mlflow" or key != "loss"
        ):  # another learning rate, since train.steps changed: MLflow keeps the first
            assert values_of[key] == pytest.approx([value for _, value in wanted[key]], rel=1e-5), key
    assert "data.image_size" in settings
    assert "failed" not in capsys.readouterr().err


def test_the_loss_of_each_step_is_a_point_of_its_own():
    row = {"step": 6, "loss": 2.0, "losses": [3.0, 2.0, 1.0], "learning_rate": 0.1, "accuracy": {"a": 0.5}}
    assert list(scalars(row)) == [
        (4, {"loss": 3.0}),
        (5, {"loss": 2.0}),
        (6, {"loss": 1.0}),
        (6, {"learning_rate": 0.1, "accuracy/a": 0.5}),
    ]


def test_what_gives_access_to_data_is_no_parameter(values):
    values["data"]["sources"]["paint"] = {"path": "https://me:secret@host/paint?token=secret"}
    found = parameters(Recipe.model_validate(values))
    assert found["data.sources.paint.path"] == "https://host/paint"
    assert "secret" not in str(found)
    assert found["train.learning_rate"] == "0.01"


def test_one_that_fails_is_said_once_and_training_goes_on(values, capsys):
    folder = Path(values["output"]) / "tiny"
    folder.mkdir(parents=True)
    (folder / "tensorboard").write_text("in the way")
    run = xfer.fit(values, {"track": ["tensorboard"]}, quiet=True)
    assert run.metrics[-1]["step"] == 4
    assert capsys.readouterr().err.count("track: tensorboard failed and is left out") == 1


def test_only_rank_0_has_trackers(values):
    recipe = Recipe.model_validate(values | {"track": ["tensorboard"]})
    subsets = open_data(recipe.data).train
    for rank in (1, 0):
        slot = Slot(rank, 2)
        with (
            train_stream(subsets, recipe.data, slot) as stream,
            RunRecord(recipe, slot, stream, [], [], lambda row: None),
        ):
            assert (recipe.folder / "tensorboard").exists() == (rank == 0)


def test_what_is_wrong_is_found_before_any_work(values, monkeypatch):
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")
    for given, fault in (
        (["wandb"], r"track: wandb needs the package no_such_package.*pip install 'xfer\[track\]'"),
        (["tensorboard", "tensorboard"], "each tracker once"),
        (["excel"], "track.0: must be"),
    ):
        with pytest.raises(xfer.ConfigError, match=fault):
            xfer.fit(values, {"track": given}, quiet=True)
    assert not (Path(values["output"]) / "tiny").exists()
