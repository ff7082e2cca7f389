"""Bits by sensitivity against one width everywhere, and against controls, at equal bytes.

    python -m benchmarks.quant RUN --bits 3 4 6 --draws 3 --calibration 128

RUN: a trained run with a part held out. For each width b: the file of b bits in every layer gives the bytes;
allocations of no more bytes are made by sensitivity, by the sensitivities of the layers shuffled, and at random (losses
drawn from the same values). All are corrected on the same images. A draw is another set of calibration images, labels,
shuffles and random numbers. Measured on the report half of what is held out, which nothing is chosen by: points of the
run's measure against the run in float, mean over draws with its 95 % t-interval, and the difference to one width by
draw. Of a classifier also the divergence of its answers from those in float, in nats an image, which is what
sensitivities foretell and is less a matter of chance than which few images change sides.
Written to benchmarks/results/NAME.md, with the raw rows.
"""

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.record import cell, commit, each_on_a_core, over_seeds
from shards.loading.few import few
from shards.loading.subset import InShare
from shards.settings import load
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.outcomes import Comparison, outcomes_on
from xfer.prepare import open_labelled
from xfer.quant.bits import layers
from xfer.quant.cost import predicted_bytes
from xfer.quantize import fold_model, held_out
from xfer.tasks.known import task_of
from xfer.widths import front_of, sensitivities

RESULTS = Path(__file__).parent / "results"
MIXED, UNIFORM = "by sensitivity", "one width"
WAYS = (UNIFORM, MIXED, "shuffled", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 6])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--share", type=float, default=1.0, help="of the report half that is measured on, by hash")
    parser.add_argument("--jobs", type=int, default=1, help="draws at a time, on one core each")
    parser.add_argument("--name", default="quant", help="of the file in benchmarks/results")
    options = parser.parse_args()
    todo = [(options.run, draw, options.bits, options.calibration, options.share) for draw in range(options.draws)]
    rows = [row for found in each_on_a_core("quant", options.jobs, _draw, todo) for row in found]
    rows.sort(key=lambda row: (row["bits"], WAYS.index(row["way"]), row["draw"]))
    path = RESULTS / f"{options.name}.md"
    path.write_text(_report(options, rows, load(options.run / "recipe.yaml", Recipe)))
    print(f"written: {path}")


def _draw(run: Path, draw: int, widths: Sequence[int], count: int, share: float) -> list[dict[str, Any]]:
    """One draw of calibration images, in a process of its own."""
    trained, recipe = open_model(run), load(run / "recipe.yaml", Recipe)
    data = open_labelled(recipe.data, trained.classes, task_of(recipe.model.task))
    report = held_out(data, recipe.data, halved=True).report
    report = [one.where(InShare("fraction", 0.5, 0.5 + share / 2)) for one in report]
    batches = few(data.train, recipe.data, count, "proportional", skip=draw * count)
    folded = fold_model(trained.model, recipe.quantize, [batch.images for batch in batches])
    begun = time.process_time()
    losses = sensitivities(folded.model, folded.calibration, seed=draw)
    spent = round(time.process_time() - begun, 1)
    bits_of = {
        (bits, way): chosen for bits in widths for way, chosen in _allocations(folded.model, losses, bits, draw).items()
    }
    models = {f"{bits} {way}": folded.rounded(chosen).model for (bits, way), chosen in bits_of.items()}
    found = outcomes_on({"float": trained.model, **models}, report, recipe.data, trained.classes, f"draw {draw}")
    images = [
        batch.images
        for batch in few(report, recipe.data, sum(one.num_samples for one in report), "proportional", batch_size=64)
    ]
    nats = {name: _divergence(folded.model, model, images) for name, model in models.items()}
    rows = []
    for (bits, way), chosen in bits_of.items():
        compared = Comparison("report", found["float"], found[f"{bits} {way}"])
        value, difference = compared.means[0], compared.mean_difference.value
        size = predicted_bytes(folded.model, chosen)
        row = {"bits": bits, "way": way, "draw": draw, "bytes": size, "float": value, "difference": difference}
        rows.append(row | {"images": compared.num_images, "cpu_s": spent, "nats": nats[f"{bits} {way}"]})
    return rows


@torch.inference_mode()
def _divergence(reference: nn.Module, model: nn.Module, images: Sequence[Tensor]) -> float | None:
    """Mean over images of KL(reference || model) of their classes; None: the model is no classifier."""
    total = count = 0.0
    for batch in images:
        said = reference(batch)
        if not isinstance(said, Tensor) or said.dim() != 2:
            return None
        p = said.log_softmax(1)
        total += float((p.exp() * (p - model(batch).log_softmax(1))).sum())
        count += len(batch)
    return total / count


def _allocations(model: Any, losses: Mapping[str, Any], bits: int, draw: int) -> dict[str, Mapping[str, int]]:
    """Of at most the bytes of `bits` in every layer."""
    uniform = dict.fromkeys(layers(model), bits)
    budget, random = predicted_bytes(model, uniform), np.random.default_rng([draw, bits])
    names = list(losses)
    shuffled = {name: losses[names[place]] for name, place in zip(names, random.permutation(len(names)), strict=True)}
    values = np.sort(random.permuted([list(losses[name].values()) for name in names], axis=0), axis=1)[:, ::-1]
    drawn = {
        name: dict(zip(losses[name], map(float, row), strict=True)) for name, row in zip(names, values, strict=True)
    }
    chosen = {MIXED: losses, "shuffled": shuffled, "random": drawn}
    found = {way: front_of(model, table, {}).within(budget).bits for way, table in chosen.items()}
    return {UNIFORM: uniform, **found}


def _report(options: argparse.Namespace, rows: list[dict[str, Any]], recipe: Recipe) -> str:
    measure, value, count = task_of(recipe.model.task).measure, rows[0]["float"], rows[0]["images"]
    lines = [
        "# Bits by sensitivity, at equal bytes",
        "",
        f"    python -m benchmarks.quant RUN --bits {' '.join(map(str, options.bits))} --draws {options.draws} "
        f"--calibration {options.calibration} --share {options.share:g} --name {options.name}",
        "",
        f"Commit {commit()}, {platform.machine()}, one core, torch {torch.__version__}. Run: {recipe.name}, "
        f"{', '.join(one.backbone for one in recipe.model.branches.values())}, {recipe.data.image_size} px, trained "
        f"for {recipe.steps} steps, head {recipe.model.head.kind}; {measure} in float {100 * value:.1f} % on "
        f"{count:,} images of the report half. Points against float, mean of {options.draws} draws of the calibration "
        "images ± half of the 95 % t-interval.",
        "",
        f"| bits | MB | {' | '.join(WAYS)} | {MIXED} less {UNIFORM} |",
        "|---|---|" + "---|" * (len(WAYS) + 1),
    ]
    of = {(row["bits"], row["way"], row["draw"]): 100 * row["difference"] for row in rows}
    for bits in options.bits:
        values = {way: [of[bits, way, draw] for draw in range(options.draws)] for way in WAYS}
        gains = [mixed - plain for mixed, plain in zip(values[MIXED], values[UNIFORM], strict=True)]
        megabytes = next(row["bytes"] for row in rows if (row["bits"], row["way"]) == (bits, UNIFORM)) / 1e6
        cells = " | ".join(cell(one, signed=True) for one in (*values.values(), gains))
        lines.append(f"| {bits} | {megabytes:.2f} | {cells} |")
    if all(row["nats"] is not None for row in rows):
        lines += ["", "Divergence from the run in float, nats an image:", ""]
        lines += [f"| bits | {' | '.join(WAYS)} | {MIXED} less {UNIFORM} |", "|---|" + "---|" * (len(WAYS) + 1)]
        found = {(row["bits"], row["way"], row["draw"]): row["nats"] for row in rows}
        for bits in options.bits:
            values = {way: [found[bits, way, draw] for draw in range(options.draws)] for way in WAYS}
            gains = [mixed - plain for mixed, plain in zip(values[MIXED], values[UNIFORM], strict=True)]
            lines.append(f"| {bits} | {' | '.join(map(_nats, values.values()))} | {_nats(gains)} |")
    spent = max(row["cpu_s"] for row in rows)
    lines += ["", f"Sensitivities of {options.calibration} images: {spent:.0f} CPU seconds at most."]
    lines += ["", "Raw rows: bits, way, draw, bytes, difference, nats:", "", "```"]
    lines += [f"{r['bits']} {r['way']!r} {r['draw']} {r['bytes']} {r['difference']:+.5f} {r['nats']}" for r in rows]
    return "\n".join([*lines, "```", ""])


def _nats(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4f}"
    found = over_seeds(values)
    return f"{found.value:.4f} ± {(found.high - found.low) / 2:.4f}"


if __name__ == "__main__":
    main()
