"""Classes added to a shipped model by their names alone.

A bundle whose head is `labels` has the vectors of its classes' names; what maps these to the rows of its classifier
maps the vector of another name to a row too (xfer/heads/label_table.py). All other numbers of the model stay to the
bit. No image has a part in it, and the encoder may know nothing of meaning: what such a class is worth, only images of
it can say.
"""

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from shards.format.whole import read_json, whole_folder
from shards.settings import ConfigError, load
from xfer.bundle import ADDED, BundleRecipe, Trained, check_replaceable, is_bundle, open_model
from xfer.checkpoint import write_manifest
from xfer.encoders import ENCODERS
from xfer.heads.label_table import LabelTable
from xfer.model_config import HeadConfig
from xfer.quant.pack import is_coded, pack, read_metadata
from xfer.quant.weights import Codes, Quantized, dequantize, quantize_weight

HEAD = "head"  # the layer whose rows are the classes
ALIKE = 0.2  # cosine of two names; below it two that share no letters may be too, by their hashes
HONEST = (
    "hash-ngram knows how names are spelt and nothing of what they mean: a class that was added by its name is a guess "
    "until it is scored on images of it (xfer evaluate)"
)


@dataclass(frozen=True)
class NewClass:
    """`nearest`: the known class whose name is most alike; `cosine`: of the two names' vectors."""

    name: str
    nearest: str
    cosine: float

    def __str__(self) -> str:
        little = ": its name has about nothing in common with theirs" if self.cosine < ALIKE else ""
        return f"{self.name}: nearest by name is {self.nearest} ({self.cosine:.2f}){little}"


def add_classes(path: Path, names: Sequence[str], out: Path) -> list[NewClass]:
    """Writes the bundle `path` with these classes behind its own to `out`. Raises ConfigError with every reason why it
    cannot be done.
    """
    trained = open_model(path)
    if not is_bundle(path):
        raise ConfigError(f"{path}: is a run; classes are added to its bundle: xfer quantize {path}")
    head = load(path / "recipe.yaml", BundleRecipe).model.head
    if faults := [*_faults(trained, head), *_name_faults(trained.classes, names)]:
        raise ConfigError(faults)
    check_replaceable(out)
    assert head.encoder
    classes = (*trained.classes, *names)
    vectors = ENCODERS[head.encoder](classes)[len(trained.classes) :]
    found = _nearest(trained, names, vectors)
    quantized = _grown(trained, classes, vectors, head.delta_penalty or 0)
    listed = read_json(path / "manifest.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as draft:
        for name in listed["files"].keys() - ADDED:
            shutil.copyfile(path / name, draft / name)
        weights = path / "weights.safetensors"
        pack(quantized, draft / "weights.safetensors", read_metadata(weights), is_coded(weights))
        (draft / "labels.yaml").write_text(yaml.safe_dump({"classes": list(classes)}, allow_unicode=True))
        (draft / "card.md").write_text(_card((path / "card.md").read_text(), classes, found))
        write_manifest(draft, {key: value for key, value in listed.items() if key != "files"})
    return found


def _faults(trained: Trained, head: HeadConfig) -> list[str]:
    if trained.model.table is None:
        return [
            f"{trained.path}: has the head {trained.model.kind}, which has no table of names; a model that is trained "
            "with model.head.kind: labels has one"
        ]
    if not head.delta_penalty:
        return [
            f"{trained.path}: was trained with model.head.delta_penalty: 0, so its rows have nothing to do with names"
        ]
    return []


def _name_faults(known: Sequence[str], names: Sequence[str]) -> list[str]:
    faults = [] if names else ["NAME: give the name of a class at least"]
    for place, name in enumerate(names):
        if not name.strip():
            faults.append(f"NAME: must not be empty, got {name!r}")
        elif name in known:
            faults.append(f"{name}: is a class of this model already; it has {', '.join(known)}")
        elif name in names[:place]:
            faults.append(f"{name}: is given twice")
    return faults


def _nearest(trained: Trained, names: Sequence[str], vectors: Tensor) -> list[NewClass]:
    assert trained.model.table is not None
    cosines, places = (vectors @ trained.model.table.vectors.T).max(1)
    rows = zip(names, places.tolist(), cosines.tolist(), strict=True)
    return [NewClass(name, trained.classes[place], cosine) for name, place, cosine in rows]


@torch.no_grad()
def _grown(trained: Trained, classes: Sequence[str], vectors: Tensor, penalty: float) -> Quantized:
    """The model of `classes`, with a row for each of `vectors` [n, DIMS], the last n of them, at the bits of the
    others.
    """
    model, codes = copy.deepcopy(trained.model), dict(trained.codes or {})
    before = model.head
    assert model.table is not None
    rows, bias = model.table.named(vectors, before.weight, before.bias, penalty)
    if own := codes.get(HEAD):
        new = quantize_weight(rows, own.bits)
        codes[HEAD] = Codes(torch.cat([own.q, new.q]), torch.cat([own.scale, new.scale]), own.bits)
        rows = dequantize(new)
    model.head = nn.Linear(before.in_features, before.out_features + len(rows))
    model.head.load_state_dict({"weight": torch.cat([before.weight, rows]), "bias": torch.cat([before.bias, bias])})
    table = LabelTable(model.head.out_features)
    table.vectors.copy_(torch.cat([model.table.vectors, vectors]))
    model.table = table
    if model.side is not None:
        model.side.name(classes)
    return Quantized(model, codes)


def _card(card: str, classes: Sequence[str], found: Sequence[NewClass]) -> str:
    """With all classes in its list, and what the new ones are."""
    lines = [f"- classes: {', '.join(classes)}" if one.startswith("- classes: ") else one for one in card.splitlines()]
    added = [
        "",
        "## Added by name",
        "",
        *(f"- {one}" for one in found),
        "",
        f"No image of them was seen, and all numbers above are of the model without them. {HONEST}.",
    ]
    return "\n".join([*lines, *added]) + "\n"


def lost_files(path: Path) -> list[str]:
    """What `xfer export` added to a bundle, which is of other weights then."""
    return sorted(ADDED & read_json(path / "manifest.json")["files"].keys())
