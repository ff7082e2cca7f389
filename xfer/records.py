"""What `xfer evaluate` found, kept beside the model: the scores on the recipe's own data, and a list of all others.

    evaluation.json            of the run; evaluation-<bundle>.json of a bundle in its folder
        validation, test       by source: counts, accuracy, interval, and the version of the data they were counted on
        test_reads             how often test data was opened
        others                 scores on other data: split, what was changed about the recipe, and by source as above

Scores on other data never take the place of those on the recipe's own: same names with other versions are other data.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.format.whole import read_json, write_json

Rows = Mapping[str, Mapping[str, Any]]
"""By source: correct, count, accuracy, interval, per_class, version."""


def record_path(model: Path) -> Path | None:
    """Where the scores of a run or a bundle are kept; None for a bundle that lies in no run or study folder."""
    bundle = (model / "manifest.json").exists()
    folder = model.absolute().parent if bundle else model
    if not (folder / "recipe.yaml").is_file():
        return None
    return folder / (f"evaluation-{model.absolute().name}.json" if bundle else "evaluation.json")


def evaluated(path: Path) -> Path:
    """Of which run or bundle a file is the record."""
    return path.parent / path.stem.removeprefix("evaluation").removeprefix("-")


def record(path: Path, split: str, rows: Rows, changes: Sequence[str], own: bool) -> None:
    """Adds one split's scores. `own`: that they are on the recipe's own data, as far as the recipe tells; `changes`:
    what was changed about it, in words.
    """
    content = read_json(path)
    before = content.get(split)
    own = own and (not changes or before is None or _versions(before) == _versions(rows))
    if own:
        content[split] = rows
    else:
        others = [one for one in content.get("others", []) if not _same(one, split, rows, changes)]
        content["others"] = [*others, {"split": split, "changes": list(changes), "sources": rows}]
    content["test_reads"] = content.get("test_reads", 0) + (split == "test")
    write_json(path, content)


def _same(one: Mapping[str, Any], split: str, rows: Rows, changes: Sequence[str]) -> bool:
    return (one["split"], one["changes"], _versions(one["sources"])) == (split, list(changes), _versions(rows))


def _versions(rows: Rows) -> dict[str, Any]:
    return {source: row.get("version") for source, row in rows.items()}


def is_stale(score: Mapping[str, Any], weights: str | None) -> bool:
    """Whether a score is known to be of other weights."""
    return weights is not None and score.get("weights", weights) != weights
