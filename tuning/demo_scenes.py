"""`xfer demo --task detect` and `--task segment`: the way from pictures to a small detector or segmenter.

Two drawn styles whose shapes differ are trained on as two sources: what one annotates and the other does not is not
background there. A third style is never shown until the end.
"""

from collections.abc import Sequence
from pathlib import Path

from shards.ingest.build import build
from shards.scenes import generate_scenes
from shards.settings import dump, parse
from shards.sources.source import SourceOptions
from xfer import cli as verbs
from xfer import fit
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.predict import image_files
from xfer.report.run import write_run_report

STYLES = {
    "paint": ["circle", "cross", "square", "star"],
    "mosaic": ["circle", "square", "star"],
    "neon": ["circle", "cross", "square", "star"],  # held out
}
TARGET, COUNT, SIDE, SHOWN = "neon", 300, 96, 4
HEADS = {"detect": "fcos", "segment": "fpn"}


def demo_scenes(out: Path, task: str) -> None:
    """Runs every stage into the folder `out` and ends with the names of what it made."""
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    _say(1, "draw and pack: three styles of scenes, each a source of its own")
    images, shards = out / "images", out / "shards"
    generate_scenes(images, STYLES, COUNT, SIDE)
    for style, shapes in STYLES.items():
        source, options = _source(images / style, task, shapes)
        build(source, shards / style, options, name=style)
    recipe = _recipe(out, task)
    (out / "recipe.yaml").write_text(dump(recipe))

    _say(2, f"train: one model on {', '.join(recipe.data.sources)}; {TARGET} stays unseen")
    run = fit(recipe)

    _say(3, "pack it to 8 bits, and see what that costs")
    verbs.quantize(run.folder)

    _say(4, "evaluate, and predict on the style it never saw")
    for model in (run.folder, run.folder / "bundle"):
        print()
        verbs.evaluate(model)
    shown = image_files([images / TARGET / "images"])[:SHOWN]
    print()
    verbs.predict(run.folder / "bundle", *shown, draw=out / "drawn")
    report = write_run_report(run.folder)
    print(
        f"""
Made:
  {report}    open this one
  {out / "drawn"}    what the model says of {TARGET}, drawn
  {run.folder / "bundle"}    the small model, {open_model(run.folder / "bundle").weights_bytes / 1e6:.2f} MB
  {out / "recipe.yaml"}    what was run: copy it for your own data
"""
    )


def _source(folder: Path, task: str, shapes: Sequence[str]) -> tuple[Path, SourceOptions]:
    if task == "detect":
        return folder / "coco.json", SourceOptions(images=folder / "images")
    return folder / "images", SourceOptions(masks=folder / "masks", classes=("background", *sorted(shapes)))


def _recipe(out: Path, task: str) -> Recipe:
    values = {
        "name": "model",
        "output": str(out),
        "data": {
            "root": str(out / "shards"),
            "sources": {style: {"path": style} for style in STYLES if style != TARGET},
            "test": {TARGET: {"path": TARGET}},
            "image_size": SIDE,
            "batch_size": 16,
            "augment": {"scale": [0.5, 1.0], "color": 0.3},
        },
        "model": {
            "branches": {"main": {"backbone": "resnet10"}},
            "fusion": {"width": 64},
            "head": {"kind": HEADS[task]},
        },
        "train": {"steps": 600, "optimizer": "adamw", "warmup": 20, "evaluate_every": 200, "save_every": 200},
        "quantize": {"bits": 8, "calibration": 64},
    }
    return parse(values, Recipe, {})


def _say(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}", flush=True)
