"""`xfer shards stats`."""

from pathlib import Path
from typing import Literal

from shards.cli.options import file_name, refuse


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
    """Show what data sets hold: classes, image sizes, colours, boxes, masks, texts.

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

    from shards.inspect.glance import opened
    from shards.inspect.preview.stats import profile
    from shards.inspect.preview.stats_json import as_json
    from shards.inspect.preview.stats_text import stats_lines

    none = sizes != "all" and sizes < 0 and f"--sizes: {sizes}; expected 0 or more samples, or `all`"
    refuse(file_name(out, "--out", ".png", ".svg", ".pdf"), none)
    count = None if sizes == "all" else sizes
    with opened(folders, split) as subsets:
        profiles = [profile(subset, count, seed) for subset in subsets]
    if json:
        print(json_module.dumps([as_json(found) for found in profiles]))
    else:
        print("\n".join(stats_lines(profiles, max(80, shutil.get_terminal_size((100, 24)).columns))))
    if out:
        from shards.inspect.figures import save
        from shards.inspect.preview.figure import stats_figure

        save(stats_figure(profiles), out)
        if not json:
            print(f"\n-> {out}")
