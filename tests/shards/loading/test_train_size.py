"""data.train_size: what is trained on may be smaller than what is evaluated."""

import pytest
import torch

import shards


@pytest.mark.parametrize("workers", [0, 1])
def test_only_what_is_trained_on_has_the_size_of_training(shards_root, workers):
    sources, values = {"paint": shards_root / "paint"}, {"image_size": 32, "batch_size": 8, "workers": workers}

    def first(**changes):
        data = shards.open(sources, **{**values, **changes})
        with data.train(steps=1) as batches:
            trained = next(iter(batches))
        return trained, next(iter(data.validation()))

    (trained, held), (small, seen), (large, _) = first(train_size=24), first(image_size=24), first()
    assert trained.images.shape[2:] == (24, 24)
    assert held.images.shape[2:] == (32, 32)
    assert torch.equal(trained.images, small.images)
    assert seen.images.shape[2:] == (24, 24)
    assert large.images.shape[2:] == (32, 32)
    assert torch.equal(large.positions, trained.positions)
