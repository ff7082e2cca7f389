"""`xfer demo`: every stage of the project on generated images, with the same functions that the verbs call.

Three drawn styles are trained on, a fourth is never shown until the end. Each step finds what an earlier, stopped
demo finished.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from cluster.launch import run as train
from shards.config import DataConfig
from shards.generate import SHAPES, generate
from shards.ingest.build import build
from shards.loading.few import few
from shards.loading.open import open_data
from shards.loading.subset import Subset
from shards.settings import dump, load
from tuning import study as search
from tuning.config import Study
from tuning.report import study_sections
from xfer import cli as verbs
from xfer.bundle import Trained, open_model
from xfer.predict import image_files, predictions
from xfer.report.evaluation import evaluation_sections
from xfer.report.page import Section, tiles, write_page
from xfer.report.run import run_sections
from xfer.tasks.known import task_of

STYLES = {
    "paint": ["circle", "square", "triangle", "star", "heart"],
    "outline": ["circle", "triangle", "star", "cross", "arrow"],
    "mosaic": ["circle", "square", "heart", "cross", "arrow"],
    "neon": sorted(SHAPES),  # held out
}
TARGET = "neon"
PER_CLASS = 240
SIDE = 64
STUDY = """
name: search
job:
  recipe:
    name: model
    data:
      batch_size: 64
      image_size: 64
      workers: 1
      augment: {scale: [0.7, 1.0], color: 0.3}
    model:
      branches:
        main: {backbone: resnet10}  # a second one, at 32 px, did no better on a style that was left out
      fusion: {width: 128}
    train: {steps: 150, learning_rate: 0.05, warmup: 15, evaluate_every: 50, save_every: 50}
    quantize: {bits: 6, calibration: 128}
  cluster: {workers: 2, zero_stage: 1}
space:
  quantize.groups.layer1: {choice: [4, 6, 8]}
  quantize.groups.layer2: {choice: [3, 4, 6, 8]}
  quantize.groups.layer3: {choice: [2, 3, 4, 6, 8]}
  quantize.groups.layer4: {choice: [2, 3, 4, 6, 8]}
search: {trials: 24, images: 384}
"""


def demo(out: Path) -> None:
    """Runs every stage into the folder `out` and ends with the names of what it made."""
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    _say(1, "draw and pack: four styles of shapes, each a source of its own")
    images, shards = out / "images", out / "shards"
    generate(images, STYLES, PER_CLASS, SIDE)
    for style in STYLES:
        build(images / style, shards / style, name=style)
    study = _study(out)
    recipe = study.job.recipe

    _say(
        2,
        f"train: one model on {', '.join(recipe.data.sources)}; 2 Ray workers, DeepSpeed; {TARGET} stays unseen",
    )
    result = train(study.job)
    if result.error:
        raise RuntimeError(f"training failed: {result.error}")
    _say(3, f"search: a bit-width for each layer group, {study.search.trials} trials with Ray Tune")
    if search.run(study).best is None:
        raise RuntimeError("every trial failed; the report has the causes")

    _say(4, "the chosen model: read the packed file back, evaluate, predict")
    trained = open_model(recipe.folder)
    data = open_data(recipe.data)
    bundle = open_model(search.folder_of(study) / "bundle")
    for model in (recipe.folder, bundle.path):
        print()
        verbs.evaluate(model)
    shown = _few_files(images / TARGET)
    predicted: list[tuple[Path, Any]] = []
    for path, answer in predictions(bundle, shown):
        wrong = isinstance(answer, str)
        predicted.append((path, answer if wrong else task_of(bundle.model.task).plain(answer, bundle.classes, 1)))
    print(f"\nthe packed model on {TARGET}, what was drawn -> what it says:")
    for path, answer in predicted:
        print(f"  {path.parent.name:<10} -> {answer if isinstance(answer, str) else next(iter(answer))}")

    _say(5, "report")
    training = [s for s in run_sections(recipe.folder) if s.title != "Accuracy by source"]
    sections = [
        Section(
            "Sources", _sources_text(), tiles=tiles({v.name: _few(v, recipe.data) for v in (*data.train, *data.test)})
        ),
        *training,
        *study_sections(search.folder_of(study)),
        *evaluation_sections(
            {
                "float32": recipe.folder / "evaluation.json",
                "chosen bundle": bundle.path.parent / "evaluation-bundle.json",
            }
        ),
        _prediction_section(bundle, predicted),
    ]
    lead = (
        f"One model from {len(recipe.data.sources)} sources, searched and packed: {trained.weights_bytes / 1e6:.1f} MB "
        f"became {bundle.weights_bytes / 1e6:.2f} MB. Made by the command xfer demo from images it drew itself."
    )
    report = write_page(out / "report.html", "xfer demo", lead, sections)
    print(_ending(out, report, bundle.path))


def _study(out: Path) -> Study:
    path = out / "study.yaml"
    path.write_text(STUDY.lstrip())
    sources = {style: {"path": style} for style in STYLES if style != TARGET}
    overrides = [
        f"output={out}",
        f"data.root={out / 'shards'}",
        f"data.sources={sources}",
        f"data.test={ {TARGET: {'path': TARGET}} }",
    ]
    study = load(path, Study, overrides)
    path.write_text(dump(study))
    return study


def _say(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)


def _few(subset: Subset, config: DataConfig, count: int = 5) -> list[tuple[Image.Image, str]]:
    """A sample of each of `count` classes."""
    whole = config.model_copy(update={"image_size": SIDE})
    (batch,) = few([subset.numbered(subset.classes)], whole, min(count, len(subset.classes)), classes="equal")
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch.images]
    return [(image, subset.classes[target]) for image, target in zip(images, batch.targets.tolist(), strict=True)]


def _few_files(folder: Path) -> list[Path]:
    return [path for shape in STYLES[TARGET] for path in image_files([folder / shape])[:2]]


def _sources_text() -> str:
    return f"The styles share some classes and differ in others. {TARGET} is never trained on, and decides nothing."


def _prediction_section(bundle: Trained, predicted: list) -> Section:
    from xfer.figures import picture

    few = []
    for path, answer in predicted:
        name, probability = next(iter(answer.items()))
        few.append((picture(path, 128), f"{name} {100 * probability:.0f} %", name == path.parent.name))
    right = sum(good for *_, good in few)
    text = f"The packed model on the unseen style {TARGET}: {right} of {len(few)} right; wrong ones in red."
    return Section("Predictions", text, tiles=few)


def _ending(out: Path, report: Path, bundle: Path) -> str:
    return f"""
Made:
  {report}    open this one
  {bundle}    the small model
  {out / "study.yaml"}    what was run: copy it for your own data

Try on your own images, one folder for each class:
  xfer shards build my/images my/shards
  xfer shards show my/shards
  xfer predict {bundle} my/images
"""
