"""A batch script for Slurm: Ray on the nodes of one allocation, and the job on its first node.

Near the time limit Slurm tells the script, which has the job save, and asks for another turn if anything was saved:
the same script then goes on from there. Nothing of it can meet another job on the same node: ports are free ones, the
folder of Ray's sockets has the number of the job, and the token is in a file that only its user reads.
"""

import math
import shlex
from pathlib import Path

from cluster.manifest.needs import Needs

SAVE_S = 300
"""How long before the time limit a job is told to save: the steps of one row of losses, an evaluation, a checkpoint."""
GATHER_S = 600  # how long the nodes may take to start Ray
END = "END_OF_JOB"
SCRIPT = Path(__file__).with_name("slurm.sh")


def manifest(needs: Needs, python: str) -> str:
    """The text of a script for `sbatch`. python: the interpreter on the nodes that has this project."""
    order = needs.order
    options = {
        "job-name": order.name,
        "output": f"{order.name}-%j.log",
        "open-mode": "append",
        "nodes": needs.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": needs.cpus,
        **({"gpus-per-node": needs.gpus} if needs.gpus else {}),
        "mem": f"{needs.memory_gib}G",
        "time": math.ceil(needs.hours * 60),
        "signal": f"B:USR1@{SAVE_S}",
        "requeue": None,
    }
    values = {
        "python": python,
        "verb": order.verb,
        "folder": order.folder,
        "cpus": needs.counted_cpus,
        "gpus": needs.gpus,
        "gather_s": GATHER_S,
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{name}" + ("" if value is None else f"={value}") for name, value in options.items()]
    lines += ["", *(f"{name}={shlex.quote(str(value))}" for name, value in values.items())]
    lines += ["read -r -d '' document <<'" + END + "' || true", order.document, END, ""]
    return "\n".join(lines) + SCRIPT.read_text(encoding="utf-8")
