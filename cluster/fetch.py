"""The run folder of a job, brought here: from storage if that is seen here, else as the words of a small job.

Ray's job server hands out logs and nothing else, so what it has to carry is text, and is held in memory on its way:
fine for metrics and reports, not for checkpoints of large models.
"""

import base64
import hashlib
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

from cluster.driver import log_name
from cluster.errand import errand
from cluster.jobs import job
from cluster.pack import BEGIN, END, files
from shards.format.whole import whole_folder
from shards.progress import progress
from shards.settings import ConfigError

PACKER = "xfer_pack.py"


def fetch(client: Any, submission: str, out: Path, checkpoints: bool = False) -> str:
    """Brings the run folder of a job to `out`, whole, or not at all. Returns by which way, in words.

    Raises ConfigError if something is at `out`, or the job is none of ours; RuntimeError if it cannot be fetched.
    """
    if out.exists():
        raise ConfigError(f"{out}: is there already; name a folder that is not")
    told = job(client, submission).metadata or {}
    if "folder" not in told:
        raise ConfigError(f"job {submission} was not submitted by xfer, so where it writes is not known")
    folder = Path(told["folder"])
    seen = (folder / log_name(submission)).is_file()  # no other storage has that file
    with whole_folder(out) as draft:
        if seen:
            _copy(folder, draft, checkpoints)
        else:
            words = [PACKER, told["folder"], "checkpoints" if checkpoints else "-"]
            sent = {PACKER: Path(__file__).with_name("pack.py")}
            _unpack(_between_marks(errand(client, f"fetch-{submission}", told["python"], sent, words)), draft)
    return f"from {folder}" if seen else f"from {folder} on the cluster, which is not seen here, through the job server"


def _copy(folder: Path, out: Path, checkpoints: bool) -> None:
    inside = list(files(folder, checkpoints))
    with progress("fetch", len(inside), "files") as advance:
        for path in inside:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, out / path)
            advance()


def _between_marks(log: str) -> bytes:
    """What pack.py printed. Raises RuntimeError if it did not arrive as it was sent."""
    _, _, text = log.partition(f"{BEGIN}\n")
    text, _, end = text.partition(f"{END} ")
    content = b"".join(base64.b64decode(line) for line in text.splitlines())
    if not end or hashlib.sha256(content).hexdigest() != end.split()[0]:
        raise RuntimeError("what was fetched did not arrive whole; the same command tries again")
    return content


def _unpack(content: bytes, out: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        tar.extractall(out, filter="data")
