"""`xfer shards show`."""

from pathlib import Path

from shards.cli.options import file_name, in_range, refuse


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

    from shards.inspect.glance import opened
    from shards.inspect.preview.show import MOST, contact_sheet, having, head, save, sheet_preview, tiles
    from shards.inspect.preview.terminal import print_tiles, terminal_preview

    refuse(file_name(out, "--out", ".png", ".jpg", ".jpeg"), in_range(count, "--count", 1, MOST, "samples"))
    console = Console()
    with opened(folders, split) as subsets:
        having_it = having(subsets, only)
        for subset in subsets:
            if subset not in having_it:
                print(f"{subset.name}/{split}: no class {only!r}")
        preview = (
            sheet_preview(having_it, count, seed, only)
            if out
            else terminal_preview(console, having_it, count, seed, only)
        )
        shown = [(subset, tiles(subset, preview)) for subset in having_it]
    if not any(tiles for _, tiles in shown):
        print(f"no sample holds {only!r}")
        return 1
    if out:
        save(contact_sheet(shown, preview.side), out)
        print("\n".join(head(subset, tiles) for subset, tiles in shown))
        print(f"-> {out}")
        return None
    for subset, some in shown:
        print_tiles(console, subset, some, preview.side)
    if console.is_terminal:
        hint = "in full: --out contact.png; others: --seed 1; one class: --only NAME"
        console.print(hint, style="dim", highlight=False)
    return None
