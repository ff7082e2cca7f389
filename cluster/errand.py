"""A small job that does one thing on a cluster and hands back what it printed: the only way that Ray's job server gives
to anything there. It stays in the list of jobs: one that is deleted soon after its end comes back as one that failed.
"""

import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.jobs import ended, ending, last_line


def errand(client: Any, what: str, python: str, sent: Mapping[str, Path], words: Sequence[str]) -> str:
    """What `python WORDS` prints on the cluster, in a folder with the files `sent`, by the names they have there.

    Raises RuntimeError with its last line if it fails.
    """
    name = f"{what}-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix="xfer-job-") as folder:
        for inside, path in sent.items():
            shutil.copy(path, Path(folder, inside))
        client.submit_job(
            entrypoint=f"exec {shlex.join([python, *words])}",
            submission_id=name,
            metadata={"verb": what},
            runtime_env={"working_dir": folder},
        )
    print(f"job {name} does it on the cluster", file=sys.stderr)
    details = ended(client, name)
    if details.status.value != "SUCCEEDED":
        raise RuntimeError(ending(details)[1] or f"job {name} failed: {last_line(client, name)}")
    return client.get_job_logs(name)
