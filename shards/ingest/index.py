"""Tars that others wrote -> a data set, in place: an index and a manifest beside them, and not one byte moved.

Every byte is read once: headers checked, each image decoded, each file hashed. That costs as much as a build without
its writing, and there is no way to skip it: what is damaged is known before training, and the statistics are those of
the pixels. Tars are scanned in parallel, and each leaves a record in `.build-<split>/`, so a scan that was stopped goes
on. The manifest is written last.

A sample that cannot be used is left out of the index and named. A tar whose list of samples cannot be trusted (cut,
damaged headers, members of one sample apart) stops the work instead: what would be lost of it is unknown.
"""

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from shards.format.fields import Numbering, Roles, number_labels
from shards.format.lock import locked
from shards.format.manifest import File, Manifest, canonical, manifest_path, read_manifest, write_manifest
from shards.format.statistics import Tally
from shards.format.whole import write_json
from shards.ingest.build import BuildError, BuildReport, report_path
from shards.ingest.plan import read_json
from shards.ingest.remarks import remarks
from shards.ingest.rows import write_files
from shards.ingest.scan import Scanned, ScanTask, index_part, read_scanned, scan_shard
from shards.pool import WorkerDiedError, run
from shards.progress import progress
from shards.settings import ConfigError
from shards.sources.notes import Notes
from shards.sources.tars import Foreign, open_foreign

_VERSION = 1
_SHOWN = 10
_WORTH_BYTES = 200_000_000


def index(
    folder: str | Path,
    split: str = "train",
    name: str | None = None,
    classes: Sequence[str] = (),
    given: Roles | None = None,
    glob: str | None = None,
    processes: int | None = None,
    max_refused: float = 0.01,
    overwrite: bool = False,
) -> BuildReport:
    """Indexes one split's tars where they lie. Raises ConfigError, or BuildError if the work failed.

    `classes`: names in label order, found if none are given. `given`: the roles that are known, the rest is found.
    `glob`: names of the tars; by default Energon's, or those that speak of the split, or all.
    """
    _check_arguments(split, classes, processes, max_refused)
    foreign = open_foreign(Path(os.path.abspath(folder)), split, given or Roles(), glob)
    out, name, roles = foreign.folder, name or foreign.folder.name, foreign.roles
    if (roles.boxes or roles.mask) and not classes:
        raise ConfigError(f"{out}: {roles.boxes or roles.mask} holds class numbers; name the classes with --classes")
    num_classes = len(classes) if roles.boxes or roles.mask else 0
    plan = _hash(split, asdict(roles), num_classes, sorted(foreign.excluded))
    state = str(out / f".build-{split}")
    tasks = [ScanTask(str(tar), state, plan, roles, num_classes, foreign.excluded) for tar in foreign.tars]
    identity = _hash(plan, name, list(classes), [[os.path.basename(task.path), task.stamp] for task in tasks])
    try:
        with locked(out / f".build-{split}.lock", f"somebody else is building split {split!r} in {out}; wait for it"):
            same = _already_indexed(out, split, identity, overwrite)
            if same:
                return same
            records = _scan(tasks, f"index {name}/{split}", processes)
            refused = _refused(records, max_refused)
            numbering = _numbering(records, foreign, classes)
            manifest = _manifest(records, foreign, name, split, numbering)
            return _commit(out, manifest, tasks, records, refused, identity, numbering)
    except WorkerDiedError as error:
        raise BuildError(f"{out}: {error}; run the same command to go on, with fewer --processes if need be") from None
    except OSError as error:
        message = f"{error.filename or out}: {error.strerror or error}"
        if isinstance(error, PermissionError):
            raise ConfigError(
                f"{message}; the index is written beside the tars, in a folder you can write to"
            ) from None
        raise BuildError(f"{message}; run the same command to go on") from None


def _check_arguments(split: str, classes: Sequence[str], processes: int | None, max_refused: float) -> None:
    faults = []
    if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
        faults.append(f"--split: {split!r}; expected letters, digits, '-' and '_'")
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        faults.append(f"--classes: {', '.join(twice[:_SHOWN])} given twice")
    if processes is not None and processes < 1:
        faults.append(f"--processes: {processes}; expected at least 1")
    if not 0 <= max_refused < 1:
        faults.append(f"--max-refused: {max_refused}; expected a fraction, 0 <= fraction < 1")
    if faults:
        raise ConfigError(faults)


def _hash(*parts: object) -> str:
    return hashlib.sha256(canonical([_VERSION, *parts])).hexdigest()


def _already_indexed(out: Path, split: str, identity: str, overwrite: bool) -> BuildReport | None:
    """The report of this very index if it is there, else None. Raises ConfigError for another data set."""
    if not manifest_path(out, split).exists():
        return None
    there = read_json(report_path(out, split))
    if there.get("plan") == identity and (out / f"{split}.index.npy").is_file():
        refused = tuple((entry["key"], entry["reason"]) for entry in there.get("refused", []))
        rest = {"ignored": there.get("ignored", 0), "notes": tuple(there.get("notes", []))}
        return BuildReport(str(out), read_manifest(out, split), refused, already_built=True, kind="index", **rest)
    if overwrite:
        return None
    raise ConfigError(
        f"{out}: split {split!r} is a data set already, of {there.get('source', 'unknown origin')}, with other tars or "
        f"options; give --overwrite to write its index and manifest anew (the tars are left as they are)"
    )


def _scan(tasks: list[ScanTask], what: str, processes: int | None) -> list[Scanned]:
    """The record of each tar, in order; those that an earlier run left are taken over. Raises BuildError."""
    state = Path(tasks[0].state)
    state.mkdir(exist_ok=True)
    records = {task.path: record for task in tasks if (record := read_scanned(task))}
    waiting = [task for task in tasks if task.path not in records]
    total, left = sum(task.megabytes for task in tasks), sum(task.megabytes for task in waiting)
    # A fork server takes seconds to start: not for what is done by then.
    processes = processes or (len(os.sched_getaffinity(0)) if left * 1e6 > _WORTH_BYTES else 1)
    try:
        with progress(what, total, "MB", total - left) as advance:
            for record in run(scan_shard, waiting, processes, advance):
                records[record.path] = record
    finally:
        for partial in state.glob("*.tmp*"):
            partial.unlink(missing_ok=True)
    faults = [fault for task in tasks if (fault := records[task.path].fault)]
    if faults:
        raise BuildError(
            f"{len(faults)} of {len(tasks)} tars cannot be indexed where they lie; fix or move them, or choose the "
            f"others with --shards (what is scanned is kept):{_listed(faults)}"
        )
    return [records[task.path] for task in tasks]


def _refused(records: list[Scanned], max_refused: float) -> tuple[tuple[str, str], ...]:
    refused = tuple((f"{Path(r.path).name}/{key}", reason) for r in records for key, reason in r.refused)
    total = sum(record.samples for record in records) + len(refused)
    allowed = max(1, int(max_refused * total))
    if len(refused) > allowed or len(refused) == total:
        lines = [f"{key}: {reason}" for key, reason in refused]
        raise BuildError(
            f"{len(refused)} of {total} samples refused, {allowed} are tolerated; nothing was indexed. Say where image "
            f"and label are with --image and --label, or raise --max-refused:{_listed(lines)}"
        )
    return refused


def _numbering(records: list[Scanned], foreign: Foreign, classes: Sequence[str]) -> Numbering:
    """Which class each label is that was found; of boxes and masks, the names alone."""
    label = foreign.roles.label
    if not label:
        return Numbering(tuple(classes), {})
    found = {text for record in records for text in record.labels}
    return number_labels(found, classes, f"{foreign.folder}: {label}", numeric=label == "cls")


def _manifest(records: list[Scanned], foreign: Foreign, name: str, split: str, numbering: Numbering) -> Manifest:
    """The manifest, but for the size and hash of the index."""
    roles = foreign.roles
    names, table = numbering.classes, numbering.places
    tally = Tally([0] * len(names))
    for record in records:
        counts = record.tally["class_counts"] or [0] * len(names)
        for text, count in zip(record.labels, record.label_counts, strict=True):
            counts[table[text]] += count
        tally.merge(Tally(**{**record.tally, "class_counts": counts}))
    return Manifest(
        name=name,
        split=split,
        task=roles.task,
        classes=names,
        fields=roles.fields(tally.images),
        shards=tuple(File(Path(r.path).name, r.bytes, r.samples, r.sha256) for r in records),
        index=File(f"{split}.index.npy", 0, sum(record.samples for record in records), ""),
        stats=tally.stats(),
        made_by={"xfer": version("xfer"), "indexed": "in place"},
    )


def _commit(
    out: Path,
    manifest: Manifest,
    tasks: list[ScanTask],
    records: list[Scanned],
    refused: tuple[tuple[str, str], ...],
    identity: str,
    numbering: Numbering,
) -> BuildReport:
    """Writes the index, the report and last the manifest; can be repeated from any point where it was cut."""
    split, state = manifest.split, Path(tasks[0].state)
    manifest_path(out, split).unlink(missing_ok=True)

    def parts() -> Iterator[np.ndarray]:
        return (_labelled(task, record, numbering.places) for task, record in zip(tasks, records, strict=True))

    described, content = write_files(state, out, split, parts, manifest.num_samples)
    manifest = replace(manifest, index=described, content=content)
    ignored = sum(record.ignored for record in records)
    entries = [{"key": key, "reason": reason} for key, reason in refused]
    items = manifest.num_samples + len(refused)
    report = {"plan": identity, "name": manifest.name, "split": split, "items": items, "source": str(out)}
    notes = Notes()
    for record in records:
        notes.merge(Notes(record.notes))
    said = [*notes.lines(), *numbering.notes, *remarks(manifest.task, manifest.classes, manifest.stats.class_counts)]
    write_json(report_path(out, split), {**report, "ignored": ignored, "notes": said, "refused": entries})
    write_manifest(out, manifest)
    shutil.rmtree(state)
    return BuildReport(str(out), manifest, refused, ignored, kind="index", notes=tuple(said))


def _labelled(task: ScanTask, record: Scanned, table: dict[str, int]) -> np.ndarray:
    """The rows of a tar, with class indexes for the places of its labels among its distinct ones."""
    rows = np.load(index_part(task), allow_pickle=False)
    if record.labels:
        rows["label"] = np.array([table[text] for text in record.labels], np.int32)[rows["label"]]
    return rows


def _listed(lines: Sequence[str]) -> str:
    more = f"\n  ... and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "".join(f"\n  {line}" for line in lines[:_SHOWN]) + more
