"""What every fusion has to do: all entries of FUSIONS are tested, later ones too."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xfer.config import FusionConfig
from xfer.fusion import FUSIONS, WeightedSum

WIDTH = 8
BY_WEIGHTS = [kind for kind in FUSIONS if isinstance(FUSIONS[kind]([1.0, 1.0], WIDTH), WeightedSum)]
SHAPES = [(3, WIDTH), (3, WIDTH, 4, 5)]


def fusion(kind: str, weights: Sequence[float] = (0.2, 0.3, 0.5), learned: bool = False) -> nn.Module:
    """`learned`: what it has of parameters is no longer where it begins."""
    made = FUSIONS[kind](list(weights), WIDTH)
    if learned:
        generator = torch.Generator().manual_seed(1)
        for parameter in made.parameters():
            nn.init.normal_(parameter, generator=generator)
    return made


def drawn(num: int, shape: Sequence[int] = SHAPES[0], **options: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, **options) for _ in range(num)]


def test_the_configuration_names_every_fusion():
    assert set(get_args(FusionConfig.model_fields["kind"].annotation)) == set(FUSIONS)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FUSIONS)
def test_pooled_features_and_maps_keep_their_shape_and_agree(kind, shape):
    made, features = fusion(kind, learned=True), drawn(3, shape)
    fused = made(features)
    assert fused.shape[0] == shape[0]
    assert fused.shape[1] in (WIDTH, 3 * WIDTH)
    assert fused.shape[2:] == shape[2:]
    if len(shape) == 4:  # pooling before or after is the same number
        torch.testing.assert_close(made([f.mean((2, 3)) for f in features]), fused.mean((2, 3)))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", BY_WEIGHTS)
def test_a_one_hot_weight_is_exactly_the_single_branch(kind, learned):
    features = drawn(3)
    features[1] *= 1e6
    for branch in (0, 2):
        one_hot = [float(i == branch) for i in range(3)]
        assert torch.equal(fusion(kind, one_hot, learned)(features), features[branch])


@pytest.mark.parametrize("kind", BY_WEIGHTS)
def test_what_is_learned_begins_as_the_weighted_sum_exactly(kind):
    features = drawn(3, (64, WIDTH))
    for weights in ((0.2, 0.3, 0.5), (1.0, 1.0, 1.0), (3.0, 0.0, 1.0)):
        assert torch.equal(fusion(kind, weights)(features), fusion("wsum", weights)(features))


@pytest.mark.parametrize("kind", BY_WEIGHTS)
def test_the_variance_is_kept_whatever_the_weights(kind):
    features = drawn(3, (20_000, WIDTH))
    for weights in ((1, 1, 1), (0.9, 0.1, 0), (1, 0, 0)):
        assert fusion(kind, weights)(features).std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kind", FUSIONS)
def test_the_order_of_branches_does_not_matter(kind):
    """Branches, weights and what is learned of each in another order: the same result, or the same parts of it."""
    order, features, weights = [2, 0, 1], drawn(3), (0.2, 0.3, 0.5)
    one, other = fusion(kind, weights, learned=True), fusion(kind, [weights[i] for i in order], learned=True)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        theirs.data = mine.data[order]
    found, expected = other([features[i] for i in order]), one(features)
    if found.shape[1] != WIDTH:  # one part a branch
        expected = torch.cat([expected.chunk(3, dim=1)[i] for i in order], dim=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", FUSIONS)
def test_the_gradient_reaches_every_branch_and_every_parameter(kind):
    made, features = fusion(kind), drawn(3, requires_grad=True)
    made(features).square().sum().backward()
    for gradient in [f.grad for f in features] + [p.grad for p in made.parameters()]:
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", FUSIONS)
def test_what_is_saved_comes_back(kind, tmp_path):
    one, other = fusion(kind, learned=True), fusion(kind, (1, 1, 1))
    save_file(one.state_dict(), tmp_path / "fusion.safetensors")
    other.load_state_dict(load_file(tmp_path / "fusion.safetensors"))
    assert torch.equal(other(drawn(3)), one(drawn(3)))
