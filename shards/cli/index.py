"""`xfer shards index`."""

from pathlib import Path


def index(
    folder: Path,
    *,
    split: str = "train",
    name: str | None = None,
    classes: str | None = None,
    image: str | None = None,
    label: str | None = None,
    side: str | None = None,
    shards: str | None = None,
    processes: int | None = None,
    max_refused: float = 0.01,
    overwrite: bool = False,
) -> None:
    """Make a data set of WebDataset tars where they lie.

    Index and manifest are written beside them, no tar is touched. Every byte is
    read once; samples that cannot be used are left out and listed in
    `FOLDER/train.build-report.json`. Image and label are found by looking; what
    `energon prepare` wrote (`.nv-meta/`) is used if it is there.

        xfer shards index downloads/cifar
        xfer shards index downloads/pets --split test --shards 'test-*.tar' --label json:breed

    Parameters
    ----------
    folder
        Folder of tars; index and manifest are written into it.
    split
        Name of the split. Without --shards, tars whose names begin with it, if any of them names a split.
    name
        Name of the data set; the name of FOLDER if not given.
    classes
        Class names in label order: `cat,dog`, or a file with one name a line. Found from the labels if not given.
    image
        Extension of the image, where a sample has several: `jpg`, `left.png`.
    label
        Where the label is: an extension (`cls`, `txt`), or a key of a JSON member (`json:label`, `json:meta.label`).
    side
        Extension of a side input (`txt`, `json`); with no label, of captions.
    shards
        Pattern of the tars' names: 'train-*.tar'.
    processes
        How many processes work at once; as many as pay if not given.
    max_refused
        Fraction of the samples that may be unusable before it fails (one always may).
    overwrite
        Replace the index and the manifest of this split.
    """
    from shards.format.fields import Roles, read_classes
    from shards.ingest.index import index as run

    given = Roles((image,) if image else (), label, side=side)
    report = run(folder, split, name, read_classes(classes), given, shards, processes, max_refused, overwrite)
    manifest = report.manifest
    done = "already indexed" if report.already_built else "indexed"
    roles = ", ".join(f"{role} {member}" for role, member in manifest.fields.items())
    print(
        f"{report.folder}: {done} {manifest.name}/{manifest.split}: {manifest.num_samples:,} samples of "
        f"{len(manifest.classes)} classes in {len(manifest.shards)} tars ({roles})"
    )
    if report.refused:
        print(f"{len(report.refused)} samples left out, listed in {split}.build-report.json:")
        print("\n".join(f"  {key}: {reason}" for key, reason in report.refused[:5]))
    for note in report.notes:
        print(f"note: {note}")
