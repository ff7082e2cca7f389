"""`xfer compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from shards.settings import ConfigError

if TYPE_CHECKING:
    from xfer.bundle import Trained


def compare(
    models: Annotated[tuple[Path, ...], Parameter(negative="", consume_multiple=True)],
    /,
    *,
    split: Annotated[Literal["all", "validation", "test"], Parameter(help="Which held-out data.")] = "all",
    data: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    same_run: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Which of several models is better, on the same images, with the interval of the difference.

        xfer compare runs/one runs/two
        xfer compare runs/pacs runs/pacs/bundle runs/pacs/bundle4 --split test
        xfer compare runs/pacs copied/bundle --data shards/phone
        xfer compare runs/narrow runs/wide
        xfer compare runs/one runs/copied --same-run

    Every model is compared with the first, on what the first one's recipe holds out or on any built data with --data.
    Only images that one model names rightly and the other does not tell them apart, so the interval of a difference is
    narrower than those of two accuracies. Folders of `xfer fit --seeds` are paired seed by seed, and the interval is
    over seeds and images: it tells recipes apart, where one run of each tells only these two runs apart. Nothing is
    recorded; test data that is looked at often is no test any more.

    With --same-run no model is opened: the chains of the runs (chain.jsonl) tell whether they were trained on the same
    images in every step, and came to the same losses and weights, to the bit; if not, since which step. Exit status 1
    if they differ.

    Parameters
    ----------
    models
        Run folders or bundles, at least two; or folders of xfer fit --seeds.
    data
        A folder of shards, or FOLDER/SPLIT; give the option once for each.
    same_run
        Whether all are the same run as the first, and not how good they are.
    """
    if same_run:
        return _same_run(models, chosen=split != "all" or bool(data))
    from xfer.cli.evaluate import HELD_OUT, named, of_recipe, recipe_of
    from xfer.compare import compare_models, model_names
    from xfer.prepare import SEEN

    if len(models) < 2:
        raise ConfigError(f"models: must be at least 2 run folders or bundles, got {len(models)}")
    opened = _open(models)
    trained = dict(zip(model_names(models), opened, strict=True))
    if data and split != "all":
        raise ConfigError("--data: names what is compared on; leave out --split")
    config, parts = named(data, opened[0][0]) if data else of_recipe(opened[0][0].path, (), split)[:2]
    if not parts:
        raise ConfigError(f"{models[0]}: its recipe holds out nothing of that kind to compare on")
    for part, subsets in parts.items():
        print(f"\n{compare_models(trained, subsets, config, part)}")
    if data:
        return 0
    for name, runs in list(trained.items())[1:]:
        try:
            theirs = recipe_of(runs[0].path, ()).data
        except ConfigError:
            continue
        if any(getattr(theirs, key) != getattr(config, key) for key in HELD_OUT if key not in SEEN):
            print(f"\nnote: {name} was made from other data than {next(iter(trained))}: it may have seen these images")
    return 0


def _same_run(runs: tuple[Path, ...], chosen: bool) -> int:
    """`chosen`: whether there are options that choose images."""
    from xfer.chain import agreement, read_chain
    from xfer.compare import model_names
    from xfer.seeds import is_seeded

    faults = ["--same-run: looks at no images; leave out --split and --data"] if chosen else []
    if len(runs) < 2:
        faults.append(f"models: must be at least 2 run folders, got {len(runs)}")
    chains = []
    for path in runs:
        try:
            if is_seeded(path):
                raise ConfigError(f"{path}: holds runs of several seeds; compare {path}/seeds/0 and so on")
            chains.append(read_chain(path))
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    names, same = model_names(runs), True
    for name, chain in list(zip(names, chains, strict=True))[1:]:
        agrees, said = agreement(chains[0], chain, (names[0], name))
        same &= agrees
        print(f"{names[0]} and {name}: {said}")
    return 0 if same else 1


def _open(models: tuple[Path, ...]) -> "list[list[Trained]]":
    """Each of the models as the list of its runs: one, or one a seed."""
    from xfer.bundle import open_model
    from xfer.seeds import is_seeded, open_seeds

    seeded = [path for path in models if is_seeded(path)]
    if len(seeded) == len(models):
        return open_seeds(models)
    faults, opened = [], []
    for path in models:
        try:
            opened.append([open_model(path)])
        except ConfigError as error:
            faults += [str(error)]
    if seeded:
        faults.append("folders of several seeds are compared with such folders only, seed by seed")
    if faults:
        raise ConfigError(faults)
    return opened
