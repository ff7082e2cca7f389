"""What a cluster does to a run, and what becomes of it: three hosts, each fault injected in the middle of training.

    python -m benchmarks.faults

Needs root and network namespaces: a host is one of these on this machine (tests/hosts.py). A small classifier is
trained by two workers, one on each of two hosts, in float32 with BatchNorm frozen; the run folder lies on a disk of its
own, of 600 MB. Where the command ends, the same one is given again. Told for each fault: seconds from the fault until
a step that had not been trained before, how many steps were done again, how often the command was given, and whether
the run is the one that nothing happened to, by their chains (`xfer compare --same-run`): images and losses of every
step and the weights of every checkpoint, to the bit. Seconds are those of this machine, on which all three hosts share
the cores. Written to benchmarks/results/faults.md, with the first words on each fault.
"""

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
import yaml

from benchmarks.record import commit
from shards.generate import generate
from shards.ingest.build import build
from tests.hosts import Hosts
from xfer.chain import agreement, read_chain
from xfer.history import read_metrics

RESULTS = Path(__file__).parent / "results"
NAME, STEPS, SAVE_EVERY, BEGUN = "run", 240, 20, 50
PATIENCE_S = 600.0
FULL_S = STOPPED_S = CUT_S = 20.0
PARTED_S = 90.0
NOT_WORDS = re.compile(r"raylet|^(train |starting |no step yet|step \d|  |trained|next)|%\||^$")


class Run:
    """A job, its command on the first host, and its folder."""

    def __init__(self, hosts: Hosts, disk: Path, data: Path, **cluster: Any):
        self.hosts, self.disk, self.folder = hosts, disk, disk / NAME
        self._log = hosts.folder / "said"
        self._log.touch()
        recipe = {
            "name": NAME,
            "output": str(disk),
            "data": {
                "root": str(data),
                "sources": {"paint": {"path": "paint"}, "outline": {"path": "outline"}},
                **{"validation": 0.2, "image_size": 64, "batch_size": 32, "workers": 1},
            },
            "model": {"branches": {"main": {"backbone": "resnet10"}}, "fusion": {"width": 64}},
            "train": {
                **{"steps": STEPS, "log_every": 2, "save_every": SAVE_EVERY, "evaluate_every": STEPS},
                "freeze_batchnorm": True,
            },
        }
        job = {"recipe": recipe, "cluster": {"address": hosts.head, "workers": 2, **cluster}}
        self._job = hosts.folder / "job.yaml"
        self._job.write_text(yaml.safe_dump(job))
        self.given = 0
        self.begin()

    def begin(self) -> None:
        """The command, once more."""
        self.given += 1
        words = [sys.executable, "-m", "xfer", "train", str(self._job)]
        self.command = self.hosts.start(0, words, self._log)

    @property
    def trained(self) -> int:
        return max((row["step"] for row in read_metrics(self.folder)), default=0) if self.folder.is_dir() else 0

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait(self, until: Callable[[], bool]) -> None:
        """Gives the command again wherever it ends meanwhile."""
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            if self.command.poll() not in (None, 0):
                self.begin()
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing for {PATIENCE_S:g} s; it said:\n{self.said[-3000:]}")
            time.sleep(0.2)

    def worker(self, host: int) -> int:
        """The process of the rank on a host."""
        pids = subprocess.run(["ip", "netns", "pids", self.hosts._namespace(str(host))], capture_output=True, text=True)
        for pid in map(int, pids.stdout.split()):
            with suppress(psutil.Error):
                if "RayTrainWorker" in "".join(psutil.Process(pid).cmdline()):
                    return pid
        raise RuntimeError(f"no worker on h{host}")


def nothing(run: Run) -> None:
    """To compare with."""


def worker_killed(run: Run) -> None:
    os.kill(run.worker(2), signal.SIGKILL)


def worker_stopped(run: Run) -> None:
    pid = run.worker(2)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(STOPPED_S)
    os.kill(pid, signal.SIGCONT)


def host_crashed(run: Run) -> None:
    run.hosts.crash(2)
    run.hosts.start_again(2, 1)


def host_gone(run: Run) -> None:
    run.hosts.crash(2)


def command_killed(run: Run) -> None:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cmdline()[1:4] == ["-m", "xfer", "train"] and str(run.hosts.folder) in process.cmdline()[4]:
                process.kill()


def head_crashed(run: Run) -> None:
    for host in range(3):
        run.hosts.crash(host)
    run.hosts.start_cluster([0, 1, 1])


def _cut(run: Run, seconds: float) -> None:
    link = ["ip", "-n", run.hosts._namespace("switch"), "link", "set", "p2"]
    subprocess.run([*link, "down"], check=True)
    time.sleep(seconds)
    subprocess.run([*link, "up"], check=True)


def link_cut(run: Run) -> None:
    _cut(run, CUT_S)


def host_parted(run: Run) -> None:
    """For longer than Ray waits for a node, which then ends itself."""
    _cut(run, PARTED_S)
    run.hosts.crash(2)
    run.hosts.start_again(2, 1)


def disk_full(run: Run) -> None:
    """Over a time for a checkpoint."""
    filler = run.disk / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    time.sleep(FULL_S)
    filler.unlink()


@dataclass(frozen=True)
class Fault:
    """What is done to a run in the middle. cluster: more of the job; same: whether the losses have to be the same."""

    what: str
    do: Callable[[Run], None]
    cluster: dict[str, Any]
    same: bool = True


FAULTS = (
    Fault("a worker is killed (SIGKILL)", worker_killed, {}),
    Fault(f"a worker stands still for {STOPPED_S:g} s (SIGSTOP)", worker_stopped, {}),
    Fault("a host crashes and comes back", host_crashed, {}),
    Fault(
        "a host crashes for good; workers: {min: 1, max: 2}", host_gone, {"workers": {"min": 1, "max": 2}}, same=False
    ),
    Fault(f"the link of a host is cut for {CUT_S:g} s", link_cut, {}),
    Fault(f"the link of a host is cut for {PARTED_S:g} s, then it is started anew", host_parted, {}),
    Fault("the command is killed (SIGKILL)", command_killed, {}),
    Fault("the whole cluster crashes, the head too", head_crashed, {}),
    Fault(f"the disk of the run is full for {FULL_S:g} s", disk_full, {}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", default=range(len(FAULTS)), help="faults, by number from 0")
    chosen = [FAULTS[number] for number in parser.parse_args().only]
    with tempfile.TemporaryDirectory() as folder, _disk(Path(folder, "whole")) as whole:
        data = _data(Path(folder))
        _tried(Fault("nothing", nothing, {}), whole, data)
        chain = read_chain(whole / NAME)
        rows = []
        for number, fault in enumerate(chosen):
            with _disk(Path(folder, str(number))) as disk:
                row, words = _tried(fault, disk, data)
                same, text = agreement(chain, read_chain(disk / NAME), ("undisturbed", "disturbed"))
                right = same or (not fault.same and text.startswith("the same images at every step"))
                rows.append((fault.what, *row, "yes" if same else text if right else f"NO: {text}", words))
                print(*rows[-1], sep=" | ", flush=True)
                _write(rows)


def _data(folder: Path) -> Path:
    styles = {"paint": ["circle", "square", "star"], "outline": ["circle", "star", "cross"]}
    generate(folder / "images", styles, per_class=60, side=72)
    for style in styles:
        build(folder / "images" / style, folder / "shards" / style, name=style, processes=1)
    return folder / "shards"


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """A small one of its own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _tried(fault: Fault, disk: Path, data: Path) -> tuple[tuple[float, int, int, int], str]:
    """(seconds until a new step, steps done again, commands given, exit status of the first), and the first words."""
    with Hosts(3) as hosts:
        hosts.start_cluster([0, 1, 1])
        run = Run(hosts, disk, data, **fault.cluster)
        run.wait(lambda: run.trained >= BEGUN)
        known = len(run.said)
        seen, begun = run.trained, time.monotonic()
        fault.do(run)
        highest = max(seen, run.trained)
        run.wait(lambda: run.trained > highest or run.command.poll() == 0)
        seconds = time.monotonic() - begun
        run.wait(lambda: run.command.poll() == 0)
        said = run.said[known:]
        words = next((line.strip() for line in said.splitlines() if not NOT_WORDS.search(line)), "")
        again = [highest - int(step) for step in re.findall(r"(?:from|at) step (\d+)", said)]
        return (round(seconds, 1), max(0, again[0]) if again else 0, run.given, said.count("restart: ")), words


def _write(rows: list[Any]) -> None:
    heads = ["fault", "s until a new step", "steps done again", "commands", "restarts", "the same run", "first words"]
    lines = [
        "# Faults",
        "",
        "    python -m benchmarks.faults",
        "",
        f"Commit {commit()}, {platform.machine()}, {os.cpu_count()} cores for all hosts, torch {torch.__version__}, "
        f"Ray {ray.__version__}. Three hosts (network namespaces), two workers of one CPU, {STEPS} steps, a checkpoint "
        f"every {SAVE_EVERY}; the fault comes after step {BEGUN}.",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows),
        "",
    ]
    (RESULTS / "faults.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
