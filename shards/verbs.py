"""The verbs on built data, as plain functions: `cli.py` turns their signatures and docstrings into commands and help.

A verb returns its exit status, or None for 0. What it says goes to stdout, progress to stderr. Heavy imports happen
inside: `--help` must not wait for torch.
"""

from pathlib import Path
from typing import Literal


def show(
    folders: list[str],
    /,
    *,
    split: str = "train",
    out: Path | None = None,
    count: int | None = None,
    only: str | None = None,
    seed: int = 0,
) -> int | None:
    """Look at samples and what they say: class, boxes, mask, side inputs.

    The quickest check that labels and images belong together. Draws into the
    terminal, roughly; in full with --out. Without colours (a pipe, a log) it
    tells in words. Samples come evenly from all classes, each with its key, so
    that a wrong one can be found again.

        xfer shards show shards/photo
        xfer shards show shards/photo --out contact.png
        xfer shards show shards/photo shards/sketch --only horse --out horses.png

    Parameters
    ----------
    folders
        Folders of shards, or URLs.
    split
        Which split of them; `train@0123456789ab` is an older version.
    out
        Picture to write (.png, .jpg).
    count
        How many samples of each folder; as many as are seen well if not given.
    only
        Samples of this class only, or with boxes or pixels of it.
    seed
        Another number shows other samples.
    """
    from rich.console import Console

    from shards.glance import opened
    from shards.looks.show import MOST, contact_sheet, having, head, save, sheet_look, tiles
    from shards.looks.terminal import print_tiles, terminal_look

    _refuse(_name(out, "--out", ".png", ".jpg", ".jpeg"), _range(count, "--count", 1, MOST, "samples"))
    console = Console()
    with opened(folders, split) as views:
        having_it = having(views, only)
        for view in views:
            if view not in having_it:
                print(f"{view.name}/{split}: no class {only!r}")
        look = sheet_look(having_it, count, seed, only) if out else terminal_look(console, having_it, count, seed, only)
        shown = [(view, tiles(view, look)) for view in having_it]
    if not any(tiles for _, tiles in shown):
        print(f"no sample holds {only!r}")
        return 1
    if out:
        save(contact_sheet(shown, look.side), out)
        print("\n".join(head(view, tiles) for view, tiles in shown))
        print(f"-> {out}")
        return None
    for view, some in shown:
        print_tiles(console, view, some, look.side)
    if console.is_terminal:
        hint = "in full: --out contact.png; others: --seed 1; one class: --only NAME"
        console.print(hint, style="dim", highlight=False)
    return None


def stats(
    folders: list[str],
    /,
    *,
    split: str = "train",
    out: Path | None = None,
    sizes: int | Literal["all"] = 2000,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Tell what data sets hold: classes, image sizes, colours, boxes, masks, texts.

    Several stand side by side, with the classes that one of them lacks.
    Classes and colours are those of all samples. Sizes, boxes and texts stand
    in the samples: --sizes of each data set are read, chosen evenly.

        xfer shards stats shards/photo
        xfer shards stats shards/photo shards/sketch --out stats.png
        xfer shards stats shards/photo --sizes all --json

    The side of a box is the root of its part of the image's area: a box over a
    quarter of the image has a side of 50 %.

    Parameters
    ----------
    folders
        Folders of shards, or URLs.
    split
        Which split of them; `train@0123456789ab` is an older version.
    out
        Figure to write (.png, .svg, .pdf).
    sizes
        How many samples of each are read; 0: none, `all`: every one.
    seed
        Another number reads other samples.
    json
        Print all numbers as JSON, a list with an entry for each folder.
    """
    import json as json_module
    import shutil

    from shards.glance import opened
    from shards.looks.stats import profile
    from shards.looks.stats_json import as_json
    from shards.looks.stats_text import stats_lines

    none = sizes != "all" and sizes < 0 and f"--sizes: {sizes}; expected 0 or more samples, or `all`"
    _refuse(_name(out, "--out", ".png", ".svg", ".pdf"), none)
    count = None if sizes == "all" else sizes
    with opened(folders, split) as views:
        profiles = [profile(view, count, seed) for view in views]
    if json:
        print(json_module.dumps([as_json(found) for found in profiles]))
    else:
        print("\n".join(stats_lines(profiles, max(80, shutil.get_terminal_size((100, 24)).columns))))
    if out:
        from shards.figures import save
        from shards.looks.figure import stats_figure

        save(stats_figure(profiles), out)
        if not json:
            print(f"\n-> {out}")


def verify(
    folder: Path, *, split: str = "train", repair: bool = False, out: Path | None = None, processes: int | None = None
) -> int:
    """Read every byte of a split again and list all damage.

    Exit status 1 if there is any. Checked are the sha256 of each file, and of
    each sample crc32, header, key, label, image, boxes, mask and side inputs.
    Damage is told as shard, key and reason.

        xfer shards verify shards/photo
        xfer shards verify shards/photo --out damage.csv
        xfer shards verify shards/photo --repair

    --repair leaves the damaged samples out by a new version of the split. No tar
    is touched, and the old version can still be read: it is printed as
    `split: train@0123456789ab`, for a recipe.

    Parameters
    ----------
    folder
        Folder of shards.
    split
        Which split of it.
    repair
        Write a new version without the damaged samples; exit status 0 if it could be done.
    out
        Table to write with every fault: file, key, row, reason (.csv).
    processes
        How many processes work at once; as many as pay if not given.
    """
    from shards.manifest import older_split
    from shards.repair import repair as leave_out
    from shards.text import counted
    from shards.verify import fault_lines, inspect, write_csv

    _refuse(_name(out, "--out", ".csv"))
    found = inspect(folder, split, processes, statistics=repair)
    old = found.manifest
    if out:
        write_csv(out, found.faults)
    if not found.faults:
        print(f"{folder}: {old.num_samples:,} samples in {counted(len(old.shards), 'shard')} are as they were written")
        return 0
    print(f"{folder}: split {split!r} is damaged")
    print("\n".join(f"  {line}" for line in fault_lines(found.faults)))
    if not repair:
        print("copy it again, or build it again, or leave the damage out with --repair")
        return 1
    new = leave_out(found)
    left_out = old.num_samples - new.num_samples
    print(f"{folder}: {left_out:,} of {old.num_samples:,} samples left out; the new version is {new.version}")
    print(f"a run that began on the old version goes on with `split: {older_split(old)}`")
    return 0


def plan(
    file: Path,
    *overrides: str,
    ranks: int | None = None,
    nodes: int | None = None,
    steps: int | None = None,
    out: Path | None = None,
) -> None:
    """Tell what a run will do with its data, before it is paid for.

    That is blend, repeats, egress, disk, shuffle and order, for any number of
    machines. Reads manifests alone, so it takes seconds for data of any size;
    neither the machines nor their caches need to be there.

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
        Picture to write (.png): who reads what when, repeats, egress and disk.
    """
    from shards.figures import save
    from shards.forecast.advice import advice_lines
    from shards.forecast.figure import plan_figure
    from shards.forecast.numbers import Wish, forecast_file
    from shards.forecast.text import forecast_lines
    from shards.forecast.timeline import timelines

    faults = [fault for fault in (_name(out, "--out", ".png"),) if fault]
    found = forecast_file(file, overrides, Wish(ranks, nodes, steps), faults)
    print("\n".join([*forecast_lines(found), *advice_lines(found)]))
    if out:
        save(plan_figure(found, timelines(found)), out)
        print(f"-> {out}")


def dups(
    folders: list[str],
    /,
    *,
    test: list[str] | None = None,
    split: list[str] | None = None,
    near: float = 0.2,
    skip_mirrored: bool = False,
    out: Path | None = None,
    csv: Path | None = None,
    processes: int | None = None,
) -> int:
    """Find samples that are there more than once, above all in training and in test.

    Exit status 1 if a held-out sample has a copy that is trained on, so that CI
    can guard against it; else 0. Told are these leaks, labels that contradict
    each other, and copies within and between splits.

        xfer shards dups shards/photo
        xfer shards dups shards/photo shards/web --test shards/sketch
        xfer shards dups shards/photo --out dups.png --csv dups.csv

    Two samples are the same by `exact` bytes of their images, by `pixels` once
    decoded, or `near`: in another size, quality, brightness or contrast, without
    colours, with 2 % cut off. `mirrored` ones are near as well, since training
    mirrors. Larger cuts and turned images are not found.

    All samples are decoded once. What was seen of them is kept beside the
    manifest (train.prints.0123456789ab.npy, 160 bytes a sample), so the next
    time takes seconds, and Ctrl-C costs little.

    Leave copies out at the source: remove the files and build again. There is no
    option that leaves out single samples.

    Parameters
    ----------
    folders
        Folders of shards. Splits whose names begin with `train` are trained on.
    test
        A folder of shards of which no split is trained on. Can be repeated.
    split
        Only splits of this name; all of each folder if not given. Can be repeated.
    near
        Share of the signs of two images' prints that may differ, 0 to 0.4. More finds more, and more that only look
        alike; drawings of one thing need less.
    skip_mirrored
        Mirrored images are not the same: for left and right hands, say.
    out
        Picture to write, of pairs side by side (.png, .jpg).
    csv
        Table to write, of all pairs (.csv).
    processes
        How many processes work at once; as many as pay if not given.
    """
    from shards.dups.compare import compare
    from shards.dups.copies import open_splits
    from shards.dups.leaks import leaks
    from shards.dups.sheet import pairs_sheet
    from shards.dups.text import report_lines, write_csv
    from shards.looks.show import save

    far = not 0 <= near <= 0.4 and f"--near: {near}; expected 0 to 0.4: unrelated images differ in half of all signs"
    _refuse(
        _name(out, "--out", ".png", ".jpg", ".jpeg"),
        _name(csv, "--csv", ".csv"),
        _range(processes, "--processes", 1, 4096, "processes"),
        far,
    )
    found = compare(open_splits(folders, test or [], split or [], processes), near, not skip_mirrored, processes)
    print("\n".join(report_lines(found)))
    if out and found.members:
        save(pairs_sheet(found), out)
        print(f"-> {out}")
    if csv:
        print(f"-> {csv}: {write_csv(csv, found):,} pairs")
    return 1 if leaks(found) else 0


def diff(
    a: str,
    b: str | None = None,
    /,
    *,
    split: str = "train",
    split_b: str | None = None,
    out: Path | None = None,
) -> int:
    """Tell what changed from one split to another, or between versions of one.

    Exit status 0 if they are the same version, 1 if not, as `diff` has it. Told
    are what the manifests say otherwise; samples removed, added and changed
    (label by the name of the class, image, boxes, mask, side inputs), with the
    first keys of each; whether the order is another; and whether a run that
    began on A goes on with B.

        xfer shards diff shards/photo shards/photo-new
        xfer shards diff shards/photo --split train@0123456789ab --split-b train
        xfer shards diff shards/photo shards/photo-new --out diff.csv

    Samples are matched by their keys. Indexes tell which differ, and only these
    are read; of URLs, the shards that hold them are fetched.

    Parameters
    ----------
    a
        Folder of shards, or URL.
    b
        The other one; the same folder if not given.
    split
        Which split of A; `train@0123456789ab` is an older version.
    split_b
        Which split of B; the same name if not given.
    out
        Table to write, of all samples that differ (.csv).
    """
    from shards.diff import compare
    from shards.diff_text import diff_lines, write_csv
    from shards.glance import opened

    alone = b is None and split_b is None and f"{a}: compared with what? Give a second folder, or --split-b"
    _refuse(_name(out, "--out", ".csv"), alone)
    with opened([a], split) as (ours,), opened([b or a], split_b or split) as (theirs,):
        changes = None if ours.manifest.version == theirs.manifest.version else compare(ours, theirs)
        print("\n".join(diff_lines(ours, theirs, changes)))
        if out and changes:
            print(f"-> {out}: {write_csv(out, ours, theirs, changes):,} samples")
    return 1 if changes else 0


def _refuse(*faults: str | Literal[False] | None) -> None:
    """Raises ConfigError with all faults there are."""
    from shards.settings import ConfigError

    found = [fault for fault in faults if fault]
    if found:
        raise ConfigError(found)


def _name(path: Path | None, option: str, *endings: str) -> str | None:
    """What is wrong with a file to write: it ends in none of `endings`, or its folder cannot be made."""
    if path is None:
        return None
    if path.suffix.lower() not in endings:
        return f"{option}: {path}; expected a file name ending in {' or '.join(endings)}"
    if path.is_dir():
        return f"{option}: {path} is a folder; give the name of a file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{option}: {path.parent}: {error.strerror}; give a folder you can write to"
    return None


def _range(number: int | None, option: str, low: int, high: int, what: str) -> str | None:
    if number is None or low <= number <= high:
        return None
    return f"{option}: {number}; expected {low} to {high} {what}"
