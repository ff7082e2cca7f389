"""`xfer labels`: one label space over sources whose class names disagree."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts
from cyclopts import Parameter

from shards.settings import ConfigError

if TYPE_CHECKING:
    from shards.labels import LabelsConfig, LabelSpace
    from shards.loading.open import Splits
    from shards.loading.subset import Subset
    from xfer.config import Recipe
    from xfer.transfer.alike import Known

app = cyclopts.App(
    name="labels",
    help="""One label space over sources whose class names disagree.

    Classes of different sources are one class only if their names are equal. What else is one, a person says:

        xfer labels propose recipe.yaml                # labels.yaml, and labels.html with images to decide by
        xfer labels check labels.yaml recipe.yaml      # after verdicts were written into labels.yaml
        xfer fit recipe.yaml data.labels=labels.yaml
    """,
    default_parameter=Parameter(negative=()),
)


@app.command
def propose(recipe: Path, *overrides: str, out: Path = Path("labels.yaml"), images: int = 2048) -> None:
    """Which classes of different sources look the same, or one a part of the other.

        xfer labels propose recipe.yaml
        xfer labels propose recipe.yaml --out pets.yaml --images 4096

    By their names (case, spaces, plurals, British and American, numbers behind them) and by their images: a linear head
    is fitted on the features of one source and asked what the images of another are, and the reverse. Each pair gets a
    line in a table and in the file, with what speaks for it, and images of both on a page beside the file. No pair is
    decided: write a verdict behind each. Run again, verdicts that stand in the file are kept.

    Features are those of the pretrained branches; without weights, and for detectors and segmenters, names alone are
    compared. Test sources and sources held out by name are compared by name only: their images are not looked at.

    Parameters
    ----------
    recipe
        A recipe with two sources or more.
    overrides
        `dotted.path=value` changes to the recipe.
    out
        A .yaml file for the pairs; the page lies beside it as .html.
    images
        At most so many of each source.
    """
    from shards.format.whole import write_text
    from shards.labels import read_labels
    from shards.text import counted, table
    from xfer.report.labels import write_labels_page
    from xfer.transfer.propose import propose as propose_pairs
    from xfer.transfer.propose import rows, text_of

    faults = [f"--images: must be at least 10, got {images}"] if images < 10 else []
    if out.suffix not in (".yaml", ".yml") or out.is_dir():
        faults.append(f"--out {out}: must be a file whose name ends in .yaml; the page lies beside it as .html")
    if faults:
        raise ConfigError(faults)
    before = read_labels(out) if out.exists() else None
    given, data = _opened(recipe, overrides)
    subsets = _sources(data)
    known = _known(recipe, given, data, images)
    try:
        found, left_out = propose_pairs({name: one.classes for name, one in subsets.items()}, known, before)
    except ConfigError as error:
        raise ConfigError(error.faults, out) from None
    if found:
        print(*table(rows(found), left=2, text=2), sep="\n")
    else:
        print("no two classes of different sources look the same, beside those of equal names, which are one already")
    if left_out:
        print(f"{counted(left_out, 'weaker pair')} left out: they would join what stronger ones keep apart")
    out.parent.mkdir(parents=True, exist_ok=True)
    with_images = {} if given.model.is_dense else {one.name: one for one in data.train}
    page = write_labels_page(out.with_suffix(".html"), found, with_images)
    write_text(out, text_of(found, str(out)))
    undecided = counted(sum(one.verdict == "undecided" for one in found), "pair")
    print(f"\n{undecided} to decide in {out}, with images in {page}; then: xfer labels check {out} {recipe}")


@app.command
def check(labels: Path, recipe: Path, *overrides: str) -> None:
    """Whether the verdicts of a labels.yaml hold together, and which label space they make.

        xfer labels check labels.yaml recipe.yaml

    Refused, all at once: sources or classes that are not there, a pair that is given twice, verdicts that contradict
    each other over chains, a class that would be a part of itself, a part and its whole in one source. Pairs without a
    verdict are counted.

    Parameters
    ----------
    labels
        What `xfer labels propose` wrote, with a person's verdicts.
    recipe
        The recipe whose sources they are about.
    overrides
        `dotted.path=value` changes to the recipe.
    """
    from shards.labels import label_space, read_labels
    from shards.text import counted, table

    faults: list[str] = []
    config = data = None
    try:
        config = read_labels(labels)
    except ConfigError as error:
        faults += [f"{labels}: {fault}" for fault in error.faults]
    try:
        _, data = _opened(recipe, overrides)
    except ConfigError as error:
        faults += [f"{error.origin or recipe}: {fault}" for fault in error.faults]
    if config is None or data is None:
        raise ConfigError(faults)
    subsets = _sources(data)
    try:
        space = label_space(config, {name: one.manifest.classes for name, one in subsets.items()})
    except ConfigError as error:
        raise ConfigError(error.faults, labels) from None
    print(*table(_space_rows(space), left=2), sep="\n")
    for verdict in ("same", "part_of", "different"):
        count = sum(pair.verdict == verdict for pair in config.pairs)
        print(f"{counted(count, 'pair')}: {verdict}")
    print(_undecided(config))


def _undecided(config: "LabelsConfig") -> str:
    from shards.text import counted

    count = sum(pair.verdict == "undecided" for pair in config.pairs)
    return f"{counted(count, 'pair')}: undecided{', as if not there' if count else ''}"


def _space_rows(space: "LabelSpace") -> list[list[str]]:
    """What each class of the space is called in which source, where that says anything."""
    found: dict[str, list[str]] = {}
    for source, names in space.names.items():
        for own, name in names.items():
            found.setdefault(name, []).append(source if own == name else f"{source}: {own}")
    rows = [["class", "of", "parts"]]
    for name, of in sorted(found.items()):
        rows.append([name, ", ".join(of), ", ".join(space.parts.get(name, ()))])
    return rows


def _opened(path: Path, overrides: Sequence[str]) -> "tuple[Recipe, Splits]":
    """A recipe and its data, under the names that sources give their classes. Raises ConfigError."""
    from shards.loading.open import open_data
    from xfer.config import Recipe
    from xfer.prepare import load_document
    from xfer.tasks.known import task_of

    recipe = load_document(path, Recipe, [*overrides, "data.labels="])
    return recipe, open_data(recipe.data, task_of(recipe.model.task).faults)


def _sources(data: "Splits") -> "dict[str, Subset]":
    """By name, each source once."""
    return {subset.name: subset for part in (data.test, data.validation, data.train) for subset in part}


def _known(path: Path, recipe: "Recipe", data: "Splits", images: int) -> "dict[str, Known]":
    """What heads know of each training source; nothing where only names can be compared, which is said."""
    from shards.progress import progress
    from xfer.begin import features_folder, initial_model
    from xfer.model import check_weights_exist
    from xfer.transfer.alike import known_of
    from xfer.transfer.pairs import samples_of
    from xfer.transfer.source import source_faults

    why = f"a model for {recipe.model.task}" if recipe.model.is_dense else ""
    why = why or ("" if recipe.pretrained else "no branch has weights, and features of random ones say nothing")
    why = why or ("" if len(data.train) > 1 else "one training source")
    if why:
        print(f"note: by name only: {why}")
        return {}
    if faults := check_weights_exist(recipe.model) + source_faults(recipe):
        raise ConfigError(faults, path)
    model, _ = initial_model(recipe, data)
    samples = samples_of(model, data.train, data.classes, recipe.data, images, features_folder(recipe))
    with progress("heads", len(samples), "sources") as advance:
        found = {}
        for sample in samples:
            found[sample.subset.name] = known_of(sample, data.classes)
            advance()
    return found
