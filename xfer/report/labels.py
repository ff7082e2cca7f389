"""Proposed pairs of classes on one page, with images of both side by side: what a person needs to decide."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from shards.labels import Node, shown
from shards.loading.few import ranking
from shards.loading.reader import DamagedSampleError
from shards.loading.source import Source
from shards.loading.subset import Subset
from shards.progress import progress
from xfer import figures
from xfer.report.page import Section, write_page
from xfer.transfer.propose import Proposal, rows

IMAGES, TILE = 4, 96  # of each class; pixels a side
LEAD = "Classes of different sources that look the same, or one a part of the other. A person decides, in labels.yaml."
SAYS = {"same": "the same as", "part_of": "a part of", "different": "another class than"}


def write_labels_page(path: Path, proposals: Sequence[Proposal], subsets: Mapping[str, Subset]) -> Path:
    """subsets: by name, of those sources whose images have a class each; the others are shown without images."""
    sections = [Section("All pairs", table=rows(proposals))]
    wanted = list(dict.fromkeys(node for one in proposals for node in (one.a, one.b) if node[0] in subsets))
    tiles: dict[Node, list[tuple[str, str, bool]]] = {}
    with progress("images", len(wanted), "classes") as advance:
        own = {source: subsets[source].numbered(subsets[source].classes) for source, _ in wanted}
        ranked = {source: ranking(subset) for source, subset in own.items()}
        labels = {source: subset.labels()[ranked[source]] for source, subset in own.items()}
        for source, name in wanted:
            of_class = ranked[source][labels[source] == own[source].classes.index(name)][:IMAGES].tolist()
            tiles[source, name] = [tile for i in of_class for tile in _tile(own[source], i, f"{source}: {name}")]
            advance()
    for one in proposals:
        pictures = [tile for node in (one.a, one.b) for tile in tiles.get(node, ())]
        title = f"{shown(one.a)}: {SAYS[one.proposed]} {shown(one.b)}?".replace("`", "")
        sections.append(Section(title, one.evidence() + f"; verdict: {one.verdict}", tiles=pictures))
    return write_page(path, "One label space", LEAD, sections)


def _tile(subset: Subset, i: int, caption: str) -> list[tuple[str, str, bool]]:
    """The i-th sample of a subset; nothing of one that is damaged."""
    try:
        image = Image.fromarray(Source(subset)[i].image.permute(1, 2, 0).numpy())
    except DamagedSampleError:
        return []
    return [(figures.picture(image, TILE), caption, True)]
