"""report.html of a study, a run, or the runs of several seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.format.whole import read_json
from shards.settings import ConfigError, load
from tuning.config import Study
from tuning.pareto import choose, describe, front, hypervolume, remarks
from tuning.record import Row, chosen_run, num_trials, read_rows
from xfer import figures
from xfer.bundle import is_bundle
from xfer.history import against_probe
from xfer.measure import heading
from xfer.report.page import Section, percent, sentence, write_page
from xfer.report.run import write_run_report
from xfer.seeds import is_seeded


def write_report(folder: Path) -> Path:
    """report.html of a run, of the runs of several seeds, or of a study. Raises ConfigError if the folder is neither,
    or has nothing to show yet.
    """
    if is_bundle(folder):
        raise ConfigError(f"{folder}: a bundle; its report is that of the run or study it was made by: {folder.parent}")
    if (folder / "trials.jsonl").is_file():
        lead = study_headline(folder)
        return write_page(folder / "report.html", f"Search {folder.name}", lead, study_sections(folder))
    if is_seeded(folder) or (folder / "recipe.yaml").is_file():
        return write_run_report(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    raise ConfigError(f"{folder}: neither a run folder (recipe.yaml) nor a study folder (trials.jsonl)")


def study_headline(folder: Path) -> str:
    """What training the chosen run gained over its linear probe; empty if it began as none."""
    study = load(folder / "study.yaml", Study)
    best = choose(read_rows(folder), study.search.tolerance)
    return sentence(against_probe(chosen_run(study, folder, best))) if best else ""


def study_sections(folder: Path) -> list[Section]:
    """The search: accuracy against size, the front's rows, the baselines, and what failed."""
    rows = read_rows(folder)
    study = load(folder / "study.yaml", Study)
    failed = [row for row in rows if row.error]
    best = choose(rows, study.search.tolerance)
    counts = f"{num_trials(rows)} trials, {len(failed)} failed, over {', '.join(study.space)}."
    sections = [Section("Search", f"{counts} No trial has succeeded, so there is nothing to choose from.")]
    if best is not None:
        sections = [_search_section(folder, rows, best, study, counts)]
    if failed:
        head = ["trial", "values", "attempts", "host", "error"]
        body = [[r.trial, describe(r), r.attempt, r.host, r.error] for r in failed]
        sections.append(Section("Failed trials", table=[head, *body]))
    return sections


def _search_section(folder: Path, rows: Sequence[Row], best: Row, study: Study, counts: str) -> Section:
    good, best_of = [row for row in rows if row.error is None], front(rows)
    reference = read_json(folder / "float.json")
    plot = figures.front_scatter(
        [(row.bytes, row.accuracy) for row in good],
        [(row.bytes, row.accuracy) for row in best_of],
        (best.bytes, best.accuracy),
        (reference["bytes"], reference["accuracy"]) if reference else None,
        best.measure,
    )
    sizes = [row.bytes for row in good]
    if min(sizes) == max(sizes):
        spread = f"All have one size, so {best.measure} alone decides."
    else:
        spread = f"Hypervolume {hypervolume(rows, max(sizes)):.3f} (full {best.measure} at no bytes would be 1)."
    tolerance = 100 * study.search.tolerance
    text = f"{counts} Chosen: the smallest within {tolerance:g} point{'s' * (tolerance != 1)} of the best. {spread}"
    notes = [f"{remark}." for remark in remarks(rows, best, study.search.tolerance)]
    shown = [*best_of, *(row for row in [best, *good] if (row.baseline or row is best) and row not in best_of)]
    table: list[list[Any]] = [["bytes", best.measure, "95 % interval", "values"]]
    for row in shown:
        low, high = row.interval
        interval = f"{100 * low:.1f} - {100 * high:.1f}" if row.counts else "unknown"
        table.append([f"{row.bytes:,}", percent(row.accuracy), interval, describe(row)])
    caption = f"{heading(best.measure)} on held-out images of the training sources: the test source is not looked at."
    return Section("Search", text, [(plot, caption)], table=table, marked=shown.index(best), notes=notes)
