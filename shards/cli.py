"""`xfer shards ...`: what a person does with data before training.

Heavy imports happen inside the commands: `--help` must not wait for torch.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from shards import verbs
from shards.sources.source import SourceOptions

MAKE, LOOK = cyclopts.Group("Make data sets", sort_key=0), cyclopts.Group("Look at them", sort_key=1)

app = cyclopts.App(
    name="shards",
    help="""Turn data sets into shards, and look at them.

    From one folder for each class to data that a recipe can name:

        xfer shards build photos/ shards/photo
        xfer shards show shards/photo
        xfer shards stats shards/photo --out stats.png
    """,
    default_parameter=Parameter(negative=()),
)


@app.command(group=MAKE, sort_key=0)
def build(
    source: Path,
    out: Path,
    *,
    options: Annotated[SourceOptions | None, Parameter(name="*")] = None,
    name: str | None = None,
    split: str = "train",
    shard_mb: float = 64,
    processes: int | None = None,
    max_refused: float = 0.01,
    seed: int = 0,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Build shards from class folders, a table, Pascal VOC, COCO, masks, and more.

    SOURCE is recognised by its looks. Every image is decoded once; what cannot
    be is left out and listed with its reason in `OUT/train.build-report.json`.
    It can be interrupted at any moment: the same command goes on where it
    stopped, with the same result.

        xfer shards build photos/ shards/photo
        xfer shards build photos-test/ shards/photo --split test
        xfer shards build clothes.csv shards/clothes --label type --side age,text
        xfer shards build VOC2012/ shards/voc --list train
        xfer shards build coco.json shards/coco --images val/ --bad-boxes drop
        xfer shards build camvid/ shards/camvid --masks camvid/labels --void 11

    Parameters
    ----------
    source
        What to build from; `docs/shards.md` has a table of all kinds. Images are jpg, jpeg, png, webp or bmp.
    out
        Folder for the shards; made if need be. Several splits may share it.
    name
        Name of the data set; the name of OUT if not given.
    split
        Name of the split.
    shard_mb
        Size of a shard, in megabytes.
    processes
        How many processes work at once; as many as pay if not given. The result is the same.
    max_refused
        Fraction of the samples that may be refused before the build fails (one always may).
    seed
        Seed of the order in which samples are stored.
    overwrite
        Replace another build in OUT. It stays whole until the new one is.
    """
    from shards.packing.build import build as run
    from shards.text import counted

    options = options or SourceOptions()
    report = run(
        source,
        out,
        replace(options, side=tuple(name.strip() for given in options.side for name in given.split(","))),
        name=name,
        split=split,
        shard_mb=shard_mb,
        processes=processes,
        max_refused=max_refused,
        seed=seed,
        overwrite=overwrite,
    )
    manifest = report.manifest
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    done = "already built" if report.already_built else "built"
    roles = ", ".join(f"{role} {member}" for role, member in manifest.fields.items())
    print(
        f"{out}: {done} {manifest.name}/{manifest.split} from a source of kind {report.kind}: "
        f"{counted(manifest.num_samples, 'sample')} of {len(manifest.classes)} classes "
        f"in {counted(len(manifest.shards), 'shard')}, {size:,.1f} MB ({roles})"
    )
    if manifest.classes and all(name.isdigit() for name in manifest.classes):
        print("the classes have numbers for names: data sets share classes by name, so give them with --classes")
    for what, entries in (("samples refused", report.refused), ("boxes dropped", report.dropped)):
        if entries:
            print(f"{len(entries)} {what}, listed in {out / f'{split}.build-report.json'}:")
            print("\n".join(f"  {key}: {reason}" for key, reason in entries[:5]))
    if report.ignored:
        print(f"{report.ignored} files are no samples and were left out")


@app.command(group=MAKE, sort_key=1)
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
    from shards.foreign.index import index as run
    from shards.foreign.roles import Roles, read_classes

    given = Roles((image,) if image else (), label, side=side)
    report = run(folder, split, name, read_classes(classes), given, shards, processes, max_refused, overwrite)
    manifest = report.manifest
    done = "already indexed" if report.already_built else "indexed"
    roles = ", ".join(f"{role} {member}" for role, member in manifest.fields.items())
    print(
        f"{report.folder}: {done} {manifest.name}/{manifest.split}: {manifest.num_samples:,} samples of "
        f"{len(manifest.classes)} classes in {len(manifest.shards)} tars ({roles})"
    )
    if manifest.classes and all(name.isdigit() for name in manifest.classes):
        print("the classes have numbers for names: data sets share classes by name, so give them with --classes")
    if report.refused:
        print(f"{len(report.refused)} samples left out, listed in {split}.build-report.json:")
        print("\n".join(f"  {key}: {reason}" for key, reason in report.refused[:5]))


for place, verb in enumerate((verbs.show, verbs.stats, verbs.verify, verbs.plan, verbs.dups, verbs.diff)):
    app.command(verb, group=LOOK, sort_key=place)
