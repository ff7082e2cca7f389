"""`xfer classes`: the classes of a shipped model."""

from pathlib import Path

import cyclopts
from cyclopts import Parameter

app = cyclopts.App(
    name="classes",
    help="""The classes of a shipped model.

    A bundle of a model with model.head.kind: labels takes further classes by their names:

        xfer classes add runs/clothes/bundle sweatshirt

    With images of them, train: see transfer.head: keep.
    """,
    default_parameter=Parameter(negative=()),
)


@app.command
def add(bundle: Path, *names: str, out: Path | None = None) -> None:
    """Write a bundle with further classes, which are known by their names alone.

        xfer classes add runs/clothes/bundle sweatshirt "rain coat"
        xfer classes add runs/clothes/bundle sweatshirt --out shipped/clothes
        xfer evaluate shipped/clothes --data data/clothes-with-sweatshirts

    The model needs the head labels: its table has a vector of each class's name, and what leads from there to the
    classifier leads from any other name too. The table knows spelling and nothing of meaning: a row for `sweatshirt` is
    made of those of names like `shirt`, and one for `zebra` of nothing. All else stays as it is, to the bit; the given
    bundle too. Files of `xfer export` are of the old classes and are not taken along.

    Parameters
    ----------
    bundle
        A bundle.
    names
        The new classes.
    out
        Where the new bundle goes, whole or not at all; BUNDLE-and-NAME... beside it if not given.
    """
    from xfer.bundle import classes_of
    from xfer.more_classes import HONEST, add_classes, lost_files

    plain = "-and-".join("".join(c if c.isalnum() else "_" for c in name) for name in names)
    target = out or bundle.with_name(f"{bundle.absolute().name}-and-{plain}"[:120])
    found = add_classes(bundle, names, target)
    print(*found, sep="\n")
    print(f"note: {HONEST}")
    if lost := lost_files(bundle):
        print(f"note: not taken along, for it is of the old classes: {', '.join(lost)}; xfer export {target}")
    print(f"classes: {', '.join(classes_of(target))}\nbundle: {target}\nnext: xfer evaluate {target} --data FOLDER")
