"""`xfer shards plan`."""

from pathlib import Path

from shards.cli.options import file_name


def plan(
    file: Path,
    *overrides: str,
    ranks: int | None = None,
    nodes: int | None = None,
    steps: int | None = None,
    out: Path | None = None,
) -> None:
    """Report what a run will do with its data, before it is paid for.

    That is blend, repeats, download volume (egress), disk, shuffle and order, for
    any number of machines. Reads manifests alone, so it takes seconds for data of
    any size; neither the machines nor their caches need to be there.

        xfer shards plan recipe.yaml
        xfer shards plan job.yaml --ranks 64 --nodes 8 --steps 50000 --out plan.png
        xfer shards plan recipe.yaml data.lanes=64 data.cache.gb=500 --ranks 64

    It ends with what to change, such as lanes, window, block, cache or weights,
    where something is off. Samples that validation and `where` take are counted
    as expected shares; what nodes fetch is within a few percent.

    Parameters
    ----------
    file
        YAML of a recipe, a job, a study, or a data section by itself.
    overrides
        `dotted.path=value`, any number of them; data.*, train.steps, train.evaluate_every and cluster.workers count.
    ranks
        Training processes; the job's workers if not given, else 1.
    nodes
        Machines, each with as many ranks and one cache; 8 ranks each if not given.
    steps
        Length of the run in global batches; the recipe's if not given, else one pass of all data.
    out
        Picture to write (.png): who reads what when, repeats, download volume and disk.
    """
    from shards.inspect.figures import save
    from shards.inspect.plan.advice import advice_lines
    from shards.inspect.plan.figure import plan_figure
    from shards.inspect.plan.numbers import Wish, plan_file
    from shards.inspect.plan.text import plan_lines
    from shards.inspect.plan.timeline import timelines

    faults = [fault for fault in (file_name(out, "--out", ".png"),) if fault]
    found = plan_file(file, overrides, Wish(ranks, nodes, steps), faults)
    print("\n".join([*plan_lines(found), *advice_lines(found)]))
    if out:
        save(plan_figure(found, timelines(found)), out)
        print(f"-> {out}")
