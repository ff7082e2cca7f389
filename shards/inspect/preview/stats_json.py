"""Profiles of splits for programs: plain values, as they go into JSON."""

from typing import Any

from shards.inspect.preview.stats import Profile, Side, Spread, bins

_QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
_BINS = 12


def as_json(found: Profile) -> dict[str, Any]:
    """A profile as plain values."""
    manifest, stats = found.manifest, found.manifest.stats
    values = {
        "name": found.name,
        "split": manifest.split,
        "folder": found.folder,
        "version": manifest.version,
        "task": manifest.task,
        "samples": manifest.num_samples,
        "shards": len(manifest.shards),
        "bytes": found.size_bytes,
        "counted": found.counted,
        "classes": found.counts,
        "width": list(stats.width),
        "height": list(stats.height),
        "mean": list(stats.channel_mean),
        "std": list(stats.channel_std),
        "read": found.num_read,
        "damaged": found.damaged,
    }
    if found.num_read > found.damaged:
        values["read_samples"] = {
            "formats": dict(found.formats),
            "sizes": [[*pixels, count] for pixels, count in found.sizes.most_common()],
            "width": _spread_json(found.width),
            "height": _spread_json(found.height),
            "aspect": _spread_json(found.aspect, True),
            "file_bytes": _spread_json(found.bytes, True),
            **_drawn_json(found),
            "side": {name: _side_json(side) for name, side in found.side.items()},
        }
    return values


def _spread_json(spread: Spread, is_log: bool = False) -> dict[str, Any] | None:
    if not spread.counts:
        return None
    edges = bins(spread.low, spread.high, _BINS, is_log)
    quantiles = {name: spread.quantile(part) for name, part in _QUANTILES.items()}
    return {"values": spread.total, **quantiles, "edges": edges, "counts": spread.histogram(edges)}


def _drawn_json(found: Profile) -> dict[str, Any]:
    """What boxes and masks add."""
    images_with = {"images_with": dict(zip(found.manifest.classes, found.holding, strict=True))}
    if found.counted == "pixels":
        return {**images_with, "pixels": found.pixels, "void_pixels": found.void}
    if found.counted == "boxes":
        sides = zip(found.manifest.classes, map(_spread_json, found.box_sizes), strict=True)
        return {
            **images_with,
            "boxes": _spread_json(found.boxes),
            "box_side": _spread_json(found.box_size),
            "box_side_by_class": dict(sides),
            "coco_sizes": dict(zip(("small", "medium", "large"), found.coco, strict=True)),
        }
    return {}


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "samples": side.samples,
        "numbers": _spread_json(side.numbers),
        "words": _spread_json(side.words),
        "texts_a_sample": _spread_json(side.several),
        "texts": None if side.has_many else dict(side.texts.most_common()),
    }
