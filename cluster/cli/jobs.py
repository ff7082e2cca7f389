"""`xfer cluster status`, `logs`, `stop`, `list`, `fetch`: what becomes of jobs."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

Address = Annotated[
    str | None,
    Parameter(name="--address", help="The dashboard of the cluster, http://HEAD:8265; RAY_ADDRESS says it too."),
]
Submission = Annotated[str, Parameter(help="The job's ID, as submit and list show it.")]
Follow = Annotated[bool, Parameter(name=("--follow", "-f"), negative=(), help="Stay until the job has ended.")]


def status(submission: Submission, /, *, address: Address = None) -> None:
    """Show what a job has come to: its state, how long it took, where it writes, its newest words.

        xfer cluster status pacs-3fa9c2 --address http://HEAD:8265

    Exit status 0 while a job waits or runs and when it is done, 1 if it failed or was stopped, 2 if what failed was the
    job file or its data.
    """
    from cluster.jobs import connect, facts, job, last_line

    client = connect(address)
    details = job(client, submission)
    known = facts(details)
    print(f"job {known['id']}: {known['state']}, {known['what']}")
    print(f"  started {known['started']}, {known['took']}" if known["started"] else "  waiting to start")
    if known["folder"]:
        print(f"  run folder {known['folder']}")
    if words := last_line(client, submission):
        print(f"  {words}")
    if details.status.is_terminal():
        end(details)


def logs(submission: Submission, /, *, follow: Follow = False, address: Address = None) -> None:
    """Show what a job has said; with -f, go on showing it until the job has ended.

        xfer cluster logs pacs-3fa9c2 -f --address http://HEAD:8265

    Ctrl-C ends the watching, never the job. If the dashboard is away for a while, -f waits for it and reads on. A job
    that failed ends with its own error, and exit status 1 (2: the job file or its data were wrong). The same words are
    in the run folder, in driver-ID.log, also after the cluster is gone.
    """
    from cluster.jobs import connect, job
    from cluster.watch import follow as watch

    client = connect(address)
    if follow:
        end(watch(client, submission))
        return
    details = job(client, submission)
    sys.stdout.write(client.get_job_logs(submission))
    if details.status.is_terminal():
        end(details)


def stop(submission: Submission, /, *, address: Address = None) -> None:
    """End a job after it has saved, and wait until it has.

        xfer cluster stop pacs-3fa9c2 --address http://HEAD:8265

    Training saves at its next row of losses (train.log_every), so no step is lost; submitted again, the job goes on
    from there. A study ends at once, and makes the trials that were under way again. What has not ended after 10
    minutes is killed, and goes on from its last checkpoint.
    """
    from cluster.jobs import connect, job
    from cluster.jobs import stop as tell

    client = connect(address)
    details = job(client, submission)
    if details.status.is_terminal():
        print(f"job {submission} had ended before: {details.status.value}")
        return
    details = tell(client, submission)
    print(*client.get_job_logs(submission).splitlines()[-3:], sep="\n")
    print(f"job {submission}: {details.status.value}")


def jobs(*, address: Address = None) -> None:
    """List the jobs of a cluster, the newest first.

    xfer cluster list --address http://HEAD:8265
    """
    from cluster.jobs import connect, facts

    client = connect(address)
    found = sorted(client.list_jobs(), key=lambda job: -(job.start_time or 0))
    rows = [list(facts(job).values()) for job in found if job.submission_id]
    if not rows:
        print(f"no jobs on {client.get_address()}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def fetch(submission: Submission, out: Path, /, *, checkpoints: bool = False, address: Address = None) -> None:
    """Bring the run folder of a job here: metrics, reports, logs, bundles; it may still run.

        xfer cluster fetch pacs-3fa9c2 results/pacs --address http://HEAD:8265

    It is copied from the storage where the job writes, if this machine sees that, and otherwise sent by the cluster, up
    to 200 MB. It is there whole, or not at all.

    Parameters
    ----------
    out
        A folder that is not there yet.
    checkpoints
        The checkpoints too, which are most of a run's bytes.
    """
    from cluster.fetch import fetch as bring
    from cluster.jobs import connect

    way = bring(connect(address), submission, out, checkpoints)
    print(f"fetched: {out}, {way}")


def end(details: Any) -> None:
    """Says what is left to say of a job that has ended, and exits as it did."""
    from cluster.jobs import ending

    code, words = ending(details)
    if words:
        print(f"xfer: {words}", file=sys.stderr)
    if code:
        sys.exit(code)
