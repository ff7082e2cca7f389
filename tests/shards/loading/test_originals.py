"""Evaluation at an image's own pixels: batches bring its size, its boxes and its mask as they were stored."""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from shards.format.annotations import Annotations
from shards.ingest.build import build
from shards.loading.batch import Batch, BatchBuilder, Slot
from shards.loading.evaluate import eval_stream
from shards.loading.few import few
from shards.loading.frame import frame_of
from shards.loading.open import open_data
from shards.loading.transforms import Pixels
from shards.sources import SourceOptions
from tests.shards.images import config, picture
from tests.shards.kinds import damage

SHAPES = [(40 + 7 * number, 30 + 3 * number) for number in range(5)]
"""Width and height of each image."""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Images of SHAPES, with one crowd, one whole object and one that is tiny; the last has none."""
    tmp = tmp_path_factory.mktemp("cells")
    raw = tmp / "raw"
    raw.mkdir()
    notes = []
    for number, (width, height) in enumerate(SHAPES):
        picture(number, width, height).save(raw / f"{number}.jpg")
        if number < 4:
            notes += [
                {"image_id": number, "category_id": 1, "bbox": [0, 0, width, height], "iscrowd": 1},
                {"image_id": number, "category_id": 0, "bbox": [5, 4, 20, 10]},
                {"image_id": number, "category_id": 1, "bbox": [3, 3, 1, 1]},
            ]
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(len(SHAPES))],
        "categories": [{"id": 0, "name": "ox"}, {"id": 1, "name": "rat"}],
        "annotations": [{"id": number, **note} for number, note in enumerate(notes)],
    }
    (raw / "cells.json").write_text(json.dumps(content))
    build(raw / "cells.json", tmp / "shards" / "cells", SourceOptions(kind="coco"), processes=1)
    return tmp


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """Images of SHAPES and masks: the left half is road, one pixel void."""
    tmp = tmp_path_factory.mktemp("street")
    for number, (width, height) in enumerate(SHAPES):
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2], mask[0, 0] = 1, 255
        for folder, image, name in (
            ("images", picture(number, width, height), f"{number}.jpg"),
            ("masks", Image.fromarray(mask), f"{number}.png"),
        ):
            (tmp / "raw" / folder).mkdir(parents=True, exist_ok=True)
            image.save(tmp / "raw" / folder / name)
    build(tmp / "raw", tmp / "shards" / "street", SourceOptions(classes=("sky", "road")), processes=1)
    return tmp


def batches(tmp, name: str, **values) -> list[Batch]:
    settings = config(tmp, name, validation=0, **{"resize": "letterbox", "batch_size": 2, "image_size": 32, **values})
    return list(eval_stream(open_data(settings).train, settings, Slot(), originals=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_boxes_come_with_the_images_size_unmoved_with_none_dropped(cells, workers):
    found = {}
    for batch in batches(cells, "cells", workers=workers):
        assert batch.originals is not None
        assert len(batch.originals) == len(batch) == 2
        assert batch.boxes is not None or not batch.valid.all()
        for at, original in enumerate(batch.originals):
            if batch.valid[at]:
                found[original.width, original.height] = original.boxes, batch.boxes[at] if batch.boxes else None
            else:
                assert (original.width, original.height, original.boxes, original.mask) == (0, 0, None, None)
    assert sorted(found) == SHAPES
    for number, (width, height) in enumerate(SHAPES):
        own, seen = found[width, height]
        assert own is not None
        assert own.dtype == torch.float32
        if number == 4:
            assert own.shape == (0, 6)
            continue
        assert own.tolist() == [[0, 0, width, height, 1, 1], [5, 4, 25, 14, 0, 0], [3, 3, 4, 4, 1, 0]]
        assert seen is not None
        assert seen[:, 4:].tolist() == [[1, 1], [0, 0]], "less than a pixel is dropped from the square"
        back = frame_of(width, height, 32, "letterbox").to_original(seen[:, :4])
        assert (back - own[:2, :4]).abs().max() < 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_come_as_large_as_the_image(street, workers):
    found = set()
    for batch in batches(street, "street", workers=workers):
        assert batch.originals is not None
        assert batch.masks is not None
        for original, mask, valid in zip(batch.originals, batch.masks, batch.valid, strict=True):
            if not valid:
                assert original.mask is None
                continue
            assert original.mask is not None
            width, height = original.width, original.height
            assert (original.mask.shape, original.mask.dtype) == ((height, width), torch.uint8)
            wanted = torch.ones(height, width, dtype=torch.uint8)  # as the batch numbers them: road, sky
            wanted[:, : width // 2], wanted[0, 0] = 0, 255
            assert torch.equal(original.mask, wanted)
            frame = frame_of(width, height, 32, "letterbox")
            assert (mask[frame.rows :] == 255).all()
            assert (mask[:, frame.columns :] == 255).all()
            assert set(mask[2 : frame.rows].unique().tolist()) == {0, 1}
            found.add((width, height))
    assert sorted(found) == SHAPES


def test_annotations_have_the_numbers_of_all_sources(cells, street):
    """Class names of both, sorted: ox, rat, road, sky."""
    sources = {
        "cells": {"path": str(cells / "shards" / "cells")},
        "street": {"path": str(street / "shards" / "street")},
    }
    settings = config(cells, sources=sources, validation=0, batch_size=10)
    (batch,) = eval_stream(open_data(settings).train, settings, Slot(), originals=True)
    assert batch.originals is not None
    assert batch.boxes is not None
    assert {int(value) for one in batch.originals if one.mask is not None for value in one.mask.unique()} == {2, 3, 255}
    assert {int(value) for one in batch.originals if one.boxes is not None for value in one.boxes[:, 4]} == {0, 1}
    for one, source in zip(batch.originals, batch.sources.tolist(), strict=True):
        assert (one.boxes is None, one.mask is None) == ((False, True), (True, False))[source]


def test_they_are_there_only_if_asked_for(cells):
    settings = config(cells, "cells", validation=0)
    subsets = open_data(settings).train
    assert all(batch.originals is None for batch in eval_stream(subsets, settings, Slot()))
    assert all(batch.originals is None for batch in few(subsets, settings, 4))
    chosen = [one for batch in few(subsets, settings, 5, originals=True) for one in batch.originals or ()]
    assert sorted((one.width, one.height) for one in chosen) == SHAPES


def test_a_damaged_sample_has_none_and_few_passes_it_over(cells, tmp_path):
    build(cells / "raw" / "cells.json", tmp_path / "shards" / "cells", SourceOptions(kind="coco"), processes=1)
    damage(tmp_path / "shards" / "cells", row=1)
    lost = [
        (one.width, one.height, one.boxes)
        for batch in batches(tmp_path, "cells", batch_size=5)
        for one, valid in zip(batch.originals or (), batch.valid, strict=True)
        if not valid
    ]
    assert lost == [(0, 0, None)]
    settings = config(tmp_path, "cells", validation=0)
    kept = list(few(open_data(settings).train, settings, 5, originals=True, passed_over=lambda _: None))
    sizes = [(one.width, one.height) for batch in kept for one in batch.originals or ()]
    assert len(sizes) == 4
    assert set(sizes) < set(SHAPES)


def test_they_go_with_their_samples_and_stay_on_the_cpu(cells):
    batch = batches(cells, "cells", batch_size=5)[0]
    assert batch.originals is not None
    assert batch.to("meta").originals is batch.originals
    parts = [one for part in batch.split(2) for one in part.originals or ()]
    assert all(one is other for one, other in zip(parts, batch.originals, strict=True))
    assert "originals" in repr(batch)


def test_a_batch_that_is_filled_up_alone_has_them_too():
    builder = pickle.loads(pickle.dumps(BatchBuilder(2, 8, originals=True).finish()))
    assert [(one.width, one.boxes) for one in builder.batch().originals] == [(0, None)] * 2
    builder = BatchBuilder(1, 8, originals=True)
    said = Annotations(np.zeros((0, 6), np.float32), None, {"text": "long"})
    builder.fill(0, Pixels(builder.image(0), original=(5, 7)), 0, said, fingerprint=1)
    (original,) = builder.batch().originals or ()
    assert (original.height, original.width) == (7, 5)
    assert len(io.BytesIO(pickle.dumps(builder.originals)).getvalue()) < 1000
