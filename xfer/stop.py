"""A run is asked to end early: at its next row of losses it saves what it has, and the same command goes on from there.

The word is a file of the run folder, for that is all that the one who asks and rank 0, on another host, share. It is
there, empty, before the workers start: a file that is opened is read as it is now, while one that is new may stay
unseen on NFS for a minute.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".stop"


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """For the time of the block the run in `folder` can be asked to end."""
    take_back(folder)
    try:
        yield
    finally:
        (folder / FILE).unlink(missing_ok=True)


def ask(folder: Path) -> None:
    """Asks the run in `folder`, which is stoppable, to end."""
    (folder / FILE).write_text("stop\n")


def take_back(folder: Path) -> None:
    """It is not asked any more."""
    (folder / FILE).write_text("")


def is_asked(folder: Path) -> bool:
    """Whether the run in `folder` has been asked to end."""
    try:
        return bool((folder / FILE).read_text())
    except OSError:  # nobody can ask
        return False
