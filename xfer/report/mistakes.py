"""The surest mistakes of a run, as pictures."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from shards.decode import DecodeError
from shards.format.whole import read_json
from shards.loading.open import open_data
from shards.loading.reader import DamagedSampleError, read_sample
from shards.loading.subset import Subset
from shards.loading.transforms import centre
from shards.settings import ConfigError, load
from xfer import figures
from xfer.bundle import weights_sha256
from xfer.config import Recipe
from xfer.history import left_out_scores
from xfer.records import evaluated, is_stale
from xfer.report.page import Section

MOST_MISTAKES, TILE = 12, 224  # pixels a side


def mistake_sections(folder: Path, files: Mapping[str, Path]) -> list[Section]:
    """The surest mistakes of a run, of its bundles, by label, and of the runs without a source on what these never saw.
    Scores that are known to be of other weights are left out.
    """
    scores: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for label, path in files.items():
        title = "Its surest mistakes" if path.stem == "evaluation" else f"The surest mistakes of {label}"
        result, weights = read_json(path), weights_sha256(evaluated(path))
        parts = {(part, name): one for part in ("validation", "test") for name, one in result.get(part, {}).items()}
        scores[title] = {key: score for key, score in parts.items() if not is_stale(score, weights)}
    scores["The surest mistakes on sources left out"] = {
        ("train", name): row for name, row in left_out_scores(folder).items()
    }
    found = {title: _surest(of) for title, of in scores.items()}
    subsets = _subsets(folder) if any(found.values()) else {}
    return [_mistakes(title, chosen, subsets) for title, chosen in found.items() if chosen]


_Surest = list[tuple[tuple[str, str], str, Mapping[str, Any]]]
"""Part and source, version of the data, and the mistake."""


def _surest(scores: Mapping[tuple[str, str], Mapping[str, Any]]) -> _Surest:
    """The mistakes with the highest confidence, sources taking turns; those of a source together, the surest first."""
    turns = [
        (place, -one["confidence"], key, one)
        for key, score in scores.items()
        for place, one in enumerate(score.get("mistakes", ()))
    ]
    chosen = sorted(turns, key=lambda turn: turn[:2])[:MOST_MISTAKES]
    return [(key, scores[key]["version"], one) for _, _, key, one in sorted(chosen, key=lambda turn: turn[2])]  # stable


def _mistakes(title: str, chosen: _Surest, subsets: Mapping[tuple[str, str], Subset]) -> Section:
    """With their images; one that is no longer there, or damaged, is said."""
    shown, notes = [], []
    for (part, source), version, one in chosen:
        try:
            image = _image(subsets.get((part, source)), version, one["row"])
        except (ConfigError, DamagedSampleError, DecodeError) as error:
            notes.append(f"{source}, {one['truth']} taken for {one['answer']}: not shown, {error}")
            continue
        caption = f"{source}: {one['truth']}, taken for {one['answer']} ({100 * one['confidence']:.0f} %)"
        shown.append((figures.picture(image), caption, False))
    text = "Held-out images that the model named wrongly with the highest confidence: what they are, and what it said."
    return Section(title, text, tiles=shown, notes=notes)


def _subsets(folder: Path) -> dict[tuple[str, str], Subset]:
    """By part and source, as far as they are still there."""
    try:
        data = open_data(load(folder / "recipe.yaml", Recipe).data)
    except ConfigError:
        return {}
    return {(part, one.name): one for part in ("train", "validation", "test") for one in getattr(data, part)}


def _image(subset: Subset | None, version: str, row: int) -> Image.Image:
    """The sample at a row of the split's index: the square of it that evaluation sees. Raises ConfigError,
    DamagedSampleError and DecodeError.
    """
    if subset is None:
        raise ConfigError("its source is not there any more")
    if subset.manifest.version != version:
        raise ConfigError("its source is another version now")
    sample = read_sample(replace(subset, filters=()), row)
    return Image.fromarray(centre(sample.image, TILE).image.permute(1, 2, 0).numpy())
