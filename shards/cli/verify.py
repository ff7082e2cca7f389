"""`xfer shards verify`."""

from pathlib import Path

from shards.cli.options import file_name, refuse


def verify(
    folder: Path, *, split: str = "train", repair: bool = False, out: Path | None = None, processes: int | None = None
) -> int:
    """Read every byte of a split again and list all damage.

    Exit status 1 if there is any. Checked are the sha256 of each file, and of
    each sample crc32, header, key, label, image, boxes, mask and side inputs.
    Damage is reported as shard, key and reason.

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
    from shards.format.manifest import older_split
    from shards.format.whole import write_csv
    from shards.inspect.repair import repair as leave_out
    from shards.inspect.verify import COLUMNS, csv_rows, fault_lines, inspect
    from shards.text import counted

    refuse(file_name(out, "--out", ".csv"))
    found = inspect(folder, split, processes, statistics=repair)
    old = found.manifest
    if out:
        write_csv(out, COLUMNS, csv_rows(found.faults))
    if not found.faults:
        print(f"{folder}: {old.num_samples:,} samples in {counted(len(old.shards), 'shard')} are as they were written")
        return 0
    print(f"{folder}: split {split!r} is damaged")
    print("\n".join(fault_lines(found.faults)))
    if not repair:
        print("copy it again, or build it again, or leave the damage out with --repair")
        return 1
    new = leave_out(found)
    left_out = old.num_samples - new.num_samples
    print(f"{folder}: {left_out:,} of {old.num_samples:,} samples left out; the new version is {new.version}")
    print(f"a run that began on the old version goes on with `split: {older_split(old)}`")
    return 0
