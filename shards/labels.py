"""One label space over sources whose class names disagree: a person's verdicts on pairs of classes, and what they make.

    pairs:
    - {a: {amazon: back_pack}, b: {caltech: backpack}, verdict: same}          # one class
    - {a: {pets: poodle}, b: {street: dog}, verdict: part_of}                  # a is a part of b
    - {a: {birds: crane}, b: {machines: crane}, verdict: different}            # though the names are equal

Without a verdict classes are one exactly if their names are equal. `same` joins classes into one, over chains; it is
called `name` where a pair says so, else as the `a` of its first pair in the file, so pairs that are added rename
nothing. Equal names that are different get the name of a source behind them. A class with parts is no class of its own
but the set of its parts, so there are two of them or more.

Nothing is joined silently: `undecided` is as if the pair were not there.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from shards.settings import ConfigError, Strict, load

Verdict = Literal["same", "part_of", "different", "undecided"]
Node = tuple[str, str]
"""A source and a class of it."""
Side = Annotated[dict[str, str], Field(min_length=1, max_length=1)]


class PairConfig(Strict):
    """What a person says of two classes of different sources."""

    a: Side
    """A source and one of its classes."""
    b: Side
    """A class of another source."""
    proposed: Literal["same", "part_of", "different"] | None = None
    """What `xfer labels propose` took them for; it decides nothing."""
    verdict: Verdict = "undecided"
    """same; part_of: a is a part of b; different; undecided: as if the pair were not there."""
    name: str | None = Field(default=None, min_length=1)
    """Of `same`: what the class is called."""

    @property
    def ends(self) -> tuple[Node, Node]:
        return next(iter(self.a.items())), next(iter(self.b.items()))


def _as_tuple(given: Any) -> Any:
    """Strict types want one, once a file was read in place of its name."""
    return tuple(given) if isinstance(given, list) else given


class LabelsConfig(Strict):
    """A labels.yaml."""

    pairs: Annotated[tuple[PairConfig, ...], BeforeValidator(_as_tuple)] = ()
    """Each pair of classes once."""

    @property
    def decided(self) -> dict[tuple[str, str], str]:
        """The verdicts by pair, in words."""
        found = {}
        for pair in self.pairs:
            if pair.verdict != "undecided":
                a, b = map(shown, pair.ends)
                found[a, b] = f"{pair.verdict}, called {pair.name}" if pair.name else pair.verdict
        return found


def _read(given: Any) -> Any:
    """The path of a file becomes what is in it, so that a run folder keeps the verdicts themselves."""
    if not isinstance(given, str):
        return given
    try:
        return load(given, LabelsConfig).model_dump(mode="json")
    except ConfigError as error:
        raise ValueError(str(error)) from None


Labels = Annotated[LabelsConfig | None, BeforeValidator(_read)]


@dataclass(frozen=True)
class LabelSpace:
    """names: by source, the name in the space of each of its classes; parts: by the name of a class that has parts,
    those of them that have none, sorted; undecided: how many pairs.
    """

    names: Mapping[str, Mapping[str, str]]
    parts: Mapping[str, tuple[str, ...]]
    undecided: int = 0


def shown(node: Node) -> str:
    """`back_pack of amazon`."""
    return f"`{node[1]}` of {node[0]}"


def label_space(labels: LabelsConfig, classes: Mapping[str, Sequence[str]], others: Sequence[str] = ()) -> LabelSpace:
    """What the verdicts make of these classes by source. `others`: sources whose classes are not known, whose pairs are
    passed over. Raises ConfigError with every fault.
    """
    known = [pair for pair in labels.pairs if not {source for source, _ in pair.ends} & set(others)]
    faults = list(_unknown(labels, classes, others)) + list(_given_twice(labels))
    sound = [pair for pair in known if all(name in classes.get(source, ()) for source, name in pair.ends)]
    groups = _Groups(sound, classes)
    faults += groups.contradictions()
    parts, of_parts = _parts(sound, groups)
    faults += of_parts
    if faults:
        raise ConfigError(faults)
    names = groups.names()
    leaves = {names[whole]: tuple(sorted(names[leaf] for leaf in found)) for whole, found in parts.items()}
    by_source = {source: {name: names[groups.of(source, name)] for name in own} for source, own in classes.items()}
    return LabelSpace(by_source, leaves, sum(pair.verdict == "undecided" for pair in labels.pairs))


def _unknown(labels: LabelsConfig, classes: Mapping[str, Sequence[str]], others: Sequence[str]) -> Iterator[str]:
    for place, pair in enumerate(labels.pairs):
        for end, (source, name) in zip("ab", pair.ends, strict=True):
            where = f"pairs.{place}.{end}"
            if source in others:
                continue
            if source not in classes:
                yield f"{where}: no source is called {source!r}; {_close(source, [*classes, *others])}"
            elif name not in classes[source]:
                yield f"{where}: {source} has no class {name!r}; {_close(name, classes[source])}"
        if pair.ends[0][0] == pair.ends[1][0]:
            yield f"pairs.{place}: both are classes of {pair.ends[0][0]}, which tells them apart; compare two sources"
        if pair.name and pair.verdict != "same":
            yield f"pairs.{place}.name: is for the verdict same, got {pair.verdict}"


def _close(name: str, there: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, there, n=1)
    listed = ", ".join(sorted(there)[:12]) + (", ..." if len(there) > 12 else "")
    return f"did you mean {found[0]!r}?" if found else f"there are {listed}"


def _given_twice(labels: LabelsConfig) -> Iterator[str]:
    first: dict[frozenset[Node], int] = {}
    for place, pair in enumerate(labels.pairs):
        before = first.setdefault(frozenset(pair.ends), place)
        if before != place:
            a, b = map(shown, pair.ends)
            yield f"pairs.{place}: {a} and {b} stand in pairs.{before} already; keep one of them"


class _Groups:
    """Classes that are one: a forest of joined nodes."""

    def __init__(self, pairs: Sequence[PairConfig], classes: Mapping[str, Sequence[str]]):
        self.pairs = pairs
        self.nodes = [(source, name) for source, own in classes.items() for name in own]
        self._up = {node: node for node in self.nodes}
        apart = {frozenset(pair.ends) for pair in pairs if pair.verdict in ("different", "part_of")}
        by_name: dict[str, list[Node]] = {}
        for node in self.nodes:
            by_name.setdefault(node[1], []).append(node)
        for alike in by_name.values():
            for i, one in enumerate(alike):
                for other in alike[i + 1 :]:
                    if frozenset((one, other)) not in apart:
                        self._join(one, other)
        for pair in pairs:
            if pair.verdict == "same":
                self._join(*pair.ends)

    def of(self, *node: str) -> Node:
        """What stands for the group of a node."""
        found: Node = (node[0], node[1])
        while self._up[found] != found:
            self._up[found] = found = self._up[self._up[found]]
        return found

    def _join(self, one: Node, other: Node) -> None:
        self._up[self.of(*other)] = self.of(*one)

    def members(self) -> dict[Node, list[Node]]:
        found: dict[Node, list[Node]] = {}
        for node in self.nodes:
            found.setdefault(self.of(*node), []).append(node)
        return found

    def contradictions(self) -> list[str]:
        """What cannot all hold."""
        faults = []
        for members in self.members().values():
            sources = [source for source, _ in members]
            for source in sorted({one for one in sources if sources.count(one) > 1}):
                own = " and ".join(f"`{name}`" for one, name in members if one == source)
                via = ", ".join(shown(node) for node in members if node[0] != source)
                faults.append(f"{own} of {source} would be one class, both joined with {via}, and it tells them apart")
            called = {p.name for p in self.pairs if p.name and self.of(*p.ends[0]) == self.of(*members[0])}
            if len(called) > 1:
                joined = ", ".join(map(shown, members))
                faults.append(f"{joined} are one class and get {len(called)} names: {', '.join(sorted(called))}")
        for pair in self.pairs:
            a, b = pair.ends
            if pair.verdict in ("different", "part_of") and self.of(*a) == self.of(*b):
                faults.append(f"{shown(a)} and {shown(b)} are said to be {pair.verdict}, and other pairs make them one")
        return faults

    def names(self) -> dict[Node, str]:
        """The name of each group, by what stands for it; no two are equal."""
        first: dict[Node, Node] = {}
        given: dict[Node, str] = {}
        for pair in self.pairs:
            if pair.verdict == "same":
                group = self.of(*pair.ends[0])
                first.setdefault(group, pair.ends[0])
                given |= {group: pair.name} if pair.name else {}
        members = self.members()
        names = {group: given.get(group) or first.get(group, nodes[0])[1] for group, nodes in members.items()}
        listed = list(names.values())
        listing = [node for pair in self.pairs for node in pair.ends]
        for group, name in list(names.items()):
            if listed.count(name) > 1 and group not in given:
                source = next((node[0] for node in listing if self.of(*node) == group), members[group][0][0])
                names[group] = f"{name} ({source})"
        return names


def _parts(pairs: Sequence[PairConfig], groups: _Groups) -> tuple[dict[Node, set[Node]], list[str]]:
    """Of each group that has parts those of them that have none; and why that cannot be."""
    direct: dict[Node, set[Node]] = {}
    for pair in pairs:
        if pair.verdict == "part_of":
            part, whole = (groups.of(*end) for end in pair.ends)
            direct.setdefault(whole, set()).add(part)
    faults, leaves, members = [], {}, groups.members()
    for whole in direct:
        found, cycle = _below(whole, direct)
        if cycle:
            faults.append(f"{shown(whole)} would be a part of itself, by {' <- '.join(map(shown, cycle))}")
            continue
        if len(direct[whole]) < 2:
            (part,) = direct[whole]
            faults.append(
                f"{shown(whole)} has one part only, {shown(part)}: its images would all be taught as that; say what "
                "other parts it has, or same, or different"
            )
        leaves[whole] = {one for one in found if one not in direct}
        own = dict(members[whole])
        for part in sorted(found):
            for source, name in members[part]:
                if source in own:
                    faults.append(
                        f"`{name}` would be a part of `{own[source]}`, and {source} has both: it tells them apart, so "
                        "its images would teach nothing"
                    )
    faults += _overlaps(leaves, members)
    return leaves, faults


def _below(whole: Node, direct: Mapping[Node, set[Node]]) -> tuple[set[Node], list[Node]]:
    """All parts of a group, and of these; or the way that leads back to it."""
    found: set[Node] = set()
    todo = [(part, [whole, part]) for part in direct[whole]]
    while todo:
        node, way = todo.pop()
        if node == whole:
            return found, way
        if node not in found:
            found.add(node)
            todo += [(part, [*way, part]) for part in direct.get(node, ())]
    return found, []


def _overlaps(leaves: Mapping[Node, set[Node]], members: Mapping[Node, list[Node]]) -> Iterator[str]:
    """Two classes of one source that have a part in common."""
    wholes = list(leaves)
    for i, one in enumerate(wholes):
        for other in wholes[i + 1 :]:
            shared = leaves[one] & leaves[other]
            both = {source for source, _ in members[one]} & {source for source, _ in members[other]}
            if shared and both:
                part, source = shown(min(shared)), min(both)
                yield f"{part} would be a part of {shown(one)} and of {shown(other)}, which {source} tells apart"


def read_labels(path: str | Path) -> LabelsConfig:
    """A labels.yaml. Raises ConfigError with every fault of its form."""
    return load(path, LabelsConfig)
