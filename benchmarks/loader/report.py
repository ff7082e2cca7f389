"""Rows -> the page of results: what was measured beside what was wanted, then every raw row."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.loader.contest import BATCH, DRIFT
from benchmarks.loader.peers import PEERS
from benchmarks.loader.rows import Row

_OURS = ("shards", "own")
_NO_LOADERS = ("bare loop", "fastest known")
_HEAD = """# Our loader beside its peers

    python -m benchmarks.loader --setup
    python -m benchmarks.loader {folders}

Commit {commit}. {machine}

uint8 batches of 64 images, RandomResizedCrop 224 (scale 0.08 to 1) and flip, one worker process or thread for each
core, page cache warm, nobody uses the batches. Every contestant runs in a fresh process, one after the other, round
after round; "ours / it" is the median over the rounds of the ratio within a round. Every sample has a label of its own
(so each format has as many classes as samples): batches are checked for their shape, for images that differ, for
samples that come twice. {sets} Seconds of each measurement: {seconds}.
"""


def text(rows: Sequence[Row], settings: Row) -> str:
    """The whole page."""
    sets = (
        ", ".join(f"{name}: {count:,} samples" for name, count in settings["jobs"].items()) + "; small sets repeated."
    )
    folders = " ".join(name for name in settings["jobs"] if not name.endswith(" blend"))
    head = _HEAD.format(
        commit=settings["commit"], machine=_machine(), sets=sets, seconds=settings["seconds"], folders=folders
    )
    parts = [head, _speeds(rows, settings), _starts(rows), _simulated(rows), _blends(rows), _faults(rows)]
    parts += [_missing(rows), _raw(rows)]
    return "\n".join(part for part in parts if part)


def _machine() -> str:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GB, Python {platform.python_version()}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _of(rows: Sequence[Row], peer: str, decoder: str, job: str, value: str = "images_s") -> dict[int, float]:
    """A value by round."""
    return {
        row["round"]: row[value]
        for row in rows
        if (row["peer"], row["decoder"], row.get("job")) == (peer, decoder, job) and value in row
    }


def _ratio(rows: Sequence[Row], peer: str, decoder: str, job: str) -> float | None:
    """Ours over it: the median over the rounds that have both."""
    ours, other = _of(rows, *_OURS, job), _of(rows, peer, decoder, job)
    ratios = [ours[number] / other[number] for number in ours.keys() & other.keys()]
    return statistics.median(ratios) if ratios else None


def _spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return form(values[0])
    return f"{form(statistics.median(values))} ({form(min(values))} to {form(max(values))})"


def _speeds(rows: Sequence[Row], settings: Row) -> str:
    parts = ["## Images/s\n"]
    for job in settings["jobs"]:
        lines = []
        for peer in PEERS:
            cells = [peer]
            for decoder in ("own", "ours"):
                values = list(_of(rows, peer, decoder, job).values())
                ratio = _ratio(rows, peer, decoder, job)
                cells += [_spread(values, lambda v: f"{v:,.0f}"), f"{ratio:.2f}" if ratio and peer != "shards" else "-"]
            memory = list(_of(rows, peer, "own", job, "pss_mb").values())
            lines.append([*cells, _spread(memory, lambda v: f"{v:,.0f}") if len(memory) == 1 else _middle(memory)])
        heads = ["loader", "as documented", "ours / it", "with our decoder", "ours / it", "memory MB"]
        parts += [f"### {job}\n", _table(heads, lines), _verdict(rows, job)]
    return "\n".join(parts)


def _middle(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f}" if values else "-"


def _verdict(rows: Sequence[Row], job: str) -> str:
    """The targets."""
    told = []
    peers = [peer for peer in PEERS if peer not in (*_NO_LOADERS, "shards")]
    for decoder, wanted, what in (("own", 2.0, "as documented"), ("ours", 1.2, "with our decoder")):
        found = {peer: ratio for peer in peers if (ratio := _ratio(rows, peer, decoder, job))}
        if found:
            peer = min(found, key=lambda name: found[name])
            told.append(_line(f"fastest peer {what}: {peer}; ours is {found[peer]:.2f} times it", found[peer], wanted))
    for name, decoder, wanted in (("bare loop", "ours", 0.85), ("fastest known", "own", None)):
        ratio = _ratio(rows, name, decoder, job)
        if ratio:
            told.append(_line(f"ours is {ratio:.2f} of the {name}", ratio, wanted))
    return "\n".join(told) + "\n" if told else ""


def _line(told: str, found: float, wanted: float | None) -> str:
    if wanted is None:
        return f"- {told}"
    return f"- {told} (wanted: {wanted:g}): **{'met' if found >= wanted else 'missed'}**"


def _starts(rows: Sequence[Row]) -> str:
    cold = [row for row in rows if "cold_s" in row and row["decoder"] == "own" and row["peer"] not in _NO_LOADERS]
    again = {row["peer"]: row for row in rows if row["what"] == "resume"}
    lines = []
    for peer in dict.fromkeys(row["peer"] for row in cold):
        mine = [row for row in cold if row["peer"] == peer]
        resumed = again.get(peer, {})
        went = f"{resumed['resume_s']:.2f}" if "resume_s" in resumed else "-"
        same = {"True": "yes", "False": "**no**"}.get(str(resumed.get("same_samples")), "-")
        how = resumed.get("how") or resumed.get("cannot") or resumed.get("error", "-")
        lines.append(
            [
                peer,
                _spread([row["cold_s"] for row in mine], lambda v: f"{v:.1f}"),
                _spread([row["open_s"] for row in mine], lambda v: f"{v:.2f}"),
                went,
                how,
                same,
            ]
        )
    heads = ["loader", "s from a cold process", "s without imports", "s to resume", "how", "the samples that come next"]
    told = "Resume at 70 % of an epoch of the smallest set, within a process that has everything imported.\n"
    return "\n".join(["## First batch and resume\n", told, _table(heads, lines)]) if lines else ""


def _simulated(rows: Sequence[Row]) -> str:
    planned = [row for row in rows if row["what"] == "planning"]
    lines = []
    for row in planned:
        known = {name: value for name, value in row.items() if isinstance(value, float) and name not in ("took_s",)}
        memory = f"{known.pop('held_mb', 0):.0f} held, {known.pop('peak_mb', 0):.0f} at most"
        values = ", ".join(f"{_NAMES.get(name, name)} {value:.4g}" for name, value in known.items())
        lines.append([row.get("job", ""), values or row.get("error", ""), memory])
    told = "Wanted: planned in 5 s and 200 MB; 5 us a sample; first batch anywhere in 1 s; egress 1.0 (naive: 8).\n"
    return "\n".join(["## Ours alone\n", told, _table(["what", "", "memory MB"], lines)]) if lines else ""


_NAMES = {
    "seconds": "s",
    "jump_s": "s for a batch in the second epoch",
    "file_mb": "MB of the file",
    "us_a_sample_64": "us a sample (batches of 64)",
    "us_a_sample_1024": "us a sample (batches of 1,024)",
    "times": "times the data, over 8 nodes",
}


def _blends(rows: Sequence[Row]) -> str:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if "blend_worst" in row and row["decoder"] == "own":
            found.setdefault(row["peer"], []).append(row)
    lines = [
        [
            peer,
            f"{max(row['blend_worst'] for row in mine) * BATCH:.1f}",
            f"{statistics.mean(row['blend_mean'] for row in mine) * BATCH:.2f}",
            f"{max(row['blend_drift'] for row in mine):.1f}",
            f"{sum(row['batches'] for row in mine):,}",
        ]
        for peer, mine in found.items()
        if peer not in _NO_LOADERS
    ]
    told = f"Samples that a source has too many or too few in a batch of {BATCH}, the worst source of each batch.\n"
    heads = ["loader", "worst batch", "mean of batches", f"worst after {DRIFT} batches", "batches"]
    return "\n".join(["## Error of the blend\n", told, _table(heads, lines)]) if lines else ""


def _faults(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row["what"] == "faults":
            times = [
                f"{name.removesuffix('_s').replace('_', ' ')} {row[name]:.2f} s" for name in row if name.endswith("_s")
            ]
            lost = f"{row['lost_or_wrong']} of {row['samples']:,}" if "samples" in row else "-"
            times = [told for told in times if not told.startswith("took")]
            lines.append(
                [row.get("job", ""), row.get("outcome") or row.get("error", ""), ", ".join(times) or "-", lost]
            )
    heads = ["what was done", "what happened", "how long", "samples lost or wrong"]
    return "\n".join(["## Failures\n", _table(heads, lines)]) if lines else ""


def _missing(rows: Sequence[Row]) -> str:
    told = {}
    for row in rows:
        reason = row.get("cannot") or row.get("error")
        if reason and row["what"] in ("prepare", "speed"):
            where = (
                f"{row['peer']}, {'its own' if row['decoder'] != 'ours' else 'our'} decoder, {row.get('job', 'all')}"
            )
            told[where] = reason
    lines = [[where, reason.replace("|", "/")] for where, reason in told.items()]
    return "\n".join(["## What could not be measured\n", _table(["loader", "why"], lines)]) if lines else ""


def _raw(rows: Sequence[Row]) -> str:
    versions = {row["peer"]: row["version"] for row in rows if row.get("version")}
    listed = ", ".join(f"{PEERS[peer].package} {version}" for peer, version in versions.items() if peer in PEERS)
    lines = [json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}) for row in rows]
    return "\n".join(["## Raw rows\n", f"Versions: {listed}.\n", "```", *lines, "```\n"])
