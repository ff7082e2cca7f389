"""`xfer export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from shards.settings import ConfigError
from xfer.cli.evaluate import recipe_of

if TYPE_CHECKING:
    from xfer.config import Recipe


def export(
    model: Path,
    out: Path | None = None,
    *,
    onnx: Annotated[bool, Parameter(negative="", help="model.onnx, in float.")] = False,
    int8: Annotated[bool, Parameter(negative="", help="model.int8.onnx, on the codes of a bundle.")] = False,
    images: Annotated[
        Path | None, Parameter(help="A folder of images to find ranges on, if there is no run with its data.")
    ] = None,
    run: Annotated[
        Path | None, Parameter(help="The run that a bundle was made from, if it does not lie in its folder.")
    ] = None,
    observer: Annotated[
        Literal["minmax", "percentile", "mse"] | None,
        Parameter(help="How ranges are found, see docs/xfer.md; mse if not given."),
    ] = None,
    agreement: Annotated[
        float | None, Parameter(help="The share of answers that have to be the bundle's; 0.9 if not given.")
    ] = None,
) -> None:
    """Write a model as an ONNX file, in float or in int8, that runs without xfer.

        xfer export runs/pacs/bundle --onnx
        xfer export runs/pacs pacs.onnx --onnx
        xfer export runs/pacs/bundle --int8
        xfer export bundle --int8 --images photos/

    Its input is uint8 [batch, 3, S, S], RGB, 0 to 255; it is normalised inside. Classes, size, resize and more are in
    the metadata of the file. Beside the file of a detector or a segmenter lies a decode.py, which makes boxes and masks
    of its outputs and needs NumPy alone. Nothing is written before the file has given what the model gives.

    --int8 finds the ranges of activations on training images of the run that the bundle lies in, of --run, or on
    --images. It says how much agrees with the bundle, which layers run in integers here, and, with the data of a run,
    what it costs on held-out images.

    Needs onnx, onnxruntime and onnxscript: pip install 'xfer[onnx]'.

    Parameters
    ----------
    model
        A bundle, or for --onnx a run folder, too.
    out
        Where the file goes; beside the weights if not given.
    """
    _check(onnx, int8, {"--images": images, "--run": run, "--observer": observer, "--agreement": agreement})
    from xfer.bundle import open_model
    from xfer.export import write
    from xfer.export.images import cost, of_folder, of_run

    trained = open_model(model)
    target = write.check_export(trained, out, write.INT8_FILE if int8 else write.FLOAT_FILE)
    if onnx:
        print(write.export_float(trained, target).text())
        return
    recipe = held = None
    if images:
        found = of_folder(trained, images)
    else:
        recipe = _recipe(model, run)
        found, held = of_run(trained, recipe)
    least = 0.9 if agreement is None else agreement
    done = write.export_int8(trained, target, found, observer or "mse", least)
    print(f"{done.text()}\n  on {found.what}")
    if recipe and held and held.report:
        print(cost(trained, done.model, recipe, held).text())


def _recipe(model: Path, run: Path | None) -> "Recipe":
    try:
        return recipe_of(run or model, ())
    except ConfigError:
        if run:
            raise
        raise ConfigError(
            f"{model}: --int8 needs images to find ranges of activations on, and no run lies around this bundle; give "
            "--images FOLDER, or --run RUN"
        ) from None


def _check(onnx: bool, int8: bool, only_int8: dict[str, object]) -> None:
    """Raises ConfigError for options that do not go together."""
    faults = []
    if onnx == int8:
        given = "both" if onnx else "neither"
        faults.append(f"xfer export: either --onnx or --int8 says what is written, got {given}")
    if onnx and not int8:
        faults += [f"{name}: belongs to --int8" for name, value in only_int8.items() if value is not None]
    if only_int8["--images"] and only_int8["--run"]:
        faults.append("--images and --run: give one of them")
    agreement = only_int8["--agreement"]
    if isinstance(agreement, float) and not 0 <= agreement <= 1:
        faults.append(f"--agreement: must be 0 to 1, got {agreement:g}")
    if faults:
        raise ConfigError(faults)
