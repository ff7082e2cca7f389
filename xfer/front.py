"""`xfer quantize --front`: how good a run is at each size, measured, and the bits of each to choose from.

The exact front of allocations gives the sizes and the bits of each; every one of them is packed, read back and run on
the search half of what is held out. The report half stays for what is chosen from it.

    front.json   the points, smallest first, each with its bits: `--bits-file front.json#NUMBER` makes the bundle of one
    front.png    what each loses against the run, over its size

Sizes that are measured are kept in `front.part.json` until all are: the same command, given again, measures the rest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.config import LEAVE_ONE_OUT
from shards.format.whole import read_json, whole_file, write_json
from shards.progress import progress
from shards.settings import ConfigError
from shards.text import table
from xfer.bundle import Trained
from xfer.config import Recipe
from xfer.figures import sizes_png
from xfer.prepare import open_labelled
from xfer.quantize import calibration_images, file_metadata, fold_model, held_out, measured_on, try_out
from xfer.tasks.known import task_of
from xfer.widths import Tried, check_choosable, front_of, sensitivities


def measure_front(trained: Trained, recipe: Recipe, count: int, folder: Path) -> str:
    """Measures about `count` sizes of a run, 2 to 8 bits everywhere among them, and writes both files to `folder`.
    Returns the table for a terminal. Raises ConfigError if nothing is held out to measure on.
    """
    if count < 2:
        raise ConfigError(f"--front: must be at least 2 sizes, got {count}")
    if recipe.data.validation == LEAVE_ONE_OUT:
        raise ConfigError(
            "--front: measures this one model on what it holds out, and leave_one_source_out holds nothing out of it; "
            "give quantize.budget, which every fold is packed to"
        )
    data = open_labelled(recipe.data, trained.classes, task_of(recipe.model.task))
    held = held_out(data, recipe.data, halved=True, origin=trained.origin)
    measure = measured_on(trained, recipe.data, held.what, held.search)
    if measure is None:
        raise ConfigError("--front: nothing is held out to measure on; give data.validation=0.1, or data.test")
    calibration = calibration_images(data, recipe.data, recipe.quantize.calibration)
    folded, metadata = fold_model(trained.model, recipe.quantize, calibration), file_metadata(trained, recipe)
    check_choosable(folded.kept)
    losses = sensitivities(folded.model, calibration)
    points = front_of(folded.model, losses, metadata, folded.sizes()).spread(count)
    about: dict[str, Any] = {
        "run": trained.name,
        "weights": trained.weights_sha256,
        "corrected": recipe.quantize.correct,
        "coded": recipe.quantize.coded,
        "measure": trained.measure,
        "images": held.splits(sum(map(len, calibration)), None),
    }
    of = {**about, "data": recipe.data.model_dump(mode="json", include={"sources", "test", "validation", "image_size"})}
    part = _there(folder) / "front.part.json"
    kept = read_json(part)
    known = kept["points"] if kept.get("of") == of else []
    rows: list[dict[str, Any]] = []
    with progress("front", len(points), "sizes") as advance:
        for number, point in enumerate(points, 1):
            what = f"size {number} of {len(points)}"
            row = next((row for row in known if row["bits"] == point.bits), None) or _row(
                try_out(folded, point.bits, metadata, lambda model, what=what: measure(model, what))
            )
            rows.append(row)
            write_json(part, {"of": of, "points": rows})
            advance()
    for row in rows:
        row["best"] = all(row["value"] > other["value"] for other in rows if other["bytes"] < row["bytes"])
    value = rows[0]["value"] - rows[0]["difference"]
    picture = sizes_png(rows, trained.measure)
    in_float = {"bytes": trained.weights_bytes, "value": value}
    write_json(folder / "front.json", {**about, "float": in_float, "points": rows})
    with whole_file(folder / "front.png") as draft:
        draft.write_bytes(picture)
    part.unlink()
    count = about["images"]["search"]["images"]
    lines = [
        f"{trained.measure} on the search half of {held.what}, {count:,} images:",
        *_table(rows, trained.measure, value),
    ]
    return "\n".join([*lines, "  *: better than every smaller one", f"written: {folder / 'front.json'}, front.png"])


def _there(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _row(one: Tried) -> dict[str, Any]:
    difference = one.compared.mean_difference
    return {
        "bytes": one.size_bytes,
        "value": one.compared.means[1],
        "difference": difference.value,
        "interval": [difference.low, difference.high],
        "bits": dict(one.bits),
    }


def _table(rows: Sequence[Mapping[str, Any]], measure: str, value: float) -> list[str]:
    """`value`: of the run."""
    lines = [["point", "bytes", "bits", measure, "difference", "95 % interval", ""]]
    lines.append(["float", "", "", f"{100 * value:.1f} %", "", "", ""])
    for number, row in enumerate(rows, 1):
        widths = sorted(row["bits"].values())
        bits = f"{widths[0]} to {widths[-1]}" if widths[0] < widths[-1] else f"{widths[0]}"
        low, high = (100 * end for end in row["interval"])
        shown = [f"{100 * row['value']:.1f} %", f"{100 * row['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        lines.append([str(number), f"{row['bytes']:,}", bits, *shown, "*" if row["best"] else ""])
    return table(lines)
