"""`xfer shards build`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shards.sources.source import SourceOptions


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
        xfer shards build coco.json shards/things --images val/ --task segmentation
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
    from shards.ingest.build import build as run
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
    for what, entries in (("samples refused", report.refused), ("boxes dropped", report.dropped)):
        if entries:
            print(f"{len(entries)} {what}, listed in {out / f'{split}.build-report.json'}:")
            print("\n".join(f"  {key}: {reason}" for key, reason in entries[:5]))
    for note in report.notes:
        print(f"note: {note}")
