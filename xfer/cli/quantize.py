"""`xfer quantize`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shards.settings import ConfigError, read_yaml
from xfer.cli.evaluate import recipe_of

if TYPE_CHECKING:
    from xfer.bundle import Trained
    from xfer.config import Recipe
    from xfer.quantize import Made


def quantize(
    run: Path | None = None,
    *overrides: str,
    budget: str | None = None,
    max_drop: float | None = None,
    bits_file: str | None = None,
    front: Annotated[int | None, Parameter(negative="")] = None,
    coded: Annotated[bool, Parameter(negative="")] = False,
    layers: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    weights: Path | None = None,
    arch: str | None = None,
    images: Path | None = None,
    classes: str | None = None,
) -> None:
    """Turn a run into a bundle: packed weights of 2 to 8 bits per layer, checked after reading them back.

        xfer quantize runs/pacs quantize.bits=8
        xfer quantize runs/pacs quantize.bits=6 quantize.groups.layer4=4 --out runs/pacs/bundle-small
        xfer quantize runs/pacs --budget 4MB
        xfer quantize runs/pacs --budget 4MB --coded
        xfer quantize runs/pacs --max-drop 0.5
        xfer quantize runs/pacs quantize.bits=4 quantize.finish=200
        xfer quantize runs/pacs --front 12
        xfer quantize runs/pacs --bits-file runs/pacs/front.json#3
        xfer quantize --weights resnet50.pth --arch resnet50 --images photos/ --budget 8MB --out small

    The bits are given in one way: by group (stem, layer1, layer2, layer3, layer4, project, head); for a file of a size,
    where each layer gets the bits that serve the model best; for a loss of accuracy (AP, mIoU), where the file is the
    smallest that stays within it; or by layer, from a file.

    With quantize.finish the rounded model is trained for some steps to answer as the run does: without labels, in some
    minutes, worth it at 4 bits and below. It is kept if it comes nearer to the run on images it was not trained on.

    Both models are then run on the same held-out images; the interval of their difference says whether these images can
    tell them apart. With --budget, --max-drop, --bits-file or quantize.finish these are one half of what is held out,
    the report half; what is chosen by held-out images is chosen on the other one, the search half. Of a run with
    data.validation: leave_one_source_out, every fold is quantized so too, and compared on the source it never saw.

    A ResNet that was trained elsewhere is packed in the same ways, and nothing is trained: --weights, --arch, --images
    and --out in place of a run. Half of its images, by key hash, is for calibration, the other half to measure on;
    data.validation=0.2 makes that a fifth. Each is scaled so that its shorter side has 224 pixels
    (data.image_size=224), cut to the square in its middle, and normalised as for ImageNet.

    Parameters
    ----------
    run
        A run folder.
    overrides
        `dotted.path=value` changes to the run's recipe; the section `quantize` is what this verb reads.
    budget
        Most bytes that the weights file may have: 4MB, 500kB, 2MiB, or a number.
    max_drop
        Most points that may be lost on the search images: 0.5 is from 90 % to 89.5 %.
    bits_file
        Bits by layer in YAML, such as the bits.yaml of a bundle; or a point of a front, FRONT.json#NUMBER.
    front
        Makes no bundle: so many sizes from 2 to 8 bits are packed, read back and measured on the search images, and
        written to front.json and front.png.
    coded
        Write codes shorter without loss (quantize.coded=true), in layers where they then are: a tenth to a
        fifth off the file. A budget counts what is written.
    layers
        Show each layer, not groups of them.
    out
        Where the bundle goes, RUN/bundle if not given; with --front, where its two files go, RUN if not given.
    weights
        A state dict of a whole torchvision or timm network, its classifier too: .safetensors, or what torch.save wrote
        of tensors, a training checkpoint among them.
    arch
        Its network: resnet18, resnet34, resnet50, resnet101, resnet152; timm/NAME with timm installed.
    images
        Class folders, in the order of the classifier's rows; a folder of images without classes, on which agreement
        with the model in float is measured; or a built data set.
    classes
        Names of the classifier's rows in order: a file with one a line, or cat,dog.
    """
    from xfer.bundle import is_bundle, open_model

    overrides = (*overrides, "quantize.coded=true") if coded else overrides
    given = {"--weights": weights, "--arch": arch, "--images": images, "--out": out}
    if any(given[name] is not None for name in ("--weights", "--arch", "--images")) or classes is not None:
        if run is not None and "=" in str(run):  # a change, for there is no run to be named first
            run, overrides = None, (str(run), *overrides)
        if weights is None and run is not None:
            named = [name for name in ("--arch", "--images") if given[name] is not None]
            named += ["--classes"] if classes is not None else []
            raise ConfigError(f"{' and '.join(named)}: belong to --weights, of a network that was trained elsewhere")
        faults = [f"{name}: missing; weights of another program need it" for name, one in given.items() if one is None]
        faults += [f"{run}: a run, or --weights; not both"] if run is not None else []
        if faults:
            raise ConfigError(faults)
        assert weights is not None
        assert arch is not None
        assert images is not None
        assert out is not None
        from xfer.bundle import check_replaceable
        from xfer.imported import imported

        ways = _ways(budget, max_drop, bits_file, front, overrides)
        if front is None:
            check_replaceable(out)
        with imported(weights, arch, images, classes, overrides) as (trained, recipe):
            _pack(trained, recipe, ways, front, layers, out, f"xfer quantize --weights {weights} ...")
        return
    if run is None:
        raise ConfigError("xfer quantize: give a run folder, or --weights, --arch, --images and --out")
    ways = _ways(budget, max_drop, bits_file, front, overrides)
    trained, recipe = open_model(run), recipe_of(run, overrides)
    if is_bundle(run):
        raise ConfigError(f"{run}: this is a bundle already; quantize the run it came from")
    place = out or (run if front is not None else run / "bundle")
    _pack(trained, recipe, ways, front, layers, place, f"xfer quantize {run}")


def _pack(
    trained: "Trained",
    recipe: "Recipe",
    ways: dict[str, Any],
    front: int | None,
    layers: bool,
    out: Path,
    command: str,
) -> None:
    """Makes and prints the bundle or the front of a run. command: what names the run again."""
    from xfer.folds import quantize_run
    from xfer.history import gain_text

    if front is not None:
        from xfer.front import measure_front

        print(measure_front(trained, recipe, front, out))
        print(f"next: {command} --bits-file {out / 'front.json'}#NUMBER")
        return
    recipe = _with(recipe, ways)
    if trained.bits is not None:
        print("note: its branches and projections keep their bits; quantize.bits is that of the head", file=sys.stderr)
    made = quantize_run(trained, recipe, out)
    if gained := gain_text(trained.path):
        print(gained)
    print(_text(made, layers))
    bundle = made.bundle
    times = trained.weights_bytes / bundle.weights_bytes
    print(
        f"bytes: {trained.weights_bytes:,} {trained.form}, {bundle.weights_bytes:,} packed "
        f"({made.foretold_bytes:,} foretold), {times:.1f} times smaller"
    )
    print(f"bundle: {bundle.path}\nnext: xfer predict {bundle.path} IMAGE...")


def _ways(
    budget: str | None, max_drop: float | None, bits_file: str | None, front: int | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """The keys of `quantize` that options give. Raises ConfigError if the command line says the bits in two ways."""
    options = {"--budget": budget, "--max-drop": max_drop, "--bits-file": bits_file, "--front": front}
    given = [name for name, value in options.items() if value is not None]
    keys = ("bits", "groups", "layers", "budget", "max_drop")
    plain = [one for one in overrides if one.split("=")[0].split(".")[:2] in [["quantize", key] for key in keys]]
    if len(given) > 1 or (given and plain):
        raise ConfigError(f"the bits can be given in one way only, got {' and '.join([*given, *plain])}")
    ways = {"budget": budget, "max_drop": max_drop, "layers": bits_file and read_bits(bits_file)}
    return {key: value for key, value in ways.items() if value is not None}


def _with(recipe: "Recipe", ways: dict[str, Any]) -> "Recipe":
    from xfer.config import with_widths

    return with_widths(recipe, {key: int(v) if key == "budget" and v.isdigit() else v for key, v in ways.items()})


def read_bits(named: str) -> dict[str, Any]:
    """Bits by layer from FILE, or from point NUMBER of FILE#NUMBER, a front. Raises ConfigError."""
    file, _, number = named.partition("#")
    content = read_yaml(file)
    if "points" not in content:
        if number:
            raise ConfigError(f"--bits-file {named}: only a front has numbered points; give the file alone")
        return content
    points = content["points"]
    if not number.isdecimal() or not 1 <= int(number) <= len(points):
        raise ConfigError(f"--bits-file {named}: {file} is a front; name one of its points, {file}#1 to #{len(points)}")
    return points[int(number) - 1]["bits"]


def _text(made: "Made", by_layer: bool) -> str:
    """How the bits came about, which they are, and what they cost, for a terminal."""
    from shards.text import table
    from xfer.widths import tried_rows

    widths, model = made.widths, made.bundle.model
    lines = [f"bits: {widths.said}"]
    if widths.tried:
        lines += ["tried on the search images:", *table(tried_rows(widths.tried))]
    lines += table(widths.rows(model, by_layer))
    if said := widths.coded_text(model):
        lines.append(said)
    if made.compared is None:
        return "\n".join([*lines, "nothing is held out, so what packing cost in accuracy is not known"])
    return "\n".join([*lines, made.compared.text()])
