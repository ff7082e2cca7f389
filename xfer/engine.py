"""Engines: what turns a model and its gradients into the next model. The loop knows neither one.

`PlainEngine` is one process; `DeepSpeedEngine` is a rank of many (ZeRO 0 to 3). Both give and take the same portable
state, so any continues what any other began.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from shards.loading.batch import Slot
from xfer.config import Recipe
from xfer.deepspeed_engine import DeepSpeedEngine
from xfer.optimizer import Average, Optimizer, build_optimizer, moved_back, set_rate, swapped
from xfer.portable import copied, optimizer_state, raw_weights, set_optimizer_state

Kind = Literal["plain", "deepspeed"]
Precision = Literal["fp32", "bf16"]


class Engine(Protocol):
    """One rank of training. A step is `accumulation` times forward, backward, step; only the last `step` moves the
    weights.
    """

    module: nn.Module
    device: torch.device
    rank: int
    world_size: int
    accumulation: int

    def forward(self, images: Tensor, *side: Tensor) -> Any:
        """Images [B, 3, H, W] uint8, and side inputs [B, E] of a model that takes them -> what the model says of them:
        logits [B, K] of a classifier.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss` (scalar); over ranks they are averaged."""
        ...

    def step(self) -> None:
        """Ends a micro-batch; after the last of a step, updates the weights, and the next begins with new gradients."""
        ...

    def set_learning_rate(self, rate: float) -> None: ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, on every rank. A collective."""
        ...

    def exchanged(self) -> float:
        """Seconds of this rank in the exchange of gradients and weights, and in waiting for it, since this was asked
        last. Waits for the device.
        """
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, [n, c] of each -> [sum of n, c], on every rank. A collective."""
        ...

    def average_buffers(self) -> None:
        """BatchNorm statistics differ between ranks, each having seen its share: all go on with the mean. What is
        saved and what is scored is the model after this. A collective.
        """
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the module has the moving average of its weights, if the engine keeps one: what is saved and what is
        scored. A collective.
        """
        ...

    def moved_back(self, start: Mapping[str, Tensor], share: float) -> AbstractContextManager[None]:
        """Inside, each parameter is `share` of the way from its value in `start`, by name, to its own. A collective."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(model, optimizer): whole tensors on the CPU, optimizer's as `<parameter>/<key>`. The model's are averaged if
        the engine averages; the trained ones are `<name>/raw` of the optimizer's then. A collective. The buffers are
        this rank's: call `average_buffers` before.
        """
        ...

    def load(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int) -> None:
        """Continues from the state taken after `step` steps. The engine is made of a model that has the
        `trained_weights` of that state.
        """
        ...

    def close(self) -> None:
        """Frees what the engine holds beside the model. A collective; the engine cannot be used after it."""
        ...


def default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def shares(recipe: Recipe, world_size: int) -> tuple[int, int]:
    """(micro batch, accumulation) of one rank: the user gives the global batch, the rest follows."""
    share = -(-recipe.data.batch_size // world_size)
    micro = min(share, recipe.train.micro_batch or share)
    return micro, -(-share // micro)


def build_engine(
    model: nn.Module,
    recipe: Recipe,
    slot: Slot,
    kind: Kind = "plain",
    zero_stage: int = 1,
    device: torch.device | None = None,
) -> Engine:
    """The engine of a recipe: this process alone, or a rank under DeepSpeed. Everything of `train` that an engine has
    to know is handed on here.
    """
    t = recipe.train
    device = device or default_device()
    optimizer = build_optimizer(
        model.to(device),
        t.optimizer,
        t.learning_rate,
        t.momentum,
        t.weight_decay,
        t.layer_decay,
        decay_branches=not recipe.transfer.l2_sp,
        decay_head=recipe.transfer.head == "fit",  # kept rows of classes that no source has stay as they are
    )
    micro, accumulation = shares(recipe, slot.world_size)
    if kind == "plain":
        return PlainEngine(model, optimizer, accumulation, t.precision, t.clip_norm, t.ema, device)
    return DeepSpeedEngine(model, optimizer, device, zero_stage, accumulation, micro, t.precision, t.clip_norm, t.ema)


class PlainEngine:
    """One process, no distributed runtime. As fast as a bare loop, to within 2 % (benchmarks/overhead.py)."""

    rank, world_size = 0, 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        accumulation: int = 1,
        precision: Precision = "fp32",
        clip_norm: float | None = None,
        ema: float | None = None,
        device: torch.device | None = None,
    ):
        """`ema`: decay of the moving average of the weights; None: there is none."""
        self.device = device or default_device()
        self.module = model.to(self.device)
        self.optimizer, self.accumulation, self.clip_norm = optimizer, accumulation, clip_norm
        self.bf16 = precision == "bf16"
        self._average = Average(self.module, ema) if ema is not None else None
        self._pending = 0

    def forward(self, images: Tensor, *side: Tensor) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.module(images, *side)

    def backward(self, loss: Tensor) -> None:
        if not self._pending:  # now, not after the step: the forward pass would take their memory, 3 % of the time
            self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def step(self) -> None:
        self._pending += 1
        if self._pending < self.accumulation:
            return
        self._pending = 0
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm)
        self.optimizer.step()
        if self._average:
            self._average.update()

    def set_learning_rate(self, rate: float) -> None:
        set_rate(self.optimizer.param_groups, rate)

    def sum(self, values: Tensor) -> Tensor:
        return values

    def exchanged(self) -> float:
        return 0.0

    def gather(self, rows: Tensor) -> Tensor:
        return rows

    def average_buffers(self) -> None:
        pass

    def averaged(self) -> AbstractContextManager[None]:
        return swapped(self._average)

    def moved_back(self, start: Mapping[str, Tensor], share: float) -> AbstractContextManager[None]:
        return moved_back([(p, start[name].to(p.device)) for name, p in self.module.named_parameters()], share)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with self.averaged():
            model = copied(self.module.state_dict())
        raw = raw_weights(self._average, self.module.state_dict()) if self._average else {}
        return model, optimizer_state(self.module, self.optimizer) | raw

    def load(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int) -> None:
        set_optimizer_state(self.module, self.optimizer, optimizer, step)
        if self._average:
            self._average.load([model[name] for name, _ in self._average.moving], step)

    def close(self) -> None:
        pass
