"""One way to show progress: a bar with rate and time left on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_S = 10.0


class Advance(Protocol):
    """Call with the number of items done since the last call and, if there is news, a short note shown beside the
    bar.
    """

    def __call__(self, count: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: int | None, unit: str = "items", done: int = 0) -> Iterator[Advance]:
    """Shows `what` going from `done` to `total`, with rate and time left; writes to stderr, so stdout stays clean.

    `total` None: nobody knows how many there will be, so it only counts.

    Costs about 1 us a call on a terminal; without one it prints at most one line every 10 seconds.
    """
    console = Console(stderr=True)
    show = _bar if console.is_terminal else _lines
    with show(what, total, unit, done, console) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int | None, unit: str, done: int, console: Console) -> Iterator[Advance]:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]}} {unit}/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    ]
    started, first = time.monotonic(), done
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total, completed=done, note="", rate="")

        def advance(count: int = 1, note: str = "") -> None:
            bar.advance(task, count)
            rate = (bar.tasks[0].completed - first) / max(time.monotonic() - started, 1e-9)
            fields: dict[str, Any] = {
                "rate": f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}",
                "note": note or bar.tasks[0].fields["note"],
            }
            bar.update(task, **fields)

        yield advance


@contextmanager
def _lines(what: str, total: int | None, unit: str, done: int, console: Console) -> Iterator[Advance]:
    started = last = time.monotonic()
    first = done
    mark: tuple[float, int] | None = None  # the rate counts from the first news on: starting up is no measure of it

    def line(note: str) -> None:
        now = time.monotonic()
        rate = (done - mark[1]) / max(now - mark[0], 1e-9) if mark else 0.0
        left = f", {(total - done) / rate:,.0f} s left" if total and 0 < done < total and rate > 0 else ""
        of = "" if total is None else f"/{total:,}"
        spent = f"{now - started:,.0f} s"
        print(f"{what}: {done:,}{of} {unit}, {spent}{left} {note}".rstrip(), file=sys.stderr, flush=True)

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, last, mark
        done += count
        mark = mark or (time.monotonic(), done)
        if done == total or time.monotonic() - last >= LOG_EVERY_S:
            last = time.monotonic()
            line(note)

    yield advance
    if total is not None and first < done < total:
        line("(stopped)")
