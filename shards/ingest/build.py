"""Source -> shards: listed and planned first, written in parallel, committed at the end.

The plan (items shuffled by keyed hash, cut into shards of equal count) is fixed before any work, so the result
depends neither on the number of processes nor on interruptions. Everything is prepared in `<out>/.build-<split>/`,
one record for each finished shard; the same command goes on from there after any kind of end. The commit moves the
files into place and writes the manifest last. One build at a time holds the folder's lock, which dies with its
process. Memory holds a few numbers for each shard and the samples refused, never all items.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from shards.format.lock import locked
from shards.format.manifest import File, Manifest, manifest_path, read_manifest, write_manifest
from shards.format.statistics import Tally
from shards.format.whole import write_json
from shards.ingest import plan as planning
from shards.ingest.plan import Plan, Request
from shards.ingest.remarks import remarks
from shards.ingest.rows import write_files
from shards.ingest.write import Finished, Task, index_part, read_finished, write_shard
from shards.pool import WorkerDiedError, run, worthwhile
from shards.progress import progress
from shards.settings import ConfigError
from shards.sources import SOURCES, Source, SourceOptions, open_source
from shards.sources.colors import OPEN_VOID
from shards.sources.frame import FRAMES
from shards.sources.notes import Notes

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADVICE = {
    "bad_boxes": (
        r"box \d+ .*(x0 < x1|reaches beyond)",
        "--bad-boxes drop leaves out the unsound boxes and keeps their images",
    ),
    "values": ("it has pixels of class", "--values names the pixel values of the classes, in order"),
    "frame": ("its EXIF tag", "--frame upright or --frame stored says what their boxes or masks are of"),
}
"""By option: the pattern of the reasons against which it helps, and how it does."""
_HOPELESS = 1000  # refused samples: once too many, the build stops here instead of working through a wrong source


class BuildError(RuntimeError):
    """The build did not succeed, for a reason outside the configuration; the message says what to do."""


@dataclass(frozen=True)
class BuildReport:
    """What a build made, from which kind of source.

    `refused`: (key, reason) of samples left out; `dropped`: (key, reason) of boxes left out; `ignored`: files that
    are no samples; `notes`: what else was left out or read otherwise than it stands there, and what looks odd, a line
    each.
    """

    folder: str
    manifest: Manifest
    refused: tuple[tuple[str, str], ...]
    ignored: int
    already_built: bool = False
    kind: str = ""
    dropped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def build(
    source: str | Path | Source,
    out: str | Path,
    options: SourceOptions | None = None,
    *,
    name: str | None = None,
    split: str = "train",
    shard_mb: float = 64,
    processes: int | None = None,
    max_refused: float = 0.01,
    seed: int = 0,
    overwrite: bool = False,
) -> BuildReport:
    """Builds one split of one source: a path, or a `Source` of your own.

    More than max(1, max_refused * items) refused samples fail the build. `processes` None: as many as pay. Raises
    ConfigError for what the user can fix, BuildError if the work failed.
    """
    out, options = Path(os.path.abspath(out)), options or SourceOptions()
    name = out.name if name is None else name
    origin = os.path.abspath(source) if isinstance(source, (str, Path)) else type(source).__name__
    _check_arguments(origin, out, name, split, shard_mb, processes, max_refused, options)
    kind, opened = open_source(Path(origin), options) if isinstance(source, (str, Path)) else (origin, source)
    drop_boxes = options.bad_boxes == "drop"
    request = Request(name, split, origin, kind, _deciding(options), round(shard_mb * 1e6), seed, drop_boxes)
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / f".build-{split}.lock", f"another build is writing split {split!r} into {out}; wait for it"):
            return _build(opened, out, request, processes, max_refused, overwrite)
    except WorkerDiedError as error:
        raise BuildError(f"{out}: {error}; run the same command to go on, with fewer --processes if need be") from None
    except OSError as error:
        raise _readable(error, out) from None
    finally:
        if is_new:  # and nothing came of it, or it is not empty
            with suppress(OSError):
                out.rmdir()


def report_path(out: Path, split: str) -> Path:
    """Where the report of a build is: plan, refused samples with their reasons."""
    return out / f"{split}.build-report.json"


def _build(
    source: Source, out: Path, request: Request, processes: int | None, max_refused: float, overwrite: bool
) -> BuildReport:
    state = planning.open_state(out, request.split)
    try:
        _spare_tars_of_others(out, state, request.split)
        plan = planning.make(source, request, state)
        same = _already_built(out, plan, overwrite)
    except BaseException:
        planning.leave(state)
        raise
    if same:
        planning.leave(state)
        return same
    planning.keep_own(state, plan)
    tasks = plan.tasks()
    refused = _write(source, out, plan, tasks, processes or worthwhile(plan.num_items), max_refused)
    dropped = [entry for record in _records(tasks) for entry in record.dropped]
    found, tally = _gathered(plan, tasks)
    notes = [*found.lines(), *remarks(plan.task, plan.classes, tally.class_counts)]
    _write_report(out, plan, refused, dropped, notes)
    allowed = _allowed(plan, max_refused)
    _check_void(plan, found, tally)
    if len(refused) > allowed:
        raise BuildError("\n".join([_too_many(out, plan, refused, allowed), *(f"note: {note}" for note in notes)]))
    manifest = _commit(out, state, plan, tasks, tally)
    return _report(out, plan, manifest, refused, dropped, notes)


def _check_void(plan: Plan, notes: Notes, tally: Tally) -> None:
    """Raises ConfigError where 255 may be the second of two classes or none: masks of 0 and 255 have two readings."""
    if len(plan.classes) == 2 and notes.count(OPEN_VOID) and not tally.class_counts[1]:
        raise ConfigError(
            f"{plan.request.origin}: {notes.count(OPEN_VOID)} masks have pixels of 255 and none has any of 1, so that "
            f"{plan.classes[1]!r} has no pixels; give --values 0,255 if 255 is {plan.classes[1]!r}, or --void 255 if "
            "it means no class"
        )


def _gathered(plan: Plan, tasks: list[Task]) -> tuple[Notes, Tally]:
    """What listing and all shards have to tell, and their sums."""
    notes, tally = Notes(plan.notes.found), Tally([0] * len(plan.classes))
    for record in _records(tasks):
        notes.merge(Notes(record.notes))
        tally.merge(Tally(**record.tally))
    return notes, tally


def _write(
    source: Source, out: Path, plan: Plan, tasks: list[Task], processes: int, max_refused: float
) -> list[list[str]]:
    """Writes the shards that are not there yet; every refused sample, [key, reason]."""
    refused, waiting, allowed = [], [], _allowed(plan, max_refused)
    for task in tasks:
        done = read_finished(task.state, task.path, task.plan)
        if done:
            refused += done.refused
        else:
            waiting.append(task)
    _check_space(out, sum(task.span.tar_bytes for task in waiting))
    left = sum(task.span.count for task in waiting)
    what = f"build {plan.request.name}/{plan.request.split}"
    try:
        with progress(what, plan.num_items, "samples", plan.num_items - left) as advance:
            for record in run(partial(write_shard, source, plan.request.drop_boxes), waiting, processes, advance):
                refused += record.refused
                if len(refused) > max(allowed, _HOPELESS):
                    break
    finally:
        for unfinished in plan.listing.path.parent.glob("*.tmp*"):
            unfinished.unlink(missing_ok=True)
    return sorted(refused)


def _commit(out: Path, state: Path, plan: Plan, tasks: list[Task], tally: Tally) -> Manifest:
    """Moves the prepared files into place, the manifest last; can be repeated from any point where it was cut."""
    manifest_path(out, plan.request.split).unlink(missing_ok=True)
    keep = {task.path for task in tasks}
    for old in _shards_in(out, plan.request.split):
        if old.name not in keep:
            old.unlink()
    shards = []
    for record in _records(tasks):
        if (state / record.path).is_file():
            os.replace(state / record.path, out / record.path)
        shards.append(File(record.path, record.bytes, record.samples, record.sha256))

    def parts() -> Iterator[np.ndarray]:
        return (np.load(index_part(state, shard.path), allow_pickle=False) for shard in shards)

    num_samples = sum(shard.samples for shard in shards)
    index, content = write_files(state, out, plan.request.split, parts, num_samples)
    manifest = _manifest(plan, tuple(shards), tally, index, content)
    write_manifest(out, manifest)
    planning.close_state(state)
    return manifest


def _manifest(plan: Plan, shards: tuple[File, ...], tally: Tally, index: File, content: File) -> Manifest:
    request = plan.request
    return Manifest(
        name=request.name,
        split=request.split,
        classes=plan.classes,
        fields={"image": ", ".join(tally.images), **plan.fields},
        shards=shards,
        index=index,
        content=content,
        stats=tally.stats(),
        task=plan.task,
        made_by={
            "xfer": version("xfer"),
            "kind": request.kind,
            "seed": request.seed,
            "shard_bytes": request.shard_bytes,
        },
    )


def _records(tasks: list[Task]) -> Iterator[Finished]:
    """The records of the shards that are written, one at a time."""
    for task in tasks:
        record = read_finished(task.state, task.path, task.plan)
        if record:
            yield record


def _allowed(plan: Plan, max_refused: float) -> int:
    return max(1, int(max_refused * plan.num_items))


def _deciding(options: SourceOptions) -> dict[str, object]:
    """The options that decide what a sample is; where files lie does not."""
    return {name: value for name, value in options.given().items() if not isinstance(value, Path) and name != "kind"}


def _already_built(out: Path, plan: Plan, overwrite: bool) -> BuildReport | None:
    """The report of this very build if it is finished and whole, else None. Raises ConfigError for another one."""
    if not manifest_path(out, plan.request.split).exists():
        return None
    there = planning.read_json(report_path(out, plan.request.split))
    if there.get("plan") != plan.hash:
        if overwrite:
            return None
        what = (
            f"{there.get('name', '?')!r} ({there.get('items', '?')} samples of {there.get('source', 'unknown origin')})"
        )
        raise ConfigError(
            f"{out}: split {plan.request.split!r} is already another build: {what}; this one is "
            f"{plan.request.name!r} ({plan.num_items} samples of {plan.request.origin}); "
            "give another folder, or --overwrite"
        )
    try:
        manifest = read_manifest(out, plan.request.split)
    except ConfigError:
        return None
    files = (*manifest.shards, manifest.index)
    if any(not (out / f.path).is_file() or (out / f.path).stat().st_size != f.bytes for f in files):
        return None
    refused, dropped = ([[e["key"], e["reason"]] for e in there.get(part, [])] for part in ("refused", "dropped"))
    return _report(out, plan, manifest, refused, dropped, there.get("notes", []), already_built=True)


def _spare_tars_of_others(out: Path, state: Path, split: str) -> None:
    """Raises ConfigError where tars have the names of shards but no build wrote them: a commit would remove them."""
    built_here = "kind" in planning.read_json(report_path(out, split)) or (state / "plan.json").exists()
    strangers = [] if built_here else [tar.name for tar in _shards_in(out, split)]
    if strangers:
        raise ConfigError(
            f"{out}: {len(strangers)} tars of split {split!r} are there that no build wrote ({strangers[0]}, ...); "
            "give another folder, or move them away"
        )


def _shards_in(out: Path, split: str) -> list[Path]:
    return sorted(path for path in out.iterdir() if re.fullmatch(re.escape(split) + r"-\d{6}\.tar", path.name))


def _report(
    out: Path,
    plan: Plan,
    manifest: Manifest,
    refused: list[list[str]],
    dropped: list[list[str]],
    notes: list[str],
    already_built: bool = False,
) -> BuildReport:
    left_out, boxes = (tuple((key, reason) for key, reason in entries) for entries in (refused, dropped))
    kind = plan.request.kind
    return BuildReport(str(out), manifest, left_out, plan.ignored, already_built, kind, boxes, tuple(notes))


def _write_report(out: Path, plan: Plan, refused: list[list[str]], dropped: list[list[str]], notes: list[str]) -> None:
    parts = {"refused": refused, "dropped": dropped}
    entries = {part: [{"key": key, "reason": reason} for key, reason in rows] for part, rows in parts.items()}
    content = {**plan.summary(), "ignored": plan.ignored, "notes": notes, **entries}
    write_json(report_path(out, plan.request.split), content)


def _check_arguments(origin, out, name, split, shard_mb, processes, max_refused, options) -> None:
    faults = []
    if not name.strip():
        faults.append("--name: empty; give the data set a name")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
        faults.append(f"--split: {split!r}; expected letters, digits, '-' and '_'")
    if options.kind not in (None, *SOURCES):
        faults.append(f"--kind: {options.kind!r}; known here: {', '.join(SOURCES)}")
    if options.bad_boxes not in (None, "refuse", "drop"):
        faults.append(f"--bad-boxes: {options.bad_boxes!r}; expected refuse or drop")
    if options.task not in (None, "detection", "segmentation"):
        faults.append(f"--task: {options.task!r}; expected detection or segmentation")
    if options.task == "segmentation" and options.bad_boxes:
        faults.append("--bad-boxes: masks have no boxes; leave it out with --task segmentation")
    if options.frame not in (None, *FRAMES):
        faults.append(f"--frame: {options.frame!r}; expected {' or '.join(FRAMES)}")
    if not 0 < shard_mb < 1e6:
        faults.append(f"--shard-mb: {shard_mb}; expected megabytes, more than 0")
    if processes is not None and processes < 1:
        faults.append(f"--processes: {processes}; expected at least 1")
    if not 0 <= max_refused < 1:
        faults.append(f"--max-refused: {max_refused}; expected a fraction, 0 <= fraction < 1")
    if out.exists() and not out.is_dir():
        faults.append(f"{out}: is a file; give a folder for the shards")
    if Path(os.path.realpath(origin)) in (Path(os.path.realpath(out)), *Path(os.path.realpath(out)).parents):
        faults.append(f"{out}: lies inside the source {origin}; give a folder outside of it")
    if faults:
        raise ConfigError(faults)


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise ConfigError(f"{out}: {needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free on this disk")


def _too_many(out: Path, plan: Plan, refused: list[list[str]], allowed: int) -> str:
    shown = _advice(plan.request.kind, refused) + "".join(f"\n  {key}: {reason}" for key, reason in refused[:10])
    more = f"\n  ... and {len(refused) - 10} more" if len(refused) > 10 else ""
    return (
        f"{len(refused)} of {plan.num_items} samples refused, {allowed} are tolerated; nothing was built. All of them: "
        f"{report_path(out, plan.request.split)}; fix or remove them, or raise --max-refused:{shown}{more}"
    )


def _advice(kind: str, refused: list[list[str]]) -> str:
    """Which options of this kind of source help."""
    used = SOURCES[kind].options if kind in SOURCES else ()
    counts = {
        option: sum(bool(re.match(pattern, reason)) for _, reason in refused)
        for option, (pattern, _) in _ADVICE.items()
        if option in used
    }
    return "".join(f"\n{count} of them: {_ADVICE[option][1]}" for option, count in counts.items() if count)


def _readable(error: OSError, out: Path) -> Exception:
    if error.errno in _FULL:
        return BuildError(f"{out}: no space left ({error.strerror}); make room, then run the same command to go on")
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
        return ConfigError(f"{error.filename or out}: {error.strerror}; give a folder you can write to")
    return BuildError(f"{error.filename or out}: {error.strerror or error}; run the same command to go on")
