"""Exported files: made, compared with the model, and only then put where they belong.

In a bundle they are listed in its manifest like its other files. A bundle that is made again has none of them: they
were of other weights.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shards.format.whole import whole_file
from shards.settings import ConfigError
from shards.text import counted
from xfer.bundle import Trained, add_files, check_replaceable, is_bundle
from xfer.export import decode
from xfer.export.check import Difference, difference
from xfer.export.images import Images
from xfer.export.onnx_model import OnnxModel
from xfer.export.session import FLOAT, INTEGER, check_installed, open_session, products
from xfer.heads.known import is_two_stage
from xfer.quant.fold import fold

if TYPE_CHECKING:
    from xfer.export.observe import Observer
    from xfer.export.qdq import Plan

FLOAT_FILE, INT8_FILE, DECODE_FILE = "model.onnx", "model.int8.onnx", "decode.py"
NEAR = 1e-3  # of the largest number of an output: how far a file in float may be from the model
_RANDOM = 3  # images


@dataclass(frozen=True)
class Exported:
    """path: the file; beside: of how to read its answers, or None; apart: how far it is from the model; model: the file
    in the model's place; notes: what else there is to say, a line each.
    """

    path: Path
    beside: Path | None
    apart: Difference
    model: nn.Module
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """For people."""
        apart = self.apart
        lines = [
            f"written: {self.path} ({os.path.getsize(self.path):,} bytes)",
            *([f"         {self.beside}: what its outputs mean, in NumPy"] if self.beside else []),
            f"compared with it on {counted(apart.images, 'image')}: {100 * apart.agreement:.1f} % of the answers "
            f"are the same, numbers differ by {apart.largest:.2g} at most ({100 * apart.relative:.2g} % of largest)",
            *self.notes,
        ]
        return "\n".join(lines)


def check_export(trained: Trained, out: Path | None, name: str) -> Path:
    """Where the file goes: `out`, or `name`, of `FLOAT_FILE` and `INT8_FILE`, beside the weights. Raises ConfigError
    with why nothing can be exported there.
    """
    check_installed()
    if is_two_stage(trained.model.kind):
        raise ConfigError(
            f"{trained.path}: has the head {trained.model.kind}, which cannot be exported: it chooses how many places "
            "of an image it looks at again, and a graph for any batch cannot; the heads fcos and retinanet can be"
        )
    if name == INT8_FILE and not (trained.codes and is_bundle(trained.path)):
        what = "the codes of a bundle" if trained.codes is None else "a bundle in which a layer has codes"
        raise ConfigError(f"{trained.path}: --int8 needs {what}; make one with xfer quantize")
    broken = [name for name, value in trained.model.state_dict().items() if not bool(value.isfinite().all())]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ConfigError(
            f"{trained.path}: its weights are not finite, so there is nothing to export: {broken[0]}{more}"
        )
    if trained.model.tile:
        raise ConfigError(
            f"{trained.path}: it sees its images in tiles (model.tile), and a graph sees a whole one; a model without "
            "tiles can be exported"
        )
    target = out or trained.path / name
    if target.suffix != ".onnx":
        raise ConfigError(f"{target}: must end with .onnx")
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: there is no folder {target.parent}")
    if is_bundle(target.parent) and not (_inside(trained, target) and target.name == name):
        raise ConfigError(f"{target}: lies in a bundle, which takes {name} of its own weights alone; give another name")
    if _inside(trained, target):
        check_replaceable(trained.path)
    folder = target.parent.absolute().parent if _inside(trained, target) else target.parent
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{target}: the folder {folder} cannot be written to")
    beside = _beside(trained, target)
    if beside and beside.exists() and not beside.read_text(errors="replace").startswith(_opening()):
        raise ConfigError(f"{beside}: exists and is none of ours; it is left alone, give another folder than its")
    return target


def export_float(trained: Trained, target: Path) -> Exported:
    """The model in float, where `check_export` said. Raises ConfigError, also if onnxruntime gives other numbers than
    torch.
    """
    from xfer.export.graph import checked, float_graph

    model = _ready(trained)
    data = checked(float_graph(trained, model))
    other, seen = OnnxModel(open_session(data), trained.model.task), _random_images(trained)
    alone, apart = (difference(trained, model, other, some) for some in (seen[:1], seen))
    worst = max(alone.relative, apart.relative)
    if not worst <= NEAR:
        raise ConfigError(
            f"{target}: what onnxruntime makes of it differs from the model by {worst:.2g} of the largest number (at "
            f"most {NEAR:g}): nothing is written"
        )
    return _place(
        trained, target, data, Exported(target, _beside(trained, target), apart, other, tuple(_side_notes(trained)))
    )


def export_int8(
    trained: Trained, target: Path, images: Images, observer: "Observer" = "mse", least: float = 0.9
) -> Exported:
    """The model of a bundle in int8, where `check_export` said. least: the agreement that is asked for, 0 to 1.

    Raises ConfigError, also if its answers agree less than `least`; RuntimeError if a code is not that of the bundle.
    """
    from xfer.export import qdq
    from xfer.export.graph import checked, described, float_graph, name_properties
    from xfer.export.observe import ranges

    assert trained.codes
    model = _ready(trained)
    in_float = float_graph(trained, model)
    made = qdq.plan(in_float, trained.codes)
    proto = qdq.int8_graph(in_float, made, ranges(in_float, made.observed, images.calibration, observer))
    name_properties(proto, {**described(trained), "observer": observer, "bits": json.dumps(trained.bits)})
    count, different = qdq.different_codes(proto, trained.codes)
    if different:
        raise RuntimeError(f"{target}: {different:,} of {count:,} codes are not the bundle's; nothing is written")
    data = checked(proto)
    other = OnnxModel(open_session(data), trained.model.task)
    apart = difference(trained, model, other, images.seen)
    if not apart.agreement >= least:
        raise ConfigError(
            f"{target}: in int8 {100 * apart.agreement:.1f} % of the answers are the model's, and --agreement asks "
            f"for {100 * least:g} %; nothing is written. More bits, more images or another --observer may help"
        )
    notes = (f"codes: {count:,}, all of them the bundle's", *_integer_notes(data, made), *_side_notes(trained))
    return _place(trained, target, data, Exported(target, _beside(trained, target), apart, other, notes))


def _ready(trained: Trained) -> nn.Module:
    """Its model in evaluation mode, folded."""
    return trained.model.eval() if trained.codes is not None else fold(trained.model)


def _random_images(trained: Trained) -> Tensor:
    """uint8 [3, 3, S, S]."""
    shape = (_RANDOM, 3, trained.image_size, trained.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _integer_notes(data: bytes, made: "Plan") -> list[str]:
    """What runs in integers, and what does not and why."""
    counts, in_float = products(data)
    kinds = [_counts({kind: n for kind, n in counts.items() if kind in some}) for some in (INTEGER, FLOAT)]
    why: Counter[str] = Counter()
    for name in in_float:
        weight = made.layers.get(name)
        if weight is None:
            why["without codes of its own (32 bits)"] += 1
        elif weight.layers[0] not in made.why_float:
            why[f"{weight.layers[0]}: gives the answer, which is not rounded"] += 1
    return [
        f"in integers on this CPU: {kinds[0]}; in float: {kinds[1]}",
        *(f"  in float: {n} x {reason}" for reason, n in why.items()),
        *(f"  in float: {layer}: {reason}" for layer, reason in made.why_float.items()),
    ]


def _side_notes(trained: Trained) -> list[str]:
    side = trained.model.side
    return [f"it sees images alone: side inputs ({', '.join(side.fields)}) count as missing"] if side else []


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(found.items())) or "nothing"


def _inside(trained: Trained, target: Path) -> bool:
    """Whether the file becomes a part of its bundle."""
    return is_bundle(trained.path) and target.resolve().parent == trained.path.resolve()


def _beside(trained: Trained, target: Path) -> Path | None:
    """Where what reads its answers lies; None: its answers are logits of classes, which need no reading."""
    return None if trained.model.task == "classification" else target.with_name(DECODE_FILE)


def _opening() -> str:
    """By which a decode.py is known as ours."""
    return Path(decode.__file__).read_text().partition("\n")[0]


def _place(trained: Trained, target: Path, data: bytes, exported: Exported) -> Exported:
    """Has the files written where they belong, whole or not at all."""
    files: dict[str, Callable[[Path], object]] = {target.name: lambda draft: draft.write_bytes(data)}
    if exported.beside:
        text = Path(decode.__file__).read_text()
        files = {exported.beside.name: lambda draft: draft.write_text(text), **files}
    if _inside(trained, target):
        add_files(trained.path, files)
        return exported
    for name, write in files.items():
        with whole_file(target.with_name(name)) as draft:
            write(draft)
    return exported
