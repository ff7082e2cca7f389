"""What every fusion has to do: all entries of FUSIONS are tested, later ones too."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xfer.config import QuantizeConfig
from xfer.fusion import FUSIONS, WeightedSum, classified
from xfer.model import build_model
from xfer.model_config import FusionConfig, ModelConfig
from xfer.quant.fold import fold
from xfer.quant.pack import pack, unpack
from xfer.quant.sensitivity import sensitivity
from xfer.quantize import quantize_model

WIDTH = 8
BY_WEIGHTS = [kind for kind, made in FUSIONS.items() if issubclass(made, WeightedSum)]
SUMS = [kind for kind in BY_WEIGHTS if not FUSIONS[kind].stacks]  # weighted sums of the features
BY_PLACE = ["attention"]  # weigh each place by itself, so that pooling first is another thing
SHAPES = [(3, WIDTH), (3, WIDTH, 4, 5)]
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def fusion(kind: str, weights: Sequence[float] = (0.2, 0.3, 0.5), learned: bool = False) -> Any:
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
    if len(shape) == 4 and kind not in BY_PLACE:  # pooling before or after is the same number
        torch.testing.assert_close(made([f.mean((2, 3)) for f in features]), fused.mean((2, 3)))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", BY_WEIGHTS)
def test_a_one_hot_weight_is_exactly_the_single_branch(kind, learned):
    features = drawn(3)
    features[1] *= 1e6
    for branch in (0, 2):
        one_hot = [float(i == branch) for i in range(3)]
        made = fusion(kind, one_hot, learned)
        fused = made(features)
        if made.stacks:
            fused = fused.chunk(3, dim=1)[branch]
        assert torch.equal(fused, features[branch])


@pytest.mark.parametrize("shape", [(64, WIDTH), (5, WIDTH), (3, WIDTH, 7, 7), (2, WIDTH, 4, 5)])
@pytest.mark.parametrize("kind", SUMS)
def test_what_is_learned_begins_as_the_weighted_sum_exactly(kind, shape):
    for weights in ((0.2, 0.3, 0.5), (1.0, 1.0, 1.0), (3.0, 0.0, 1.0), (0.1, 0.2, 0.3, 0.4)):
        features = drawn(len(weights), shape)
        assert torch.equal(fusion(kind, weights)(features), fusion("wsum", weights)(features))


@pytest.mark.parametrize("kind", BY_WEIGHTS)
def test_a_branch_of_weight_0_has_no_part_whatever_is_learned_and_whatever_it_says(kind):
    one, other = fusion(kind, (0.4, 0.6, 0.0), learned=True), drawn(3, SHAPES[1])
    expected = one(other)
    other[2] *= -1e6
    assert torch.equal(one(other), expected)


@pytest.mark.parametrize("kind", SUMS)
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
        theirs.data = mine.data[order] if len(mine) == len(order) else mine.data
    found, expected = other([features[i] for i in order]), one(features)
    if found.shape[1] != WIDTH:  # one part a branch
        expected = torch.cat([expected.chunk(3, dim=1)[i] for i in order], dim=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", FUSIONS)
def test_the_gradient_reaches_every_branch_alpha_and_every_parameter(kind, learned):
    """At the beginning, where a last layer is 0, what stands below it gets none yet."""
    made, features = fusion(kind, learned=learned), drawn(3, requires_grad=True)
    alpha = [made.alpha.requires_grad_()] if isinstance(made, WeightedSum) else []
    made(features).square().sum().backward()
    below = set() if learned else {"enter", "bias"}
    learning = [p.grad for name, p in made.named_parameters() if name not in below]
    for gradient in [*(f.grad for f in features), *(a.grad for a in alpha), *learning]:
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_what_a_gate_learns_changes_with_the_image_and_attention_with_the_place():
    maps = drawn(2, SHAPES[1])
    by_image = fusion("input_gate", (1, 1), learned=True)(maps) - fusion("wsum", (1, 1))(maps)
    assert len(by_image.flatten(1).norm(dim=1).round(decimals=4).unique()) == len(maps[0])
    same = [z.mean((2, 3), keepdim=True).expand_as(z).contiguous() for z in maps]
    attended = fusion("attention", (1, 1), learned=True)
    assert attended(same)[0, 0].std() < 1e-6
    assert attended(maps)[0, 0].std() > 0.1


def test_late_is_the_pool_of_the_branches_own_logits():
    """sum_b w_b (W_b z_b + c): their blocks of the head, and the bias that they share."""
    made, features, head = fusion("late"), drawn(3), nn.Linear(3 * WIDTH, 5)
    blocks = zip(made.weights.tolist(), features, head.weight.chunk(3, dim=1), strict=True)
    pooled = sum(w * (z @ block.T + head.bias) for w, z, block in blocks)
    torch.testing.assert_close(head(made(features)), pooled)
    assert [w for w, _ in classified(made, features)] == pytest.approx([0.2, 0.3, 0.5])
    assert len(classified(fusion("wsum"), features)) == 1


def model_config(kind: str, head: str = "linear") -> ModelConfig:
    branches = {"fine": {"backbone": "resnet10"}, "coarse": {"backbone": "resnet10", "size": 16}}
    fusion: dict[str, Any] = {"kind": kind, "width": 32, "weights": {"fine": 0.7, "coarse": 0.3}}
    if kind == "concat":
        fusion.pop("weights")
    return ModelConfig.model_validate({"branches": branches, "fusion": fusion, "head": {"kind": head}})


@pytest.mark.parametrize("head", ["fcos", "fpn"])
@pytest.mark.parametrize("kind", SUMS)
def test_the_gradient_reaches_what_a_fusion_learns_on_every_level_of_a_dense_head(kind, head):
    model: Any = build_model(model_config(kind, head), 3, seed=0)
    for name, p in model.fusion.named_parameters():
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    learned = [model.fusion.alpha.requires_grad_(), *model.fusion.parameters()]
    for level, fused in model.features(IMAGES).items():
        found = torch.autograd.grad(fused.square().sum(), learned, retain_graph=True)
        assert all(one.abs().sum() > 0 for one in found), level


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_packed_model_keeps_its_fusion_in_float_to_the_bit(kind, tmp_path):
    model = build_model(model_config(kind), 3, seed=0).eval()
    for name, p in model.fusion.named_parameters():
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    quantized = quantize_model(model, QuantizeConfig(bits=8), [IMAGES])
    assert isinstance(quantized.model, type(model))
    assert not any(name.startswith("fusion") for name in quantized.codes)
    pack(quantized, tmp_path / "packed.safetensors", {})
    again = fold(build_model(model_config(kind), 3, seed=1))
    unpack(tmp_path / "packed.safetensors", again)
    for name, value in model.fusion.state_dict().items():
        assert torch.equal(again.get_submodule("fusion").state_dict()[name], value)
    assert torch.equal(again(IMAGES), quantized.model(IMAGES))
    torch.testing.assert_close(again(IMAGES), model(IMAGES), atol=0.1, rtol=0.1)
    found = sensitivity(fold(model), [IMAGES], torch.Generator().manual_seed(0), widths=(4,))
    assert all(row[4] >= 0 for row in found.values())
    assert not any(name.startswith("fusion") for name in found)


@pytest.mark.parametrize("kind", FUSIONS)
def test_what_is_saved_comes_back(kind, tmp_path):
    one, other = fusion(kind, learned=True), fusion(kind, (1, 1, 1))
    save_file(one.state_dict(), tmp_path / "fusion.safetensors")
    other.load_state_dict(load_file(tmp_path / "fusion.safetensors"))
    assert torch.equal(other(drawn(3)), one(drawn(3)))
