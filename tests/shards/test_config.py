"""What a user may get wrong in the `data` section and on the disk below it: every fault at once, each readable."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from shards.config import DataConfig
from shards.format.manifest import manifest_path, open_index, read_manifest
from shards.loading.open import open_data
from shards.settings import ConfigError, load
from tests.shards.images import built, config, image_folder


def read(tmp_path, **content) -> DataConfig:
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"root": str(tmp_path), **content}))
    return load(tmp_path / "data.yaml", DataConfig)


def test_the_default_root_is_absolute():
    assert DataConfig.model_validate({"sources": {"a": {"path": "a"}}}).root.startswith("/")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sources": {}}, "sources"),
        ({"sources": {"a": {"path": "a", "wieght": 1}}}, "did you mean 'weight'"),
        ({"sources": {"a": {"path": "a", "weight": 0}}}, "sources.a.weight: must be more than 0, got 0"),
        ({"sources": {"a.b": {"path": "a"}}}, "a.b"),
        ({"sources": {"a": {"path": "a", "weight": 1}, "b": {"path": "b"}}}, "b have no weight and others have"),
        ({"sources": {"a": {"path": "a", "where": {"hash": [0.5, 0.1]}}}}, "0 <= low < high <= 1"),
        ({"sources": {"a": {"path": "a", "where": {}}}}, "expected `hash`, `classes`, or both"),
        ({"sources": {"a": {"path": "a", "weight": 1}}, "temperature": 2}, "give these, or weights"),
        ({"sources": {"a": {"path": "a"}}, "stages": [{"start": 5, "weights": {"b": 1}}]}, "no source is called b"),
        ({"sources": {"a": {"path": "a"}}, "stages": [{"start": 5, "weights": {"a": 0}}]}, "more than 0"),
        ({"sources": {"a": {"path": "a"}}, "stages": [{"start": 5, "weights": {"a": 1}}] * 2}, "starts must rise"),
        ({"sources": {"a": {"path": "a"}}, "unit": "batch", "block": 7}, "expected a multiple of batch_size, 64"),
        ({"sources": {"a": {"path": "a"}}, "test": {"t": {"path": "t", "weight": 1}}}, "it has no weight"),
        ({"sources": {"a": {"path": "a"}}, "augment": {"scale": [0.9, 0.2]}}, "0 < low <= high <= 1"),
        ({"sources": {"a": {"path": "a"}}, "validation": 1}, "below 1"),
    ],
)
def test_faults_of_the_section(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **content)


def test_a_test_split_of_a_trained_folder_is_no_leak(tmp_path):
    read(tmp_path, sources={"a": {"path": "a"}}, test={"a": {"path": "a", "split": "test"}})


def test_all_faults_on_the_disk_at_once(tmp_path):
    built(tmp_path, "good", per_class=10)
    image_folder(tmp_path / "shards" / "raw", per_class=1)
    sources = {
        "good": {"path": "good"},
        "gone": {"path": "gone"},
        "raw": {"path": "raw"},
        "split": {"path": "good", "split": "tset"},
    }
    with pytest.raises(ConfigError) as caught:
        open_data(config(tmp_path, sources=sources))
    faults = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 3
    for words in ("sources.gone", "no such folder", "xfer shards build", "no split 'tset'; it has train"):
        assert words in faults


def test_the_same_content_elsewhere_is_leakage_too(tmp_path):
    built(tmp_path, "a", per_class=10)
    (tmp_path / "shards" / "b").symlink_to(tmp_path / "shards" / "a")
    with pytest.raises(ConfigError, match=r"samples of .*/b are also in sources\.a"):
        open_data(config(tmp_path, "a", test={"b": {"path": "b"}}))


def test_a_validation_part_without_samples(tmp_path):
    built(tmp_path, "tiny", per_class=1)
    with pytest.raises(ConfigError, match="leaves none to validate on"):
        open_data(config(tmp_path, "tiny", validation=0.001))
    assert open_data(config(tmp_path, "tiny", validation=0)).validation == ()


def test_a_missing_shard(tmp_path):
    (built(tmp_path, "a") / "train-000001.tar").unlink()
    with pytest.raises(ConfigError, match=r"1 shards are missing \(train-000001.tar\)"):
        open_data(config(tmp_path, "a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=9), "format 9, this version reads 1"),
        (lambda m: m.update(classes=["x"]), "edited by hand"),
        (lambda m: m["shards"][0].update(path="../../secret.tar"), "not the name of a file beside"),
        (lambda m: m.pop("index"), "damaged manifest, index"),
    ],
)
def test_manifests_that_are_not_right(tmp_path, change, message):
    folder = built(tmp_path, "a", per_class=2)
    content = json.loads(manifest_path(folder, "train").read_text())
    change(content)
    manifest_path(folder, "train").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_manifest(folder, "train")


def test_an_index_that_would_run_code_is_refused(tmp_path):
    folder = built(tmp_path, "a", per_class=2)
    np.save(folder / "train.index.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="not a readable index"):
        open_index(folder, read_manifest(folder, "train"))


def test_help_does_not_wait_for_torch():
    code = "import sys, shards.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_verbs(tmp_path, capsys):
    from PIL import Image

    from shards.cli import app

    source, out = image_folder(tmp_path / "raw", per_class=3), tmp_path / "shards"

    def verb(*words) -> str:
        app([str(word) for word in words], result_action="return_value", exit_on_error=False)
        return capsys.readouterr().out

    assert "9 samples of 3 classes in 1 shard," in verb("build", source, out)
    assert "already built" in verb("build", source, out)
    assert "9 of 9 samples" in verb("show", out, "--out", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 800
    assert "as they were written" in verb("verify", out)
    assert "owl" in verb("stats", out)
    with pytest.raises(ConfigError, match="expected 1 to"):
        verb("show", out, "--count", "0")


def test_a_contact_sheet_shows_every_class():
    from shards.inspect.preview.show import choose

    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    shown = labels[choose(labels, 9, seed=1)]
    assert shown.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
