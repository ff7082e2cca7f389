"""`xfer quantize`."""

import sys
from pathlib import Path

from shards.settings import ConfigError
from xfer.cli.evaluate import recipe_of


def quantize(run: Path, *overrides: str, out: Path | None = None) -> None:
    """Turn a run into a bundle: packed weights of 2 to 8 bits per layer group, checked after reading them back.

        xfer quantize runs/pacs quantize.bits=8
        xfer quantize runs/pacs quantize.bits=6 quantize.groups.layer4=4 --out runs/pacs/bundle-small

    Groups: stem, layer1, layer2, layer3, layer4, project, head. Both models are then run on the same held-out images;
    the interval of their difference says whether these images can tell them apart. Of a run with data.validation:
    leave_one_source_out, every fold is quantized so too, and compared on the source it never saw.

    Parameters
    ----------
    run
        A run folder.
    overrides
        `dotted.path=value` changes to the run's recipe; the section `quantize` is what this verb reads.
    out
        Where the bundle goes; RUN/bundle if not given.
    """
    from xfer.bundle import is_bundle, open_model
    from xfer.folds import quantize_run
    from xfer.history import gain_text

    trained, recipe = open_model(run), recipe_of(run, overrides)
    if is_bundle(run):
        raise ConfigError(f"{run}: this is a bundle already; quantize the run it came from")
    if trained.bits is not None:
        print("note: its branches and projections keep their bits; quantize.bits is that of the head", file=sys.stderr)
    bundle, compared = quantize_run(trained, recipe, out or run / "bundle")
    if gained := gain_text(run):
        print(gained)
    print(compared.text() if compared else "nothing is held out, so what packing cost in accuracy is not known")
    times = trained.weights_bytes / bundle.weights_bytes
    print(
        f"bytes: {trained.weights_bytes:,} {trained.form}, {bundle.weights_bytes:,} packed, {times:.1f} times smaller"
    )
    print(f"bundle: {bundle.path}\nnext: xfer predict {bundle.path} IMAGE...")
