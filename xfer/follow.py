"""A run's rows as something to watch: one progress bar, and a line for each evaluation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console

from shards.progress import progress
from xfer.measure import WITH_SIDE, measure_of
from xfer.train import Row


@contextmanager
def follow(name: str, steps: int, done: int) -> Iterator[Callable[[Row], None]]:
    """Yields a function that takes each reported row, in order, and shows it on stderr."""
    console = Console(stderr=True)
    damage = {"replaced": "damage", "left_out": "evaluation-damage"}
    known = dict.fromkeys(damage, 0)
    with progress(f"train {name}", steps, "steps", done) as advance:

        def show(row: Row) -> None:
            nonlocal done
            if "loss" in row:
                advance(row["step"] - done, f"loss {row['loss']:.3f}  {row['images_per_s']:,.0f} images/s")
                done = row["step"]
            for what, file in damage.items():
                if row.get(what, 0) > known[what]:
                    known[what] = row[what]
                    said = what.replace("_", " ")
                    console.print(f"damaged and {said} so far: {row[what]}, named in {file}-*.jsonl of the run")
            if measure := measure_of(row):
                side = f"; with side inputs {percents(row[WITH_SIDE])}" if row.get(WITH_SIDE) else ""
                said = f"step {row['step']}: validation {measure} {percents(row[measure])}{side}"
                console.print(said, highlight=False)

        yield show


def percents(values: Mapping[str, float]) -> str:
    """`photo 91.2 %, sketch 70.0 %`."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in values.items())
