"""A batch script for Slurm, run with a Slurm and a Python that do as they are told."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster.manifest.slurm import manifest

FAKES = {
    # a command on every node at once; has all of its processes end when scancel says so, or when one fails
    "srun": f"""#!{sys.executable} -S
import itertools, os, signal, subprocess, sys, time
from pathlib import Path
command = list(itertools.dropwhile(lambda word: word.startswith("--"), sys.argv[1:]))
environment = lambda node: dict(os.environ, SLURM_NODEID=str(node))
count = int(os.environ["SLURM_JOB_NUM_NODES"])
nodes = [subprocess.Popen(command, env=environment(node), start_new_session=True) for node in range(count)]
(Path(os.environ["SEEN"]) / "srun").write_text(str(os.getpid()))
def end(*_):
    for node in nodes:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGTERM)
signal.signal(signal.SIGTERM, end)
while any(node.poll() is None for node in nodes):
    if any(node.poll() for node in nodes):
        end()
    time.sleep(0.02)
sys.exit(max(abs(node.returncode) for node in nodes))
""",
    "scancel": '#!/bin/bash\n[[ "$*" == "--signal=TERM $SLURM_JOB_ID.0" ]] && kill -TERM "$(<"$SEEN/srun")"\n',
    "scontrol": '#!/bin/bash\necho "$@" >"$SEEN/scontrol"\n',
    # Ray listens until it is told to end, on node N not before its try M + 1 if $FAILS is NM; `xfer` does what $RUN
    # says, and saves if $SAVES
    "python": f"""#!{sys.executable} -S
import os, signal, socket, sys, time
from pathlib import Path
words, seen = sys.argv[1:], Path(os.environ["SEEN"])
if words[0] == "-c":
    exec(words[1])
elif words[1] == "ray.scripts.scripts":
    node = os.environ["SLURM_NODEID"]
    tries = seen / f"tries-{{node}}"
    tries.write_text(tries.read_text() + "." if tries.exists() else ".")
    if os.environ.get("FAILS", "").startswith(node) and len(tries.read_text()) <= int(os.environ["FAILS"][1:]):
        sys.exit(1)
    (seen / f"ray-{{node}}").write_text("\\n".join([os.environ["RAY_AUTH_TOKEN_PATH"], *words[2:]]))
    if "--head" in words:
        link = socket.create_server(("", int(next(w for w in words if w.startswith("--port=")).split("=")[1])))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(60)
elif words[1] == "cluster.nodes":
    count = int(words[3])
    while len(list(seen.glob("ray-*"))) < count:
        time.sleep(0.02)
else:
    document, address = Path(words[3]), words[4]
    (seen / "job.yaml").write_text(document.read_text())
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    (seen / "xfer").write_text("\\n".join([words[1], words[2], address, oct(token.stat().st_mode), token.read_text()]))
    def stop(*_):
        if "SAVES" in os.environ:
            step = Path(os.environ["SAVES"]) / "checkpoints" / "step-1"
            step.mkdir(parents=True)
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (seen / "runs").touch()
    if os.environ["RUN"] == "long":
        time.sleep(60)
    sys.exit(int(os.environ["RUN"]))
""",
}


class Turn:
    """One run of a script under a fake Slurm."""

    def __init__(self, script: Path, seen: Path, **environment: str):
        self.seen = seen
        path = f"{script.parent}/bin:{os.environ['PATH']}"
        slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "9"}
        self._process = subprocess.Popen(
            ["bash", str(script)],
            env={**os.environ, "PATH": path, "SEEN": str(seen), **slurm, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def tell(self, number: int) -> None:
        """As soon as the job runs."""
        deadline = time.monotonic() + 30
        while not (self.seen / "runs").exists():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        said, _ = self._process.communicate(timeout=30)
        return self._process.returncode, said

    @property
    def asked_for_another(self) -> bool:
        return (self.seen / "scontrol").exists()


@pytest.fixture
def script(sized, tmp_path) -> Path:
    for name, text in FAKES.items():
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(text)
        fake.chmod(0o755)
    path = tmp_path / "tiny.sbatch"
    path.write_text(manifest(sized, str(tmp_path / "bin" / "python")))
    return path


@pytest.fixture
def turn(script, tmp_path) -> Callable[..., Turn]:
    def turn(**environment: str) -> Turn:
        return Turn(script, Path(tempfile.mkdtemp(dir=tmp_path)), **environment)

    return turn


def test_slurm_is_asked_for_what_the_job_needs(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert lines[0] == "#!/bin/bash"
    assert {name: asked[name] for name in ("nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem")} == {
        "nodes": "2",
        "ntasks-per-node": "1",
        "cpus-per-task": "9",
        "gpus-per-node": "1",
        "mem": "12G",
    }
    assert (asked["time"], asked["signal"], asked["requeue"]) == ("90", "B:USR1@300", "")


def test_a_job_runs_on_all_nodes_to_its_end(turn, sized, script):
    one = turn(RUN="0")
    assert one.end()[0] == 0
    assert not one.asked_for_another
    module, verb, address, mode, token = (one.seen / "xfer").read_text().split("\n")
    assert (module, verb, yaml.safe_load((one.seen / "job.yaml").read_text())) == (
        "xfer",
        "train",
        yaml.safe_load(sized.order.document),
    )
    head, worker = ((one.seen / f"ray-{node}").read_text().split("\n") for node in (0, 1))
    place = address.removeprefix("cluster.address=")
    assert f"--address={place}" in worker
    assert {"--head", f"--port={place.rpartition(':')[2]}", "--include-dashboard=false"} <= set(head)
    for node in (head, worker):
        assert {
            "start",
            "--block",
            "--num-cpus=3",
            "--num-gpus=1",
            "--min-worker-port=0",
            "--max-worker-port=0",
        } <= set(node)
    assert stat.S_IMODE(int(mode, 8)) == 0o600
    assert len(token) == 64
    assert token not in script.read_text()
    assert not Path(head[0]).exists()
    assert Path(head[0]).parent == sized.order.folder.parent


def test_nothing_of_a_job_can_meet_another_on_its_nodes(turn):
    options = []
    for number in ("11111111", "22222222"):
        one = turn(RUN="0", SLURM_JOB_ID=number)
        one.end()
        options.append([(one.seen / f"ray-{node}").read_text().split("\n") for node in (0, 1)])
    shared = [set(first) & set(second) for first, second in zip(*options, strict=True)]
    for told in shared:
        assert not any(word.startswith(("--temp-dir", "--port", "--address", "--ray-client", "/")) for word in told)
    folders = {word for job in options for node in job for word in node if word.startswith("--temp-dir=")}
    assert len(folders) == 4
    assert not any(Path(folder.partition("=")[2]).exists() for folder in folders)


def test_near_the_time_limit_it_saves_and_asks_for_another_turn(turn, sized):
    one = turn(RUN="long", SAVES=str(sized.order.folder))
    one.tell(signal.SIGUSR1)
    assert one.end()[0] == 143
    assert (one.seen / "scontrol").read_text().split() == ["requeue", str(os.getpid())]
    assert not list(sized.order.folder.parent.glob(".*"))


def test_there_is_no_other_turn_where_nothing_was_saved(turn, sized):
    before = sized.order.folder / "checkpoints" / "step-0"
    before.mkdir(parents=True)
    os.utime(before, (1, 1))
    os.utime(before.parent, (1, 1))
    one = turn(RUN="long")
    one.tell(signal.SIGUSR1)
    status, said = one.end()
    assert status == 143
    assert not one.asked_for_another
    assert "give it more --hours" in said


def test_a_job_that_is_cancelled_saves_and_stays_ended(turn, sized):
    one = turn(RUN="long", SAVES=str(sized.order.folder))
    one.tell(signal.SIGTERM)
    assert one.end()[0] == 143
    assert (sized.order.folder / "checkpoints" / "step-1").exists()
    assert not one.asked_for_another


def test_a_run_that_fails_ends_the_job_as_it_ended(turn):
    one = turn(RUN="2")
    assert one.end()[0] == 2
    assert not one.asked_for_another


def test_a_node_on_which_ray_does_not_start_ends_the_job(turn):
    one = turn(RUN="0", FAILS="19")
    status, said = one.end()
    assert status == 1
    assert (one.seen / "tries-1").read_text() == "..."
    assert "xfer: Ray does not start on a node" in said
    assert not (one.seen / "xfer").exists()


@pytest.mark.parametrize("fails", ["02", "12"])
def test_a_node_on_which_ray_is_slow_to_start_has_three_tries(turn, fails):
    one = turn(RUN="0", FAILS=fails)
    assert one.end()[0] == 0
    assert (one.seen / f"tries-{fails[0]}").read_text() == "..."


def test_paths_may_have_blanks_and_quotes(sized, script, tmp_path, turn):
    from dataclasses import replace

    order = replace(sized.order, folder=tmp_path / "it's here" / "tiny")
    script.write_text(manifest(replace(sized, order=order), str(tmp_path / "bin" / "python")))
    one = turn(RUN="0")
    assert one.end()[0] == 0
    assert list((tmp_path / "it's here").iterdir()) == []
