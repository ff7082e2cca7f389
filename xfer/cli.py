"""The verbs of one process: fit, evaluate, predict, quantize. Heavy imports wait inside, so help is instant."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from shards.settings import ConfigError

if TYPE_CHECKING:
    from xfer.bundle import Trained
    from xfer.config import Recipe


def fit(recipe: Path, *overrides: str) -> None:
    """Train a recipe in one process, without Ray. The same command again goes on from the newest checkpoint.

        xfer fit recipe.yaml data.root=data/pacs train.steps=300

    Parameters
    ----------
    recipe
        YAML with the sections data, model, train, quantize.
    overrides
        `dotted.path=value`, any number of them.
    """
    from shards.loading.batch import Slot
    from shards.settings import load
    from xfer import fit as run
    from xfer.config import Recipe
    from xfer.follow import follow

    config = load(recipe, Recipe, overrides)
    with run.run_lock(config.folder):
        _, checkpoint = run.prepare(config)
        done = checkpoint.state.step if checkpoint else 0
        run.begin(config)
        with follow(config.name, config.train.steps, done) as show:
            run.fit(config, Slot(), run.plain_engine, show)
    print(f"trained: {config.folder}\nnext: xfer evaluate {config.folder}")


def evaluate(
    model: Path,
    *overrides: str,
    split: Annotated[Literal["all", "validation", "test"], Parameter(help="Which held-out data.")] = "all",
) -> None:
    """Accuracy of a run or a bundle on its validation and test sources, with 95 % intervals.

        xfer evaluate runs/pacs
        xfer evaluate runs/pacs/bundle --split test

    A bundle keeps no data paths: they come from the run folder it lies in.

    Parameters
    ----------
    model
        A run folder or a bundle folder.
    overrides
        `dotted.path=value` changes to the run's recipe, such as data.root=...
    """
    from shards.loading.open import open_data
    from xfer.bundle import open_model

    trained, recipe = open_model(model), _recipe_of(model, overrides)
    data = open_data(recipe.data)
    wanted = {"validation": data.validation, "test": data.test}
    if split != "all":
        wanted = {split: wanted[split]}
    if not any(wanted.values()):
        raise ConfigError(f"{model}: its recipe has no {split if split != 'all' else 'held-out'} data to evaluate on")
    print(f"model: {model}, weights {trained.weights_bytes / 1e6:.2f} MB ({trained.weights_file})")
    result = {part: _scores(trained, subsets, recipe, part) for part, subsets in wanted.items() if subsets}
    _record(model, result)


def _scores(trained: "Trained", subsets: tuple, recipe: "Recipe", part: str) -> dict:
    from xfer.evaluate import evaluate_subsets, unknown_classes
    from xfer.metrics import mean_accuracy

    scores = evaluate_subsets(trained.model, subsets, recipe.data, trained.classes, f"evaluate {part}")
    print(f"\n{part:<24}{'images':>8}{'accuracy':>10}   95 % interval")
    for name, score in scores.items():
        low, high = score.interval
        print(f"  {name:<22}{score.count:>8}{100 * score.accuracy:>8.1f} %   {100 * low:.1f} - {100 * high:.1f}")
    if len(scores) > 1:
        print(f"  {'mean of sources':<22}{'':>8}{100 * mean_accuracy(scores):>8.1f} %")
    for name, classes in unknown_classes({subset.name: subset.classes for subset in subsets}, trained.classes).items():
        print(f"  {name}: not counted, the model has no such class: {', '.join(classes)}")
    return {
        name: {"correct": s.correct, "count": s.count, "accuracy": s.accuracy, "interval": s.interval,
               "per_class": dict(s.per_class)}
        for name, s in scores.items()
    }  # fmt: skip


def _record(model: Path, result: dict) -> None:
    """evaluation.json beside the model; it also counts how often the test data was opened."""
    beside = model.parent if (model / "manifest.json").exists() else model
    path = beside / ("evaluation.json" if beside == model else f"evaluation-{model.name}.json")
    before = json.loads(path.read_text()) if path.is_file() else {}
    reads = before.get("test_reads", 0) + ("test" in result)
    path.write_text(json.dumps({**before, **result, "test_reads": reads}, indent=1))


def _recipe_of(model: Path, overrides: tuple[str, ...]) -> "Recipe":
    """The recipe a run was made from: in the run folder itself, or beside the bundle."""
    from shards.settings import load
    from xfer.config import Recipe

    for folder in (model, model.parent):
        path = folder / "recipe.yaml"
        if path.is_file() and not (folder / "weights.safetensors").exists():
            return load(path, Recipe, overrides)
    raise ConfigError(f"{model}: no run folder with a recipe.yaml here or around it")


def quantize(run: Path, *overrides: str, out: Path | None = None) -> None:
    """Turn a run into a bundle: packed weights of 2 to 8 bits per layer group, checked after reading them back.

        xfer quantize runs/pacs quantize.bits=8
        xfer quantize runs/pacs quantize.bits=6 quantize.groups.layer4=4 --out runs/pacs/bundle-small

    Groups: stem, layer1, layer2, layer3, layer4, project, head.

    Parameters
    ----------
    run
        A run folder.
    overrides
        `dotted.path=value` changes to the run's recipe; the section `quantize` is what this verb reads.
    out
        Where the bundle goes; RUN/bundle if not given.
    """
    from shards.loading.open import open_data
    from xfer.bundle import open_model
    from xfer.evaluate import evaluate_subsets
    from xfer.metrics import mean_accuracy
    from xfer.quantize import make_bundle

    trained, recipe = open_model(run), _recipe_of(run, overrides)
    if trained.bits is not None:
        raise ConfigError(f"{run}: this is a bundle already; quantize the run it came from")
    data = open_data(recipe.data)
    bundle = make_bundle(trained, recipe, data, out or run / "bundle")
    subsets = data.validation or data.test
    print(f"\n{'':<10}{'bytes':>14}{'accuracy':>10}   on {', '.join(v.name for v in subsets)} (held-out part)")
    for name, candidate in (("float32", trained), ("packed", bundle)):
        scores = evaluate_subsets(candidate.model, subsets, recipe.data, candidate.classes, f"evaluate {name}")
        print(f"{name:<10}{candidate.weights_bytes:>14,}{100 * mean_accuracy(scores):>8.1f} %")
    print(f"{trained.weights_bytes / bundle.weights_bytes:.1f} times smaller: {bundle.path}")
    print(f"next: xfer predict {bundle.path} IMAGE...")


def predict(
    model: Path,
    *images: Path,
    top: Annotated[int, Parameter(help="Classes shown for each image.")] = 3,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="One JSON object a line.")] = False,
) -> None:
    """Name what is in images, most likely class first.

        xfer predict runs/pacs/bundle cat.jpg dog.png --json

    Parameters
    ----------
    model
        A run folder or a bundle folder.
    images
        Image files, or folders of them.
    """
    from xfer.bundle import open_model
    from xfer.predict import image_files, predictions

    trained = open_model(model)
    failed = 0
    for path, answer in predictions(trained, image_files(images), top):
        if isinstance(answer, str):
            failed += 1
        if as_json:
            print(
                json.dumps(
                    {"image": str(path), **({"error": answer} if isinstance(answer, str) else {"classes": answer})}
                )
            )
        else:
            text = answer if isinstance(answer, str) else "   ".join(f"{n} {100 * p:.1f} %" for n, p in answer.items())
            print(f"{path}: {text}")
    if failed:
        raise RuntimeError(f"{failed} of the images could not be read")
