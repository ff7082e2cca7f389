"""`xfer cluster manifest`: what it writes where, and everything that is wrong at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from xfer.__main__ import main

Xfer = Callable[..., tuple[int, str, str]]


@pytest.fixture
def xfer(capsys, recipe_values: dict[str, Any], tmp_path: Path, monkeypatch) -> Xfer:
    """`xfer cluster manifest ...` beside a job.yaml and a study.yaml: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(yaml.safe_dump({"recipe": recipe_values, "cluster": {"address": "h1:6379"}}))
    study = {"name": "bits", "job": "job.yaml", "space": {"quantize.bits": {"choice": [4, 8]}}}
    Path("study.yaml").write_text(yaml.safe_dump(study))

    def xfer(*words: str) -> tuple[int, str, str]:
        status = 0
        try:
            main(["cluster", "manifest", *words])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return xfer


def test_without_a_file_it_is_printed_and_nothing_else(xfer):
    status, out, err = xfer(
        "job.yaml", "train.steps=9", "--kuberay", "--claim", "all:/" + str(Path.cwd()).split("/")[1]
    )
    assert (status, err) == (0, "")
    config, ray_job = yaml.safe_load_all(out)
    job = json.loads(config["data"]["job.yaml"])
    assert (job["recipe"]["train"]["steps"], job["cluster"]["address"]) == (9, "auto")
    assert ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 2


@pytest.mark.parametrize(
    ("options", "started"),
    [(("--slurm",), "sbatch"), (("--vm", "--hosts", "h1,h2", "--ssh-user", "me"), "ray up -y")],
)
def test_a_file_that_is_there_is_replaced_only_by_force(xfer, options, started):
    status, out, _ = xfer("job.yaml", *options, "--out", "made")
    assert (status, out) == (0, f"written: made\nnext: {started} made\n")
    before = Path("made").read_bytes()
    status, _, err = xfer("job.yaml", "name=other", *options, "--out", "made")
    assert (status, err) == (2, "xfer: --out: made is there already; --force replaces it\n")
    assert Path("made").read_bytes() == before
    assert xfer("job.yaml", "name=other", *options, "--out", "made", "--force")[0] == 0
    assert b"other" in Path("made").read_bytes()


def test_a_study_is_tuned(xfer):
    _, out, _ = xfer(
        "study.yaml", "--slurm", "--nodes", "1", "--hours", "2", "--memory-gib", "3", "--python", "/opt/py"
    )
    for line in ("verb=tune", "python=/opt/py", "#SBATCH --nodes=1", "#SBATCH --time=120", "#SBATCH --mem=6G"):
        assert f"{line}\n" in out


@pytest.mark.parametrize(
    ("asked", "named"), [((), "none"), (("--vm", "--slurm"), "--vm and --slurm"), (("--no-vm",), "")]
)
def test_one_kind_is_asked_for(xfer, asked, named):
    status, out, err = xfer("job.yaml", *asked)
    assert (status, out) == (2, "")
    assert named in err


def test_everything_that_is_wrong_is_told_at_once(xfer):
    status, out, err = xfer("job.yaml", "train.stepz=3", "--vm", "--hosts", "a", "--nodes", "2", "--out", "no/where")
    assert (status, out) == (2, "")
    lines = err.splitlines()
    assert lines[0] == "xfer: job.yaml: 4 faults"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "--out",
        "--ssh-user",
        "--nodes",
        "recipe.train.stepz",
    ]
    assert "--nodes: is of --kuberay and --slurm, not of --vm" in err


@pytest.mark.parametrize("output", ["s3://bucket/runs", "/home/me/runs"])
def test_a_run_folder_that_pods_cannot_write_is_refused(xfer, output):
    status, _, err = xfer("job.yaml", f"output={output}", "--kuberay", "--claim", "data:/tmp", "--unseen")
    assert status == 2
    assert f"output: {'must be a folder' if '://' in output else output}" in err


def test_data_that_only_the_cluster_has(xfer):
    options = ("job.yaml", "data.root=/far", "output=/far/runs", "--kuberay", "--claim", "all:/far")
    assert xfer(*options)[0] == 2
    assert xfer(*options, "--unseen")[0] == 0


def test_its_help_has_an_example_of_each_kind(xfer):
    status, out, _ = xfer("--help")
    assert status == 0
    for kind in ("--kuberay", "--vm", "--slurm"):
        assert any(
            line.strip().startswith("xfer cluster manifest job.yaml") and kind in line for line in out.splitlines()
        )
