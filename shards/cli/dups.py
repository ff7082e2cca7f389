"""`xfer shards dups`."""

from pathlib import Path

from shards.cli.options import file_name, in_range, refuse


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
    can guard against it; else 0. Reported are these leaks, labels that
    contradict each other, and copies within and between splits.

        xfer shards dups shards/photo
        xfer shards dups shards/photo shards/web --test shards/sketch
        xfer shards dups shards/photo --out dups.png --csv dups.csv

    Two samples are the same by `exact` bytes of their images, by `pixels` once
    decoded, or `near`: in another size, quality, brightness or contrast, without
    colours, with 2 % cut off. `mirrored` ones are near as well, since training
    mirrors. Larger cuts and turned images are not found.

    All samples are decoded once. What was seen of them is kept beside the
    manifest (train.hashes.0123456789ab.npy, 160 bytes a sample), so the next
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
        Share of the signs of two images' perceptual hashes that may differ, 0 to 0.4. More finds more, and more that
        only look alike; drawings of one thing need less.
    skip_mirrored
        Mirrored images are not the same: for left and right hands, say.
    out
        Picture to write, of pairs side by side (.png, .jpg).
    csv
        Table to write, of all pairs (.csv).
    processes
        How many processes work at once; as many as pay if not given.
    """
    from shards.format.whole import write_csv
    from shards.inspect.dups.compare import compare
    from shards.inspect.dups.copies import open_splits
    from shards.inspect.dups.leaks import leaks
    from shards.inspect.dups.sheet import pairs_sheet
    from shards.inspect.dups.text import COLUMNS, csv_rows, report_lines
    from shards.inspect.preview.show import save

    far = not 0 <= near <= 0.4 and f"--near: {near}; expected 0 to 0.4: unrelated images differ in half of all signs"
    refuse(
        file_name(out, "--out", ".png", ".jpg", ".jpeg"),
        file_name(csv, "--csv", ".csv"),
        in_range(processes, "--processes", 1, 4096, "processes"),
        far,
    )
    found = compare(open_splits(folders, test or [], split or [], processes), near, not skip_mirrored, processes)
    print("\n".join(report_lines(found)))
    if out and found.members:
        save(pairs_sheet(found), out)
        print(f"-> {out}")
    if csv:
        print(f"-> {csv}: {write_csv(csv, COLUMNS, csv_rows(found)):,} pairs")
    return 1 if leaks(found) else 0
