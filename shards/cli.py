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

app = cyclopts.App(
    name="shards",
    help="""Turn folders of images into shards, and look at them.

    Example, from one folder for each class to data that a recipe can name:

        xfer shards build photos/ shards/photo
        xfer shards show shards/photo --out contact.png
    """,
    default_parameter=Parameter(negative=()),
)


@app.command
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
    """Build shards from class folders, a table, Pascal VOC, COCO, masks, and more: SOURCE is recognised by its looks.

    Every image is decoded once; what cannot be is left out and listed with its reason in `OUT/train.build-report.json`.
    It can be interrupted at any moment: the same command goes on where it stopped, with the same result.

        xfer shards build photos/ shards/photo
        xfer shards build photos-test/ shards/photo --split test
        xfer shards build clothes.csv shards/clothes --images clothes/ --label type --side age,text
        xfer shards build VOC2012/ shards/voc --list train
        xfer shards build instances_val2017.json shards/coco --images val2017/ --bad-boxes drop
        xfer shards build camvid/ shards/camvid --masks camvid/labels --classes classes.txt --void 11

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
    from shards.build import build as run

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
        f"{manifest.num_samples:,} samples of {len(manifest.classes)} classes in {len(manifest.shards)} shards, "
        f"{size:,.1f} MB ({roles})"
    )
    if manifest.classes and all(name.isdigit() for name in manifest.classes):
        print("the classes have numbers for names: data sets share classes by name, so give them with --classes")
    for what, entries in (("samples refused", report.refused), ("boxes dropped", report.dropped)):
        if entries:
            print(f"{len(entries)} {what}, listed in {out / f'{split}.build-report.json'}:")
            print("\n".join(f"  {key}: {reason}" for key, reason in entries[:5]))
    if report.ignored:
        print(f"{report.ignored} files are no samples and were left out")


@app.command
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
    """Make a data set of WebDataset tars where they lie: an index and a manifest beside them, no tar is touched.

    Every byte is read once; samples that cannot be used are left out and listed in `FOLDER/train.build-report.json`.
    Image and label are found by looking; what `energon prepare` wrote (`.nv-meta/`) is used if it is there.

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
    from shards.index import index as run
    from shards.roles import Roles, read_classes

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


@app.command
def show(
    folder: Path, *, split: str = "train", out: Path = Path("contact.png"), count: int = 64, seed: int = 0
) -> None:
    """Draw a contact sheet: thumbnails of samples with their labels, sorted by class.

        xfer shards show shards/photo --out contact.png

    Parameters
    ----------
    folder
        Folder of shards.
    split
        Which split of it.
    out
        Picture to write (.png, .jpg).
    count
        How many samples.
    seed
        Another number shows other samples.
    """
    from shards.manifest import read_manifest
    from shards.settings import ConfigError
    from shards.show import contact_sheet
    from shards.views import View

    if not 1 <= count <= 4096:
        raise ConfigError(f"--count: {count}; expected 1 to 4096 samples")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"--out: {out}; expected a file name ending in .png or .jpg")
    manifest = read_manifest(folder, split)
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(View(manifest.name, str(folder), manifest), count, seed).save(out)
    print(f"{out}: {min(count, manifest.num_samples)} of {manifest.num_samples:,} samples")


@app.command
def stats(folder: Path, *, split: str = "train") -> None:
    """Print what a split holds: classes and their counts, image sizes, mean color. Reads the manifest only.

        xfer shards stats shards/photo

    Parameters
    ----------
    folder
        Folder of shards.
    split
        Which split of it.
    """
    from shards.manifest import read_manifest

    manifest = read_manifest(folder, split)
    counts = manifest.stats.class_counts
    wide, most = max(map(len, manifest.classes)), max(*counts, 1)
    print(f"{manifest.name}/{split}: {manifest.num_samples:,} samples in {len(manifest.shards)} shards")
    for label, count in zip(manifest.classes, counts, strict=True):
        print(f"  {label:<{wide}}  {count:>9,}  {'█' * round(30 * count / most)}")
    print(f"  version {manifest.version}")
    (low_w, high_w), (low_h, high_h) = manifest.stats.width, manifest.stats.height
    print(f"  width {low_w} to {high_w}, height {low_h} to {high_h} pixels")
    print(f"  mean RGB {manifest.stats.channel_mean}, standard deviation {manifest.stats.channel_std}")


for verb in (verbs.verify,):
    app.command(verb)
