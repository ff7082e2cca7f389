"""Segmentation in parts: heads, the loss of pixels, masks in the size of their image, and scores."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50

from shards.loading.batch import Batch
from shards.loading.frame import frame_of
from shards.loading.transforms import move_mask
from xfer.heads.deeplabv3 import DeepLabV3
from xfer.heads.lraspp import Lraspp
from xfer.heads.semantic_fpn import SemanticFpn
from xfer.metrics import MOST_CONFUSED
from xfer.model import build_model
from xfer.model_config import ModelConfig
from xfer.tasks.pixels import MaskScores, PixelObjective, label_map, masked_pixel_loss, miou_interval

HEADS = {"fpn": (SemanticFpn, 4), "lraspp": (Lraspp, 8), "deeplabv3": (DeepLabV3, 32)}
STRIDES = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}
VOID = 255


def maps_of(levels: tuple[str, ...], side: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    grids = {level: (-(-side // STRIDES[level]), -(-(side + 30) // STRIDES[level])) for level in levels}
    return {level: torch.randn(batch, width, *grid) for level, grid in grids.items()}


@pytest.mark.parametrize("side", [97, 64, 33])
@pytest.mark.parametrize("width", [8, 30, 256])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_answers_on_its_finest_grid_whatever_the_sides(name, width, side):
    build, stride = HEADS[name]
    head = build(width, 5, 0.1)
    logits = head(maps_of(head.levels, side, width), (side, side + 30))
    assert logits.shape == (2, 5, -(-side // stride), -(-(side + 30) // stride))


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_of_a_head_learns_from_every_level(name):
    torch.manual_seed(0)
    head = HEADS[name][0](16, 5)
    maps = {level: x.requires_grad_() for level, x in maps_of(head.levels, 97, 16).items()}
    head(maps, (97, 127)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())
    assert all(x.grad is not None and x.grad.any() for x in maps.values())


@pytest.mark.parametrize("name", HEADS)
def test_a_head_answers_for_one_small_image_and_for_none(name):
    head = HEADS[name][0](8, 5).eval()
    for batch in (1, 0):
        maps = {level: torch.randn(batch, 8, -(-16 // STRIDES[level]), 1) for level in head.levels}
        assert head(maps, (16, 4)).isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_dropout_is_between_the_features_and_the_answer(name):
    build = HEADS[name][0]
    torch.manual_seed(0)
    head, without = build(16, 5, 0.5), build(16, 5, 0.0)
    without.load_state_dict(head.state_dict())
    maps = maps_of(head.levels, 64, 16)
    assert not torch.equal(head(maps, (64, 94)), without(maps, (64, 94)))
    head.load_state_dict(without.state_dict())  # statistics of batches moved
    assert torch.equal(head.eval()(maps, (64, 94)), without.eval()(maps, (64, 94)))


def test_of_the_published_head_every_stage_has_128_channels_in_32_groups():
    """Kirillov et al. 2019, sec. 3: three stages for the coarsest level, one for the finest."""
    head = SemanticFpn(256, 5)
    assert [sum(isinstance(m, nn.GroupNorm) for m in stages.modules()) for stages in head.stages] == [1, 1, 2, 3]
    norms = [m for m in head.modules() if isinstance(m, nn.GroupNorm)]
    assert {(m.num_groups, m.num_channels) for m in norms} == {(32, 128)}


@torch.no_grad()
def test_a_resnet_of_bottlenecks_is_dilated_for_deeplabv3_as_torchvisions_and_no_other_is():
    model = build_model(deeplab("resnet50"), 5, 0).eval()
    branch, images = model.branches["main"], torch.rand(1, 3, 64, 96)
    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(branch.state_dict(), strict=False)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        x = stage(x)
    assert torch.equal(branch(images)["C5"], x)
    assert model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 5, 8, 8)
    coarse = build_model(deeplab("resnet10"), 5, 0).eval()
    assert coarse(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 5, 2, 2)
    spans = [sorted({m.dilation[0] for m in one.head.modules() if isinstance(m, nn.Conv2d)}) for one in (model, coarse)]
    assert spans == [[1, 12, 24, 36], [1, 3, 6, 9]], "the same pixels of the image"
    other = build_model(deeplab("resnet50", "fpn"), 5, 0)
    assert other.branches["main"](images)["C5"].shape[-2:] == (2, 3)


def deeplab(backbone: str, kind: str = "deeplabv3") -> ModelConfig:
    branches = {"main": {"backbone": backbone}}
    return ModelConfig.model_validate({"branches": branches, "fusion": {"width": 16}, "head": {"kind": kind}})


def test_deeplabv3_learns_from_a_batch_of_one_image():
    """Its mean over an image is one number a channel."""
    DeepLabV3(16, 5).train()({"C5": torch.randn(1, 16, 3, 3)}, (96, 96)).sum().backward()


def pixels(batch: int = 4, k: int = 5, side: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(batch, k, side // 4, side // 4, generator=generator)
    targets = torch.randint(0, k, (batch, side, side), generator=generator).to(torch.uint8)
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = VOID
    return logits, targets


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_where_all_classes_are_annotated_the_loss_is_cross_entropy(smoothing, dtype):
    logits, targets = pixels()
    large = F.interpolate(logits, (32, 32), mode="bilinear", align_corners=False)
    for i, got in enumerate(masked_pixel_loss(logits, targets.to(dtype), torch.ones(4, 5).bool(), smoothing)):
        goal = targets[i : i + 1].long()
        want = F.cross_entropy(large[i : i + 1], goal, ignore_index=VOID, label_smoothing=smoothing)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_source_says_nothing_of_classes_that_it_does_not_annotate(smoothing):
    logits, targets = pixels()
    masks = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]]).bool()
    logits.requires_grad_()
    loss = masked_pixel_loss(logits, targets, masks, smoothing)
    loss.sum().backward()
    grad = logits.grad
    assert grad is not None
    assert (grad[~masks] == 0).all()
    assert grad[masks][: 3 * 64].any()
    assert loss[3] == 0, "one class alone is never wrong"
    for i, mask in enumerate(masks):
        only = logits[i : i + 1, mask]
        number = torch.full((256,), VOID)
        number[:5][mask] = torch.arange(int(mask.sum()))
        every = torch.ones(1, only.shape[1]).bool()
        want = masked_pixel_loss(only, number[targets[i : i + 1].long()], every, smoothing)
        torch.testing.assert_close(loss[i : i + 1], want, msg="as if there were no other classes")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_sample_that_is_all_void_has_no_loss_and_no_gradient(smoothing):
    logits, targets = pixels()
    masks = torch.tensor([[1, 1, 1, 1, 0]] * 3 + [[0] * 5]).bool()
    targets[0], targets[1], targets[2, 3:] = VOID, 4, VOID  # 4: not annotated
    logits.requires_grad_()
    loss = masked_pixel_loss(logits, targets, masks, smoothing)
    loss.sum().backward()
    assert (loss != 0).tolist() == [False, False, True, False]
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.flatten(1).any(1).tolist() == [False, False, True, False]
    assert logits.grad.isfinite().all()


def test_the_loss_is_in_full_precision_under_autocast():
    logits, targets = pixels()
    masks = torch.ones(4, 5).bool()
    rounded = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_pixel_loss(rounded, targets, masks, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, masked_pixel_loss(rounded.float(), targets, masks, 0.1))


def batch_of(targets: Tensor, sources: list[int], valid: list[bool], masked: bool = True) -> Batch:
    n = len(targets)
    images = torch.zeros(n, 3, *targets.shape[1:], dtype=torch.uint8)
    none = torch.full((n,), -1)
    masks = targets if masked else None
    return Batch(images, none, torch.tensor(sources), torch.arange(n), torch.tensor(valid), masks=masks)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_divided(parts):
    logits, targets = pixels()
    objective = PixelObjective(torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool(), ["a", "b"], 0.1)
    batch = batch_of(targets, [0, 1, 1, 0], [True, True, False, True])
    whole = objective(logits, batch)
    places = torch.arange(4).tensor_split(parts)
    divided = [objective(logits[at], part) for at, part in zip(places, batch.split(parts), strict=True)]
    torch.testing.assert_close(whole, sum(divided))
    each = masked_pixel_loss(logits, targets, objective.masks[batch.sources], 0.1)
    torch.testing.assert_close(whole, each[0] + each[1] + each[3], msg="what only fills the batch up counts nothing")


def test_a_batch_without_masks_has_no_loss_but_a_backward_pass():
    logits, targets = pixels()
    loss = PixelObjective(torch.ones(1, 5).bool(), ["a"])(
        logits.requires_grad_(), batch_of(targets, [0] * 4, [True] * 4, masked=False)
    )
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def drawn(height: int, width: int) -> np.ndarray:
    """Four classes in large parts: ground, a disc, a bar and a corner."""
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    mask[(y - height / 2) ** 2 + (x - width / 3) ** 2 < (min(height, width) / 4) ** 2] = 1
    mask[:, width * 3 // 4 :] = 2
    mask[: height // 5, : width // 2] = 3
    return mask


@pytest.mark.parametrize(("height", "width"), [(60, 43), (43, 60), (64, 64), (150, 210), (97, 300), (30, 31)])
def test_a_mask_comes_back_from_the_square_within_one_pixel(height, width):
    size, mask = 64, drawn(height, width)
    frame = frame_of(width, height, size, "letterbox")
    content = (frame.rows, frame.columns)
    square = np.full((size, size), VOID, np.uint8)
    square[: frame.rows, : frame.columns] = move_mask(mask, frame.seen, content, False)
    logits = torch.stack([torch.from_numpy(square == c) for c in range(4)]).float()
    got = label_map(logits, size, content, (height, width)).numpy()
    assert got.shape == mask.shape
    near = math.ceil(max(height, width) / size)  # one pixel of the square or of the image, whichever is larger
    padded = np.pad(mask, near, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * near + 1, 2 * near + 1))
    assert (windows == got[..., None, None]).any((2, 3)).all()
    assert (got == mask).mean() > 0.95


def plain(logits: Tensor, size: int, content: tuple[int, int], original: tuple[int, int]) -> Tensor:
    square = F.interpolate(logits[None], (size, size), mode="bilinear")[..., : content[0], : content[1]]
    return F.interpolate(square, original, mode="bilinear")[0]


@pytest.mark.parametrize(
    ("content", "original"),
    [((96, 48), (1200, 600)), ((48, 96), (31, 63)), ((96, 1), (3000, 30)), ((1, 96), (30, 3000)), ((96, 96), (1, 1))],
)
def test_strips_give_what_the_whole_gives(content, original, monkeypatch):
    monkeypatch.setattr("xfer.tasks.pixels._STRIP", 5000)
    logits = torch.randn(7, 24, 24, generator=torch.Generator().manual_seed(0))
    whole = plain(logits, 96, content, original)
    got = label_map(logits, 96, content, original)
    assert (got.dtype, got.shape) == (torch.uint8, original)
    chosen = whole.gather(0, got.long()[None])[0]
    torch.testing.assert_close(chosen, whole.max(0).values, rtol=0, atol=1e-4)
    assert (got == whole.argmax(0)).float().mean() > 0.999, "but for ties"


def test_answers_are_classes_that_may_be_answers():
    logits = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0))
    allowed = torch.tensor([False, True, False, True, False])
    got = label_map(logits, 32, (32, 20), (50, 31), allowed)
    assert set(got.unique().tolist()) == {1, 3}
    want = label_map(logits.masked_fill(~allowed[:, None, None], -1e4), 32, (32, 20), (50, 31))
    assert torch.equal(got, want)


K = 4
MASKS = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]).bool()
SOURCES, CLASSES = ("a", "b", "none"), ("ground", "disc", "bar", "corner")


def images(count: int = 30, seed: int = 0) -> list[tuple[Tensor, Tensor, int, int]]:
    """Answer, truth, source and position of each; some wrong, some void, one of them all void."""
    generator, found = np.random.default_rng(seed), []
    for position in range(count):
        source = position % 2
        truth = drawn(*generator.integers(20, 40, 2)).astype(np.uint8)
        answer = truth.copy()
        wrong = generator.random(truth.shape) < generator.random() * 0.6
        answer[wrong] = generator.integers(0, K, int(wrong.sum()))
        if source == 1:
            answer[answer == 1] = 0
        truth[generator.random(truth.shape) < 0.2] = VOID
        if position == 4:
            truth[:] = VOID
        found.append((torch.from_numpy(answer), torch.from_numpy(truth), source, position))
    return found


def scores_of(found: list[tuple[Tensor, Tensor, int, int]]) -> MaskScores:
    scores = MaskScores(SOURCES, CLASSES, MASKS)
    for start in range(0, len(found), 7):
        answers, truths, sources, positions = zip(*found[start : start + 7], strict=True)
        scores.add(answers, truths, sources, positions)
    return scores


def test_scores_are_those_of_a_pixel_by_pixel_count():
    found = images()
    got = scores_of(found).result()
    for s, name in enumerate(SOURCES[:2]):
        counted = [
            (t, a)
            for answer, truth, source, _ in found
            if source == s
            for t, a in zip(truth.flatten().tolist(), answer.flatten().tolist(), strict=True)
            if t != VOID and MASKS[s, t]
        ]
        score = got[name]
        ious = {}
        for c, of in enumerate(CLASSES):
            true, said = (
                {i for i, p in enumerate(counted) if p[0] == c},
                {i for i, p in enumerate(counted) if p[1] == c},
            )
            if true:
                ious[of] = len(true & said) / len(true | said)
        assert score.per_class == pytest.approx(ious)
        assert score.miou == pytest.approx(sum(ious.values()) / len(ious))
        assert score.pixels == len(counted)
        assert score.pixel_accuracy == pytest.approx(sum(t == a for t, a in counted) / len(counted))
        pairs = {(CLASSES[t], CLASSES[a]): counted.count((t, a)) for t, a in set(counted)}
        assert {(t, a): n for t, row in score.confusion.items() for a, n in row.items()} == pairs
    assert (got["a"].count, got["b"].count) == (14, 15), "one of a is all void"
    assert "disc" not in got["b"].per_class, "b does not annotate it"


def test_a_source_of_which_nothing_counts_has_no_score():
    scores = scores_of(images()).result()
    assert math.isnan(scores["none"].miou)
    assert (scores["none"].count, scores["none"].pixels, scores["none"].interval) == (0, 0, (0.0, 1.0))
    empty = MaskScores(SOURCES, CLASSES, MASKS).result()
    assert all(score.count == 0 for score in empty.values())


def test_what_is_answered_where_truth_is_void_changes_nothing():
    found = images()
    other = [(torch.where(truth == VOID, 3 - answer, answer), truth, s, p) for answer, truth, s, p in found]
    assert str(scores_of(other).result()) == str(scores_of(found).result())


def test_scores_of_two_ranks_are_those_of_one():
    found = images()
    ranks = [scores_of(found[1::2]), scores_of(found[::2][::-1])]
    rows, sums = [], []
    for rank in ranks:
        rank.result(lambda x: rows.append(x) or x, lambda x: sums.append(x) or x)
    got = ranks[1].result(lambda _: torch.cat(rows), lambda _: sums[0] + sums[1])
    assert str(got) == str(scores_of(found).result())


def test_an_interval_holds_the_miou_and_narrows_with_more_images():
    few, many = scores_of(images(20)).result()["a"], scores_of(images(320)).result()["a"]
    for score in (few, many):
        assert 0 <= score.interval[0] < score.miou < score.interval[1] <= 1
    assert many.interval[1] - many.interval[0] < 0.5 * (few.interval[1] - few.interval[0])
    one = scores_of(images(1)).result()["a"]
    assert one.interval == (0.0, 1.0), "one image says nothing of others"


def test_an_interval_is_as_wide_as_the_spread_between_draws_of_images():
    """Accuracies of images, 1 class: the miou is their mean, whose standard error is known."""
    right = np.random.default_rng(0).integers(20, 81, 400)
    counts = np.stack([right, right, np.full(400, 100)], 1)[:, :, None]
    low, high = miou_interval(counts)
    assert high - low == pytest.approx(2 * 1.96 * (right / 100).std() / 20, rel=0.1)


def test_an_interval_holds_the_miou_where_each_class_is_in_one_image_only():
    """Each is answered in all 40: 1/40 of them together, t/40 of a resample that has its image t times, none of 0."""
    counts = np.zeros((40, 3, 40), np.int64)
    counts[:, 1] = 1
    counts[np.arange(40), 0, np.arange(40)] = counts[np.arange(40), 2, np.arange(40)] = 1
    low, high = miou_interval(counts)
    assert low == pytest.approx(1 / 40)
    assert high > 1.5 / 40


def test_confusion_is_left_out_where_it_would_be_too_large():
    k = 255
    sources = [f"{i}" for i in range(MOST_CONFUSED // k**2 + 1)]
    scores = MaskScores(sources, [f"{i}" for i in range(k)], torch.ones(len(sources), k).bool())
    truth = torch.tensor([[254, 0], [VOID, 3]], dtype=torch.uint8)
    scores.add([truth.clamp_max(254)], [truth], [len(sources) - 1], [0])
    last = scores.result()[sources[-1]]
    assert (last.miou, last.pixels, last.confusion) == (1.0, 3, {})
