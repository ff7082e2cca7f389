"""A classifier quantized here, and by what one would take otherwise: accuracy, bytes, time to make and to run.

    python -m benchmarks.quant_peers RUN --calibration 128 --draws 3

RUN: a trained run with a part held out. Every way gets the same model in float, BatchNorm folded, and the same
calibration images; a draw is another set of these. Accuracy is that of the file as it is read back, or of the model a
library leaves in memory where it writes none, on the report half of what is held out, which nothing is chosen by:
points against the model in float on the same images, mean over draws with its 95 % t-interval. Bytes are those of the
file. `xfer, N bits` are packed bundles, by sensitivity below 8, run in float; `xfer int8` their ONNX files. Latency:
one thread, all ways in one process take turns, the median of the rounds' medians; skip it with --rounds 0 where the
machine is not quiet. A library that is not installed is left out and named: benchmarks/quant_peers.txt lists them, for
an environment of its own. Written to benchmarks/results/NAME.md with the raw rows.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.record import cell, commit, each_on_a_core
from shards.loading.few import few
from shards.loading.subset import InShare
from shards.settings import load
from xfer.bundle import Trained, open_model
from xfer.config import Recipe
from xfer.export import qdq
from xfer.export.graph import checked, float_graph
from xfer.export.observe import ranges
from xfer.export.session import open_session, run
from xfer.prepare import open_labelled
from xfer.quant.bits import layers
from xfer.quant.cost import predicted_bytes
from xfer.quantize import Folded, fold_model, held_out
from xfer.tasks.known import task_of
from xfer.widths import front_of, sensitivities

RESULTS = Path(__file__).parent / "results"
FLOAT = "float"
BATCHES = (1, 16)
Row = dict[str, Any]
Predict = Callable[[Tensor], Tensor]


class Given(NamedTuple):
    """What every way starts from. calibration: uint8 [B, 3, S, S] batches; onnx: the model in float as a file."""

    trained: Trained
    folded: Folded
    calibration: Sequence[Tensor]
    onnx: Path
    draw: int

    @property
    def model(self) -> "Plain":
        """For a library to change: a copy without what a model of one branch has no use for."""
        return Plain(copy.deepcopy(self.folded.model)).eval()


class Plain(nn.Module):
    """A classifier of one branch, as one would write it: uint8 [B, 3, S, S] -> logits [B, K]."""

    def __init__(self, model: Any):
        super().__init__()
        (branch,), (projection,) = model.branches.values(), model.projections.values()
        stem = (branch.conv1, branch.bn1, branch.relu, branch.maxpool)
        stages = (branch.layer1, branch.layer2, branch.layer3, branch.layer4)
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.body: Any = nn.Sequential(*stem, *stages, projection, *pooled, model.head)
        self.register_buffer("mean", model.mean)
        self.register_buffer("std", model.std)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """float [B, 3, S, S]."""
        return (images.float() / 255 - self.mean) / self.std


class Made(NamedTuple):
    """predict: uint8 [B, 3, S, S] -> logits [B, K]; size: bytes of its file, None without one of the packed weights;
    fast: of a batch size, how it is run where time counts.
    """

    predict: Predict
    size: int | None
    fast: Callable[[int], Predict] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the report half that is measured on, by hash")
    parser.add_argument("--rounds", type=int, default=0, help="of latency, after the last draw; 0: it is not measured")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--name", default="quant-peers", help="of the file in benchmarks/results")
    options = parser.parse_args()
    todo = [
        (options.run, draw, options.calibration, options.share, options.ways, options.rounds * (draw == 0))
        for draw in range(options.draws)
    ]
    rows = [row for found in each_on_a_core("quant peers", 1, _draw, todo) for row in found]
    rows.sort(key=lambda row: (options.ways.index(row["way"]), row["draw"]))
    path = RESULTS / f"{options.name}.md"
    path.write_text(_report(options, rows, load(options.run / "recipe.yaml", Recipe)))
    print(f"written: {path}")


def _draw(path: Path, draw: int, count: int, share: float, ways: Sequence[str], rounds: int) -> list[Row]:
    """One draw of calibration images, in a process of its own."""
    warnings.simplefilter("ignore")
    trained, recipe = open_model(path), load(path / "recipe.yaml", Recipe)
    data = open_labelled(recipe.data, trained.classes, task_of(recipe.model.task))
    report = held_out(data, recipe.data, halved=True).report
    report = [one.where(InShare("fraction", 0.5, 0.5 + share / 2)) for one in report]
    batches = few(data.train, recipe.data, count, "proportional", skip=draw * count)
    calibration = [batch.images for batch in batches]
    folded = fold_model(trained.model, recipe.quantize, calibration)
    shown = few(report, recipe.data, sum(one.num_samples for one in report), "proportional", batch_size=64)
    images = [(batch.images, batch.targets) for batch in shown]
    truth = torch.cat([labels for _, labels in images])
    rows, fast = [], {}
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        file.write_bytes(checked(float_graph(trained, folded.model)))
        given = Given(trained, folded, calibration, file, draw)
        reference = _logits(folded.model, images)
        for way in ways:
            os.makedirs(place := Path(folder, str(len(rows))))
            begun = time.process_time()
            try:
                made = WAYS[way](given, place)
            except Exception as error:  # of libraries whose errors have no common class
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                rows.append({"way": way, "draw": draw, "failed": why})
                print(f"{way}: {why}", file=sys.stderr)
                continue
            spent = time.process_time() - begun
            said = _logits(made.predict, images)
            right, before = (said.argmax(1) == truth), (reference.argmax(1) == truth)
            p = reference.log_softmax(1)
            rows.append(
                {
                    "way": way,
                    "draw": draw,
                    "bytes": made.size,
                    "cpu_s": round(spent, 1),
                    "images": len(truth),
                    "float": before.float().mean().item(),
                    "difference": (right.float() - before.float()).mean().item(),
                    "agrees": (said.argmax(1) == reference.argmax(1)).float().mean().item(),
                    "nats": (p.exp() * (p - said.log_softmax(1))).sum(1).mean().item(),
                }
            )
            fast[way] = made.fast or (lambda _, made=made: made.predict)
        for way, size, milliseconds in _latency(fast, images[0][0], rounds):
            next(row for row in rows if row["way"] == way)[f"ms_{size}"] = milliseconds
    return rows


@torch.no_grad()
def _logits(predict: Predict, images: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """float [n, K]."""
    return torch.cat([predict(batch).float() for batch, _ in images])


@torch.no_grad()
def _latency(ways: dict[str, Any], images: Tensor, rounds: int) -> list[tuple[str, int, float]]:
    """(way, batch, milliseconds a batch): every way runs for a moment in every round."""
    found: dict[tuple[str, int], list[float]] = {}
    for size in BATCHES if rounds else ():
        batch = images[:size].contiguous()
        ready = {way: make(size) for way, make in ways.items()}
        for predict in ready.values():
            predict(batch)
        for _ in range(rounds):
            for way, predict in ready.items():
                times: list[float] = []
                while sum(times) < 0.3 or len(times) < 5:
                    begun = time.perf_counter()
                    predict(batch)
                    times.append(time.perf_counter() - begun)
                found.setdefault((way, size), []).append(1e3 * statistics.median(times))
    return [(way, size, statistics.median(times)) for (way, size), times in found.items()]


def _in_float(given: Given, folder: Path) -> Made:
    return Made(given.folded.model, given.onnx.stat().st_size)


def _float_onnx(given: Given, folder: Path) -> Made:
    return _onnx(given.onnx)


def _packed(bits: int, integer: bool, given: Given, folder: Path) -> Made:
    """Ours: `bits` everywhere, or by sensitivity at the bytes of that; as a packed file, or as ONNX in int8."""
    folded = given.folded
    chosen: Any = dict.fromkeys(layers(folded.model), bits)
    if bits < 8:
        budget = predicted_bytes(folded.model, chosen)
        losses = sensitivities(folded.model, folded.calibration, seed=given.draw)
        chosen = front_of(folded.model, losses, {}).within(budget).bits
    quantized = folded.rounded(chosen)
    model, size = folded.read_back(quantized, {})
    if not integer:
        return Made(model.eval(), size)
    proto = float_graph(replace(given.trained, model=model), model.eval())
    plan = qdq.plan(proto, quantized.codes)
    graph = qdq.int8_graph(proto, plan, ranges(proto, plan.observed, given.calibration, "mse"))
    file = folder / "int8.onnx"
    file.write_bytes(checked(graph))
    return _onnx(file)


def _onnx(file: Path) -> Made:
    session = open_session(file.read_bytes(), threads=1)
    name = session.get_outputs()[0].name
    return Made(lambda images: torch.from_numpy(run(session, images.numpy())[name]), file.stat().st_size)


def _onnxruntime(method: str, given: Given, folder: Path) -> Made:
    """onnxruntime's static quantization, QDQ, a scale for each output channel."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter([one[None].numpy() for batch in given.calibration for one in batch])

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore
            one = next(self._left, None)
            return None if one is None else {"images": one}

    ready, file = folder / "ready.onnx", folder / "int8.onnx"
    quant_pre_process(str(given.onnx), str(ready))
    quantize_static(
        str(ready),
        str(file),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )
    return _onnx(file)


def _pt2e(given: Given, folder: Path) -> Made:
    """PyTorch 2 export quantization for x86, run by Inductor where time counts."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    size = given.trained.image_size
    shown = (torch.zeros(2, 3, size, size, dtype=torch.uint8),)
    dynamic = ({0: torch.export.Dim("batch")},)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    whole = Plain(copy.deepcopy(given.trained.model)).eval()  # it folds BatchNorm itself, and knows no folded ResNet
    prepared = prepare_pt2e(torch.export.export(whole, shown, dynamic_shapes=dynamic, strict=True).module(), quantizer)
    with torch.no_grad():
        for batch in given.calibration:
            prepared(batch)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    file = folder / "model.pt2"
    torch.export.save(torch.export.export(converted, shown, dynamic_shapes=dynamic), file)

    def compiled(_: int) -> Predict:
        import torch._inductor.config as inductor

        inductor.freezing = True
        torch.compiler.reset()
        return torch.compile(converted)

    return Made(converted, file.stat().st_size, compiled)


def _nncf(given: Given, folder: Path) -> Made:
    """OpenVINO's post-training quantization."""
    import nncf
    import openvino

    shown = nncf.Dataset([one[None].numpy() for batch in given.calibration for one in batch])
    quantized = nncf.quantize(openvino.convert_model(given.onnx), shown, subset_size=sum(map(len, given.calibration)))
    file = folder / "model.xml"
    openvino.save_model(quantized, file)
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": 1})
    size = sum(one.stat().st_size for one in (file, file.with_suffix(".bin")))
    return Made(lambda images: torch.from_numpy(compiled(images.numpy())[0].copy()), size)


def _quanto(bits: int, activations: bool, given: Given, folder: Path) -> Made:
    """Weights of 8 or 4 bits, or activations of 8 too; the convolutions run in float."""
    from optimum.quanto import Calibration, freeze, qint4, qint8, quantize
    from safetensors.torch import save_file

    model = given.model
    quantize(model, weights={8: qint8, 4: qint4}[bits], activations=qint8 if activations else None)
    with Calibration() if activations else nullcontext(), torch.no_grad():
        for batch in given.calibration if activations else ():
            model(batch)
    freeze(model)
    file = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    return Made(model, file.stat().st_size)


def _brevitas(bits: int, given: Given, folder: Path) -> Made:
    """Graph mode: weights of `bits` for each channel, activations of 8, ranges and biases by calibration. It writes no
    packed file.
    """
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas_examples.imagenet_classification.ptq.ptq_common import quantize_model

    model = given.model
    body = quantize_model(
        preprocess_for_quantize(model.body, trace_model=True),
        backend="fx",
        weight_bit_width=bits,
        act_bit_width=8,
        bias_bit_width=32,
        weight_quant_granularity="per_channel",
        act_quant_percentile=99.999,
        act_quant_type="asym",
        scale_factor_type="float_scale",
        quant_format="int",
        weight_param_method="mse",
    )
    with torch.no_grad():
        for mode in (calibration_mode, bias_correction_mode):
            with mode(body):
                for batch in given.calibration:
                    body(model.normalised(batch))
    model.body = body.eval()
    return Made(model, None)


WAYS: dict[str, Callable[[Given, Path], Made]] = {
    FLOAT: _in_float,
    "float, onnxruntime": _float_onnx,
    "xfer, 8 bits": partial(_packed, 8, False),
    "xfer, 6 bits": partial(_packed, 6, False),
    "xfer, 4 bits": partial(_packed, 4, False),
    "xfer, 3 bits": partial(_packed, 3, False),
    "xfer int8, 8 bits": partial(_packed, 8, True),
    "xfer int8, 4 bits": partial(_packed, 4, True),
    "onnxruntime, minmax": partial(_onnxruntime, "MinMax"),
    "onnxruntime, percentile": partial(_onnxruntime, "Percentile"),
    "onnxruntime, entropy": partial(_onnxruntime, "Entropy"),
    "torchao PT2E": _pt2e,
    "NNCF, OpenVINO": _nncf,
    "quanto, 8 bits": partial(_quanto, 8, False),
    "quanto, 4 bits": partial(_quanto, 4, False),
    "quanto, 8 bits, activations too": partial(_quanto, 8, True),
    "quanto, 4 bits, activations too": partial(_quanto, 4, True),
    "Brevitas, 8 bits": partial(_brevitas, 8),
    "Brevitas, 4 bits": partial(_brevitas, 4),
}


def _report(options: argparse.Namespace, rows: list[Row], recipe: Recipe) -> str:
    timed = options.rounds > 0
    lines = [
        "# Quantized here and elsewhere",
        "",
        f"    python -m benchmarks.quant_peers RUN --calibration {options.calibration} --draws {options.draws} "
        f"--share {options.share:g} --rounds {options.rounds} --name {options.name}",
        "",
        f"Commit {commit()}, {platform.machine()}, one core, torch {torch.__version__}, "
        f"{', '.join(Path(__file__).with_suffix('.txt').read_text().split())}. Run: {recipe.name}, "
        f"{', '.join(one.backbone for one in recipe.model.branches.values())}, {recipe.data.image_size} px, trained "
        f"for {recipe.steps} steps; accuracy in float {100 * rows[0]['float']:.1f} % on {rows[0]['images']:,} images "
        f"of the report half. Means of {options.draws} draws of the calibration images ± half of the 95 % t-interval; "
        "CPU s: to make it, most of a draw.",
        "",
        f"| way | MB | points against float | the same answer, % | divergence, nats | CPU s |{_heads(timed)}",
        "|---|---|---|---|---|---|" + "---|" * len(BATCHES) * timed,
    ]
    for way in options.ways:
        own = [row for row in rows if row["way"] == way]
        if failed := next((row["failed"] for row in own if "failed" in row), None):
            lines.append(f"| {way} | - | fails: {failed} | | | |{' |' * len(BATCHES) * timed}")
            continue
        size = "-" if own[0]["bytes"] is None else f"{statistics.fmean(row['bytes'] for row in own) / 1e6:.2f}"
        times = "".join(f" {own[0][f'ms_{size}']:.1f} |" for size in BATCHES) if timed else ""
        lines.append(
            f"| {way} | {size} | {cell([100 * row['difference'] for row in own], signed=True)} "
            f"| {cell([100 * row['agrees'] for row in own], signed=False)} "
            f"| {statistics.fmean(row['nats'] for row in own):.4f} | {max(row['cpu_s'] for row in own):.0f} |{times}"
        )
    lines += ["", "Raw rows: way, draw, bytes, difference, agreement, nats, CPU s:", "", "```"]
    lines += [
        f"{r['way']!r} {r['draw']} {r['bytes']} {r['difference']:+.5f} {r['agrees']:.5f} {r['nats']:.6f} {r['cpu_s']}"
        for r in rows
        if "failed" not in r
    ]
    return "\n".join([*lines, "```", ""])


def _heads(timed: bool) -> str:
    return "".join(f" ms, batch of {size} |" for size in BATCHES) if timed else ""


if __name__ == "__main__":
    main()
