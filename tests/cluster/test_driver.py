"""What runs on the cluster for a job, without the cluster: a project of one line in place of this one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import driver

SAVES = """
import signal, sys, time
def end(*_):
    print("saved: step 3")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("training", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the driver beside a package xfer whose command is `code`."""

    def start(code: str, folder: str, *options: str, submitted: str = "other") -> subprocess.Popen[str]:
        (tmp_path / "xfer").mkdir(exist_ok=True)
        (tmp_path / "xfer" / "__init__.py").touch()
        (tmp_path / "xfer" / "__main__.py").write_text(code)
        shutil.copy(driver.__file__, tmp_path / "run.py")
        words = [sys.executable, *options, "run.py", "tiny-1", "train", "job.yaml", folder, submitted]
        away = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.Popen(
            words, cwd=tmp_path, env=away, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return start


@pytest.mark.parametrize("status", [0, 1, 2])
def test_words_and_exit_status_are_those_of_the_command(start, tmp_path, status):
    runs = tmp_path / "runs" / "tiny"
    process = start(f"import sys; print(*sys.argv[1:]); print('no', file=sys.stderr); sys.exit({status})", str(runs))
    said = process.communicate()[0]
    assert process.returncode == status
    first, note, *rest = said.splitlines()
    assert first.startswith("job tiny-1: xfer ")
    assert f"in {tmp_path} on host " in first
    assert note.startswith("note: submitted by xfer other, the cluster has xfer ")
    assert rest in (["train job.yaml", "no"], ["no", "train job.yaml"])
    assert (runs / "driver-tiny-1.log").read_text() == said


def test_the_same_version_is_not_remarked_on(start, tmp_path):
    start("", str(tmp_path)).communicate()
    said = start("", str(tmp_path), submitted=driver.version(tmp_path)).communicate()[0]
    assert said.count("\n") == 1
    assert start("", str(tmp_path), submitted="").communicate()[0].count("\n") == 1  # nobody to compare with
    (tmp_path / "xfer" / "more.py").write_text("x = 1")
    assert driver.version(tmp_path) not in said


def test_a_command_that_is_killed_is_said_to_be(start, tmp_path):
    process = start("import os; os.kill(os.getpid(), 9)", str(tmp_path))
    assert process.communicate()[0].endswith(
        "xfer: ended by signal 9 (out of memory?); submitted again, it goes on from its checkpoint\n"
    )
    assert process.returncode == 1


def test_what_the_command_says_after_sigterm_is_waited_for(start, tmp_path):
    process = start(SAVES, str(tmp_path))
    log = tmp_path / "driver-tiny-1.log"
    while "training" not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None
        time.sleep(0.02)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, int(child)):  # as Ray does
        os.kill(pid, signal.SIGTERM)
    assert process.communicate()[0].endswith("saved: step 3\n")
    assert process.returncode == 143


def test_a_log_that_cannot_be_written_ends_nothing(start):
    process = start("print('done')", "/proc/runs")
    said = process.communicate()[0]
    assert said.startswith("note: no log in the run folder: /proc/runs/driver-tiny-1.log: ")
    assert said.endswith("done\n")
    assert process.returncode == 0


def test_a_python_without_the_project_is_named(start, tmp_path):
    shutil.copy(driver.__file__, tmp_path / "alone.py")
    words = [sys.executable, "-S", "-I", "alone.py", "tiny-1", "train", "job.yaml", str(tmp_path), "0.1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"xfer: the project is not installed for {sys.executable} on " in done.stdout
    assert "--ship-code" in done.stdout
