"""What moving a pretrained model to a new domain is worth, by mode: PACS, each domain left out in turn.

    python -m benchmarks.transfer --shards data/pacs --weights resnet18.safetensors --seeds 3

Rows: a model from scratch; the features alone (the linear probe); full and staged fine-tuning; the staged model packed
to 8 and 4 bits; and the loop anybody would write, of the same weights, images, size, steps and rate. The target is
never trained on and read once, at the end. Every run is kept in --out, and the same command goes on with those that are
missing. Written to benchmarks/results/transfer.md, with a 95 % t-interval over seeds where there are several.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import resnet18

import shards
import xfer
from benchmarks.record import commit, over_seeds
from shards.loading.open import open_data
from shards.progress import progress
from xfer.evaluate import evaluate_subsets
from xfer.model import MEAN, STD
from xfer.train import learning_rate

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
MODES = ("scratch", "feature", "full", "staged", "plain script")
PACKED = (8, 4)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="built PACS, a folder a domain")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "rows.jsonl"
    rows: list[Row] = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    known = {(row["mode"], row["target"], row["seed"]) for row in rows}
    todo = list(itertools.product(range(options.seeds), DOMAINS, MODES))
    with progress("transfer", len(todo), "runs") as advance:
        for seed, target, mode in todo:
            if (mode, target, seed) not in known:
                found = _plain(options, target, seed) if mode == "plain script" else _run(options, target, mode, seed)
                rows += found
                with kept.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in found)
                _write(options, rows)
            advance()
    _write(options, rows)


def _recipe(options: argparse.Namespace, target: str, mode: str, seed: int) -> dict[str, Any]:
    branch: dict[str, Any] = {"backbone": "resnet18"}
    if mode != "scratch":
        branch["weights"] = str(options.weights)
    return {
        "name": f"{mode}-{target}-{seed}",
        "output": str(options.out),
        "data": {
            "root": str(options.shards),
            "sources": {domain: {"path": domain} for domain in DOMAINS if domain != target},
            "test": {target: {"path": target}},
            "image_size": options.image_size,
            "batch_size": options.batch_size,
            "workers": 1,
            "seed": seed,
        },
        "model": {"branches": {"main": branch}, "fusion": {"width": 512}},
        "train": {
            "steps": options.steps,
            "learning_rate": options.rate,
            "evaluate_every": options.steps,
            "save_every": options.steps,
            "keep": 1,
            "seed": seed,
        },
        "transfer": {"mode": mode if mode in ("feature", "staged") else "full"},
    }


def _run(options: argparse.Namespace, target: str, mode: str, seed: int) -> list[Row]:
    started = time.perf_counter()
    run = xfer.fit(_recipe(options, target, mode, seed), quiet=True)
    seconds = time.perf_counter() - started
    rows = [_row(mode, target, seed, run.evaluate("test")[target].accuracy, seconds, run.model.weights_bytes)]
    if mode == "staged":
        for bits in PACKED:
            bundle = run.quantize(bits=bits, out=run.folder / f"bundle{bits}")
            score = _score(run, bundle.model, target)
            rows.append(_row(f"staged, {bits} bits", target, seed, score, seconds, bundle.weights_bytes))
    return rows


def _row(mode: str, target: str, seed: int, accuracy: float, seconds: float, size: int) -> Row:
    return {"mode": mode, "target": target, "seed": seed, "accuracy": accuracy, "seconds": seconds, "bytes": size}


def _score(run: xfer.Run, model: torch.nn.Module, target: str) -> float:
    classes = run.model.classes
    return evaluate_subsets(model, open_data(run.recipe.data).test, run.recipe.data, classes, target)[target].accuracy


def _plain(options: argparse.Namespace, target: str, seed: int) -> list[Row]:
    """torchvision's ResNet-18 with a new classifier, cross-entropy, SGD: fine-tuned whole."""
    started = time.perf_counter()
    values = _recipe(options, target, "full", seed)["data"]
    data = shards.open(values.pop("sources"), test=values.pop("test"), **values)
    torch.manual_seed(seed)
    net = resnet18(num_classes=1000)
    net.load_state_dict(load_file(options.weights), strict=False)
    net.fc = torch.nn.Linear(512, len(data.classes))
    optimizer = torch.optim.SGD(net.parameters(), options.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (MEAN, STD))

    def normal(images: Tensor) -> Tensor:
        return (images.float() / 255 - mean) / std

    net.train()
    with data.train(steps=options.steps) as batches:
        for step, (images, targets) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, options.steps, options.rate, 10)
            loss = F.cross_entropy(net(normal(images)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - started
    net.eval()
    right = count = 0
    with torch.inference_mode():
        for batch in data.test():
            said = net(normal(batch.images)).argmax(1)
            counted = batch.valid & (batch.targets >= 0)
            right += int((said == batch.targets)[counted].sum())
            count += int(counted.sum())
    size = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    return [_row("plain script", target, seed, right / count, seconds, size)]


def _write(options: argparse.Namespace, rows: list[Row]) -> None:
    path = Path(__file__).parent / "results" / "transfer.md"
    command = f"python -m benchmarks.transfer --shards SHARDS --weights RESNET18 --image-size {options.image_size}"
    lines = [
        "# Transfer, by mode, on PACS",
        "",
        f"    {command} --steps {options.steps} --batch-size {options.batch_size} --rate {options.rate} "
        f"--seeds {options.seeds}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, CPU, torch {torch.__version__}. ResNet-18 with "
        "ImageNet weights, trained on three domains. Accuracy (%) on the one that was left out.",
        "",
        f"| mode | {' | '.join(DOMAINS)} | mean | 95 % over seeds | seeds | seconds a run | MB |",
        "|---|" + "---|" * (len(DOMAINS) + 5),
    ]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        of = [row for row in rows if row["mode"] == mode]
        whole = [s for s in range(options.seeds) if {r["target"] for r in of if r["seed"] == s} == set(DOMAINS)]
        if not whole:
            continue
        of = [row for row in of if row["seed"] in whole]
        means = [statistics.fmean(row["accuracy"] for row in of if row["seed"] == s) for s in whole]
        by_target = [statistics.fmean(row["accuracy"] for row in of if row["target"] == d) for d in DOMAINS]
        interval = "-"
        if len(whole) > 1:
            _, low, high = over_seeds(means)
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
        cells = [f"{100 * value:.1f}" for value in (*by_target, statistics.fmean(means))]
        seconds, size = statistics.fmean(r["seconds"] for r in of), of[0]["bytes"] / 1e6
        lines.append(f"| {mode} | {' | '.join(cells)} | {interval} | {len(whole)} | {seconds:.0f} | {size:.1f} |")
    lines += ["", "## Raw rows", "", "| mode | target | seed | accuracy | seconds |", "|---|---|---|---|---|"]
    for r in rows:
        lines.append(f"| {r['mode']} | {r['target']} | {r['seed']} | {100 * r['accuracy']:.2f} | {r['seconds']:.0f} |")
    path.write_text("\n".join(lines) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
