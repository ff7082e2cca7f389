"""Which recipe the demo should train: one branch or two, at which input size, by leaving one source out.

    python -m benchmarks.demo

Only the demo's three training styles are drawn and read; the fourth is not. Each recipe is trained once for each style
and seed, on the two other styles, and scored on the one it never saw. Written to benchmarks/results/demo.md: the mean
over styles by seed, its mean over seeds with a 95 % t-interval, and the paired difference to the first recipe. About
half an hour on two cores; a run that is there is not trained again.
"""

import argparse
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

import xfer
from benchmarks.record import commit, over_seeds
from shards.generate import generate
from shards.ingest.build import build
from shards.progress import progress
from tuning.demo import PER_CLASS, SIDE, STUDY, STYLES, TARGET
from xfer.metrics import Estimate

SEEDS = range(3)
ONE = {"main": {"backbone": "resnet10"}}


def _two(size: int) -> dict[str, Any]:
    return {"fine": {"backbone": "resnet10"}, "coarse": {"backbone": "resnet10", "size": size}}


RECIPES: dict[str, tuple[int, dict[str, Any]]] = {
    "one branch, 64 px": (64, ONE),
    "two branches, 64 and 32 px": (64, _two(32)),
    "two branches, 48 and 32 px": (48, _two(32)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "xfer-benchmark-demo")
    work = parser.parse_args().work
    styles = {style: shapes for style, shapes in STYLES.items() if style != TARGET}
    generate(work / "images", styles, PER_CLASS, SIDE)
    for style in styles:
        build(work / "images" / style, work / "shards" / style, name=style)
    rows = []
    with progress("recipes", len(RECIPES) * len(SEEDS), "trained") as advance:
        for seed in SEEDS:
            for name in RECIPES:
                rows.append({"recipe": name, "seed": seed, **_left_out(work, list(styles), name, seed)})
                advance()
    path = Path(__file__).parent / "results" / "demo.md"
    path.write_text(_report(rows, list(styles)))
    print(f"written: {path}")


def _left_out(work: Path, styles: list[str], name: str, seed: int) -> dict[str, float]:
    """Accuracy on each style of the run that never saw it."""
    size, branches = RECIPES[name]
    values = _demo_recipe()
    values |= {"name": f"{name}-{seed}".replace(" ", "-").replace(",", ""), "output": str(work / "runs")}
    values["train"] |= {"seed": seed}
    values["data"] |= {
        "root": str(work / "shards"),
        "sources": {style: {"path": style} for style in styles},
        "image_size": size,
        "seed": seed,
        "workers": 0,
        "validation": "leave_one_source_out",
    }
    values["model"] = {"branches": branches, "fusion": {"kind": "wsum", "width": 128}}
    run = xfer.fit(values, quiet=True)
    return {style: row["accuracy"] for style, row in run.left_out.items()}


def _demo_recipe() -> dict[str, Any]:
    """The recipe inside the demo's study, as plain values."""
    import yaml

    return yaml.safe_load(STUDY)["job"]["recipe"]


def _report(rows: list[dict[str, Any]], styles: list[str]) -> str:
    means = {name: [statistics.fmean(r[s] for s in styles) for r in rows if r["recipe"] == name] for name in RECIPES}
    first = next(iter(means.values()))
    lines = [
        "# One branch or two in the demo",
        "",
        "    python -m benchmarks.demo",
        "",
        f"Commit {commit()}, {platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}. {len(SEEDS)} seeds; leave one of {', '.join(styles)} out; {TARGET} is not read.",
        "",
        "| recipe | mean of styles (%) | 95 % interval | minus the first |",
        "|---|---|---|---|",
    ]
    for name, values in means.items():
        mean, paired = over_seeds(values), over_seeds([v - f for v, f in zip(values, first, strict=True)])
        gap = (
            "-" if values is first else f"{100 * paired.value:+.1f} ({100 * paired.low:.1f} to {100 * paired.high:.1f})"
        )
        lines.append(f"| {name} | {100 * mean.value:.1f} | {100 * mean.low:.1f} to {100 * mean.high:.1f} | {gap} |")
    lines += ["", "Raw rows, accuracy on the style that was left out:", "", "```"]
    lines += [f"{r['recipe']}, seed {r['seed']}: " + ", ".join(f"{s} {r[s]:.4f}" for s in styles) for r in rows]
    return "\n".join([*lines, "```", ""])


def _range(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"


if __name__ == "__main__":
    main()
