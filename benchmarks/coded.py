"""What coding without loss takes off packed files, and what it costs to load them.

    python -m benchmarks.coded RUN

RUN: a trained classifier. Its layers are rounded to each width and packed plain and coded. Weights may repeat more than
training makes them: those that a vector quantizer decoded do, and fine-tuning leaves that. So the same is measured with
noise of a tenth of each layer's standard deviation added, which takes repeats away and leaves the shape of the
distribution; and on the Gaussian weights that a ResNet-50 begins with. Entropy: of the codes of each layer, order 0,
what a range coder would come to. Load time: `unpack` of a file in the page cache, median of `--repeats`, plain and
coded by turns. Written to benchmarks/results/coded.md.
"""

import argparse
import platform
import statistics
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.record import commit
from xfer.bundle import open_model
from xfer.model import build_model
from xfer.model_config import ModelConfig
from xfer.quant.bits import layers
from xfer.quant.fold import fold
from xfer.quant.pack import pack, unpack
from xfer.quant.weights import Codes, Quantized, quantize

RESULT = Path(__file__).parent / "results" / "coded.md"
BITS = (3, 4, 6, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained = open_model(options.run)
    models = {
        "trained": fold(trained.model),
        "trained, with noise": _noisy(fold(trained.model)),
        "ResNet-50 as it begins": fold(_resnet50()),
    }
    rows = [_row(what, model, bits, options.repeats) for what, model in models.items() for bits in BITS]
    said = ", ".join(f"{name} {branch.backbone}" for name, branch in trained.model.branches.items())
    head = ("model", "bits", "plain MB", "coded MB", "coded / plain", "entropy / plain", "load s", "coded", "ratio")
    lines = [
        "# Codes written shorter",
        "",
        "    python -m benchmarks.coded RUN",
        "",
        f"Commit {commit()}, {platform.machine()}, one core, torch {torch.__version__}, zlib "
        f"{zlib.ZLIB_RUNTIME_VERSION}. Run: {trained.name} ({said}, {trained.image_size} px). Whole files, in MB of "
        "10^6 bytes; entropy in place of the streams of codes. The trained run began with weights that a vector "
        "quantizer decoded: "
        "its own rows say how much that repeats, those with noise what ordinary weights give.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines[6:]))


def _resnet50() -> nn.Module:
    branches = {"main": {"backbone": "resnet50"}}
    config = ModelConfig.model_validate({"branches": branches, "fusion": {"width": None}})
    return build_model(config, 1000, 0).eval()


@torch.no_grad()
def _noisy(model: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for layer in layers(model).values():
        weight = layer.weight
        weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=draw)
    return model


def _row(what: str, model: nn.Module, bits: int, repeats: int) -> list[str]:
    quantized = quantize(fold(model), dict.fromkeys(layers(model), bits))
    fresh = fold(model)
    with TemporaryDirectory() as folder:
        files = {"plain": Path(folder, "plain"), "coded": Path(folder, "coded")}
        for name, file in files.items():
            pack(quantized, file, {}, coded=name == "coded")
        sizes = {name: file.stat().st_size for name, file in files.items()}
        seconds: dict[str, list[float]] = {name: [] for name in files}
        for _ in range(repeats):
            for name, file in files.items():
                seconds[name].append(_load(file, fresh, quantized))
    took = {name: statistics.median(one) for name, one in seconds.items()}
    streams = sum(-(-one.q.numel() * bits // 8) for one in quantized.codes.values())
    entropy = sizes["plain"] - streams + _entropy_bytes(quantized.codes)
    return [
        what,
        f"{bits}",
        f"{sizes['plain'] / 1e6:.2f}",
        f"{sizes['coded'] / 1e6:.2f}",
        f"{sizes['coded'] / sizes['plain']:.3f}",
        f"{entropy / sizes['plain']:.3f}",
        f"{took['plain']:.3f}",
        f"{took['coded']:.3f}",
        f"{took['coded'] / took['plain']:.2f}",
    ]


def _load(file: Path, model: nn.Module, expected: Quantized) -> float:
    start = time.perf_counter()
    codes = unpack(file, model).codes
    took = time.perf_counter() - start
    assert all(torch.equal(codes[name].q, one.q) for name, one in expected.codes.items())
    return took


def _entropy_bytes(codes: Mapping[str, Codes]) -> float:
    """Of each layer's codes, as if they were independent."""
    total = 0.0
    for one in codes.values():
        shares = torch.bincount(one.q.flatten().long() + 128).double() / one.q.numel()
        shares = shares[shares > 0]
        total += float(-(shares * shares.log2()).sum()) * one.q.numel() / 8
    return total


if __name__ == "__main__":
    main()
