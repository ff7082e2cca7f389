"""Our loader beside its peers.

    python -m benchmarks.loader --setup                # once: the peers, in an environment of their own
    python -m benchmarks.loader FOLDER [FOLDER ...]    # measures, and writes benchmarks/results/loader.md

Each FOLDER holds images in any depth; the sub-folders of the first are blended. Without one, images are drawn.
Interrupted, the same command goes on; a contestant that fails or hangs becomes a row and is not asked again.
"""

import argparse
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.loader import environment, report
from benchmarks.loader.contest import Source
from benchmarks.loader.dataset import every_source, prepare_sources
from benchmarks.loader.peers import PEERS
from benchmarks.loader.process import answer_of, settle
from benchmarks.loader.rows import Row, Rows
from benchmarks.record import commit
from shards.generate import SHAPES, STYLES, generate

_RESULTS = Path(__file__).parents[1] / "results" / "loader.md"
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Step:
    """One question to one fresh process. `guess_s`: how long it may take, until one like it was measured."""

    what: str
    module: str
    peer: str = ""
    decoder: str = ""
    round: int = 0
    guess_s: float = 20.0
    timeout_s: float = _TIMEOUT_S

    @property
    def name(self) -> str:
        return " ".join(str(part) for part in (self.what, self.peer, self.decoder, self.round) if part)


def steps_of(rounds: int, seconds: float, num_jobs: int, names: list[str]) -> list[Step]:
    """All that is asked, the most telling first: further rounds come last, and as many as there is time for."""
    contestants = [(name, decoder) for name in names for decoder in PEERS[name].decoders]
    guess = 6 + num_jobs * (seconds + 2)
    timeout = _TIMEOUT_S + 4 * guess

    def speed(number: int) -> list[Step]:
        return [Step("speed", "measure", name, decoder, number, guess, timeout) for name, decoder in contestants]

    prepared = [Step("prepare", "measure", name, guess_s=30, timeout_s=600) for name in names]
    resumed = [Step("resume", "measure", name, "own", 0, 15) for name in names if PEERS[name].resumes]
    ours = [Step("planning", "planning", guess_s=30), Step("faults", "faults", guess_s=60, timeout_s=200)]
    later = [step for number in range(2, rounds + 1) for step in speed(number)]
    return [*prepared, *speed(1), *resumed, *ours, *later]


def take(steps: list[Step], rows: Rows, jobs: dict[str, tuple[Source, ...]], settings: Row, stop_at: float) -> None:
    """Takes all steps that were not taken yet; after `stop_at` no further round."""
    python = environment.python()
    for number, step in enumerate(steps):
        if rows.done(step.name) or _hopeless(step, rows):
            continue
        left = sum(_expected_s(other, rows) for other in steps[number:] if not rows.done(other.name))
        if step.round > 1 and time.time() + _expected_s(step, rows) > stop_at:
            print(f"time is up: {step.name} and what follows is left out", flush=True)
            return
        minutes = min(left, max(0, stop_at - time.time())) / 60
        print(f"[{number + 1}/{len(steps)}, {minutes:.0f} min left] {step.name}: ", end="", flush=True)
        asked = {
            "what": step.what,
            "peer": step.peer,
            "decoder": step.decoder,
            "workers": os.cpu_count(),
            "seconds": settings["seconds"],
            "jobs": {name: [_plain(source) for source in sources] for name, sources in _asked(step, jobs).items()},
        }
        if step.what in ("speed", "resume"):
            for source in every_source(_asked(step, jobs).values()):
                PEERS[step.peer].warm(source.folder)
        settle()
        started = time.time()
        answer = answer_of(python, f"benchmarks.loader.{step.module}", asked, step.timeout_s)
        took = round(time.time() - started, 1)
        known = {"what": step.what, "peer": step.peer, "decoder": step.decoder, "round": step.round}
        rows.add(step.name, answer, **known, took_s=took)
        print(f"{_outcome(answer)} ({took:.0f} s)", flush=True)


def _asked(step: Step, jobs: dict[str, tuple[Source, ...]]) -> dict[str, tuple[Source, ...]]:
    if step.what == "prepare":
        return {source.name: (source,) for source in every_source(jobs.values())}
    if step.what == "resume":
        smallest = min(every_source(jobs.values()), key=lambda source: source.count)
        return {smallest.name: (smallest,)}
    return jobs


def _hopeless(step: Step, rows: Rows) -> bool:
    """Whether all that this contestant gave so far is failures."""
    past = [row for row in rows.rows if (row["peer"], row["decoder"]) == (step.peer, step.decoder) and step.peer]
    return step.what == "speed" and bool(past) and all("images_s" not in row for row in past)


def _expected_s(step: Step, rows: Rows) -> float:
    past = [row["took_s"] for row in rows.of(step.what) if (row["peer"], row["decoder"]) == (step.peer, step.decoder)]
    return max(past) if past else step.guess_s


def _plain(source: Source) -> Row:
    return {**asdict(source), "folder": str(source.folder)}


def _outcome(answer: list[Row]) -> str:
    told = []
    for row in answer:
        if "images_s" in row:
            told.append(f"{row['job']} {row['images_s']:,.0f}/s")
        else:
            told.append(str(row.get("error") or row.get("cannot") or "done")[:120])
    return ", ".join(dict.fromkeys(told))


def _drawn(out: Path) -> list[Path]:
    """Images for a machine that has none."""
    folder = out / "drawn"
    generate(folder, {style: list(SHAPES) for style in STYLES}, per_class=60, side=160)
    return [folder]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--setup", action="store_true", help="install the peers, and nothing else")
    parser.add_argument("--rounds", type=int, default=5, help="at most so many, of every contestant in turn")
    parser.add_argument("--minutes", type=float, default=18, help="after so long, no further round")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement of speed")
    parser.add_argument("--samples", type=int, default=16_000, help="of each set; small sets are repeated")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--work", type=Path, default=environment.FOLDER / "work", help="prepared images and rows")
    parser.add_argument("--out", type=Path, default=_RESULTS)
    arguments = parser.parse_args()
    if arguments.setup:
        environment.set_up()
        return
    started = time.time()
    arguments.work = arguments.work.resolve()
    folders = [folder.resolve() for folder in arguments.folders] or _drawn(arguments.work)
    jobs = prepare_sources(folders, arguments.work / f"images-{arguments.samples}", arguments.samples)
    settings = {
        "commit": commit(),
        "jobs": {name: sum(source.count for source in sources) for name, sources in jobs.items()},
        "seconds": arguments.seconds,
    }
    rows = Rows(arguments.work / "rows.jsonl", settings)
    steps = steps_of(arguments.rounds, arguments.seconds, len(jobs), arguments.peers)
    try:
        take(steps, rows, jobs, settings, started + arguments.minutes * 60)
    finally:
        arguments.out.write_text(report.text(rows.rows, settings))
        print(f"-> {arguments.out}")


if __name__ == "__main__":
    main()
