"""`xfer train`, and `xfer cluster ...`: jobs that a cluster runs by itself. Heavy imports wait inside the functions."""

import cyclopts
from cyclopts import Parameter

from cluster.cli.doctor import doctor
from cluster.cli.jobs import fetch, jobs, logs, status, stop
from cluster.cli.train import train

__all__ = ["app", "train"]

app = cyclopts.App(
    name="cluster",
    help="""Hand jobs to a Ray cluster that runs already, and look after them; or write what starts a cluster for one.

    A job that is submitted runs on the cluster, whatever becomes of this machine.
    HEAD is the host of `ray start --head`, 8265 the port of its dashboard;
    RAY_ADDRESS=http://HEAD:8265 in the environment saves typing --address:

        xfer cluster submit job.yaml --address http://HEAD:8265
        xfer cluster logs ID -f
        xfer cluster fetch ID results/
        xfer cluster doctor --storage /shared/runs
        xfer cluster manifest job.yaml --slurm --out job.sbatch
    """,
    default_parameter=Parameter(negative=()),
)
VERBS = {
    "submit": "tuning.cli:submit",  # by its name: a study is of a layer above
    "status": status,
    "logs": logs,
    "stop": stop,
    "list": jobs,
    "fetch": fetch,
    "doctor": doctor,
    "manifest": "tuning.cli:manifest",
}
for place, (name, verb) in enumerate(VERBS.items()):
    app.command(verb, name=name, sort_key=place)
app.resolved_commands()  # the list says of submit what its own help says first
