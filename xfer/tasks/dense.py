"""What detection and segmentation have in common: which data they take, and what of a recipe does not go with them."""

from collections.abc import Sequence

from PIL import Image

from shards.inspect.preview.paint import fitted
from shards.labels import shown
from shards.loading.open import Splits
from shards.loading.subset import Subset
from xfer import classes as names
from xfer.config import Recipe

SMALL = 240  # pixels of the longer side below which a picture grows before it is drawn on


def readable(picture: Image.Image) -> tuple[Image.Image, float]:
    """A copy to draw on, grown by whole pixels if it is small, and its scale."""
    return (picture.copy(), 1.0) if max(picture.size) >= SMALL else fitted(picture, 2 * SMALL)


class Dense:
    """`has`: the role that samples need (boxes, mask); `annotates`: what of a class there has to be."""

    has, annotates = "", ""
    name, measure, sees_whole = "", "", True

    def faults(self, subset: Subset) -> list[str]:
        """See `Task`."""
        manifest = subset.manifest
        if self.has in manifest.fields:
            return []
        there = ", ".join(role for role in manifest.fields if role != "side") or "texts"
        return [
            f"{subset.folder} is for {manifest.task} (its samples have {there}, and no {self.has}), and this model is "
            f"for {self.name}; leave it out, or name another model.head"
        ]

    def label_faults(self, data: Splits) -> list[str]:
        """See `Task`."""
        faults = [
            f"data.sources.{subset.name}: {reason}; there is nothing to learn"
            for subset in data.train
            for reason in self._empty(subset)
        ]
        trained = {subset.name for subset in data.train}
        held = [(one, f"data.sources.{one.name}") for one in data.validation if one.name not in trained]
        held += [(one, f"data.test.{one.name}") for one in data.test]
        return faults + [fault for one, where in held for fault in self.scoring_faults(one, data.classes, where)]

    def scoring_faults(self, subset: Subset, classes: Sequence[str], where: str) -> list[str]:
        """See `Task`."""
        unfit = self.faults(subset)
        empty = [f"{reason}; there is nothing to score" for reason in self._empty(subset) if not unfit]
        return names.scoring_faults(subset, classes, where, unfit + empty)

    def _empty(self, subset: Subset) -> list[str]:
        """Why a subset whose samples have what the task needs has no object for it."""
        stats, where = subset.manifest.stats, subset.folder
        if not any(stats.class_counts):
            return [f"no {self.annotates} has a class in {where}"]
        if sum(stats.class_counts) == stats.ignored:
            return [f"all {stats.ignored:,} boxes in {where} are crowds or difficult objects, which are ignored"]
        return []

    def recipe_faults(self, recipe: Recipe) -> list[str]:
        """See `Task`."""
        head, faults = f"for the head {recipe.model.head.kind}", []
        if recipe.data.resize == "centre":
            faults.append(
                f"data.resize: must be letterbox or stretch {head}, which has to see whole images, got centre"
            )
        if recipe.data.balance:
            faults.append(f"data.balance: must be 0 {head}, whose images have no class of their own")
        if recipe.train.probe_images is not None:
            faults.append(f"train.probe_images: must be left out {head}, which has no linear probe")
        if recipe.train.teacher:
            faults.append(f"train.teacher: must be left out {head}; only classifiers learn from another model so far")
        if recipe.transfer.mode in ("feature", "quant"):
            faults.append(
                f"transfer.mode: must be full or staged {head}, got {recipe.transfer.mode}, which fits a classifier; "
                "train_from: none in every branch trains the head alone"
            )
        wholes = (
            {pair.ends[1] for pair in recipe.data.labels.pairs if pair.verdict == "part_of"}
            if recipe.data.labels
            else ()
        )
        if wholes:
            names = ", ".join(sorted(map(shown, wholes)))
            faults.append(
                f"data.labels: part_of is for classifiers so far, {head} each box or pixel has to have one class: give "
                f"another verdict on the parts of {names}"
            )
        if recipe.transfer.head == "keep":
            faults.append(f"transfer.head: must be fit {head}, got keep")
        return faults
