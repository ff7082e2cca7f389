"""What looks odd about a finished data set, whatever it was made of: said by `build` and `index`, a line each."""

from collections.abc import Sequence

from shards.sources.notes import alike

_SHOWN = 5
_UNITS = {"detection": "box", "segmentation": "pixel"}


def remarks(task: str, classes: Sequence[str], class_counts: Sequence[int]) -> list[str]:
    """`class_counts`: samples, boxes or pixels of each class."""
    said = []
    empty = [name for name, count in zip(classes, class_counts, strict=True) if not count]
    if empty:
        unit = _UNITS.get(task, "sample")
        said.append(f"classes without a single {unit}: {len(empty):,} of {len(classes):,} ({_some(empty)})")
    for group in alike(classes):
        said.append(f"class names that look the same and are different: {' and '.join(map(ascii, group))}")
    if classes and all(name.isdigit() for name in classes):
        said.append("the classes have numbers for names: data sets share classes by name, so give them with --classes")
    return said


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
