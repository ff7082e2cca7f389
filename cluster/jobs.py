"""Jobs on a running Ray cluster, through the job server of its dashboard: submitted, watched, stopped.

What is sent is the job as YAML, with absolute paths, and `driver.py`, which runs it: no data, no secret, and no code
unless it is asked for. A job belongs to the cluster from then on: nothing that happens here ends it but `stop`.
"""

import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.address import check_dashboard, dashboard_at, dashboard_beside
from cluster.driver import PACKAGES, log_name, version
from cluster.session import dashboard_given, set_dashboard
from shards.settings import ConfigError

STOP_WAIT_S = 600
"""How long a job that is told to stop may take to save and end before Ray kills it; Ray's own default is 3 seconds."""
STOP_ENVIRONMENT = {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
"""Read by Ray's supervisor of the job, whose environment this is."""
POLL_S = 1.0
WORD_S = 30.0  # between words while nothing happens
HERE = Path(__file__).parents[1]  # this project
DRIVER = "xfer_driver.py"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Order:
    """What is to be run: `xfer VERB` on a document, given as YAML, which writes into `folder`. paths: the local ones in
    it, by dotted path.
    """

    verb: str
    name: str
    document: str
    folder: Path
    paths: Mapping[str, str]


def connect(given: str | None, cluster_address: str | None = None) -> Any:
    """Ray's client of the dashboard at `given`, at what RAY_ADDRESS says, or beside the cluster that a job names.

    Raises ConfigError if there is no dashboard, or it wants a token that this machine does not have.
    """
    named, url = _dashboard(given, cluster_address)
    try:
        url = dashboard_at(url)
        check_dashboard(url)
    except ConfigError as error:
        raise ConfigError(f"{named}: {error}") from None
    set_dashboard(url)
    import logging

    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(url)
    except ConnectionError:  # it has gone since it was asked
        raise ConfigError(f"{named}: no dashboard at {url} any more; is the cluster about to end?") from None
    except AuthenticationError:
        raise ConfigError(
            f"{named}: the cluster at {url} wants its token: put it into ~/.ray/auth_token here, or name its file in "
            "RAY_AUTH_TOKEN_PATH"
        ) from None


def _dashboard(given: str | None, cluster_address: str | None) -> tuple[str, str]:
    """(what named it, where it is said to be)"""
    environment = dashboard_given()
    if given:
        return "--address", given
    if environment and "://" in environment:
        return "RAY_ADDRESS", environment
    cluster = environment or cluster_address
    if not cluster:
        raise ConfigError("--address: must be given, or RAY_ADDRESS set: the dashboard, such as http://HOST:8265")
    named = "RAY_ADDRESS" if environment else "cluster.address"
    return f"{named}: {cluster} names a cluster, whose dashboard is looked for beside it", dashboard_beside(cluster)


def submit(client: Any, order: Order, submission: str, python: str = "python", ship_code: bool = False) -> None:
    """Hands a job to the cluster under the name `submission`. python: the interpreter there; ship_code: the packages of
    this project are sent along.

    Raises ConfigError if the name is taken, or a job runs in the same folder.
    """
    jobs = {job.submission_id: job for job in client.list_jobs() if job.submission_id}
    if submission in jobs:
        raise ConfigError(f"--id: the cluster has a job {submission} already ({jobs[submission].status.value})")
    for other, job in jobs.items():
        if not job.status.is_terminal() and (job.metadata or {}).get("folder") == str(order.folder):
            raise ConfigError(f"job {other} writes into {order.folder} now; wait, stop it, or choose another name=...")
    ours = version(HERE)
    words = [python, DRIVER, submission, order.verb, "job.yaml", str(order.folder), ours]
    told = {"xfer": ours, "verb": order.verb, "name": order.name, "folder": str(order.folder), "python": python}
    with tempfile.TemporaryDirectory(prefix="xfer-job-") as sent:
        Path(sent, "job.yaml").write_text(order.document, encoding="utf-8")
        shutil.copy(Path(__file__).with_name("driver.py"), Path(sent, DRIVER))
        for package in PACKAGES if ship_code else ():
            shutil.copytree(HERE / package, Path(sent, package), ignore=shutil.ignore_patterns("__pycache__"))
        try:
            _hand_over(client, sent, shlex.join(words), submission, told)
        except KeyboardInterrupt as error:
            know = command(client, "status", submission)
            raise type(error)(f"stopped while job {submission} was handed over; whether it was: {know}") from None
        except RuntimeError as error:
            if "already exists" not in str(error):  # submitted by another at the same time
                raise
            raise ConfigError(f"--id: the cluster has a job {submission} already") from None


def _hand_over(client: Any, sent: str, words: str, submission: str, metadata: dict[str, str]) -> None:
    client.submit_job(
        entrypoint=f"exec {words}",
        submission_id=submission,
        metadata=metadata,
        runtime_env={"working_dir": sent, "env_vars": STOP_ENVIRONMENT},
    )


def submission_name(given: str | None, name: str) -> str:
    """What a job is called on the cluster. Raises ConfigError if it cannot be called so."""
    if given is None:
        return f"{name}-{secrets.token_hex(3)}"
    if not NAME.fullmatch(given):
        raise ConfigError(f"--id: must be of letters, digits, - and _, 64 at most, got {given!r}")
    return given


def submitted(client: Any, order: Order, submission: str) -> str:
    """What was handed over, and what can be done with it, to be shown."""
    lines = [
        f"job {submission}: xfer {order.verb} {order.name}, on the cluster at {client.get_address()}",
        f"  xfer {version(HERE)} here; the first words of the job say what the cluster has",
        f"  writes {order.folder}, its words into {log_name(submission)} there",
        f"  paths, relative ones from {Path.cwd()}:",
        *(f"    {where}  {path}" for where, path in order.paths.items()),
        *(f"  {command(client, verb, submission, *more)}" for verb, *more in (("logs", "-f"), ("stop",), ("status",))),
    ]
    return "\n".join(lines)


def job(client: Any, submission: str) -> Any:
    """Ray's JobDetails. Raises ConfigError if the cluster has no such job."""
    try:
        return client.get_job_info(submission)
    except RuntimeError as error:
        if "status code 404" not in str(error):
            raise
    known = ", ".join(job.submission_id for job in client.list_jobs() if job.submission_id)
    raise ConfigError(f"no job {submission} on {client.get_address()}; there are {known or 'none'}")


def command(client: Any, verb: str, submission: str, *options: str) -> str:
    """What to type for a job."""
    return " ".join(["xfer cluster", verb, submission, *options, "--address", client.get_address()])


def log_path(details: Any) -> Path | None:
    """Where the words of a job lie in its run folder; None if it is not one of ours."""
    folder = (details.metadata or {}).get("folder")
    return Path(folder) / log_name(details.submission_id) if folder else None


@contextmanager
def not_ours(client: Any, submission: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the watching, and say that the job goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        watch = command(client, "logs", submission, "-f")
        raise type(error)(f"not watching any more; job {submission} goes on: {watch}") from None


def stop(client: Any, submission: str) -> Any:
    """Tells a job to save and end, and waits until it has. Returns Ray's JobDetails."""
    client.stop_job(submission)
    print(f"told job {submission} to save and end; it has {STOP_WAIT_S / 60:.0f} minutes", file=sys.stderr)
    try:
        return ended(client, submission)
    except KeyboardInterrupt as error:
        raise type(error)(f"not waiting any more; job {submission} was told to end and will") from None


def ended(client: Any, submission: str) -> Any:
    """Waits until a job has ended, with a word of it every half a minute. Returns Ray's JobDetails."""
    next_word = time.monotonic() + WORD_S
    while not (details := job(client, submission)).status.is_terminal():
        if time.monotonic() > next_word:
            words = last_line(client, submission)
            print(f"waiting for job {submission}, {details.status.value}{words and f': {words}'}", file=sys.stderr)
            next_word += WORD_S
        time.sleep(POLL_S)
    return details


def last_line(client: Any, submission: str) -> str:
    """The newest words of a job; empty if it has said nothing."""
    lines = [line for line in client.get_job_logs(submission).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def ending(details: Any) -> tuple[int, str]:
    """(exit status, what is left to say) of a job that has ended. Its own error is the last of its log already."""
    status, code, name = details.status.value, details.driver_exit_code, details.submission_id
    if status == "SUCCEEDED":
        return 0, ""
    if status == "STOPPED":
        return 1, f"job {name} was stopped; submitted again, it goes on from its newest checkpoint"
    if code is None:  # it never came to the driver, or was lost with its host
        return 1, f"job {name} failed: {(details.message or 'Ray does not say why').strip()}"
    if code in (126, 127):
        return 1, f"job {name}: no such Python on the cluster: name the one that has the project with --python"
    return (2 if code == 2 else 1), ""


def facts(details: Any) -> Mapping[str, str]:
    """What is known of a job, in words."""
    told = details.metadata or {}
    begun = details.start_time and details.start_time / 1000
    ended = (details.end_time or time.time() * 1000) / 1000
    return {
        "id": details.submission_id or "",
        "state": details.status.value,
        "what": " ".join(filter(None, (told.get("verb"), told.get("name")))) or details.entrypoint[:40],
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun)) if begun else "",
        "took": _duration(ended - begun) if begun else "",
        "folder": told.get("folder", ""),
    }


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
