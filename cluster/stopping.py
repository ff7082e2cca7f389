"""SIGTERM while workers train, from a batch system or the job server of a cluster: what they did is saved first.

That takes until their next row of losses (train.log_every) and the checkpoint. A second SIGTERM ends the run at once,
as Ctrl-C does, and so does the first one as long as nothing was trained.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xfer.checkpoint import latest_checkpoint
from xfer.history import read_metrics
from xfer.stop import ask


@contextmanager
def saving_first(folder: Path, done: int) -> Iterator[Callable[[], None]]:
    """For the time of the block SIGTERM asks the run in `folder`, begun at step `done` and stoppable, to save and end.
    To be called when it has: what this yields, which then does what SIGTERM did before the block.
    """
    answer = signal.getsignal(signal.SIGTERM)
    if not callable(answer) or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        if asked or not any(row["step"] > done for row in read_metrics(folder)):
            answer(signal.SIGTERM, None)
        asked = True
        ask(folder)
        print(
            "stopping: the run saves at its next row of losses and ends; a second SIGTERM ends it at once",
            file=sys.stderr,
        )

    def end() -> None:
        if asked:
            saved = latest_checkpoint(folder / "checkpoints")
            print(f"saved: step {saved.state.step if saved else 0}", file=sys.stderr)
            answer(signal.SIGTERM, None)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield end
    finally:
        signal.signal(signal.SIGTERM, answer)
