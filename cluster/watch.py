"""The words of a job, as they come, from a cluster whose dashboard may be away for a while.

Ray's own command ends when its connection does, with or without an error (ray-project/ray#57002, #51601). Here what a
job has come to is asked for each time, and the log is read on behind what was shown.
"""

import asyncio
import sys
import time
from typing import Any

from cluster.address import check_dashboard
from cluster.jobs import job, log_path, not_ours
from shards.settings import ConfigError

AWAY_S = 600.0  # how long a dashboard may be away before nobody waits for it any more
RETRY_S = 2.0
IDLE_S = 30.0  # without a word from the job: is the dashboard still there?


def follow(client: Any, submission: str) -> Any:
    """Shows the words of a job on stdout until it has ended; a dashboard that is away meanwhile is waited for. Returns
    Ray's JobDetails.

    Raises ConfigError if there is no such job, and RuntimeError if the dashboard stays away, or comes back without it.
    """
    from aiohttp import ClientError

    url, log = client.get_address(), log_path(job(client, submission))
    kept = f"; its words are kept in {log}" if log else ""
    shown, away = _Shown(), None
    with not_ours(client, submission):
        while True:
            try:
                _ask(url)
                details = job(client, submission)
                if away is not None:
                    print(f"the dashboard at {url} answers again", file=sys.stderr)
                    away = None
                asyncio.run(_show(client, submission, shown))
                if details.status.is_terminal():
                    return details
                time.sleep(RETRY_S / 10)  # it has ended meanwhile, or the connection has: it is read on
            except ConfigError:
                raise RuntimeError(f"the cluster at {url} was started anew, without job {submission}{kept}") from None
            except (OSError, RuntimeError, ClientError) as error:
                if away is None:
                    away = time.monotonic()
                    print(
                        f"the dashboard at {url} does not answer; the job is left alone, and the dashboard asked again "
                        f"for {AWAY_S / 60:.0f} minutes",
                        file=sys.stderr,
                    )
                if time.monotonic() - away > AWAY_S:
                    why = (str(error).strip() or type(error).__name__).splitlines()[0]
                    raise RuntimeError(
                        f"the dashboard at {url} stays away ({why}); job {submission} may go on{kept}"
                    ) from None
                time.sleep(RETRY_S)


class _Shown:
    """How much of a log was shown: a new connection begins at its beginning."""

    def __init__(self):
        self.characters = 0


async def _show(client: Any, submission: str, shown: _Shown) -> None:
    """Writes what a job says, behind what was `shown`, until it or the connection ends."""
    passed = 0
    chunks = client.tail_job_logs(submission)

    async def next_chunk() -> str | None:
        return await anext(chunks, None)

    while (chunk := await _attended(client.get_address(), next_chunk())) is not None:
        text = chunk[max(0, shown.characters - passed) :]
        passed += len(chunk)
        shown.characters = max(shown.characters, passed)
        sys.stdout.write(text)
        sys.stdout.flush()


async def _attended(url: str, coming: Any) -> Any:
    """What `coming` gives. Raises ConnectionError if the dashboard is away meanwhile: a host that is lost says nothing,
    and its connection would be listened to for ever.
    """
    task = asyncio.ensure_future(coming)
    try:
        while not (await asyncio.wait({task}, timeout=IDLE_S))[0]:
            await asyncio.to_thread(_ask, url)
        return task.result()
    finally:
        if not task.cancel() and not task.cancelled():
            task.exception()  # known, or asyncio would print it when it is Ctrl-C


def _ask(url: str) -> None:
    """Raises ConnectionError if the dashboard does not answer within seconds; Ray's client would wait for minutes."""
    try:
        check_dashboard(url)
    except ConfigError as error:
        raise ConnectionError(str(error)) from None
