"""A detector and a segmenter have the losses of one plain process under every ZeRO stage: see ../test_engines.py."""

from typing import Any

import pytest
import torch

from shards.loading.batch import Batch, Slot
from tests.xfer.tasks.runs import ALIKE, BOXES, KINDS
from tests.xfer.test_engines import make
from xfer.engine import Engine
from xfer.model_config import ModelConfig
from xfer.tasks.known import task_of
from xfer.tasks.task import Supervision
from xfer.train import set_training, train_step

pytestmark = [pytest.mark.deepspeed]
STEPS, SIZE = 3, 64
GRID: dict[str, tuple[str, dict[str, Any], int]] = {
    "0": ("sgd", {}, 4),
    "1": ("adamw", {"accumulation": 2, "ema": 0.9}, 4),
    "2": ("sgd", {"accumulation": 3}, 5),  # shares of 2 and 3: a micro-batch of one rank is empty
    "3": ("adamw", {"clip_norm": 0.5}, 3),
}
"""By ZeRO stage: optimizer, options of the engine, global batch."""


def config(kind: str) -> ModelConfig:
    """Two branches of different sizes, one of them partly frozen."""
    branches = {
        "a": {"backbone": "resnet10", "train_from": "layer4"},
        "b": {"backbone": "resnet10", "size": 32},
    }
    return ModelConfig.model_validate({"branches": branches, "fusion": {"width": 32}, "head": {"kind": kind}})


def share(step: int, batch: int, slot: Slot) -> Batch:
    """A rank's part of a drawn global batch with boxes and masks, of two sources by turns; every third image has no
    box, and one of each other's two is ignored by turns.
    """
    drawn = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (batch, 3, SIZE, SIZE), dtype=torch.uint8, generator=drawn)
    corners = torch.randint(0, SIZE - 32, (batch, 2, 2), generator=drawn).float()
    sides = torch.randint(8, 32, (batch, 2, 2), generator=drawn).float()
    labels = torch.randint(0, 2, (batch, 2, 1), generator=drawn).float()
    crowd = (torch.arange(2 * batch) % 4 == 3).float().view(batch, 2, 1)
    boxes = torch.cat([corners, corners + sides, labels, crowd], 2)
    masks = torch.randint(0, 3, (batch, SIZE, SIZE), generator=drawn).to(torch.uint8)
    masks[:, :, SIZE // 2 :] = 255
    part = range(batch * slot.rank // slot.world_size, batch * (slot.rank + 1) // slot.world_size)
    own, positions = list(part), torch.arange(batch)
    return Batch(
        images[own],
        torch.full((len(own),), -1),
        (positions % 2)[own],
        positions[own],
        torch.ones(len(own), dtype=torch.bool),
        tuple(boxes[i] if i % 3 else boxes[i, :0] for i in own),
        masks[own],
    )


def steps(engine: Engine, kind: str, batch: int, count: int = STEPS) -> list[float]:
    """Losses, summed over ranks."""
    set_training(engine.module, freeze_batchnorm=True)
    masks = torch.tensor([[True, True, kind in ALIKE], [True, True, True]])
    objective = task_of("detection" if kind in BOXES else "segmentation").loss(Supervision(masks, ["s", "t"]))
    slot = Slot(engine.rank, engine.world_size)
    return [engine.sum(train_step(engine, share(step, batch, slot), objective, batch)).item() for step in range(count)]


def losses(engine: str, kind: str, optimizer: str, options: dict[str, Any], batch: int) -> list[float]:
    return steps(make(engine, optimizer, config=config(kind), **options), kind, batch)


@pytest.mark.parametrize("stage", GRID)
@pytest.mark.parametrize("kind", ["fcos", "fpn"])
def test_every_stage_on_two_ranks_gives_the_plain_losses(two, kind, stage):
    optimizer, options, batch = GRID[stage]
    expected = losses("plain", kind, optimizer, options, batch)
    assert len(set(expected)) == STEPS
    for found in two.run(losses, stage, kind, optimizer, options, batch):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_used_and_stays_near_fp32(two, kind):
    expected = losses("plain", kind, "sgd", {}, 4)
    for found in (
        losses("plain", kind, "sgd", {"precision": "bf16"}, 4),
        two.run(losses, "1", kind, "sgd", {"precision": "bf16"}, 4)[0],
    ):
        assert found[0] != expected[0]
        assert found[0] == pytest.approx(expected[0], rel=3e-2)
