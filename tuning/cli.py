"""`xfer tune`, `xfer report`, `xfer demo`, `xfer cluster submit`, `xfer cluster manifest`."""

import sys
from pathlib import Path
from typing import Literal


def tune(study: Path, *overrides: str, retry_failed: bool = False) -> None:
    """Search fusion weights and bit-widths around a job with Ray Tune. Stopped, the same command goes on.

        xfer tune examples/pacs/study.yaml data.root=data/pacs search.trials=40

    Writes trials.jsonl, report.html, best.yaml (which `xfer train` takes) and the best bundle into the study's folder.

    Parameters
    ----------
    study
        YAML with a job (inline or by path), a `space` of distributions by dotted path, and `search`.
    overrides
        `dotted.path=value`, any number of them.
    retry_failed
        Try the trials that failed in an earlier command again, with the same values.
    """
    from tuning import study as search
    from tuning.pareto import describe, front, remarks
    from tuning.record import chosen_run, num_trials
    from tuning.space import size
    from xfer.history import against_probe

    config = search.load_study(study, overrides)
    found = search.run(config, retry_failed)
    rows, best = found.rows, found.best
    failed = [row for row in rows if row.error is not None]
    print(f"\n{num_trials(rows)} trials{f', {len(failed)} failed' if failed else ''}", end="")
    combinations = size(config.space)
    if combinations is not None and sum(row.in_space for row in rows) >= combinations:
        print(f"; all {combinations} combinations tried", end="")
    if best is None:
        print(f"\nreport: {found.report}")
        print("xfer: every trial failed; --retry-failed tries them again. The first:", file=sys.stderr)
        print(f"  {failed[0].error}" if failed else "  nothing ran", file=sys.stderr)
        sys.exit(1)
    print(f"; beaten by none in {best.measure} and bytes, with 95 % intervals:")
    for row in front(rows):
        low, high = row.interval
        chosen = "   <- best.yaml" if row.trial == best.trial else ""
        interval = f"({100 * low:.1f} - {100 * high:.1f})"
        print(f"  {row.bytes:>12,} bytes  {100 * row.accuracy:5.1f} % {interval:>15}  {describe(row)}{chosen}")
    folder = search.folder_of(config)
    gained = against_probe(chosen_run(config, folder, best))
    for remark in [*remarks(rows, best, config.search.tolerance), *([gained] if gained else [])]:
        print(f"note: {remark}")
    print(f"report: {found.report}\nnext: xfer train {folder / 'best.yaml'}")


def report(folder: Path) -> None:
    """Write one self-contained HTML page with the figures of a run or a study.

        xfer report runs/pacs

    Parameters
    ----------
    folder
        A run folder, a folder of xfer fit --seeds, or a study folder.
    """
    from tuning.report import write_report

    print(f"report: {write_report(folder)}")


def demo(*, out: Path | None = None, task: Literal["classify", "detect", "segment"] = "classify") -> None:
    """The whole way on generated images: build, train, search, quantize, evaluate, predict, report.

        xfer demo
        xfer demo --task detect

    Needs no network and no arguments; under 6 minutes on 2 cores. Stopped, the same command goes on.

    Parameters
    ----------
    out
        Where everything goes; runs/demo, or runs/demo-detect and runs/demo-segment.
    task
        What the model is for. A classifier is trained on two Ray workers and its bits are searched; a detector or a
        segmenter is trained in this process and packed to 8 bits.
    """
    if task != "classify":
        from tuning.demo_scenes import demo_scenes

        demo_scenes(out or Path(f"runs/demo-{task}"), task)
        return
    from tuning.demo import demo as run

    run(out or Path("runs/demo"))


def submit(
    document: Path,
    /,
    *overrides: str,
    address: str | None = None,
    id: str | None = None,
    no_wait: bool = False,
    unseen: bool = False,
    python: str = "python",
    ship_code: bool = False,
) -> None:
    """Hand a job or a study to a Ray cluster that runs already, and show what it says until it has ended.

        xfer cluster submit job.yaml train.steps=800 --address http://HEAD:8265
        xfer cluster submit study.yaml output=/shared/runs data.root=/shared/shards --no-wait

    The cluster runs `xfer train` or `xfer tune` on its head node. Ctrl-C ends the watching, never the job. Everything
    that is wrong with the file, the data and the weights files, as far as it can be seen from here, is told before
    anything is submitted. Relative paths count from the current folder here, and are shown as the cluster gets them:
    data, weights and output have to be on storage that all its nodes see. Submitted again, a job goes on.

    Parameters
    ----------
    document
        YAML of a job, as xfer train takes it, or of a study, as xfer tune does.
    overrides
        `dotted.path=value`, any number of them.
    address
        The dashboard of the cluster, http://HEAD:8265. Otherwise RAY_ADDRESS, or port 8265 of the host in
        cluster.address.
    id
        What the job is called on the cluster; otherwise its name and a few letters more.
    no_wait
        Return as soon as the cluster has it.
    unseen
        Data and weights are on storage that this machine does not see: the job checks them when it starts.
    python
        The Python on the cluster that has this project; a path, if it is not first in the PATH of `ray start`.
    ship_code
        Send this project's code along, for a cluster that has another version of it. What it depends on has to be
        there.
    """
    from cluster.cli.jobs import end
    from cluster.jobs import connect, submission_name, submitted
    from cluster.jobs import submit as hand_over
    from cluster.watch import follow
    from tuning.submit import order

    what, job = order(document, overrides, unseen)
    name = submission_name(id, what.name)
    client = connect(address, job.cluster.address)
    hand_over(client, what, name, python, ship_code)
    print(submitted(client, what, name))
    if not no_wait:
        end(follow(client, name))


def manifest(
    document: Path,
    /,
    *overrides: str,
    kuberay: bool = False,
    vm: bool = False,
    slurm: bool = False,
    out: Path | None = None,
    force: bool = False,
    unseen: bool = False,
    nodes: int | None = None,
    memory_gib: int | None = None,
    hours: float | None = None,
    image: str | None = None,
    claim: tuple[str, ...] = (),
    secret: str | None = None,
    hosts: str | None = None,
    ssh_user: str | None = None,
    ssh_key: str | None = None,
    python: str | None = None,
) -> None:
    """Write the file that starts a cluster for a job or a study: for Kubernetes, own machines, or Slurm.

        xfer cluster manifest job.yaml output=/shared/runs --kuberay --claim shared:/shared --out pacs.yaml
        xfer cluster manifest job.yaml --vm --hosts 10.0.0.1,10.0.0.2 --ssh-user me --out pacs-vm.yaml
        xfer cluster manifest job.yaml output=/scratch/runs --slurm --hours 8 --out pacs.sbatch

    With --kuberay and --slurm the file has the job in it, is sized by its cluster.workers, and runs it: `kubectl apply
    -f pacs.yaml`, `sbatch pacs.sbatch`. With --vm it is for `ray up`; `xfer cluster submit` hands over the job then.
    All of them ask for a token, and no token is in the file. Without --out it is printed. docs/cluster.md has the ways
    from the file to a run, and what was tried of them.

    Parameters
    ----------
    document
        YAML of a job, as xfer train takes it, or of a study, as xfer tune does.
    overrides
        `dotted.path=value`, any number of them.
    kuberay
        A RayJob for KubeRay 1.5.1 or newer, and the job as a ConfigMap.
    vm
        A cluster of `ray up` on machines that answer SSH.
    slurm
        A script for sbatch.
    out
        The file to write.
    force
        Replace a file that is there.
    unseen
        Data and weights are on storage that this machine does not see: the job checks them when it starts.
    nodes
        For --kuberay and --slurm: how many machines share the workers evenly; one for each worker, unless given.
    memory_gib
        For --kuberay and --slurm: of each worker with its loader processes, in GiB; 8. With --kuberay half of it can be
        /dev/shm.
    hours
        For --kuberay and --slurm: the longest time the run may take; 24. Slurm gives it another turn, which goes on.
    image
        For --kuberay: the container image; xfer:VERSION, which `docker build -f cluster/Dockerfile` makes.
    claim
        For --kuberay: NAME:/path, a PersistentVolumeClaim that all nodes can mount (ReadWriteMany), and where; any
        number of them. Every local path of the job has to be on one.
    secret
        For --kuberay: a Secret whose keys become environment variables, such as the credentials of an object store.
    hosts
        For --vm: names or addresses, separated by commas; the first becomes the head.
    ssh_user
        For --vm: who logs in there.
    ssh_key
        For --vm: the private key for that, which is copied to the head.
    python
        For --vm and --slurm: the Python there that has this project; python, unless given.
    """
    from shards.format.whole import write_text
    from tuning.manifest import STARTS, choose, out_faults
    from tuning.manifest import manifest as text

    kind = choose({"kuberay": kuberay, "vm": vm, "slurm": slurm})
    given = {"nodes": nodes, "memory_gib": memory_gib, "hours": hours, "image": image, "claim": claim}
    given |= {"secret": secret, "hosts": hosts, "ssh_user": ssh_user, "ssh_key": ssh_key, "python": python}
    made = text(document, overrides, unseen, kind, given, list(out_faults(out, force)) if out else ())
    if out is None:
        print(made, end="")
        return
    write_text(out, made)
    print(f"written: {out}\nnext: {STARTS[kind]} {out}")
