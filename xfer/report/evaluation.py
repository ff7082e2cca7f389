"""What evaluations of a run and its bundles found, by source."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shards.format.whole import read_json
from xfer import figures
from xfer.bundle import weights_sha256
from xfer.measure import WITH_SIDE, heading, measure_of, measured
from xfer.records import evaluated, is_stale
from xfer.report.page import Section, percent

MOST_CLASSES = 30  # that a figure of confusions is readable with


def evaluation_sections(files: Mapping[str, Path]) -> list[Section]:
    """Accuracy, or the task's measure, by source from what `xfer evaluate` wrote, by label; files that are not there
    are left out. Scores on data that is not the recipe's own, and those of other weights than the model has now, are in
    the table, not in the figure.
    """
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    table: list[list[Any]] = [["model", "source", "held out as", "images", "", "95 % interval", "with side inputs"]]
    for label, path in files.items():
        result, weights = read_json(path), weights_sha256(evaluated(path))
        for part in ("validation", "test"):
            for source, score in result.get(part, {}).items():
                low, high = score["interval"]
                what = "part of a training source" if part == "validation" else "never trained on"
                if is_stale(score, weights):
                    what += "; of an earlier checkpoint: evaluate again"
                else:
                    groups.setdefault(label, {})[source] = (measured(score), low, high)
                table.append([label, source, what, *_score_cells(score)])
        for other in result.get("others", []):
            what = f"{other['split']}: {' '.join(other['changes']) or 'another version of the data'}"
            table += [[label, source, what, *_score_cells(score)] for source, score in other["sources"].items()]
    if len(table) == 1:
        return []
    if not any(row[-1] for row in table[1:]):  # no model that takes side inputs
        table = [row[:-1] for row in table]
    measure = table[0][4] = next(_measures(files), "accuracy")
    plots = [(figures.accuracy_bars(groups, measure), f"Bars: {measure}; lines: 95 % interval.")] if groups else []
    title = f"{heading(measure)} by source"
    return [Section(title, plots=plots, table=table), *_confusions(next(iter(files.values())))]


def _measures(files: Mapping[str, Path]) -> Iterator[str]:
    """By what the scores are measured, one for each."""
    for result in map(read_json, files.values()):
        parts = [result.get("validation", {}), result.get("test", {})]
        for rows in (*parts, *(other["sources"] for other in result.get("others", []))):
            yield from filter(None, map(measure_of, rows.values()))


def _confusions(path: Path) -> list[Section]:
    """What the model takes its classes for, by source."""
    result = read_json(path)
    plots = []
    for part in ("validation", "test"):
        for source, score in result.get(part, {}).items():
            answers = score.get("confusion", {})
            names = sorted({*answers, *(said for row in answers.values() for said in row)})
            if 1 < len(names) <= MOST_CLASSES:
                what = "thousand pixels" if "pixels" in score else "images"
                if "pixels" in score:
                    answers = {truth: {s: round(n / 1000) for s, n in row.items()} for truth, row in answers.items()}
                plots.append((figures.confusion(answers, names), f"{source}: how many {what} of a class, by answer."))
    return [Section("What is taken for what", plots=plots)] if plots else []


def _score_cells(score: Mapping[str, Any]) -> list[Any]:
    low, high = score["interval"]
    side = percent(measured(score[WITH_SIDE])) if WITH_SIDE in score else ""
    return [score["count"], percent(measured(score)), f"{100 * low:.1f} - {100 * high:.1f}", side]
