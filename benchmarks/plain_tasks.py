"""The scripts that `benchmarks.tasks` compares with: a detector and a segmenter of torchvision's own parts, in a loop.

They see the images of our streams, so that order, crops and flips are the same; models, losses, optimizers and what
is frozen are as torchvision has them. Warm-up and cosine are ours: its own schedules are for many thousand steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torchvision.models import ResNet, resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.fcos import FCOS
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

import shards
from shards.config import DataConfig
from shards.format.annotations import VOID
from shards.loading.batch import Batch
from shards.loading.frame import Frame
from xfer.heads.detections import Detections
from xfer.model import MEAN, STD
from xfer.tasks.segment import Segment
from xfer.train import learning_rate

WIDTH = 64
"""Channels of the feature pyramid: ours. torchvision's 256 would be three times the work at this size."""
TRAINED = ("layer2", "layer3", "layer4")  # torchvision's detectors train three stages of a pretrained backbone
Trained = tuple[Callable[[Tensor, list[Frame]], Sequence[Any]], Sequence[str]]
"""What it says of images [B, 3, S, S] in pixels of the originals, and the names of its classes."""


def train_fcos(
    config: DataConfig, weights: str, steps: int, rate: tuple[str, float], precision: str, seed: int
) -> Trained:
    """torchvision's FCOS on ResNet-18 and a feature pyramid, FrozenBatchNorm, three stages trained."""
    torch.manual_seed(seed)
    data = shards.open(config)
    net = fcos(_partly_frozen(weights), len(data.classes), config.image_size)
    _train(net, data, steps, rate, lambda batch: fcos_loss(net, batch, precision))
    return _boxes_of(net, 0), data.classes


def train_faster_rcnn(
    config: DataConfig, weights: str, steps: int, rate: tuple[str, float], precision: str, seed: int
) -> Trained:
    """torchvision's Faster R-CNN, the same way."""
    torch.manual_seed(seed)
    data = shards.open(config)
    net = faster_rcnn(_partly_frozen(weights), len(data.classes), config.image_size)
    parts: list[Any] = [net.backbone, net.rpn.head, net.roi_heads.box_head, net.roi_heads.box_predictor]
    for part in parts:
        part.forward = _lowered_within(part.forward, precision)  # what comes of them is located in float32
    _train(net, data, steps, rate, lambda batch: faster_rcnn_loss(net, batch))
    return _boxes_of(net, 1), data.classes


def _lowered_within(forward: Callable[..., Any], precision: str) -> Callable[..., Any]:
    def lowered(*given: Any) -> Any:
        with _lowered(precision):
            return tree_map(lambda x: x.float(), forward(*given))

    return lowered


def _partly_frozen(weights: str) -> ResNet:
    body = _resnet(weights, FrozenBatchNorm2d)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED))
    return body


def _boxes_of(net: nn.Module, first: int) -> Callable[[Tensor, list[Frame]], Sequence[Detections]]:
    """`first`: number of the first class."""

    def answers(images: Tensor, frames: list[Frame]) -> list[Detections]:
        return [
            Detections(frame.to_original(found["boxes"]), found["scores"], found["labels"] - first)
            for found, frame in zip(net(list(images.float() / 255)), frames, strict=True)
        ]

    return answers


def train_lraspp(
    config: DataConfig, weights: str, steps: int, rate: tuple[str, float], precision: str, seed: int
) -> Trained:
    """torchvision's LR-ASPP on ResNet-18, all of it trained, cross-entropy of the pixels."""
    torch.manual_seed(seed)
    data = shards.open(config)
    net = lraspp(_resnet(weights), len(data.classes))
    _train(net, data, steps, rate, lambda batch: lraspp_loss(net, batch, precision))

    def answers(images: Tensor, frames: list[Frame]) -> list[Tensor]:
        return Segment().answers(_pixel_logits(net, images), frames)

    return answers, data.classes


def fcos(body: ResNet, num_classes: int, size: int) -> FCOS:
    """FCOS on a feature pyramid of a ResNet-18."""
    stages = {"layer2": "0", "layer3": "1", "layer4": "2"}
    return FCOS(
        BackboneWithFPN(body, stages, [128, 256, 512], WIDTH, LastLevelP6P7(WIDTH, WIDTH)),
        num_classes,
        min_size=size,
        max_size=size,
        image_mean=list(MEAN),
        image_std=list(STD),
        score_thresh=0.05,  # torchvision's is 0.2, which cuts off what average precision counts
    )


def fcos_loss(net: FCOS, batch: Batch, precision: str) -> Tensor:
    seen, targets = net.transform(list(batch.images.float() / 255), _targets(batch, 0))
    assert targets is not None
    with _lowered(precision):
        maps = list(net.backbone(seen.tensors).values())
        said = net.head(maps)
    said = {name: value.float() for name, value in said.items()}
    places = [x.shape[-2] * x.shape[-1] for x in maps]
    return sum(net.compute_loss(targets, said, net.anchor_generator(seen, maps), places).values(), torch.zeros(()))


def _targets(batch: Batch, first: int) -> list[dict[str, Tensor]]:
    assert batch.boxes is not None
    real = [boxes[(boxes[:, 4] >= 0) & (boxes[:, 5] == 0)] for boxes in batch.boxes]
    return [{"boxes": one[:, :4], "labels": one[:, 4].long() + first} for one in real]


def faster_rcnn(body: ResNet, num_classes: int, size: int) -> FasterRCNN:
    """Faster R-CNN on a feature pyramid of a ResNet-18."""
    stages = {f"layer{i + 1}": str(i) for i in range(4)}
    return FasterRCNN(
        BackboneWithFPN(body, stages, [64, 128, 256, 512], WIDTH, LastLevelMaxPool()),
        num_classes + 1,  # the first is background
        min_size=size,
        max_size=size,
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def faster_rcnn_loss(net: FasterRCNN, batch: Batch) -> Tensor:
    return sum(net(list(batch.images.float() / 255), _targets(batch, 1)).values(), torch.zeros(()))


def lraspp(body: ResNet, num_classes: int) -> LRASPP:
    """LR-ASPP on a ResNet-18."""
    maps = IntermediateLayerGetter(body, {"layer2": "low", "layer4": "high"})
    return LRASPP(maps, low_channels=128, high_channels=512, num_classes=num_classes)


def lraspp_loss(net: LRASPP, batch: Batch, precision: str) -> Tensor:
    assert batch.masks is not None
    with _lowered(precision):
        said = _pixel_logits(net, batch.images)
    return F.cross_entropy(said, batch.masks.long(), ignore_index=VOID)


def _pixel_logits(net: LRASPP, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (MEAN, STD))
    return net((images.float() / 255 - mean) / std)["out"].float()


def _resnet(weights: str, norm_layer: Callable[..., nn.Module] | None = None) -> ResNet:
    body = resnet18(norm_layer=norm_layer)
    tensors = load_file(weights)
    body.load_state_dict({name: value for name, value in tensors.items() if name in body.state_dict()}, strict=False)
    return body


def _lowered(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def _train(
    net: nn.Module, data: shards.Data, steps: int, rate: tuple[str, float], loss: Callable[[Batch], Tensor]
) -> None:
    """Leaves the model in evaluation mode."""
    name, peak = rate
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(trained, peak, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.AdamW(trained, peak)
    net.train()
    with data.train(steps=steps) as batches:
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak, 10)
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
    net.eval()
