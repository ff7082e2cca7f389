"""`xfer train`: a job on Ray workers, watched from here."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def train(job: Path, *overrides: str, seeds: Annotated[int | None, Parameter(negative="")] = None) -> None:
    """Train a job with Ray Train and DeepSpeed, here or on a cluster.

    The same command again goes on from the newest checkpoint. With data.validation: leave_one_source_out, a run without
    each source comes first. Any value of the job is changed by its dotted path:

        xfer train examples/pacs/job.yaml data.root=data/pacs cluster.workers=2 train.steps=400
        xfer train job.yaml name=wide --seeds 5

    Parameters
    ----------
    job
        YAML with a recipe (inline or by path) and a `cluster` section.
    overrides
        `dotted.path=value`, any number of them.
    seeds
        Train this many runs, one after the other, each with seeds of its own, into seeds/0, seeds/1, ... of the run
        folder, and sum them up, as `xfer fit --seeds` does.
    """
    from cluster.config import Job
    from cluster.launch import run
    from xfer.cli.ending import run_ending, seeds_ending
    from xfer.prepare import load_document

    loaded = load_document(job, Job, overrides)
    result = run(loaded, seeds)
    if result.error:
        advice = "" if result.comes_again else "; the same command resumes it"
        print(f"xfer: training failed{advice}\n{result.error}", file=sys.stderr)
        sys.exit(1)
    print(run_ending(loaded.recipe, result.checkpoint) if seeds is None else seeds_ending(result.path))
