"""What was found more than once in words, the worst first, and every pair as a table (.csv).

Keys stand in the tars alone: each sample that is reported is read for it, in the order in which they lie there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from shards.inspect.dups.copies import KINDS, Found, Pair, Split
from shards.inspect.dups.leaks import all_pairs, contradictions, counts, cut_leaks, leaks
from shards.inspect.glance import read
from shards.text import counted, printable, short, table

_SHOWN, _GROUPS, _KEYS, _FAULTS = 12, 6, 3, 5
_LONGEST = 40
_VALIDATION = 0.1

COLUMNS = (
    "group",
    "kind",
    "distance",
    *(f"{column}_{side}" for side in "ab" for column in ("folder", "split", "shard", "key", "class")),
)
"""Of each of the two samples, in the table of all pairs."""


def report_lines(found: Found) -> list[str]:
    """The whole report."""
    leaked, contradicting = leaks(found), contradictions(found)
    lines = [*_head(found.splits), *_damage(found.splits)]
    lines += ["", *_leaks(found, leaked), "", *_contradictions(found, contradicting)]
    if found.members:
        lines += ["", *_counts(found), "", *_groups(found), "", *_advice(found, leaked, contradicting)]
    return [printable(line) for line in lines]


def csv_rows(found: Found) -> Iterator[list[str]]:
    """Every pair, a row of COLUMNS each."""
    keys = read_keys(found, (sample for members in found.members.values() for sample in members))
    for number, pair in all_pairs(found):
        sides = [cell for sample in pair[:2] for cell in _cells(found, sample, keys[sample])]
        yield [f"{number}", pair.kind, f"{pair.distance:.4f}", *sides]


def read_keys(found: Found, samples: Iterable[int]) -> dict[int, str]:
    """The keys of samples, as far as these can still be read."""
    keys, wanted = {}, sorted(set(samples))
    for split in found.splits:
        end = split.first + split.subset.num_samples
        own = [sample - split.first for sample in wanted if split.first <= sample < end]
        keys |= {split.first + i: sample.key for i, sample in read(split.subset, own)}
    return keys


def kind_and_distance(pair: Pair) -> str:
    """How two samples are the same."""
    return pair.kind if pair.kind in ("exact", "pixels") else f"{pair.kind} {pair.distance:.2f}"


def _head(splits: Sequence[Split]) -> list[str]:
    rows = [
        [split.name, "trained on" if split.trains else "held out", f"{split.subset.num_samples:,} samples"]
        for split in splits
    ]
    known = sum(split.subset.num_samples - split.hashes.taken for split in splits)
    return table(rows, 2) + ([f"{counted(known, 'sample')} had been looked at before"] if known else [])


def _damage(splits: Sequence[Split]) -> list[str]:
    faults = [(split.name, fault) for split in splits for fault in split.hashes.faults]
    if not faults:
        return []
    rows = [[name, fault.key, fault.reason] for name, fault in faults[:_FAULTS]]
    more = _more(len(faults) - _FAULTS, "`xfer shards verify` lists them all")
    return [f"DAMAGED, and left out: {counted(len(faults), 'sample')}", *table(rows, 3), *more]


def _leaks(found: Found, pairs: Sequence[Pair]) -> list[str]:
    held_out = [split for split in found.splits if not split.trains]
    if not held_out:
        return ["leaks: not looked for, all of these splits are trained on (--test FOLDER says which are not)"]
    if len(held_out) == len(found.splits):
        return ["leaks: not looked for, none of these splits is trained on"]
    if not pairs:
        return ["leaks: none, no held-out sample has a copy that is trained on"]
    lines = [f"LEAKS: {counted(len(pairs), 'held-out sample')} with a copy that is trained on"]
    for split in held_out:
        own = [pair for pair in pairs if found.splits[found.place(pair.a)] is split]
        if own:
            lines.append(f"  {split.name}: {len(own):,} of {split.subset.num_samples:,} ({_by_kind(own)})")
    return lines + _pair_lines(found, pairs)


def _contradictions(found: Found, pairs: Sequence[Pair]) -> list[str]:
    if not any("label" in split.subset.manifest.fields for split in found.splits):
        return ["labels: not looked at, samples have no class of their own"]
    if not pairs:
        return ["labels: no contradiction, samples that are the same have the same class"]
    names = Counter(" / ".join(sorted((found.class_name(pair.a), found.class_name(pair.b)))) for pair in pairs)
    reported = ", ".join(f"{name} {count:,}" for name, count in names.most_common(_SHOWN))
    title = f"LABELS THAT CONTRADICT: {counted(len(pairs), 'pair')} of one picture with two classes"
    return [title, f"  {reported}", *_pair_lines(found, pairs)]


def _counts(found: Found) -> list[str]:
    numbers = counts(found)
    if len(found.splits) == 1:
        return [f"{numbers[0, 0]:,} of {found.splits[0].subset.num_samples:,} samples have a copy"]
    rows = [["", "", *(f"{number}" for number in range(1, len(found.splits) + 1))]]
    for number, (split, row) in enumerate(zip(found.splits, numbers.tolist(), strict=True), 1):
        rows.append([f"{number}", split.name, *(f"{count:,}" if count else "·" for count in row)])
    return ["samples of the split on the left that have a copy in the numbered one:", *table(rows, 2)]


def _groups(found: Found) -> list[str]:
    """The largest groups of the same picture."""
    groups = [[sample for one in group for sample in found.members[one]] for group in found.groups]
    total = sum(map(len, groups))
    largest = sorted(groups, key=len, reverse=True)[:_GROUPS]
    keys = read_keys(found, (sample for group in largest for sample in group[:_KEYS]))
    wide = len(f"{len(largest[0]):,}")
    lines = [f"{total:,} samples show only {counted(len(groups), 'picture')}, the most often shown ones:"]
    for group in largest:
        splits = " and ".join(dict.fromkeys(found.splits[found.place(sample)].name for sample in group))
        reported = ", ".join(short(keys[sample], 28) for sample in group[:_KEYS])
        lines.append(f"  {len(group):>{wide},} x  {splits}  {reported}{', ...' if len(group) > _KEYS else ''}")
    return lines + _more(len(groups) - len(largest), "--csv dups.csv has all")


def _advice(found: Found, leaked: Sequence[Pair], contradicting: Sequence[Pair]) -> list[str]:
    lines = []
    if leaked:
        lines += [
            "A score on samples that were trained on is no score. Remove the files of one side from its source, better",
            "those of training, and build its split again with --overwrite; a key is the path of a file. There is no",
            "option, neither of `build` nor in a recipe, that leaves out single samples.",
        ]
    if contradicting:
        lines.append("Of two labels at most one is right: fix or remove it in the source, and build the split again.")
    cut = cut_leaks(found, _VALIDATION)
    if cut:
        lines += [
            f"A recipe with `validation: {_VALIDATION}` would validate on {counted(len(cut), 'sample')} whose copy",
            "is in training, as it cuts by the hash of each key. A held-out split for validation avoids that.",
        ]
    if any(link.kind in ("near", "mirrored") for links in found.links.values() for link in links):
        lines += [
            "Near and mirrored pairs may only look alike: see for yourself (--out dups.png). A smaller --near is",
            "stricter; what shows things of one kind, each in the same place, may need it.",
        ]
    return lines


def _pair_lines(found: Found, pairs: Sequence[Pair]) -> list[str]:
    shown = pairs[:_SHOWN]
    keys = read_keys(found, (sample for pair in shown for sample in pair[:2]))
    rows = []
    for pair in shown:
        sides = [f"{found.splits[found.place(s)].name}  {short(keys[s], _LONGEST)}" for s in pair[:2]]
        rows.append([kind_and_distance(pair), *sides])
    return table(rows, 3) + _more(len(pairs) - len(shown), "--csv dups.csv has all")


def _by_kind(pairs: Sequence[Pair]) -> str:
    kinds = Counter(pair.kind for pair in pairs)
    return ", ".join(f"{kinds[kind]:,} {kind}" for kind in KINDS if kinds[kind])


def _cells(found: Found, sample: int, key: str) -> list[str]:
    split = found.splits[found.place(sample)]
    subset = split.subset
    shard = subset.manifest.shards[subset.locate(sample - split.first)[0]].path
    return [subset.folder, split.split, shard, key, found.class_name(sample)]


def _more(count: int, where: str) -> list[str]:
    return [f"  ... and {count:,} more; {where}"] if count > 0 else []
