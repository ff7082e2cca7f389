"""What pretrained weights, and how they are moved, are worth to a detector and to a segmenter; and what a script is.

    python -m benchmarks.tasks --bccd data/bccd --camvid data/camvid --weights resnet18.safetensors --seeds 3

BCCD: FCOS, trained on its list `train`, scored on `test`. CamVid: a semantic FPN, the same. Rows: all layers of a
pretrained ResNet-18; the script that anybody would write of torchvision's parts, with the same weights, images,
changes, size, steps and batch (`plain_tasks.py`); the recipe from scratch; pretrained and frozen; pretrained and
unfrozen from the top; the same weights at two sizes, the second half the first; our model with another head: that of
the script for CamVid, RetinaNet's and Faster R-CNN's for BCCD; a script with torchvision's Faster R-CNN. Two more rows
of BCCD are of two sources that know different classes: half of the images says only where red cells are, the other half
only where white cells and platelets are; `masked` is our loss, `naive` takes for background what a source does not
annotate.

`--on val` scores on the split that rates are chosen by, and `--rates` makes a row of each to choose among; test images
are read by the runs that the table is of, once each, and nothing is chosen by them. Every run is a process of its own
on one core. Its row is added to benchmarks/results/NAME.jsonl, and the same command goes on with those that are missing
(remove the file to begin anew). NAME.md beside it: means with 95 % t-intervals over seeds, and differences by the same
seeds. Time is CPU time of the process and its loaders, so other work beside it does not count; what scoring takes is
left out.
"""

import argparse
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import xfer
from benchmarks.plain_tasks import train_faster_rcnn, train_fcos, train_lraspp
from benchmarks.record import cell, commit, each_on_a_core, keep, kept_rows
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.frame import Frame, frame_of
from shards.loading.open import open_data
from shards.settings import parse
from xfer.config import Recipe
from xfer.heads.fcos import FcosObjective
from xfer.labels import Teacher
from xfer.tasks.average_precision import BoxScores
from xfer.tasks.detect import Detect
from xfer.tasks.known import TASKS, task_of
from xfer.tasks.pixels import MaskScores

PLAIN, SCRATCH, MASKED, NAIVE = "plain script", "scratch", "masked", "naive"
PLAIN_TWO_STAGE = "plain faster_rcnn"
FIRST = ("full", PLAIN, SCRATCH)
HEADS = ("lraspp", "retinanet", "faster_rcnn")
REST = (MASKED, NAIVE, "frozen", "staged", "two branches", *HEADS, PLAIN_TWO_STAGE)
MODES = (*FIRST, *REST)
PARTS = {"red": ("RBC",), "others": ("Platelets", "WBC")}
"""Sources of the rows `masked` and `naive`, and the classes that each of them annotates."""
PARTLY = ("AP50", "recall")
SCRIPTS = {
    ("BCCD", PLAIN): train_fcos,
    ("BCCD", PLAIN_TWO_STAGE): train_faster_rcnn,
    ("CamVid", PLAIN): train_lraspp,
}
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
Answers = Callable[[Tensor, list[Frame]], Sequence[Any]]
"""Images uint8 [B, 3, S, S] and how the originals lie in them -> what a model says of each, in pixels of these."""


@dataclass(frozen=True)
class Rate:
    """As --rates has it: adamw:0.001."""

    optimizer: str
    peak: float

    def __str__(self) -> str:
        return f"{self.optimizer}:{self.peak:g}"


@dataclass(frozen=True)
class Column:
    """A data set and what it is seen with. `ours`, `plain`: rates."""

    name: str
    task: str
    head: str
    width: int
    image_size: int
    steps: int
    ours: Rate
    plain: Rate
    not_here: tuple[str, ...]
    measures: tuple[str, ...]


BCCD = Column(
    "BCCD", "detection", "fcos", 64, 224, 150, Rate("adamw", 1e-3), Rate("adamw", 1e-4), ("lraspp",), ("AP", "AP50")
)
CAMVID = Column(
    *("CamVid", "segmentation", "fpn", 64, 192, 150, Rate("adamw", 5e-4), Rate("adamw", 1e-4)),
    not_here=(MASKED, NAIVE, "retinanet", "faster_rcnn", PLAIN_TWO_STAGE),
    measures=("mIoU", "pixel accuracy"),
)


@dataclass(frozen=True)
class Job:
    """One run. `built`: folder of the column's shards, `parts`: that of the two half-annotated sources."""

    column: Column
    mode: str
    seed: int
    rate: Rate
    built: str
    parts: str
    weights: str
    out: str
    batch_size: int
    precision: str
    on: str

    @property
    def setting(self) -> str:
        column = self.column
        seen = f"{column.image_size} px, {column.steps} x {self.batch_size}, width {column.width}"
        return f"{column.name}, {seen}, {self.precision}, {self.rate}, on {self.on}"

    @property
    def key(self) -> tuple[str, str, int]:
        return self.setting, self.mode, self.seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", type=Path, help="built BCCD: splits train, val and test")
    parser.add_argument("--camvid", type=Path, help="built CamVid: the same")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, nargs=2, default=(BCCD.image_size, CAMVID.image_size))
    parser.add_argument("--steps", type=int, nargs=2, default=(BCCD.steps, CAMVID.steps), help="BCCD's and CamVid's")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--on", choices=("val", "test"), default="test", help="what is scored")
    two = {"nargs": 2, "type": _rate, "metavar": ("BCCD", "CAMVID")}
    parser.add_argument("--rate", **two, default=(BCCD.ours, CAMVID.ours), help="ours, such as adamw:0.001")
    parser.add_argument("--plain-rate", **two, default=(BCCD.plain, CAMVID.plain), help="the script's")
    parser.add_argument("--rates", nargs="+", type=_rate, help="to choose among: a row for each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, on one core each")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--name", default="tasks", help="of the files in benchmarks/results")
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = _jobs(options)
    if options.bccd and {MASKED, NAIVE} & set(options.modes):
        _build_parts(options.bccd, options.out / "parts")
    kept = RESULTS / f"{options.name}.jsonl"
    wanted = {job.key for job in jobs}
    rows = [row for row in kept_rows(kept) if _key(row) in wanted]
    known = {_key(row) for row in rows}
    todo = [job for job in jobs if job.key not in known]
    for row in each_on_a_core("tasks", options.jobs, _run, [(job,) for job in todo]):
        rows.append(row)
        keep(kept, row)
        _write(options, jobs, rows)
    _write(options, jobs, rows)


def _rate(given: str) -> Rate:
    optimizer, peak = given.split(":")
    return Rate(optimizer, float(peak))


def _key(row: Row) -> tuple[str, str, int]:
    return row["setting"], row["mode"], row["seed"]


def _columns(options: argparse.Namespace) -> list[tuple[Column, Path]]:
    names, built = ("image_size", "steps", "ours", "plain"), (options.bccd, options.camvid)
    given = zip(options.image_size, options.steps, options.rate, options.plain_rate, strict=True)
    columns = [
        replace(column, **dict(zip(names, own, strict=True))) for column, own in zip((BCCD, CAMVID), given, strict=True)
    ]
    return [(column, folder) for column, folder in zip(columns, built, strict=True) if folder]


def _jobs(options: argparse.Namespace) -> list[Job]:
    """What answers the first question first."""
    jobs = []
    for modes in (FIRST, REST):
        for seed in range(options.seeds):
            for column, built in _columns(options):
                for mode in (mode for mode in modes if mode in options.modes and mode not in column.not_here):
                    chosen = column.plain if (column.name, mode) in SCRIPTS else column.ours
                    folders = (built, options.out / "parts", options.weights, options.out)
                    built_at, parts, weights, out = (str(one.resolve()) for one in folders)
                    shared = (built_at, parts, weights, out, options.batch_size, options.precision, options.on)
                    jobs += [Job(column, mode, seed, rate, *shared) for rate in options.rates or [chosen]]
    return jobs


def _build_parts(bccd: Path, out: Path) -> None:
    """Every other training image with the boxes of red cells only, the rest with those of the other classes only: two
    COCO files of what the shards hold, built anew.
    """
    classes = json.loads((bccd / "train.manifest.json").read_text())["classes"]
    held: dict[str, dict[str, bytes]] = {}
    for shard in sorted(bccd.glob("train-*.tar")):
        with tarfile.open(shard) as file:
            for member in file:
                key, _, role = member.name.partition(".")
                read = file.extractfile(member)
                assert read is not None
                held.setdefault(key, {})[role] = read.read()
    for place, (name, own) in enumerate(PARTS.items()):
        if (out / name / "train.manifest.json").is_file():
            continue
        images, boxes, folder = [], [], out / f"{name}-coco"
        folder.mkdir(parents=True, exist_ok=True)
        for number, key in enumerate(sorted(held)[place :: len(PARTS)], 1):
            (folder / f"{key}.jpg").write_bytes(held[key]["jpg"])
            images.append({"id": number, "file_name": f"{key}.jpg", "width": 640, "height": 480})
            said = json.loads(held[key]["boxes.json"])
            for (x0, y0, x1, y1), label in zip(said["boxes"], said["labels"], strict=True):
                if classes[label] in own:
                    box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
                    named = {"id": len(boxes) + 1, "image_id": number, "category_id": own.index(classes[label]) + 1}
                    boxes.append(named | box)
        categories = [{"id": number, "name": label} for number, label in enumerate(own, 1)]
        document = {"images": images, "annotations": boxes, "categories": categories}
        (folder / "boxes.json").write_text(json.dumps(document))
        command = [sys.executable, "-m", "xfer", "shards", "build", str(folder / "boxes.json"), str(out / name)]
        subprocess.run([*command, "--images", str(folder)], check=True)


def _recipe(job: Job) -> Recipe:
    column, mode = job.column, job.mode
    branch: dict[str, Any] = {"backbone": "resnet18", "train_from": "none" if mode == "frozen" else "all"}
    if mode != SCRATCH:
        branch["weights"] = job.weights
    branches = {"main": branch}
    if mode == "two branches":
        branches["smaller"] = branch | {"size": column.image_size // 2}
    name = column.name.lower()
    sources = {name: {"path": job.built}}
    if mode in (MASKED, NAIVE):
        sources = {part: {"path": f"{job.parts}/{part}"} for part in PARTS}
    given = {
        "name": f"{name}-{mode.replace(' ', '-')}-{job.rate.optimizer}-{job.rate.peak:g}-{job.seed}".replace(".", "_"),
        "output": job.out,
        "data": {
            "sources": sources,
            "test": {"scored": {"path": job.built, "split": job.on}},
            "validation": 0,
            "image_size": column.image_size,
            "batch_size": job.batch_size,
            "workers": 1,
            "seed": job.seed,
        },
        "model": {
            "branches": branches,
            "fusion": {"width": column.width},
            "head": {"kind": mode if mode in HEADS else column.head},
        },
        "train": {
            "steps": column.steps,
            "optimizer": job.rate.optimizer,
            "learning_rate": job.rate.peak,
            "evaluate_every": column.steps,
            "save_every": column.steps,
            "precision": job.precision,
            "keep": 1,
            "seed": job.seed,
        },
        "transfer": {"mode": "staged" if mode == "staged" else "full"},
    }
    return parse(given, Recipe)


class _Naive(Detect):
    """Takes for background what a source does not annotate."""

    def loss(self, masks: Tensor, sources: Sequence[str], smoothing: float, teacher: Teacher | None) -> FcosObjective:
        return FcosObjective(torch.ones_like(masks), sources)


def _run(job: Job) -> Row:
    """In a process of its own: trained, then read once on the images that are scored."""
    recipe = _recipe(job)
    answers, classes, spent = (_script if (job.column.name, job.mode) in SCRIPTS else _ours)(job, recipe)
    what = {"mode": job.mode, "column": job.column.name, "seed": job.seed, "setting": job.setting, "commit": commit()}
    seen = {"images": job.column.steps * job.batch_size}
    return {**what, "scores": _score(answers, job, recipe, classes), **spent, **seen}


def _script(job: Job, recipe: Recipe) -> tuple[Answers, Sequence[str], dict[str, float]]:
    train = SCRIPTS[job.column.name, job.mode]
    rate = job.rate.optimizer, job.rate.peak
    answers, classes = train(recipe.data, job.weights, job.column.steps, rate, job.precision, job.seed)
    return answers, classes, _spent()


def _ours(job: Job, recipe: Recipe) -> tuple[Answers, Sequence[str], dict[str, float]]:
    shutil.rmtree(recipe.folder, ignore_errors=True)  # of a run that was stopped: its time is not known
    if job.mode == NAIVE:
        TASKS["detection"] = _Naive()
    run = xfer.fit(recipe, quiet=True)
    spent, trained, task = _spent(), run.model, task_of(job.column.task)
    net = trained.model
    shutil.rmtree(recipe.folder)
    return lambda images, frames: task.answers(net(images), frames), trained.classes, spent


def _spent() -> dict[str, float]:
    """CPU seconds of this process and its loaders, and the most memory that this process held."""
    own, loaders = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = own.ru_utime + own.ru_stime + loaders.ru_utime + loaders.ru_stime
    return {"cpu_s": round(cpu, 1), "peak_mb": round(own.ru_maxrss / 1e3)}


def _score(answers: Answers, job: Job, recipe: Recipe, classes: Sequence[str]) -> dict[str, float]:
    """Of ours and of the script alike. A detector also class by class: as if only that class were annotated."""
    alone = torch.eye(len(classes), dtype=torch.bool)
    names, masks = ["all", *classes], torch.cat([torch.ones(1, len(classes), dtype=torch.bool), alone])
    boxes, pixels = BoxScores(names, classes, masks), MaskScores(names[:1], classes, masks[:1])
    subsets = [subset.numbered(classes) for subset in open_data(recipe.data).test]
    with torch.inference_mode():
        for batch in eval_stream(subsets, recipe.data, Slot(), originals=True):
            places = batch.valid.nonzero()[:, 0].tolist()
            assert batch.originals is not None
            originals = [batch.originals[at] for at in places]
            size, resize = recipe.data.image_size, recipe.data.resize
            frames = [frame_of(one.width, one.height, size, resize) for one in originals]
            found, positions = answers(batch.images[places], frames), batch.positions[places].tolist()
            if job.column.task == "segmentation":
                masks = [one.mask for one in originals if one.mask is not None]
                pixels.add(found, masks, [0] * len(found), positions)
                continue
            truths = [torch.zeros(0, 6) if one.boxes is None else one.boxes for one in originals]
            for source in range(len(names)):
                boxes.add(found, truths, [source] * len(found), positions)
    if job.column.task == "segmentation":
        (score,) = pixels.result().values()
        return {"mIoU": round(score.miou, 5), "pixel accuracy": round(score.pixel_accuracy, 5)}
    scores = boxes.result()
    found = {f"AP50 {name}": round(scores[name].ap50, 5) for name in classes}
    for name in classes:  # at an overlap of half, of everything that scores 0.05 or more
        found[f"recall {name}"] = max(0, sum(p > 0 for p in scores[name].curves.get(name, ())) - 1) / 100
    return {"AP": round(scores["all"].ap, 5), "AP50": round(scores["all"].ap50, 5), **found}


def _write(options: argparse.Namespace, jobs: Iterable[Job], rows: list[Row]) -> None:
    columns = [column for column, _ in _columns(options)]
    data = " ".join(f"--{column.name.lower()} SHARDS" for column in columns)
    modes = "" if tuple(options.modes) == MODES else " --modes " + " ".join(f"'{mode}'" for mode in options.modes)
    rates = {"rate": options.rate, "plain-rate": options.plain_rate} if not options.rates else {"rates": options.rates}
    rate = " ".join(f"--{name} {' '.join(map(str, given))}" for name, given in rates.items())
    sizes, steps = (" ".join(map(str, one)) for one in (options.image_size, options.steps))
    lines = [
        "# Detection and segmentation, by how pretrained weights are moved",
        "",
        f"    python -m benchmarks.tasks {data} --weights RESNET18 --image-size {sizes} --steps {steps} "
        f"--batch-size {options.batch_size} --precision {options.precision} --on {options.on} {rate} "
        f"--seeds {options.seeds} --name {options.name}{modes}",
        "",
        f"{platform.machine()}, one core a run, torch {torch.__version__}. ResNet-18 with ImageNet weights. Scores (%) "
        f"on {options.on}, in pixels of the original images, all by the same code. Mean over seeds ± half of the 95 % "
        "t-interval.",
    ]
    of: dict[str, dict[tuple[str, int], Row]] = {column.name: {} for column in columns}
    rate_of = {job.key: job.rate for job in jobs}
    for row in rows:
        mode = f"{row['mode']}, {rate_of[_key(row)]}" if options.rates else row["mode"]
        of[row["column"]][mode, row["seed"]] = row
    for column in columns:
        found = of[column.name]
        shared = {key: row for key, row in found.items() if row["mode"] not in (MASKED, NAIVE)}
        seen = f"{column.image_size} px, {column.steps} steps of {options.batch_size}, width {column.width}"
        lines += ["", f"## {column.name}: {column.task}, {seen}", ""]
        lines += _table("", column.measures, shared, None) if shared else []
        for other in (PLAIN, SCRATCH):
            if any(mode == other for mode, _ in shared):
                lines += ["", *_table(f"less {other}", column.measures, shared, other)]
        parts = {key: row for key, row in found.items() if row["mode"] in (MASKED, NAIVE)}
        if parts:
            measures = ("AP", "AP50", *(f"{what} {one}" for own in PARTS.values() for one in own for what in PARTLY))
            measures = [one for one in measures if all(one in row["scores"] for row in parts.values())]
            lines += [""] * bool(shared) + [f"Two sources, each of half of the images: {_said()}.", ""]
            lines += [*_table("", measures, parts, None), "", *_table(f"less {NAIVE}", measures, parts, NAIVE)]
    if not options.rates:
        lines += ["", *_notes(columns)]
    lines += ["", f"Every run, with the commit it was made by: [{options.name}.jsonl]({options.name}.jsonl)."]
    (RESULTS / f"{options.name}.md").write_text("\n".join(lines) + "\n")


def _said() -> str:
    return "; ".join(f"{name} annotates {', '.join(own)}" for name, own in PARTS.items())


def _notes(columns: Sequence[Column]) -> list[str]:
    chosen = "; ".join(f"{one.name}: ours {one.ours}, the script's {one.plain}" for one in columns)
    return [
        "How chosen: the learning rates on `val` with one seed, the same steps and sizes, ours and the script's from "
        f"the same three, AdamW and SGD: [tasks-rates.md](tasks-rates.md). {chosen}. All of our rows have the rate "
        "of `full`. Every model is that of its last step. Not tuned: width, crops, warm-up and schedule (10 steps, "
        "cosine, for the script too), weight decay, the number of steps, the rates of `scratch`, `staged` and "
        "`two branches`, sizes (small ones, for two cores).",
        "",
        "What the script does otherwise than `full`: FCOS of torchvision at our width in place of its 256, three "
        "stages of the ResNet trained and its BatchNorm frozen, as torchvision's detectors have it, losses divided by "
        "the positive points of the batch; LR-ASPP on the ResNet's second and fourth stage, its BatchNorm moving, as "
        "torchvision's segmentation reference has it. The rows `lraspp`, `retinanet` and `faster_rcnn` are our model "
        f"with that head; `{PLAIN_TWO_STAGE}` is the script with torchvision's, which draws what its loss is of and "
        "has the true boxes among its proposals.",
        "",
        "Published, by others, and not comparable: CamVid, 11 classes, test: ICNet 67.1 mIoU (Zhao et al., ECCV 2018) "
        "and BiSeNet with ResNet-18 68.7 (Yu et al., ECCV 2018), both 960 x 720; both trained for many times as many "
        "steps. Here images have 240 x 180 pixels before they are resized, and `val` is not trained on. BCCD has no "
        "official mark: published ones are of other "
        "splits.",
    ]


def _table(title: str, measures: Sequence[str], of: dict[tuple[str, int], Row], against: str | None) -> list[str]:
    head = ["seeds"] if against else ["seeds", "CPU s", "peak MB", "images seen"]
    lines = [f"| {title} | {' | '.join([*measures, *head])} |", "|---|" + "---|" * (len(measures) + len(head))]
    modes = sorted({mode for mode, _ in of}, key=_place)
    for mode in (mode for mode in modes if mode != against):
        seeds = [seed for one, seed in of if one == mode and (against is None or (against, seed) in of)]
        cells = []
        for measure in measures:
            values = [100 * of[mode, seed]["scores"][measure] for seed in seeds]
            if against:
                values = [
                    own - 100 * of[against, seed]["scores"][measure] for own, seed in zip(values, seeds, strict=True)
                ]
            cells.append(cell(values, signed=against is not None))
        cells.append(str(len(seeds)))
        if not against:
            mine = [of[mode, seed] for seed in seeds]
            cells += [f"{statistics.fmean(row[key] for row in mine):.0f}" for key in ("cpu_s", "peak_mb", "images")]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return lines


def _place(mode: str) -> tuple[int, str]:
    return MODES.index(mode.split(",")[0]), mode


if __name__ == "__main__":
    main()
