"""Source folder -> shards: planned first, written in parallel, committed at the end.

The plan (items shuffled by keyed hash, cut into shards of equal count) is fixed before any work, so the result
depends neither on the number of processes nor on interruptions. Everything is prepared in `<out>/.build-<split>/`,
one record for each finished shard; the same command goes on from there after any kind of end. The commit moves the
files into place and writes the manifest last. One build at a time holds the folder's lock, which dies with its
process.
"""

import errno
import os
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from shards import plan as planning
from shards.lock import locked
from shards.manifest import INDEX, File, Manifest, Stats, manifest_path, read_manifest, write_json, write_manifest
from shards.plan import Plan
from shards.pool import WorkerDiedError, run
from shards.progress import progress
from shards.settings import ConfigError
from shards.sources import SOURCES
from shards.write import Finished, Tally, index_part, read_finished, write_shard

_FEW = 10_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BuildError(RuntimeError):
    """The build did not succeed, for a reason outside the configuration; the message says what to do."""


@dataclass(frozen=True)
class BuildReport:
    """What a build made. `refused`: (key, reason) of samples left out; `ignored`: files that are no images."""

    folder: str
    manifest: Manifest
    refused: tuple[tuple[str, str], ...]
    ignored: int
    already_built: bool = False


def build(
    source: str | Path,
    out: str | Path,
    name: str | None = None,
    split: str = "train",
    kind: str = "folder",
    shard_mb: float = 64,
    processes: int | None = None,
    max_refused: float = 0.01,
    seed: int = 0,
    overwrite: bool = False,
) -> BuildReport:
    """Builds one split of one source. Raises ConfigError for what the user can mend, BuildError if the work failed.

    More than max(1, max_refused * items) refused images fail the build. `processes` None: as many as pay.
    """
    out = Path(os.path.abspath(out))
    name = out.name if name is None else name
    _check_arguments(source, out, name, split, kind, shard_mb, processes, max_refused)
    listing = SOURCES[kind](source)
    plan = planning.make(listing, os.path.abspath(source), name, split, round(shard_mb * 1e6), seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / f".build-{split}.lock", f"another build is writing split {split!r} into {out}; wait for it"):
            same = _already_built(out, plan, overwrite)
            return same or _build(out, plan, processes or _worthwhile(plan), max_refused)
    except WorkerDiedError as error:
        raise BuildError(f"{out}: {error}; run the same command to go on, with fewer --processes if need be") from None
    except OSError as error:
        raise _readable(error, out, plan) from None


def report_path(out: Path, split: str) -> Path:
    """Where the report of a build is: plan, refused samples with their reasons."""
    return out / f"{split}.build-report.json"


def _build(out: Path, plan: Plan, processes: int, max_refused: float) -> BuildReport:
    state = planning.open_state(out, plan)
    tasks = plan.tasks(str(state))
    done = {task.path: read_finished(state, task.path, plan.hash) for task in tasks}
    finished = {path: record for path, record in done.items() if record}
    waiting = [task for task in tasks if task.path not in finished]
    _check_space(out, sum(planning.tar_bytes(task.items) for task in waiting))
    items_done = plan.num_items - sum(len(task.items) for task in waiting)
    try:
        with progress(f"build {plan.name}/{plan.split}", plan.num_items, "images", items_done) as advance:
            for record in run(write_shard, waiting, processes, advance):
                finished[record.path] = record
    finally:
        for partial in state.glob("*.tmp*"):
            partial.unlink(missing_ok=True)
    records = [finished[task.path] for task in tasks]
    refused = tuple(sorted((key, reason) for record in records for key, reason in record.refused))
    _write_report(out, plan, refused)
    allowed = max(1, int(max_refused * plan.num_items))
    if len(refused) > allowed:
        raise BuildError(_too_many(out, plan, refused, allowed))
    return BuildReport(str(out), _commit(out, state, plan, records), refused, plan.ignored)


def _commit(out: Path, state: Path, plan: Plan, records: list[Finished]) -> Manifest:
    """Moves the prepared files into place, the manifest last; can be repeated from any point where it was cut."""
    manifest_path(out, plan.split).unlink(missing_ok=True)
    index_file = out / f"{plan.split}.index.npy"
    keep = {record.path for record in records}
    for old in out.iterdir():
        if re.fullmatch(re.escape(plan.split) + r"-\d{6}\.tar", old.name) and old.name not in keep:
            old.unlink()
    for record in records:
        if (state / record.path).is_file():
            os.replace(state / record.path, out / record.path)
    rows = [np.load(index_part(state, record.path), allow_pickle=False) for record in records]
    np.save(state / "index.npy", np.concatenate([np.empty(0, INDEX), *rows]), allow_pickle=False)
    index = planning.describe(state / "index.npy", index_file.name, sum(record.samples for record in records))
    os.replace(state / "index.npy", index_file)
    manifest = _manifest(plan, records, index)
    write_manifest(out, manifest)
    shutil.rmtree(state)
    return manifest


def _manifest(plan: Plan, records: list[Finished], index: File) -> Manifest:
    tally = Tally([0] * len(plan.classes))
    for record in records:
        tally.merge(Tally(**record.tally))
    mean = np.array(tally.channel_sum) / tally.pixels
    std = np.sqrt(np.array(tally.channel_squares) / tally.pixels - mean**2)
    (low_w, high_w), (low_h, high_h) = tally.width, tally.height
    red, green, blue = (mean / 255).round(6).tolist()
    red_std, green_std, blue_std = (std / 255).round(6).tolist()
    return Manifest(
        name=plan.name,
        split=plan.split,
        classes=plan.classes,
        fields={"image": ", ".join(sorted({item.extension for item in plan.items})), "label": "cls"},
        shards=tuple(File(record.path, record.bytes, record.samples, record.sha256) for record in records),
        index=index,
        stats=Stats(
            tuple(tally.class_counts),
            (low_w, high_w),
            (low_h, high_h),
            (red, green, blue),
            (red_std, green_std, blue_std),
        ),
        made_by={"xfer": version("xfer"), "seed": plan.seed, "shard_bytes": plan.shard_bytes},
    )


def _already_built(out: Path, plan: Plan, overwrite: bool) -> BuildReport | None:
    """The report of this very build if it is finished and whole, else None. Raises ConfigError for another one."""
    if not manifest_path(out, plan.split).exists():
        return None
    there = planning.read_json(report_path(out, plan.split))
    if there.get("plan") != plan.hash:
        if overwrite:
            return None
        what = (
            f"{there.get('name', '?')!r} ({there.get('items', '?')} images of {there.get('source', 'unknown origin')})"
        )
        raise ConfigError(
            f"{out}: split {plan.split!r} is already another build: {what}; this one is {plan.name!r} "
            f"({plan.num_items} images of {plan.source}); give another folder, or --overwrite"
        )
    try:
        manifest = read_manifest(out, plan.split)
    except ConfigError:
        return None
    files = (*manifest.shards, manifest.index)
    if any(not (out / f.path).is_file() or (out / f.path).stat().st_size != f.bytes for f in files):
        return None
    refused = tuple((entry["key"], entry["reason"]) for entry in there.get("refused", []))
    return BuildReport(str(out), manifest, refused, plan.ignored, already_built=True)


def _write_report(out: Path, plan: Plan, refused: tuple[tuple[str, str], ...]) -> None:
    entries = [{"key": key, "reason": reason} for key, reason in refused]
    write_json(report_path(out, plan.split), {**plan.summary(), "ignored": plan.ignored, "refused": entries})


def _check_arguments(source, out, name, split, kind, shard_mb, processes, max_refused) -> None:
    faults = []
    if not name.strip():
        faults.append("--name: empty; give the data set a name")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
        faults.append(f"--split: {split!r}; expected letters, digits, '-' and '_'")
    if kind not in SOURCES:
        faults.append(f"--kind: {kind!r}; known here: {', '.join(SOURCES)}")
    if not 0 < shard_mb < 1e6:
        faults.append(f"--shard-mb: {shard_mb}; expected megabytes, more than 0")
    if processes is not None and processes < 1:
        faults.append(f"--processes: {processes}; expected at least 1")
    if not 0 <= max_refused < 1:
        faults.append(f"--max-refused: {max_refused}; expected a fraction, 0 <= fraction < 1")
    if out.exists() and not out.is_dir():
        faults.append(f"{out}: is a file; give a folder for the shards")
    if Path(os.path.realpath(source)) in (Path(os.path.realpath(out)), *Path(os.path.realpath(out)).parents):
        faults.append(f"{out}: lies inside the source {source}; give a folder outside of it")
    if faults:
        raise ConfigError(faults)


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise ConfigError(f"{out}: {needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free on this disk")


def _too_many(out: Path, plan: Plan, refused: tuple[tuple[str, str], ...], allowed: int) -> str:
    shown = "".join(f"\n  {key}: {reason}" for key, reason in refused[:10])
    more = f"\n  ... and {len(refused) - 10} more" if len(refused) > 10 else ""
    return (
        f"{len(refused)} of {plan.num_items} images refused, {allowed} are tolerated; nothing was built. All of them: "
        f" {report_path(out, plan.split)}; mend or remove them, or raise --max-refused:{shown}{more}"
    )


def _readable(error: OSError, out: Path, plan: Plan) -> Exception:
    if error.errno in _FULL:
        size = planning.tar_bytes(plan.items) / 1e6
        return BuildError(f"{out}: no space left ({error.strerror}); it takes {size:,.0f} MB; make room, run again")
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
        return ConfigError(f"{error.filename or out}: {error.strerror}; give a folder you can write to")
    return BuildError(f"{error.filename or out}: {error.strerror or error}; run the same command to go on")


def _worthwhile(plan: Plan) -> int:
    """How many processes: one for each CPU, but one alone where starting more takes longer than the work."""
    if plan.num_items < _FEW:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
