"""Pairs of classes of different sources that a person should look at, with what speaks for each, as a labels.yaml.

Two kinds of evidence: names (xfer/spelling.py) and cross-prediction (alike.py). Where images say something, that is
proposed; where they are silent, names are, unless the images contradict them. What is proposed can be accepted as it
is: pairs are taken in the order of their evidence, and one that would join what a stronger one keeps apart is left
out. Nothing is decided here: every new pair is `undecided`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from shards.labels import LabelsConfig, Node, PairConfig, label_space
from shards.settings import ConfigError, in_one_line
from shards.text import counted, printable
from xfer.spelling import NEAR, is_kind_of, likeness, plain
from xfer.transfer.alike import LEAST, Agreement, Known, agreement

HEAD = """\
# Which classes are one? Give each pair a verdict:
#   same        a and b are one class, called as a is; or add what to call it, such as name: backpack
#   part_of     a is a part of b: poodle of dog; a class with parts has two of them or more
#   different   they stay two classes
#   undecided   as if the pair were not here
# `proposed` decides nothing. Then: xfer labels check {file} RECIPE, and in the recipe data.labels: {file}
pairs:
"""
_ALIKE = 0.5  # names less alike have nothing to say
_FEW = 10  # images of a class, below which they contradict no name


@dataclass(frozen=True)
class Proposal:
    """What a and b are taken for, a being the part. likeness: of their plain names, 1 if these are equal; agreement: of
    a and b in this order; verdict, name: what a person has said of them already.
    """

    a: Node
    b: Node
    proposed: Literal["same", "part_of", "different"]
    likeness: float
    agreement: Agreement | None = None
    verdict: str = "undecided"
    name: str | None = None

    @property
    def strength(self) -> float:
        """By which the stronger of two pairs is told."""
        found = self.agreement
        agreed = (found.there * found.back) ** 0.5 if found and found.says else 0.0
        return agreed + (1.0 if self.likeness == 1 else self.likeness / 2 if self.likeness >= NEAR else 0.0)

    def pair(self, accept: bool = False) -> PairConfig:
        """As it stands in a file; with `accept` as if a person had followed it."""
        verdict = self.proposed if accept and self.verdict == "undecided" else self.verdict
        given = {"a": dict([self.a]), "b": dict([self.b]), "proposed": self.proposed, "verdict": verdict}
        return PairConfig.model_validate(given | ({"name": self.name} if self.name else {}))

    def evidence(self) -> str:
        """In words."""
        spelt = "equal but for spelling" if self.likeness == 1 else f"{100 * self.likeness:.0f} % alike"
        spelt = "not alike" if self.likeness < _ALIKE else spelt
        said = [f"names {'equal' if self.a[1] == self.b[1] else spelt}"]
        if found := self.agreement:
            said.append(
                f"{100 * found.there:.0f} % of a called b (next {100 * found.runner_up[0]:.0f} %, "
                f"{counted(found.images[0], 'image')}), {100 * found.back:.0f} % of b called a (next "
                f"{100 * found.runner_up[1]:.0f} %, {counted(found.images[1], 'image')})"
            )
        return "; ".join(said)


def propose(
    classes: Mapping[str, Sequence[str]],
    known: Mapping[str, Known],
    before: LabelsConfig | None = None,
    names: bool = True,
) -> tuple[list[Proposal], int]:
    """Proposals by pairs of sources, the strongest first; and how many were left out because stronger ones contradict
    them. classes: by source; known: of those sources whose images are asked; before: verdicts that stand. `names`:
    whether spelling has a say. Raises ConfigError if the verdicts before contradict each other.
    """
    found: list[Proposal] = []
    for one, other in combinations(sorted(classes), 2):
        agreed: dict[tuple[str, str], Agreement] = {}
        if one in known and other in known:
            agreed = {(found.a, found.b): found for found in agreement(known[one], known[other])}
        found += _between((one, classes[one]), (other, classes[other]), agreed, names)
    said = {frozenset(pair.ends): pair for pair in (before.pairs if before else ()) if pair.verdict != "undecided"}
    accepted = [_decided(pair, found) for pair in said.values()]
    label_space(LabelsConfig(pairs=tuple(one.pair() for one in accepted)), classes)
    left_out = 0
    for unit in _units([one for one in found if frozenset((one.a, one.b)) not in said]):
        try:
            label_space(LabelsConfig(pairs=tuple(one.pair(accept=True) for one in (*accepted, *unit))), classes)
        except ConfigError:
            left_out += len(unit)
        else:
            accepted += unit
    return sorted(accepted, key=lambda one: (one.a[0], one.b[0], -one.strength)), left_out


def _between(
    one: tuple[str, Sequence[str]],
    other: tuple[str, Sequence[str]],
    agreed: Mapping[tuple[str, str], Agreement],
    names: bool,
) -> list[Proposal]:
    """Of two sources, each with its classes: pairs for which anything speaks."""
    first, second = plain(one[1]), plain(other[1])
    kinds = _kinds(one[1], other[1]) if names else {}
    found = []
    for a in one[1]:
        for b in other[1]:
            heard, like = agreed.get((a, b)), likeness(first[a], second[b])
            says = heard.says if heard else ""
            if not says and names and (like >= NEAR or (a, b) in kinds):
                says = "different" if _contradicted(heard) else "same" if like >= NEAR else kinds[a, b]
            joined = a == b and says == "same"  # already
            if joined or not says or (says == "different" and like < 1):
                continue
            proposal = Proposal((one[0], a), (other[0], b), "same", like, heard)
            found.append(_turned(proposal) if says == "has_part" else replace(proposal, proposed=says))
    return found


def _kinds(one: Sequence[str], other: Sequence[str]) -> dict[tuple[str, str], Literal["part_of", "has_part"]]:
    """Names that are two kinds or more of one name of the other source."""
    found: dict[tuple[str, str], Literal["part_of", "has_part"]] = {}
    for b in other:
        parts = [a for a in one if is_kind_of(a, b)]
        found |= {(a, b): "part_of" for a in parts if len(parts) > 1}
    for a in one:
        parts = [b for b in other if is_kind_of(b, a)]
        found |= {(a, b): "has_part" for b in parts if len(parts) > 1}
    return found


def _contradicted(heard: Agreement | None) -> bool:
    """Whether images say that equal names are two things: neither is ever called the other."""
    return heard is not None and min(heard.images) >= _FEW and max(heard.there, heard.back) < LEAST


def _turned(one: Proposal) -> Proposal:
    """The same with a and b changed: b is a part of a."""
    heard = one.agreement.turned() if one.agreement else None
    return replace(one, a=one.b, b=one.a, proposed="part_of", agreement=heard)


def _decided(pair: PairConfig, found: Sequence[Proposal]) -> Proposal:
    """A pair with a person's verdict, beside today's evidence if there is any."""
    a, b = pair.ends
    verdict = {"verdict": pair.verdict, "name": pair.name}
    for one in found:
        if (one.a, one.b) == (a, b):
            return replace(one, **verdict)
        if (one.b, one.a) == (a, b):
            return replace(_turned(one), proposed=one.proposed, **verdict)
    forms = (next(iter(plain([name]).values())) for _, name in (a, b))
    return Proposal(a, b, pair.proposed or "different", likeness(*forms), None, **verdict)


def _units(found: Sequence[Proposal]) -> list[list[Proposal]]:
    """What is accepted or left out together: all parts of one class in one source. The strongest first."""
    units: dict[object, list[Proposal]] = {}
    for one in found:
        key = (one.b, one.a[0]) if one.proposed == "part_of" else (one.a, one.b)
        units.setdefault((one.proposed == "part_of", key), []).append(one)
    return sorted(units.values(), key=lambda unit: -max(one.strength for one in unit))


def text_of(proposals: Sequence[Proposal], file: str) -> str:
    """A labels.yaml: each pair under the evidence for it."""
    lines = [HEAD.format(file=file).rstrip()] if proposals else [HEAD.format(file=file).rstrip() + " []"]
    for one in proposals:
        lines += [f"# {printable(one.evidence())}", f"- {in_one_line(one.pair().model_dump(exclude_none=True))}"]
    return "\n".join(lines) + "\n"


def rows(proposals: Sequence[Proposal]) -> list[list[str]]:
    """A table for people, its header first."""
    shown = [["a", "b", "names", "a called b", "b called a", "images", "proposed", "verdict"]]
    for one in proposals:
        likeness = f"{100 * one.likeness:.0f} %" if one.likeness >= _ALIKE else "-"
        names = "equal" if one.a[1] == one.b[1] else "spelling" if one.likeness == 1 else likeness
        heard, said = one.agreement, ["-", "-", "-"]
        if heard:
            counts = "{:,}, {:,}".format(*heard.images)
            said = [f"{100 * heard.there:.0f} %", f"{100 * heard.back:.0f} %", counts]
        ends = [printable(f"{source}: {name}") for source, name in (one.a, one.b)]
        shown.append([*ends, names, *said, one.proposed, one.verdict])
    return shown
