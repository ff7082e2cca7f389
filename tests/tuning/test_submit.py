"""A job or a study as an order for a cluster: what is sent, and what is told before anything is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.config import Job
from cluster.jobs import submission_name
from shards.settings import ConfigError, load
from tuning.config import Study
from tuning.submit import order


@pytest.fixture
def job_file(recipe_values, tmp_path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"recipe": recipe_values, "cluster": {"address": "h1:6379"}}))
    return path


def sent(document: str, folder: Path, kind):
    (folder / "sent.yaml").write_text(document)
    return load(folder / "sent.yaml", kind)


def test_relative_paths_count_from_the_folder_of_the_user(job_file, shards_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(shards_root)
    made, given = order(job_file, ["data.root=link", "output=out", "name=far"])
    monkeypatch.chdir("/")
    job = sent(made.document, tmp_path, Job)
    assert (job.recipe.data.root, job.recipe.output) == (str(link), str(tmp_path / "out"))
    assert made.paths == {"data.root": str(link), "output": str(tmp_path / "out")}
    assert (made.verb, made.name, made.folder) == ("train", "far", tmp_path / "out" / "far")
    assert (given.cluster.address, job.cluster.address) == ("h1:6379", "auto")


def test_the_cache_of_remote_shards_is_below_the_home_folder_there(job_file, tmp_path, monkeypatch):
    made, _ = order(job_file)
    own, _ = order(job_file, ["data.cache.folder=/fast/cache"])
    monkeypatch.setenv("HOME", "/home/there")
    assert sent(made.document, tmp_path, Job).recipe.data.cache.folder == "/home/there/.cache/xfer/shards"
    assert sent(own.document, tmp_path, Job).recipe.data.cache.folder == "/fast/cache"


def test_a_study_is_tuned_in_its_own_folder(job_file, tmp_path):
    study = {"job": "job.yaml", "space": {"quantize.bits": {"choice": [4, 8]}}, "name": "bits"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    made, job = order(tmp_path / "study.yaml", ["search.trials=3"])
    assert (made.verb, made.folder.name, job.cluster.address) == ("tune", "bits", "h1:6379")
    read = sent(made.document, tmp_path, Study)
    assert (read.search.trials, read.job.cluster.address) == (3, "auto")


def test_everything_that_is_wrong_is_told_at_once(job_file, tmp_path):
    changes = ["train.stepz=3", "data.sources.paint.path=gone", "model.branches.fine.weights=no.pt"]
    with pytest.raises(ConfigError) as caught:
        order(job_file, changes)
    for part in ("train.stepz: unknown key", "data.sources.paint:", "model.branches.fine.weights: no such file"):
        assert part in str(caught.value)
    study = {"job": "job.yaml", "space": {"quantize.bits": {"choice": [4, 99]}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(ConfigError, match=r"space\.quantize\.bits"):
        order(tmp_path / "study.yaml")


def test_data_that_only_the_cluster_sees_is_left_to_it_where_that_is_said(job_file):
    with pytest.raises(ConfigError, match=r"data\.root: /nowhere is not on this machine; .* --unseen"):
        order(job_file, ["data.root=/nowhere"])
    assert order(job_file, ["data.root=/nowhere"], unseen=True)[0].paths["data.root"] == "/nowhere"


def test_an_option_that_counts_from_this_folder_is_refused(job_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.pt").touch()
    study = {"job": "job.yaml", "space": {"model.branches.fine.weights": {"choice": ["weights/a.pt"]}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(ConfigError, match=f"give {tmp_path}/weights/a.pt"):
        order(tmp_path / "study.yaml")


def test_a_recipe_is_told_from_a_job(recipe_values, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe_values))
    with pytest.raises(ConfigError, match="this is a recipe"):
        order(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("given", ["", "a b", "../x", "-x", "x" * 65])
def test_what_no_job_can_be_called_is_refused(given):
    with pytest.raises(ConfigError, match="--id: must be of letters"):
        submission_name(given, "tiny")


def test_names_that_are_not_given_differ():
    first, second = submission_name(None, "tiny"), submission_name(None, "tiny")
    assert first != second
    assert first.startswith("tiny-")


def test_checking_a_job_needs_neither_torch_nor_ray(job_file):
    code = "import sys; from tuning.submit import order; order(sys.argv[1]); print({'torch', 'ray'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code, str(job_file)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "set()\n"
