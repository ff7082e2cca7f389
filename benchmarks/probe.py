"""The linear probe that a pretrained run starts as, on PACS: how many images and how many channels does it need?

    python -m benchmarks.probe --features data/pacs/features-224.safetensors

From the pooled features that `benchmarks/pacs.py` keeps beside its shards (frozen ImageNet ResNet-18, 224 px). For each
target domain the probe is fitted on the three others by the functions that a run uses: a fair number of images of each
domain, the penalty chosen on each domain when left out. The target is read once, at the end. Written to
benchmarks/results/probe.md, with a 95 % t-interval over seeds that draw the images.
"""

import argparse
import platform
import statistics
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.record import commit, over_seeds
from shards.progress import progress
from xfer.transfer.linear import choose_penalty, fit_linear
from xfer.transfer.probe import projection_of

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
SEEDS = range(5)
WIDTHS, COUNTS = (64, 128, 256, 512), (256, 1024, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    stored = load_file(parser.parse_args().features)
    settings = [(512, count) for count in COUNTS] + [(width, COUNTS[-1]) for width in WIDTHS[:-1]]
    rows = []
    with progress("probes", len(settings) * len(DOMAINS) * len(SEEDS), "fitted") as advance:
        for width, count in settings:
            for target in DOMAINS:
                for seed in SEEDS:
                    rows.append((width, count, target, seed, _accuracy(stored, target, width, count, seed)))
                    advance()
    path = Path(__file__).parent / "results" / "probe.md"
    path.write_text(_report(rows, settings))
    print(f"written: {path}")


def _accuracy(stored: dict[str, Tensor], target: str, width: int, count: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    features, targets, groups = [], [], []
    sources = [domain for domain in DOMAINS if domain != target]
    for number, domain in enumerate(sources):
        x, y = stored[f"{domain}.features"], stored[f"{domain}.targets"]
        chosen = torch.randperm(len(y), generator=generator)[: count // len(sources)]
        features.append(x[chosen])
        targets.append(y[chosen])
        groups.append(torch.full((len(chosen),), number))
    x, y, groups = torch.cat(features), torch.cat(targets), torch.cat(groups)
    turned = projection_of(x, width)
    x, held = x @ turned.T, stored[f"{target}.features"] @ turned.T
    masks = torch.ones(len(y), int(y.max()) + 1, dtype=torch.bool)
    penalty = choose_penalty(x, y, masks, groups).penalty
    weight, bias = fit_linear(x, y, masks, penalty)
    return ((held @ weight.T + bias).argmax(1) == stored[f"{target}.targets"]).double().mean().item()


def _report(rows: list[tuple[int, int, str, int, float]], settings: list[tuple[int, int]]) -> str:
    lines = [
        "# The linear probe a run starts as, on PACS",
        "",
        "    python -m benchmarks.probe --features SHARDS/features-224.safetensors",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, CPU, torch {torch.__version__}. "
        f"Accuracy (%) on the domain that was left out, {len(SEEDS)} seeds.",
        "",
        f"| channels | images | {' | '.join(DOMAINS)} | mean | 95 % |",
        "|---|---|" + "---|" * (len(DOMAINS) + 2),
    ]
    for width, count in settings:
        of = {(domain, seed): value for w, c, domain, seed, value in rows if (w, c) == (width, count)}
        by_domain = [statistics.fmean(of[domain, seed] for seed in SEEDS) for domain in DOMAINS]
        means = [statistics.fmean(of[domain, seed] for domain in DOMAINS) for seed in SEEDS]
        mean = over_seeds([100 * value for value in means])
        cells = " | ".join(f"{100 * value:.1f}" for value in by_domain)
        lines.append(f"| {width} | {count:,} | {cells} | **{mean.value:.2f}** | ± {mean.high - mean.value:.2f} |")
    lines += ["", "Raw rows: channels, images, domain, seed, accuracy:", "", "```"]
    lines += [f"{width} {count} {domain} {seed} {value:.4f}" for width, count, domain, seed, value in rows]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    main()
