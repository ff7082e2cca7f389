"""A bundle's card.md: where a model comes from, what it weighs, how good it is and on which images that was seen."""

from collections.abc import Mapping, Sequence
from typing import Any

from shards.text import markdown
from xfer.bundle import Trained
from xfer.config import Recipe
from xfer.history import gain_markdown
from xfer.model import FusionModel
from xfer.outcomes import Comparison
from xfer.widths import Widths, span, tried_rows


def card_of(
    trained: Trained,
    recipe: Recipe,
    model: FusionModel,
    widths: Widths,
    size_bytes: int,
    compared: Sequence[Comparison],
    splits: Mapping[str, Mapping[str, Any]],
) -> str:
    """In Markdown. trained: the run; model: that of the bundle, whose weights file has `size_bytes`; compared: how it
    compares with the run; splits: the images that it was chosen and measured on.
    """
    weights = model.fusion_weights
    tile = recipe.model.tile
    tiles = f", in tiles of {tile.size} that overlap by {tile.overlap}" if tile else ""
    lines = [
        f"# {recipe.name}",
        "",
        f"- classes: {', '.join(trained.classes)}",
        _made_of(trained, recipe),
        f"- fusion: {recipe.model.fusion.kind}, weights "
        + (", ".join(f"{name} {w:.3f}" for name, w in weights.items()) if weights else "none"),
        f"- images: {recipe.data.image_size} x {recipe.data.image_size} pixels, {recipe.data.resize}{tiles}",
        *_side(recipe),
        f"- storage bits: {_storage(recipe, widths)}",
        *([f"- {coded}"] if (coded := widths.coded_text(model)) else []),
        f"- weights: {trained.weights_bytes:,} bytes in float, {size_bytes:,} packed",
        *(f"- {part} on {one['images']:,} images: {one['of']}" for part, one in splits.items()),
        "",
        *gain_markdown(trained.path),
        *(line for one in compared for line in (one.markdown(), "")),
    ]
    if widths.tried:
        lines += ["Tried on the search images:", "", *markdown(tried_rows(widths.tried)), ""]
    if widths.losses:
        lines += ["Sensitivity: expected divergence in nats an image from rounding the layer alone.", ""]
    return "\n".join([*lines, *markdown(widths.rows(model, by_layer=True))]) + "\n"


def _made_of(trained: Trained, recipe: Recipe) -> str:
    if trained.origin:
        return f"- weights from: {trained.origin.weights}; trained elsewhere, on what is not known here"
    return f"- trained on: {', '.join(sorted(recipe.data.sources))}; steps {recipe.steps}, seed {recipe.train.seed}"


def _side(recipe: Recipe) -> list[str]:
    if recipe.model.side is None:
        return []
    fields = ", ".join(f"{name} ({kind})" for name, kind in recipe.model.side.fields.items())
    return [f"- side inputs: {fields}; any may be missing, and scores that do not name them are of images alone"]


def _storage(recipe: Recipe, widths: Widths) -> str:
    if recipe.transfer.mode == "quant":
        body = {name: width for name, width in widths.bits.items() if name != "head"}
        return f"branches and projections {span(body)}, as before the head was fitted; head {widths.bits['head']}"
    return widths.said
