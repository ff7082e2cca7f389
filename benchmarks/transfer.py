"""What moving a pretrained model is worth, by mode: to each PACS domain, to clothing with few images.

    python -m benchmarks.transfer --pacs data/pacs --clothing data/clothing160 --weights resnet18.safetensors --seeds 3

Rows: the features alone (the linear probe); full and staged fine-tuning; the fully fine-tuned model packed to 8 and 4
bits; the loop anybody would write, of the same weights, images, size, steps, batch and rate (and, of --set, of what is
under `data`); with one seed, a model from scratch; with --wise-ft, each full model a part of the way from its probe;
with --finish, each full model of 4 bits after so many steps of finishing; and, with --soup, the mean of the weights of
all seeds' full models. Columns: each PACS domain, never trained on, and clothing's test images with 5, 20 and all
images a class to train on. Test images are read once, at the end; nothing is chosen by them. Every run is a
process of its own on one core. Its row is added to benchmarks/results/transfer.jsonl, and the same command goes on with
those that are missing (remove the file to begin anew). The table, transfer.md beside it: means with 95 % t-intervals
over seeds, and the differences to the plain loop and to the probe by the same seeds. Time is CPU time of the process
and its loaders, so other work beside it does not count.
"""

import argparse
import csv
import itertools
import platform
import random
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import resnet18

import shards
import xfer
from benchmarks.record import cell, commit, each_on_a_core, keep, kept_rows
from shards.loading.open import open_data
from shards.settings import parse, read_overrides, replace
from xfer.bundle import handed_over, open_model
from xfer.checkpoint import model_checkpoint
from xfer.config import RATES, Recipe
from xfer.evaluate import evaluate_subsets
from xfer.model import MEAN, STD
from xfer.quantize import calibration_images, quantize_model, quantize_trained, ship
from xfer.train import learning_rate

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
IMAGES_A_CLASS = (5, 20, None)
PLAIN = "plain script"
SCRATCH = "scratch"
MODES = ("feature", "full", PLAIN, "staged", SCRATCH)
SOUP = "mean of the full models"
WISE = "full, wise_ft {:g}"
FINISHED = "full, 4 bits, {} steps of finishing"
PACKED = (8, 4)
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One thing to move to: sources to train on and test images, as `data` of a recipe has them."""

    name: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What all runs have in common."""

    weights: str
    out: str
    image_size: int
    steps: int
    batch_size: int
    rate: float
    precision: str
    changes: tuple[str, ...]

    def __str__(self) -> str:
        said = f"{self.image_size} px, {self.steps} x {self.batch_size}, rate {self.rate:g}, {self.precision}"
        return ", ".join([said, *self.changes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacs", type=Path, required=True, help="built PACS, a folder a domain")
    parser.add_argument("--clothing", type=Path, help="clothing-dataset-small, as published; none: only PACS")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.004)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--set", nargs="+", default=(), metavar="PATH=VALUE", help="more of the recipe, for all modes")
    parser.add_argument("--test-share", type=float, default=0.5, help="of a PACS domain's images, by hash")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, on one core each")
    parser.add_argument("--soup", action="store_true", help="the mean of the weights of all seeds' full runs too")
    parser.add_argument("--wise-ft", nargs="+", type=float, default=(), metavar="SHARE", help="and full runs so far")
    parser.add_argument("--finish", type=int, default=0, metavar="STEPS", help="and full runs in 4 bits")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--name", default="transfer", help="of the files in benchmarks/results")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        *(str(options.weights.resolve()), str(options.out.resolve()), options.image_size, options.steps),
        *(options.batch_size, options.rate, options.precision, tuple(options.set)),
    )
    kept = RESULTS / f"{options.name}.jsonl"
    rows = [row for row in kept_rows(kept) if row["setting"] == str(setting)]
    known = {(row["mode"], row["column"], row["seed"]) for row in rows}
    names = [*DOMAINS, *(map(_few, IMAGES_A_CLASS) if options.clothing else ())]
    todo = [
        (_column(options, name, seed), mode, seed)
        for seed, mode, name in itertools.product(range(options.seeds), options.modes, names)
        if (mode, name, seed) not in known and (mode != SCRATCH or not seed)
    ]
    for found in each_on_a_core("transfer", options.jobs, _run, [(setting, *one) for one in todo]):
        rows += found
        keep(kept, *found)
        _write(options, names, rows)
    there = {(row["mode"], row["column"], row["seed"]) for row in rows}
    todo = [
        (setting, _column(options, name, seed), seed, share)
        for share, seed, name in itertools.product(options.wise_ft, range(options.seeds), names)
        if (WISE.format(share), name, seed) not in there
    ]
    for row in each_on_a_core("part of the way", options.jobs, _mixed, todo):
        rows.append(row)
        keep(kept, row)
    todo = [
        (setting, _column(options, name, seed), seed, options.finish)
        for seed, name in itertools.product(range(options.seeds), names)
        if options.finish and (FINISHED.format(options.finish), name, seed) not in there
    ]
    for row in each_on_a_core("finished", options.jobs, _finished, todo):
        rows.append(row)
        keep(kept, row)
        _write(options, names, rows)
    if options.soup:
        todo = [(setting, _column(options, name, 0), options.seeds) for name in names if (SOUP, name, 0) not in there]
        for row in each_on_a_core("mean weights", options.jobs, _soup, todo):
            rows.append(row)
            keep(kept, row)
    _write(options, names, rows)


def _column(options: argparse.Namespace, name: str, seed: int) -> Column:
    return _pacs(options, name) if name in DOMAINS else _clothing(options, name, seed)


def _pacs(options: argparse.Namespace, target: str) -> Column:
    sources = {domain: {"path": str(options.pacs.resolve() / domain)} for domain in DOMAINS}
    test = {target: {**sources.pop(target), "where": {"hash": [0, options.test_share]}}}
    return Column(target, {"sources": sources, "test": test})


def _few(images: int | None) -> str:
    return f"clothing, {images or 'all'} a class"


def _clothing(options: argparse.Namespace, name: str, seed: int) -> Column:
    """Clothing with few images of each class, drawn by the seed, as a data set of their own."""
    images = {_few(count): count for count in IMAGES_A_CLASS}[name]
    built = options.out.resolve() / "clothing" / (f"{images}-{seed}" if images else "all")
    if not (built / "train.manifest.json").is_file():
        listed = [(path, path.parent.name) for path in sorted((options.clothing / "train").glob("*/*.jpg"))]
        draw = random.Random(seed)
        of_class = {label: [path for path, name in listed if name == label] for _, label in listed}
        chosen = {label: draw.sample(paths, images) if images else paths for label, paths in of_class.items()}
        built.mkdir(parents=True, exist_ok=True)
        with (built / "train.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "label"])
            table.writerows(
                (path.relative_to(options.clothing), label) for label, paths in chosen.items() for path in paths
            )
        where = ("--images", str(options.clothing.resolve()), "--image", "image", "--label", "label")
        _build(built / "train.csv", built, *where, "--name", "clothing")
    test = options.out.resolve() / "clothing" / "test"
    if not (test / "test.manifest.json").is_file():
        _build(options.clothing / "test", test, "--split", "test", "--name", "clothing-test")
    data = {"sources": {"clothing": {"path": str(built)}}, "test": {name: {"path": str(test), "split": "test"}}}
    return Column(name, {**data, "test": {"clothing-test": data["test"][name]}})


def _build(source: Path, out: Path, *options: str) -> None:
    subprocess.run([sys.executable, "-m", "xfer", "shards", "build", str(source), str(out), *options], check=True)


def _recipe(setting: Setting, column: Column, mode: str, seed: int) -> Recipe:
    branch: dict[str, Any] = {"backbone": "resnet18"}
    if mode != SCRATCH:
        branch["weights"] = setting.weights
    train = {
        "steps": setting.steps,
        "learning_rate": setting.rate if mode != SCRATCH else RATES["sgd"],
        "evaluate_every": setting.steps,
        "save_every": setting.steps,
        "precision": setting.precision,
        "keep": 1,
        "seed": seed,
    }
    values = {
        "name": f"{mode.replace(', ', '-')}-{column.name.replace(', ', '-').replace(' ', '-')}-{seed}",
        "output": setting.out,
        "data": {
            **column.data,
            "validation": 0,
            "image_size": setting.image_size,
            "batch_size": setting.batch_size,
            "workers": 1,
            "seed": seed,
        },
        "model": {"branches": {"main": branch}, "fusion": {"width": 512}},
        "train": train,
        "transfer": {"mode": mode if mode in ("feature", "staged") else "full"},
    }
    return parse(values, Recipe, *read_overrides(setting.changes))


def _run(setting: Setting, column: Column, mode: str, seed: int) -> list[Row]:
    """In a process of its own: trained, then read once on the test images."""
    if mode == PLAIN:
        return [{**_row(setting, column, mode, seed), **_plain(setting, column, seed)}]
    run = xfer.fit(_recipe(setting, column, mode, seed), quiet=True)
    spent = _spent()
    scores = {mode: (_mean(run.evaluate("test")), run.model.weights_bytes)}
    if mode == "full":
        trained, splits = open_model(run.folder), open_data(run.recipe.data)
        images = calibration_images(splits, run.recipe.data, run.recipe.quantize.calibration)
        for bits in PACKED:
            recipe = replace(run.recipe, {"quantize.bits": bits})
            quantized = quantize_model(trained.model, recipe.quantize, images)
            bundle = ship(trained, recipe, quantized, run.folder / f"bundle{bits}")
            found = evaluate_subsets(bundle.model, splits.test, recipe.data, bundle.classes, "test")
            scores[f"full, {bits} bits"] = (_mean(found), bundle.weights_bytes)
    return [
        {**_row(setting, column, name, seed), "accuracy": round(accuracy, 5), "bytes": size, **spent}
        for name, (accuracy, size) in scores.items()
    ]


def _mixed(setting: Setting, column: Column, seed: int, share: float) -> Row:
    """What the full run would have handed over with transfer.wise_ft, which is no part of training."""
    recipe = replace(_recipe(setting, column, "full", seed), {"transfer.wise_ft": share})
    trained = open_model(recipe.folder)
    checkpoint, _ = model_checkpoint(recipe.folder / "checkpoints")
    assert checkpoint, f"{recipe.folder}: its full run is not there"
    trained.model.load_state_dict(handed_over(recipe, checkpoint))
    found = evaluate_subsets(trained.model, open_data(recipe.data).test, recipe.data, trained.classes, "test")
    scores = {"accuracy": round(_mean(found), 5), "bytes": trained.weights_bytes}
    return {**_row(setting, column, WISE.format(share), seed), **scores, **_spent()}


def _finished(setting: Setting, column: Column, seed: int, steps: int) -> Row:
    """The full run in 4 bits, trained after rounding. Nothing is held out: training images say whether it is kept."""
    recipe = replace(_recipe(setting, column, "full", seed), {"quantize.bits": 4, "quantize.finish": steps})
    trained, data = open_model(recipe.folder), open_data(recipe.data)
    bundle = ship(trained, recipe, quantize_trained(trained, recipe, data), recipe.folder / "bundle4-finished")
    spent = _spent()
    found = evaluate_subsets(bundle.model, data.test, recipe.data, bundle.classes, "test")
    scores = {"accuracy": round(_mean(found), 5), "bytes": bundle.weights_bytes}
    return {**_row(setting, column, FINISHED.format(steps), seed), **scores, **spent}


def _soup(setting: Setting, column: Column, seeds: int) -> Row:
    """Nothing is chosen: a uniform soup (Wortsman et al., ICML 2022). BatchNorm stood still in all of these runs, so
    its statistics are those of the mean too. Its cost is that of the runs.
    """
    recipe = _recipe(setting, column, "full", 0)
    folders = [_recipe(setting, column, "full", seed).folder for seed in range(seeds)]
    trained = open_model(folders[0])
    states = [open_model(folder).model.state_dict() for folder in folders]
    for name, value in trained.model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    found = evaluate_subsets(trained.model, open_data(recipe.data).test, recipe.data, trained.classes, "test")
    scores = {"accuracy": round(_mean(found), 5), "bytes": trained.weights_bytes}
    return {**_row(setting, column, SOUP, 0), **scores, **_spent()}


def _row(setting: Setting, column: Column, mode: str, seed: int) -> Row:
    return {"mode": mode, "column": column.name, "seed": seed, "setting": str(setting), "commit": commit()}


def _mean(scores: Any) -> float:
    return statistics.fmean(score.accuracy for score in scores.values())


def _spent() -> dict[str, float]:
    """CPU seconds of this process and its loaders, and the most memory that this process held."""
    own, loaders = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = own.ru_utime + own.ru_stime + loaders.ru_utime + loaders.ru_stime
    return {"cpu_s": round(cpu, 1), "peak_mb": round(own.ru_maxrss / 1e3)}


def _plain(setting: Setting, column: Column, seed: int) -> Row:
    """torchvision's ResNet-18 with a new classifier, cross-entropy, SGD: fine-tuned whole."""
    values = _recipe(setting, column, "full", seed).data.model_dump(mode="json")
    data = shards.open(values.pop("sources"), test=values.pop("test"), **values)
    torch.manual_seed(seed)
    net = resnet18(num_classes=1000)
    net.load_state_dict(load_file(setting.weights), strict=False)
    net.fc = torch.nn.Linear(512, len(data.classes))
    optimizer = torch.optim.SGD(net.parameters(), setting.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (MEAN, STD))

    def logits(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == "bf16"):
            return net((images.float() / 255 - mean) / std).float()

    net.train()
    with data.train(steps=setting.steps) as batches:
        for step, (images, targets) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, setting.steps, setting.rate, 10)
            loss = F.cross_entropy(logits(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    spent = _spent()
    net.eval()
    right = count = 0
    with torch.inference_mode():
        for batch in data.test():
            said = logits(batch.images).argmax(1)
            counted = batch.valid & (batch.targets >= 0)
            right += int((said == batch.targets)[counted].sum())
            count += int(counted.sum())
    size = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    return {"accuracy": right / count, "bytes": size, **spent}


def _write(options: argparse.Namespace, names: list[str], rows: list[Row]) -> None:
    data = "--pacs SHARDS --clothing FOLDER" if options.clothing else "--pacs SHARDS"
    changes = f" --set {' '.join(options.set)}" if options.set else ""
    changes += " --soup" if options.soup else ""
    changes += f" --wise-ft {' '.join(f'{share:g}' for share in options.wise_ft)}" if options.wise_ft else ""
    changes += f" --finish {options.finish}" if options.finish else ""
    modes = "" if tuple(options.modes) == MODES else f" --modes {' '.join(options.modes)}"
    lines = [
        "# Transfer, by mode",
        "",
        f"    python -m benchmarks.transfer {data} --weights RESNET18 --image-size {options.image_size} "
        f"--steps {options.steps} --batch-size {options.batch_size} --rate {options.rate} "
        f"--precision {options.precision} --test-share {options.test_share} --seeds {options.seeds} "
        f"--name {options.name}{modes}{changes}",
        "",
        f"{platform.machine()}, one core a run, torch {torch.__version__}. ResNet-18 with ImageNet weights. PACS: "
        f"trained on three domains, accuracy (%) on {options.test_share:.0%} of the fourth, by hash; clothing: on its "
        "test images. Mean over seeds ± half of the 95 % t-interval. CPU time is that of the run alone: what the "
        "branch makes of the images for the probe is seen once and shared by all modes.",
        "",
    ]
    lines += _table("mode", names, rows, against=None)
    for other, why in ((PLAIN, "plain script"), ("feature", "linear probe")):
        if other in options.modes:
            lines += ["", f"The difference to the {why}, paired by seed:", ""]
            lines += _table(f"less {other}", names, rows, against=other)
    lines += ["", f"Every run, with the commit it was made by: [{options.name}.jsonl]({options.name}.jsonl)."]
    (RESULTS / f"{options.name}.md").write_text("\n".join(lines) + "\n")


def _table(title: str, names: list[str], rows: list[Row], against: str | None) -> list[str]:
    of = {(row["mode"], row["column"], row["seed"]): row for row in rows}
    head = ["seeds"] if against else ["seeds", "CPU s", "peak MB", "MB on disk"]
    groups = {name: [name] for name in names} | {"mean of PACS": list(DOMAINS)}
    lines = [f"| {title} | {' | '.join([*groups, *head])} |", "|---|" + "---|" * (len(groups) + len(head))]
    named = dict.fromkeys(row["mode"] for row in rows)
    for mode in (mode for mode in named if mode != against):
        cells, seeds = [], []
        for members in groups.values():
            pairs = [
                100 * statistics.fmean(_accuracy(of, mode, name, seed, against) for name in members)
                for seed in range(_num_seeds(rows))
                if all((one, name, seed) in of for one in (mode, against or mode) for name in members)
            ]
            seeds.append(len(pairs))
            cells.append(cell(pairs, signed=against is not None))
        mine = [row for row in rows if row["mode"] == mode]
        cells.append(str(min(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}")
        if not against:
            cells += [f"{statistics.fmean(row[key] for row in mine):.0f}" for key in ("cpu_s", "peak_mb")]
            cells.append(f"{mine[0]['bytes'] / 1e6:.1f}")
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return lines


def _accuracy(of: dict[tuple[str, str, int], Row], mode: str, name: str, seed: int, against: str | None) -> float:
    """Less that of another mode."""
    return of[mode, name, seed]["accuracy"] - (of[against, name, seed]["accuracy"] if against else 0)


def _num_seeds(rows: list[Row]) -> int:
    """How many seeds the rows may be of."""
    return 1 + max((row["seed"] for row in rows), default=-1)


if __name__ == "__main__":
    main()
