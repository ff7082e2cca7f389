"""A run is asked to end early: at its next row of losses it saves what it has, and the same command goes on from there.

The word is a file of the run folder, for that is all that the one who asks and rank 0, on another host, share. It is
there, empty, before the workers start: a file that is opened is read as it is now, while one that is new may stay
unseen on NFS for a minute.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".stop"


@contextmanager
def stoppable(folder: Path) -> Iterator[Callable[[], object]]:
    """For the time of the block the run in `folder` can be asked to end, by calling what this yields."""
    path = folder / FILE
    path.write_text("")
    try:
        yield lambda: path.write_text("stop\n")
    finally:
        path.unlink(missing_ok=True)


def is_asked(folder: Path) -> bool:
    """Whether the run in `folder` has been asked to end."""
    try:
        return bool((folder / FILE).read_text())
    except OSError:  # nobody can ask
        return False
