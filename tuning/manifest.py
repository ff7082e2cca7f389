"""A cluster to be started for a job or a study, as the file that starts it (cluster/manifest/)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.config import Job
from cluster.jobs import Order
from cluster.manifest import kuberay, slurm, vm
from cluster.manifest.needs import needs
from shards.settings import ConfigError
from tuning.submit import order

Options = Mapping[str, Any]


def _kuberay(what: Order, job: Job, given: Options) -> str:
    return kuberay.manifest(_sized(what, job, given), given["image"], given["claim"], given["secret"])


def _vm(what: Order, job: Job, given: Options) -> str:
    return vm.manifest(what, given["hosts"].split(","), given["ssh_user"], given["ssh_key"], given["python"])


def _slurm(what: Order, job: Job, given: Options) -> str:
    return slurm.manifest(_sized(what, job, given), given["python"])


def _sized(what: Order, job: Job, given: Options) -> Any:
    return needs(what, job, **{name: given[name] for name in SIZE})


KINDS: Mapping[str, Callable[[Order, Job, Options], str]] = {"kuberay": _kuberay, "vm": _vm, "slurm": _slurm}
STARTS = {"kuberay": "kubectl apply -f", "vm": "ray up -y", "slurm": "sbatch"}
SIZE: Options = {"nodes": None, "memory_gib": 8, "hours": 24.0}
OPTIONS: Mapping[str, Options] = {
    "kuberay": {**SIZE, "image": kuberay.IMAGE, "claim": (), "secret": None},
    "vm": {"hosts": ..., "ssh_user": ..., "ssh_key": None, "python": "python"},
    "slurm": {**SIZE, "python": "python"},
}
"""What can be said of each kind, and what holds if it is not; `...`: it has to be."""


def choose(asked: Mapping[str, bool]) -> str:
    """The kind that was asked for. Raises ConfigError unless it is one."""
    chosen = [f"--{kind}" for kind in KINDS if asked[kind]]
    if len(chosen) != 1:
        flags = ", ".join(f"--{kind}" for kind in KINDS)
        raise ConfigError(f"give one of {flags}; got {' and '.join(chosen) or 'none'}")
    return chosen[0].removeprefix("--")


def manifest(
    document: Path, overrides: Sequence[str], unseen: bool, kind: str, given: Options, wrong: Sequence[str] = ()
) -> str:
    """The text of a manifest. given: what was said, None or empty if not; wrong: what else is. Raises ConfigError with
    every fault, of the options and of the document.
    """
    options = {**OPTIONS[kind], **{name: value for name, value in given.items() if value is not None and value != ()}}
    faults = [*wrong, *_option_faults(kind, options)]
    try:
        what, job = order(document, overrides, unseen)
        if not faults:
            return KINDS[kind](what, job, options)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults], error.origin) from None
    raise ConfigError(faults)


def _option_faults(kind: str, options: Options) -> Iterator[str]:
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if name not in OPTIONS[kind]:
            takers = " and ".join(f"--{other}" for other in KINDS if name in OPTIONS[other])
            yield f"{flag}: is of {takers}, not of --{kind}"
        elif value is ...:
            yield f"{flag}: has to be given with --{kind}"


def out_faults(out: Path, force: bool) -> Iterator[str]:
    """Why a manifest cannot become `out`."""
    if not out.parent.is_dir():
        yield f"--out: there is no folder {out.parent}"
    elif out.is_dir():
        yield f"--out: {out} is a folder"
    elif out.exists() and not force:
        yield f"--out: {out} is there already; --force replaces it"
