"""Bits by sensitivity against one width everywhere, and against controls, at equal bytes.

    python -m benchmarks.quant RUN --bits 3 4 6 --draws 3 --calibration 128

RUN: a trained run with a part held out. For each width b: the file of b bits in every layer gives the bytes; allocations
of no more bytes are made by sensitivity, by the sensitivities of the layers shuffled, and at random (losses drawn from
the same values). All are corrected on the same images. A draw is another set of calibration images, labels, shuffles
and random numbers. Measured on the report half of what is held out, which nothing is chosen by: points of the run's
measure against the run in float, mean over draws with its 95 % t-interval, and the difference to one width by draw.
Written to benchmarks/results/NAME.md, with the raw rows.
"""

import argparse
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import cell, commit
from shards.loading.few import few
from shards.progress import progress
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
    parser.add_argument("--name", default="quant", help="of the file in benchmarks/results")
    options = parser.parse_args()
    trained, recipe = open_model(options.run), load(options.run / "recipe.yaml", Recipe)
    task = task_of(recipe.model.task)
    data = open_labelled(recipe.data, trained.classes, task)
    report = held_out(data, recipe.data, halved=True).report
    first = outcomes_on({"float": trained.model}, report, recipe.data, trained.classes, "float")["float"]
    rows: list[dict[str, Any]] = []
    with progress("quant", options.draws * len(options.bits) * len(WAYS), "models") as advance:
        for draw in range(options.draws):
            batches = few(data.train, recipe.data, options.calibration, "proportional", skip=draw * options.calibration)
            folded = fold_model(trained.model, recipe.quantize, [batch.images for batch in batches])
            begun = time.process_time()
            losses = sensitivities(folded.model, folded.calibration, seed=draw)
            spent = round(time.process_time() - begun, 1)
            for bits in options.bits:
                for way, widths in _allocations(folded.model, losses, bits, draw).items():
                    quantized = folded.rounded(widths)
                    what = f"{way}, {bits} bits"
                    found = outcomes_on({"packed": quantized.model}, report, recipe.data, trained.classes, what)
                    compared = Comparison("report", first, found["packed"], measure=task.measure)
                    rows.append(
                        {
                            "bits": bits,
                            "way": way,
                            "draw": draw,
                            "bytes": predicted_bytes(folded.model, widths),
                            "value": compared.means[1],
                            "difference": compared.mean_difference.value,
                            "sensitivity_cpu_s": spent,
                        }
                    )
                    advance()
    path = RESULTS / f"{options.name}.md"
    path.write_text(_report(options, rows, recipe, task.measure, compared.means[0], compared.num_images))
    print(f"written: {path}")


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


def _report(
    options: argparse.Namespace, rows: list[dict[str, Any]], recipe: Recipe, measure: str, value: float, count: int
) -> str:
    lines = [
        "# Bits by sensitivity, at equal bytes",
        "",
        f"    python -m benchmarks.quant RUN --bits {' '.join(map(str, options.bits))} --draws {options.draws} "
        f"--calibration {options.calibration} --name {options.name}",
        "",
        f"Commit {commit()}, {platform.machine()}, one core, torch {torch.__version__}. Run: {recipe.name}, "
        f"{', '.join(one.backbone for one in recipe.model.branches.values())} fine-tuned at {recipe.data.image_size} px "
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
    spent = {row["draw"]: row["sensitivity_cpu_s"] for row in rows}
    lines += ["", f"Sensitivities of {options.calibration} images: {max(spent.values()):.0f} CPU seconds at most."]
    lines += ["", "Raw rows: bits, way, draw, bytes, value, difference:", "", "```"]
    lines += [
        f"{row['bits']} {row['way']!r} {row['draw']} {row['bytes']} {row['value']:.5f} {row['difference']:+.5f}"
        for row in rows
    ]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    main()
