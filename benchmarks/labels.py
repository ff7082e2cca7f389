"""Are the right pairs of classes proposed, and what is a joined label space worth?

    python -m benchmarks.labels --clothing shards/clothing --pacs shards/pacs --weights resnet18.safetensors

Clothing (10 classes, split train) is cut into two sources by a draw of the seed. One keeps its names; in the other
three are spelt otherwise, three stand in another language, one is as it was, one class is divided in two at random, and
two are joined into one: ten pairs to find. Features are those of a frozen ImageNet ResNet-18.

Proposals are scored as (class, class, relation), with names alone, images alone (cross-prediction) and both. Then a
linear head is fitted on both sources under the space that each makes if every proposal is accepted as it is, with
exactly equal names alone, and with the true map, and scored on the split test, whose classes have the first source's
names: among all classes of the model, where an answer in the other source's name is wrong unless the space says that it
is the same, and among the first source's own.

PACS has the same seven classes in each domain: with names blanked, all seven should be proposed for two domains, and
three of them where each has five classes, three in common.

Writes benchmarks/results/labels.md, with 95 % t-intervals over the seeds.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.record import cell, commit
from shards.labels import LabelsConfig, LabelSpace, PairConfig, label_space
from shards.loading.open import open_data
from shards.progress import progress
from xfer.begin import initial_model
from xfer.config import Recipe
from xfer.labels import is_right
from xfer.transfer.alike import agreement, known
from xfer.transfer.linear import fit_linear
from xfer.transfer.pairs import samples_of
from xfer.transfer.propose import Proposal, propose

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
OTHER = {
    "hat": "Hats",
    "shoes": "shoe",
    "t-shirt": "T_Shirts",
    "longsleeve": "Langarm",
    "shirt": "Hemd",
    "skirt": "jupe",
    "outwear": "outwear",
    "pants": "trousers",
    "shorts": "trousers",
}
HALVES = ("gown", "frock")  # of dress
ARMS = ("exact names", "names", "images", "both", "true map")
PENALTY = 1e-2  # of every head
IMAGES = 1536  # of a domain of PACS at most
RESULT = Path(__file__).parent / "results" / "labels.md"
Source = tuple[Sequence[str], Tensor, Tensor]  # class names, features [n, d], labels [n]
Relation = tuple[str, str, str]


class Row(NamedTuple):
    """Of one seed and arm: proposals that are true, proposals, true pairs; accuracy among all classes, and among those
    of the first source.
    """

    arm: str
    seed: int
    right: int
    proposed: int
    true: int
    of_all: float
    of_its_own: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clothing", type=Path, required=True, help="built clothing, with the splits train and test")
    parser.add_argument("--pacs", type=Path, required=True, help="built PACS, a folder a domain")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/labels"))
    options = parser.parse_args()
    splits = {split: {"path": str(options.clothing.resolve()), "split": split} for split in ("train", "test")}
    domains = {name: {"path": str(options.pacs.resolve() / name)} for name in DOMAINS}
    cache = options.out / ".features"
    clothing = frozen_features(splits, options.weights, options.image_size, 4096, cache)
    pacs = frozen_features(domains, options.weights, options.image_size, IMAGES, cache)
    started, rows, found = time.process_time(), [], []
    with progress("seeds and domains", options.seeds + len(list(combinations(DOMAINS, 2))), "done") as advance:
        for seed in range(options.seeds):
            rows += _rows(clothing["train"], clothing["test"], seed)
            advance()
        for one, other in combinations(DOMAINS, 2):
            found += [(one, other, *_blanked(pacs[one], pacs[other], part)) for part in (False, True)]
            advance()
    RESULT.write_text(_report(options, rows, found, time.process_time() - started))
    print(f"written: {RESULT}")


def frozen_features(
    sources: dict[str, dict[str, str]], weights: Path, image_size: int, most: int, cache: Path
) -> dict[str, Source]:
    """Of a ResNet-18, of at most so many images of each source."""
    data = {"sources": sources, "validation": 0, "image_size": image_size}
    branch = {"backbone": "resnet18", "weights": str(weights.resolve())}
    recipe = Recipe.model_validate({"data": data, "model": {"branches": {"main": branch}}})
    opened = open_data(recipe.data)
    model, _ = initial_model(recipe, opened)
    found = samples_of(model, opened.train, opened.classes, recipe.data, most, cache)
    return {one.subset.name: (opened.classes, one.features, one.labels) for one in found}


def _divided(source: Source, seed: int) -> tuple[Source, Source]:
    """Two sources of one, the second under other names."""
    names, x, labels = source
    generator = torch.Generator().manual_seed(seed)
    first, half = (torch.rand(len(labels), generator=generator) < 0.5 for _ in range(2))
    called = [
        HALVES[int(half[i])] if names[label] == "dress" else OTHER[names[label]]
        for i, label in enumerate(labels.tolist())
    ]
    theirs = sorted(set(called))
    places = torch.tensor([theirs.index(name) for name in called])
    return (names, x[first], labels[first]), (theirs, x[~first], places[~first])


def _truth() -> list[Relation]:
    """What a person who knows would say: (of a, of b, what the first is of the second)."""
    same = [(name, other, "same") for name, other in OTHER.items() if other not in ("trousers", name)]
    parts = [(name, "trousers", "part_of") for name in ("pants", "shorts")]
    return [*same, *parts, *((half, "dress", "part_of") for half in HALVES)]


def _space(pairs: Sequence[PairConfig], a: Source, b: Source) -> LabelSpace:
    return label_space(LabelsConfig(pairs=tuple(pairs)), {"a": a[0], "b": b[0]})


def _pair(first: str, second: str, verdict: str) -> PairConfig:
    ends = ({"b": first}, {"a": second}) if first in HALVES else ({"a": first}, {"b": second})
    return PairConfig.model_validate({"a": ends[0], "b": ends[1], "verdict": verdict})


def _rows(train: Source, test: Source, seed: int) -> list[Row]:
    a, b = _divided(train, seed)
    heads = {"a": known(*a), "b": known(*b)}
    classes = {"a": a[0], "b": b[0]}
    found: dict[str, list[Proposal]] = {
        "exact names": [],
        "names": propose(classes, {})[0],
        "images": propose(classes, heads, names=False)[0],
        "both": propose(classes, heads)[0],
    }
    truth = _truth()
    rows = []
    for arm in ARMS:
        if arm == "true map":
            said, pairs = set(truth), [_pair(*one) for one in truth]
        else:
            said = {(one.a[1], one.b[1], one.proposed) for one in found[arm]}
            pairs = [one.pair(accept=True) for one in found[arm]]
        right = len([one for one in truth if one in said or (one[2] == "same" and (one[1], one[0], "same") in said)])
        rows.append(Row(arm, seed, right, len(said), len(truth), *_accuracies(_space(pairs, a, b), a, b, test)))
    return rows


def _accuracies(space: LabelSpace, a: Source, b: Source, test: Source) -> tuple[float, float]:
    """Of a head that is fitted on both sources under a label space, on images with the names of the first."""
    names = {name for by_source in space.names.values() for name in by_source.values()}
    classes = sorted(names - set(space.parts))

    def sets(source: str, own: Sequence[str]) -> Tensor:
        """[classes of the source, K] bool."""
        of = [space.names[source][name] for name in own]
        return torch.tensor([[one in space.parts.get(name, (name,)) for one in classes] for name in of])

    x, targets, masks = [], [], []
    for source, (own, features, labels) in (("a", a), ("b", b)):
        of = sets(source, own)
        x.append(features)
        targets.append(of[labels])
        masks.append(of.any(0).expand(len(labels), -1))
    weight, bias = fit_linear(torch.cat(x), torch.cat(targets), torch.cat(masks), PENALTY)
    own = sets("a", test[0])
    logits = test[1] @ weight.T + bias
    among = logits.masked_fill(~own.any(0), -torch.inf)
    found = [is_right(one.argmax(1), own[test[2]]).double().mean().item() for one in (logits, among)]
    return found[0], found[1]


def _blanked(one: Source, other: Source, part: bool) -> tuple[bool, int, int, int]:
    """By images alone, of two domains whole, or with five classes each: proposals that are true, proposals, classes in
    common.
    """
    names = one[0]
    first, second = (names[:5], names[2:]) if part else (names, names)
    found = [pair for pair in agreement(_only(one, first), _only(other, second)) if pair.says]
    right = sum(pair.a == pair.b and pair.says == "same" for pair in found)
    return part, right, len(found), len(set(first) & set(second))


def _only(source: Source, names: Sequence[str]):
    own, x, labels = source
    places = torch.tensor([names.index(name) if name in names else -1 for name in own])[labels]
    return known(names, x[places >= 0], places[places >= 0])


def _report(
    options: argparse.Namespace, rows: list[Row], blanked: list[tuple[str, str, bool, int, int, int]], seconds: float
) -> str:
    lines = [
        "# One label space",
        "",
        "    python -m benchmarks.labels --clothing SHARDS --pacs SHARDS --weights RESNET18 "
        f"--image-size {options.image_size} --seeds {options.seeds}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, torch {torch.__version__}, {seconds:.0f} s of "
        f"CPU beside the features. Clothing in two sources, the second under other names (3 spelt otherwise, 3 in "
        f"another language, 1 divided, 2 joined: {len(_truth())} pairs); frozen ImageNet ResNet-18 at "
        f"{options.image_size} px. Accuracy (%) of a linear head on both under the space that the proposals make if "
        f"all are accepted, on the split test; ± is half of the 95 % t-interval over {options.seeds} seeds, which draw "
        "the two sources; the difference is paired by seed. The test images have the first source's names: "
        "among all classes an answer by a name of the second is wrong unless the space says that it is the same.",
        "",
        "| evidence | precision (%) | recall (%) | among all classes | less exact names | among the first's own | less "
        "exact names |",
        "|---|---|---|---|---|---|---|",
    ]
    by_arm = {arm: [row for row in rows if row.arm == arm] for arm in ARMS}
    for arm, found in by_arm.items():
        none = by_arm["exact names"]
        cells = ["", ""]
        if arm not in ("exact names", "true map"):
            cells = [cell([100 * one.right / max(1, one.proposed) for one in found], False)]
            cells.append(cell([100 * one.right / one.true for one in found], False))
        for key in ("of_all", "of_its_own"):
            values = [100 * getattr(one, key) for one in found]
            less = [100 * (getattr(a, key) - getattr(b, key)) for a, b in zip(found, none, strict=True)]
            cells += [cell(values, False), cell(less, True) if arm != "exact names" else ""]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += [
        "",
        f"PACS with names blanked, by images alone, {IMAGES:,} images of a domain at most: true proposals of all "
        "proposals, and classes in common; all seven classes in both domains, then five in each, three in common:",
        "",
        "| domains | all seven | three in common |",
        "|---|---|---|",
    ]
    for one, other in combinations(DOMAINS, 2):
        of = {part: f"{right} of {said}; {true}" for a, b, part, right, said, true in blanked if (a, b) == (one, other)}
        lines.append(f"| {one}, {other} | {of[False]} | {of[True]} |")
    lines += ["", "Raw rows: evidence, seed, true proposals, proposals, true pairs, accuracies:", "", "```"]
    lines += [f"{r.arm} | {r.seed} {r.right} {r.proposed} {r.true} {r.of_all:.4f} {r.of_its_own:.4f}" for r in rows]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    main()
