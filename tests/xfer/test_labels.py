"""One numbering of labels from the data to the loss, which is silent about what a source does not annotate."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shards.config import DataConfig
from shards.loading.batch import Batch, Slot
from shards.loading.evaluate import eval_stream
from shards.loading.open import Splits, numbering_faults, open_data
from xfer.labels import Objective, annotated, masked_cross_entropy

MASKS = torch.tensor([[False, True, True], [True, True, False]])  # a: cat, dog; b: bird, cat; of bird, cat, dog


@pytest.fixture
def data(shards_root) -> Splits:
    sources = {name: {"path": name} for name in ("paint", "outline")}
    test = {"neon": {"path": "neon"}}
    return open_data(
        DataConfig.model_validate({"root": str(shards_root), "sources": sources, "test": test, "image_size": 16})
    )


def test_batches_carry_places_in_one_numbering_of_all_sources(data):
    assert data.classes == ("circle", "cross", "square", "star"), "joined by exact name, sorted"
    other = data.numbered(["star", "square", "zebra", "circle"])
    for splits in (data, other):
        for subset in (*splits.train, *splits.validation, *splits.test):
            own = subset.index()["label"][subset.rows].tolist()
            names = [subset.manifest.classes[label] for label in own]
            want = [splits.classes.index(name) if name in splits.classes else -1 for name in names]
            config = DataConfig.model_validate({"sources": {"it": {"path": "it"}}, "image_size": 16, "batch_size": 32})
            got = torch.cat([batch.targets[batch.valid] for batch in eval_stream([subset], config, Slot())])
            assert got.tolist() == want
    assert -1 in other.test[0].labels(), "a class that the numbering lacks"


def test_a_source_annotates_its_own_classes(data):
    assert [subset.name for subset in data.train] == ["outline", "paint"]
    assert annotated(data.train, 4).tolist() == [[True, True, False, True], [True, False, True, True]]
    other = data.numbered(["star", "square", "zebra", "circle"])
    assert annotated(other.train, 4).tolist() == [[True, False, False, True], [True, True, False, True]]


def test_masks_of_more_classes_than_they_can_hold_are_refused(data):
    many = [f"{i}" for i in range(256)]
    assert not numbering_faults(data.train, many)
    manifest = data.train[0].manifest
    masked = replace(data.train[0], manifest=replace(manifest, fields={**manifest.fields, "mask": "mask.png"}))
    (fault,) = numbering_faults([masked], many)
    assert "256" in fault
    assert not numbering_faults([masked], many[:255])


def test_gradient_on_classes_a_source_does_not_annotate_is_exactly_zero():
    logits = torch.randn(4, 3, requires_grad=True)
    masks = MASKS[torch.tensor([0, 0, 1, 1])]
    masked_cross_entropy(logits, torch.tensor([2, 1, 0, 1]), masks, smoothing=0.1).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[~masks] == 0).all()
    assert (logits.grad[masks] != 0).all()


def test_with_every_class_annotated_it_is_plain_cross_entropy():
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    masks = torch.ones(5, 3, dtype=torch.bool)
    for smoothing in (0.0, 0.1):
        ours = masked_cross_entropy(logits, targets, masks, smoothing)
        theirs = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(ours, theirs)


def batch(targets: list[int], sources: list[int], valid: Tensor | None = None, **more: Tensor) -> Batch:
    """Samples of which only the labels count."""
    found, nothing = torch.tensor(targets), torch.zeros(len(targets), dtype=torch.int64)
    return Batch(nothing, found, torch.tensor(sources), nothing, found > -9 if valid is None else valid, **more)


def test_a_mixed_sample_counts_as_both_its_parts_each_inside_its_own_classes():
    objective = Objective(MASKS, ["a", "b"])
    logits = torch.randn(3, 3)
    mixed = {"own_share": torch.tensor([0.75, 1.0, 0.0]), "other_targets": torch.tensor([0, 1, 2])}
    found = objective(logits, batch([2, 1, 0], [0, 0, 1], **mixed, other_sources=torch.tensor([1, 0, 0])))
    own, other = (
        [objective(logits[[i]], batch([targets[i]], [sources[i]])).item() for i in range(3)]
        for targets, sources in (([2, 1, 0], [0, 0, 1]), ([0, 1, 2], [1, 0, 0]))
    )
    assert found.item() == pytest.approx(0.75 * own[0] + 0.25 * other[0] + own[1] + other[2])
    assert own[0] != pytest.approx(other[0])


def test_objective_counts_valid_samples_only():
    objective = Objective(MASKS, ["a", "b"])
    logits = torch.randn(3, 3)
    whole = objective(logits, batch([2, 1, 0], [0, 0, 1]))
    parts = sum(objective(logits, batch([2, 1, 0], [0, 0, 1], valid=torch.arange(3) == i)) for i in range(3))
    torch.testing.assert_close(whole, parts)


def test_a_sample_without_a_class_never_stands_for_one():
    objective = Objective(MASKS, ["a", "b"])
    logits = torch.randn(3, 3, requires_grad=True)
    objective(logits, batch([-1, 1, -1], [0, 0, 1])).backward()
    assert logits.grad is not None
    assert (logits.grad[[0, 2]] == 0).all()
    assert (logits.grad[1] != 0).any()


SETS = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]]).bool()  # the last: 0 or 1


def test_the_loss_of_a_set_is_that_of_the_sum_of_its_classes_and_of_one_class_the_ordinary_loss_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator).requires_grad_()
    masks = torch.tensor([[1, 1, 1, 0]]).bool().expand(6, 4)
    loss = masked_cross_entropy(logits, SETS[[4] * 6], masks)
    p = logits[:, :3].softmax(1)
    torch.testing.assert_close(loss, -(p[:, 0] + p[:, 1]).log())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (gradient[:, 3] == 0).all(), "a class outside the source's"
    within = p[:, :2] / p[:, :2].sum(1, keepdim=True)
    torch.testing.assert_close(gradient[:, :2], p[:, :2] - within)
    torch.testing.assert_close(gradient[:, 2], p[:, 2])
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    for smoothing in (0.0, 0.1):
        found = [masked_cross_entropy(logits, one, masks, smoothing) for one in (targets, SETS[targets])]
        assert torch.equal(*found)
        assert torch.equal(*(torch.autograd.grad(one.sum(), logits)[0] for one in found))
    everything = masked_cross_entropy(logits, masks, masks)
    torch.testing.assert_close(everything, torch.zeros(6), atol=1e-6, rtol=0)


def test_the_objective_takes_sets_and_samples_without_a_class_stand_for_none():
    masks = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]]).bool()
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    objective = Objective(masks, ["a", "b"], sets=SETS)
    found = objective(logits, batch([4, 2, -1, -1], [0, 1, 0, 1]))
    each = [-(logits[0, :3].softmax(0)[:2].sum().log()), -logits[1, 2:].log_softmax(0)[0]]
    torch.testing.assert_close(found, sum(each))
    (gradient,) = torch.autograd.grad(found, logits)
    assert (gradient[2:] == 0).all()
    assert gradient.isfinite().all()
    assert gradient[1, 0] == gradient[1, 1] == gradient[0, 3] == 0
