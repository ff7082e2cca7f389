"""MixUp, CutMix and policies: a sample looks the same on any number of ranks, and after a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.config import DataConfig
from shards.loading.batch import Batch, Slot
from shards.loading.mix import Mix, with_neighbours
from shards.loading.open import open_data
from shards.loading.train import train_stream
from shards.settings import ConfigError

BATCH, STEPS = 13, 3


def config_of(root: Path, **augment: Any) -> DataConfig:
    sources = {name: {"path": name} for name in ("paint", "outline")}
    values = {"root": str(root), "sources": sources, "image_size": 32, "batch_size": BATCH, "workers": 0}
    return DataConfig.model_validate({**values, "augment": {"scale": [0.5, 1.0], "color": 0.2, **augment}})


def seen(config: DataConfig, world_size: int = 1, workers: int = 0) -> dict[int, tuple[Any, ...]]:
    """By position: image, target, source, and what was mixed in."""
    config = config.model_copy(update={"workers": workers})
    found: dict[int, tuple[Any, ...]] = {}
    for rank in range(world_size):
        with train_stream(open_data(config).train, config, Slot(rank, world_size)) as stream:
            for _ in range(STEPS):
                batch = next(stream)
                parts = [batch.images, batch.targets, batch.sources, batch.positions]
                parts += [one for one in (batch.own_share, batch.other_targets, batch.other_sources) if one is not None]
                for image, target, source, position, *mixed in zip(*parts, strict=True):
                    found[int(position)] = (image, int(target), int(source), *(float(one) for one in mixed))
    assert sorted(found) == list(range(BATCH * STEPS))
    return found


def same(one: dict[int, tuple[Any, ...]], other: dict[int, tuple[Any, ...]]) -> bool:
    return all(torch.equal(a[0], other[at][0]) and a[1:] == other[at][1:] for at, a in one.items())


AUGMENTS = {
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.8, "cutmix": 1.0},
    "trivial": {"policy": "trivial"},
    "rand": {"policy": "rand", "mixup": 0.2},
}


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
def test_every_sample_looks_the_same_on_any_number_of_ranks_and_loaders(shards_root, augment):
    config = config_of(shards_root, **augment)
    expected, before = seen(config), torch.random.get_rng_state()
    assert not same(expected, seen(config_of(shards_root)))
    assert same(expected, seen(config, world_size=3))
    assert same(expected, seen(config, world_size=2, workers=1))
    assert not same(expected, seen(config.model_copy(update={"seed": 1})))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_resumed_stream_mixes_as_the_one_that_was_not_stopped(shards_root):
    config = config_of(shards_root, mixup=0.8, cutmix=1.0)
    subsets = open_data(config).train
    with train_stream(subsets, config, Slot()) as whole:
        first, second = next(whole), next(whole)
    with train_stream(subsets, config, Slot()) as stream:
        assert torch.equal(next(stream).images, first.images)
        state = stream.state()
    with train_stream(subsets, config, Slot(), state) as again:
        assert torch.equal(next(again).images, second.images)
    with pytest.raises(ConfigError, match=r"augment\.cutmix"):
        train_stream(subsets, config_of(shards_root, mixup=0.8), Slot(), state)


def drawn_batch(count: int = 401, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 5, (count,), generator=generator)
    positions = torch.arange(count)
    return Batch(images, targets, targets % 2, positions, positions >= 0)


def mixed_by(mix: Mix, batch: Batch) -> Batch:
    """A copy of the batch, mixed."""
    images = batch.images.clone()
    return with_neighbours(replace(batch, images=images), mix(images, batch.targets.numpy(), batch.positions.numpy()))


def test_mixup_is_the_sum_of_an_image_and_its_neighbour_by_their_shares():
    batch = drawn_batch()
    mixed = mixed_by(Mix(0, mixup=1.0), batch)
    shares = mixed.own_share
    assert shares is not None
    assert len(mixed) == len(shares) == 400
    w = shares[:, None, None, None]
    expected = w * batch.images[:-1].float() + (1 - w) * batch.images[1:].float()
    assert (mixed.images.float() - expected).abs().max() <= 0.501
    assert torch.equal(mixed.targets, batch.targets[:-1])
    assert torch.equal(mixed.other_targets, batch.targets[1:])
    assert torch.equal(mixed.other_sources, batch.sources[1:])
    assert np.percentile(shares, [25, 50, 75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.08)  # Beta(1, 1) is even
    extreme = mixed_by(Mix(0, mixup=0.1), batch).own_share
    assert extreme is not None
    assert ((extreme < 0.1) | (extreme > 0.9)).double().mean() > 0.7


def test_cutmix_puts_in_a_box_and_the_share_is_what_is_left_of_the_image():
    batch = drawn_batch()
    mixed = mixed_by(Mix(0, cutmix=1.0), batch)
    assert mixed.own_share is not None
    own, other = batch.images[:-1], batch.images[1:]
    from_own, from_other = ((mixed.images == image).all(1) for image in (own, other))
    assert (from_own | from_other).all()
    torch.testing.assert_close(mixed.own_share, from_own.float().mean((1, 2)), atol=0.02, rtol=0)
    for cut in (~from_own)[mixed.own_share < 0.9]:
        rows, columns = cut.any(1).nonzero(), cut.any(0).nonzero()
        assert cut[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()


def test_both_are_drawn_for_half_of_the_samples_each():
    batch = drawn_batch()
    by_mixup = (mixed_by(Mix(0, 1.0, 1.0), batch).images != batch.images[:-1]) & (
        mixed_by(Mix(0, 1.0, 1.0), batch).images != batch.images[1:]
    )
    assert by_mixup.flatten(1).any(1).double().mean() == pytest.approx(0.5, abs=0.08)


def test_a_sample_without_a_class_is_not_mixed_with_another():
    batch = drawn_batch(4)
    batch.targets[1] = -1
    mixed = mixed_by(Mix(0, mixup=1.0), batch)
    assert mixed.own_share is not None
    assert (mixed.own_share < 1).tolist() == [False, False, True]
    assert torch.equal(mixed.images[:2], batch.images[:2])
    assert torch.equal(mixed.other_targets, torch.tensor([batch.targets[0], -1, batch.targets[3]]))


def test_what_a_policy_or_a_mix_cannot_be_used_with_is_refused(shards_root):
    config = config_of(shards_root, policy="trivial").model_copy(update={"decode": "gpu"})
    with pytest.raises(ConfigError, match=r"data\.augment\.policy: works on images that loader"):
        train_stream(open_data(config).train, config, Slot(), device=torch.device("cpu"))
