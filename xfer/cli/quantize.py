"""`xfer quantize`."""

from pathlib import Path

from shards.settings import ConfigError
from xfer.cli.evaluate import recipe_of


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
    from xfer.bundle import open_model
    from xfer.evaluate import evaluate_subsets
    from xfer.metrics import mean_accuracy
    from xfer.prepare import open_labelled
    from xfer.quantize import make_bundle

    trained, recipe = open_model(run), recipe_of(run, overrides)
    if trained.bits is not None:
        raise ConfigError(f"{run}: this is a bundle already; quantize the run it came from")
    data = open_labelled(recipe.data)
    bundle = make_bundle(trained, recipe, data, out or run / "bundle")
    subsets = data.validation or data.test
    print(f"\n{'':<10}{'bytes':>14}{'accuracy':>10}   on {', '.join(v.name for v in subsets)} (held-out part)")
    for name, candidate in (("float32", trained), ("packed", bundle)):
        scores = evaluate_subsets(candidate.model, subsets, recipe.data, candidate.classes, f"evaluate {name}")
        print(f"{name:<10}{candidate.weights_bytes:>14,}{100 * mean_accuracy(scores):>8.1f} %")
    print(f"{trained.weights_bytes / bundle.weights_bytes:.1f} times smaller: {bundle.path}")
    print(f"next: xfer predict {bundle.path} IMAGE...")
