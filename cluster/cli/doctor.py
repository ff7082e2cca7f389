"""`xfer cluster doctor`: is a cluster fit for this project?"""

import sys

from cluster.cli.jobs import Address


def doctor(*, storage: str | None = None, python: str = "python", json: bool = False, address: Address = None) -> None:
    """Look at every node of a cluster, and say what is wrong there and what to do about it.

        xfer cluster doctor --storage /shared/runs --address http://HEAD:8265

    Versions of this project, Ray and torch; Python; whether Ray asks for a token; clocks; /dev/shm; the limit of open
    files; GPUs; whether nodes reach each other; on whom the dashboard listens; and storage: written, renamed, and read
    by all the others. Nothing is changed. Exit status 0: all is fine; 1: something is not.

    Parameters
    ----------
    storage
        The folder where runs shall be written, as an absolute path that is the same on all nodes.
    python
        The Python on the cluster that has Ray and this project.
    json
        Everything that was looked at, for programs.
    """
    from dataclasses import asdict
    from json import dumps

    from cluster.doctor import examined, findings, text
    from cluster.jobs import connect

    found = findings(examined(connect(address), storage, python), storage)
    print(dumps([asdict(one) for one in found], indent=1) if json else text(found))
    if any(one.do for one in found):
        sys.exit(1)
