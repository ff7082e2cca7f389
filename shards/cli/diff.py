"""`xfer shards diff`."""

from pathlib import Path

from shards.cli.options import file_name, refuse


def diff(
    a: str,
    b: str | None = None,
    /,
    *,
    split: str = "train",
    split_b: str | None = None,
    out: Path | None = None,
) -> int:
    """Show what changed from one split to another, or between versions of one.

    Exit status 0 if they are the same version, 1 if not, as `diff` has it. Shown
    are what the manifests say otherwise; samples removed, added and changed
    (label by the name of the class, image, boxes, mask, side inputs), with the
    first keys of each; whether the order is another; and whether a run that
    began on A goes on with B.

        xfer shards diff shards/photo shards/photo-new
        xfer shards diff shards/photo --split train@0123456789ab --split-b train
        xfer shards diff shards/photo shards/photo-new --out diff.csv

    Samples are matched by their keys. Indexes say which differ, and only these
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
    from shards.format.whole import write_csv
    from shards.inspect.diff import compare
    from shards.inspect.diff_text import COLUMNS, csv_rows, diff_lines
    from shards.inspect.glance import opened

    alone = b is None and split_b is None and f"{a}: compared with what? Give a second folder, or --split-b"
    refuse(file_name(out, "--out", ".csv"), alone)
    with opened([a], split) as (ours,), opened([b or a], split_b or split) as (theirs,):
        changes = None if ours.manifest.version == theirs.manifest.version else compare(ours, theirs)
        print("\n".join(diff_lines(ours, theirs, changes)))
        if out and changes:
            print(f"-> {out}: {write_csv(out, COLUMNS, csv_rows(ours, theirs, changes)):,} samples")
    return 1 if changes else 0
