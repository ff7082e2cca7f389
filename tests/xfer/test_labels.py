"""The label space: joined by name only, and silent about what a source does not annotate."""

import torch

from xfer.labels import LabelSpace, Objective, masked_cross_entropy, unify

SPACE = LabelSpace.union({"a": ["dog", "cat"], "b": ["cat", "bird"]})


def test_union_is_sorted_and_joined_by_exact_name():
    assert SPACE.classes == ("bird", "cat", "dog")
    assert SPACE.table(["a", "b"]).tolist() == [[2, 1], [1, 0]]


def test_test_source_classes_outside_the_space_map_to_minus_one():
    assert SPACE.table(["t"], {"t": ["cat", "zebra"]}).tolist() == [[1, -1]]


def test_gradient_on_classes_a_source_does_not_annotate_is_exactly_zero():
    logits = torch.randn(4, 3, requires_grad=True)
    masks = SPACE.masks(["a", "b"])[torch.tensor([0, 0, 1, 1])]
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


def test_objective_counts_valid_samples_only():
    objective = Objective(SPACE, ["a", "b"], torch.device("cpu"))
    logits, local, sources = torch.randn(3, 3), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    whole = objective(logits, local, sources, torch.tensor([True, True, True]))
    parts = sum(objective(logits, local, sources, torch.arange(3) == i) for i in range(3))
    torch.testing.assert_close(whole, parts)


def test_a_sample_without_a_class_never_stands_for_one():
    table = SPACE.table(["a", "b"])
    sources, targets = torch.tensor([0, 0, 1]), torch.tensor([-1, 1, -1])
    assert unify(table, sources, targets).tolist() == [-1, 1, -1]
    objective = Objective(SPACE, ["a", "b"], torch.device("cpu"))
    logits = torch.randn(3, 3, requires_grad=True)
    objective(logits, targets, sources, torch.ones(3, dtype=torch.bool)).backward()
    assert logits.grad is not None
    assert (logits.grad[[0, 2]] == 0).all()
    assert (logits.grad[1] != 0).any()
