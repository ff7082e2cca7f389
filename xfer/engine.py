"""Engines: what turns a model and its gradients into the next model. The loop knows neither one.

`PlainEngine` is one process; `DeepSpeedEngine` is a rank of many (ZeRO 0 to 3). Both give and take the same portable
state, whole tensors by parameter name, so any engine, ZeRO stage and world size continues what any other began.
DeepSpeed's own checkpoints cannot: stages 1 to 3 refuse another world size, and the universal form loses BatchNorm
statistics.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.loading.batch import Slot
from xfer.config import Recipe

Kind = Literal["plain", "deepspeed"]
Precision = Literal["fp32", "bf16"]
Optimizer = torch.optim.Optimizer
STATE_KEYS = ("momentum_buffer", "exp_avg", "exp_avg_sq")


class Engine(Protocol):
    """One rank of training. A step is `accumulation` times forward, backward, step; only the last `step` moves the
    weights.
    """

    module: nn.Module
    device: torch.device
    rank: int
    world_size: int
    accumulation: int

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] uint8 -> logits [B, K]."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss` (scalar); over ranks they are averaged."""
        ...

    def step(self) -> None:
        """Ends a micro-batch; after the last of a step, updates the weights and clears the gradients."""
        ...

    def set_learning_rate(self, rate: float) -> None: ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, on every rank. A collective."""
        ...

    def average_buffers(self) -> None:
        """BatchNorm statistics differ between ranks, each having seen its share: all go on with the mean. What is
        saved and what is scored is the model after this. A collective.
        """
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(model, optimizer): whole tensors on the CPU, optimizer's as `<parameter>/<key>`. A collective. The buffers
        are this rank's: call `average_buffers` before.
        """
        ...

    def load_optimizer(self, state: dict[str, Tensor], step: int) -> None:
        """Continues from the optimizer state taken after `step` steps. The model's weights are loaded before the
        engine is made.
        """
        ...


def build_optimizer(model: nn.Module, kind: str, rate: float, momentum: float, weight_decay: float) -> Optimizer:
    """SGD (Nesterov) or AdamW (momentum is beta 1) on the trained parameters; no decay on vectors: norms, biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999))
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)


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
    optimizer = build_optimizer(model.to(device), t.optimizer, t.learning_rate, t.momentum, t.weight_decay)
    micro, accumulation = shares(recipe, slot.world_size)
    if kind == "plain":
        return PlainEngine(model, optimizer, accumulation, t.precision, t.clip_norm, device)
    return DeepSpeedEngine(model, optimizer, zero_stage, accumulation, micro, t.precision, t.clip_norm, device)


class PlainEngine:
    """One process, no distributed runtime. Costs nothing over a bare PyTorch loop (benchmarks/overhead.py)."""

    rank, world_size = 0, 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        accumulation: int = 1,
        precision: Precision = "fp32",
        clip_norm: float | None = None,
        device: torch.device | None = None,
    ):
        self.device = device or default_device()
        self.module = model.to(self.device)
        self.optimizer, self.accumulation, self.clip_norm = optimizer, accumulation, clip_norm
        self.bf16 = precision == "bf16"
        self._pending = 0

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.module(images)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self._pending += 1
        if self._pending < self.accumulation:
            return
        self._pending = 0
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def set_learning_rate(self, rate: float) -> None:
        _set_rate(self.optimizer, rate)

    def sum(self, values: Tensor) -> Tensor:
        return values

    def average_buffers(self) -> None:
        pass

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return _copied(self.module.state_dict()), _optimizer_state(self.module, self.optimizer)

    def load_optimizer(self, state: dict[str, Tensor], step: int) -> None:
        _set_optimizer_state(self.module, self.optimizer, state, step)


class DeepSpeedEngine:
    """One rank under DeepSpeed. The process group (gloo on CPU, NCCL on GPU) exists already and is wrapped, never
    made here.

    bf16 goes through `torch_autocast`: DeepSpeed's own `bf16` breaks BatchNorm. Weights stay NCHW.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        zero_stage: int = 1,
        accumulation: int = 1,
        micro_batch: int = 1,
        precision: Precision = "fp32",
        clip_norm: float | None = None,
        device: torch.device | None = None,
    ):
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel("WARNING")
        # On CPU it would compile a shared-memory all-reduce, which only inference uses and which needs a C++ compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.device = device or default_device()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.accumulation = accumulation
        # One rank has nothing to partition; there ZeRO's copies cost a tenth of the speed and more (docs/log.md).
        self.zero_stage = zero_stage if self.world_size > 1 else 0
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {"stage": self.zero_stage},
            "zero_allow_untested_optimizer": True,  # SGD
            "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
            "gradient_clipping": clip_norm or 0.0,
            "steps_per_print": 10**12,
        }
        self._deepspeed: Any = deepspeed
        self._engine: Any = deepspeed.initialize(model=model.to(self.device), optimizer=optimizer, config=config)[0]
        self.module: nn.Module = self._engine.module

    def forward(self, images: Tensor) -> Tensor:
        return self._engine(images)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self.accumulation)  # DeepSpeed divides by it

    def step(self) -> None:
        self._engine.step()

    def set_learning_rate(self, rate: float) -> None:
        _set_rate(self._engine.optimizer, rate)

    def sum(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values

    def average_buffers(self) -> None:
        for buffer in self.module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.world_size

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with self._whole_parameters():
            model = _copied(self.module.state_dict())
        if isinstance(self._engine.optimizer, Optimizer):  # stage 0 leaves the optimizer as it is
            return model, _optimizer_state(self.module, self._engine.optimizer)
        self._link_state()
        keys = [key for key in STATE_KEYS if any(key in s for s in self._base_optimizer.state.values())]
        # Every rank has to take part, also one whose own partition has no state.
        flags = torch.tensor([float(key in keys) for key in STATE_KEYS])
        keys = [key for key, found in zip(STATE_KEYS, self.sum(flags).tolist(), strict=True) if found]
        get = self._deepspeed.utils.safe_get_full_optimizer_state
        return model, {
            f"{name}/{key}": get(p, key).detach().cpu().clone() for name, p in _trained(self.module) for key in keys
        }

    def load_optimizer(self, state: dict[str, Tensor], step: int) -> None:
        if isinstance(self._engine.optimizer, Optimizer):
            _set_optimizer_state(self.module, self._engine.optimizer, state, step)
            return
        if not state:
            return
        self._make_optimizer_state()
        self._link_state()
        for name, p in _trained(self.module):
            for key in STATE_KEYS:
                if f"{name}/{key}" in state:
                    self._set_state(p, state[f"{name}/{key}"].to(self.device), key)
        for values in self._base_optimizer.state.values():
            if "step" in values:
                values["step"].fill_(step)

    def _set_state(self, parameter: Any, value: Tensor, key: str) -> None:
        """Stage 3 cuts each parameter into equal parts, one a rank, the last one padded. DeepSpeed 0.19.8 sets whole
        values only where nothing is padded; elsewhere it fails on the last rank, and the others wait for ever.
        """
        if self.zero_stage < 3:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        size = parameter.ds_tensor.numel()
        padded = nn.functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        part = padded.narrow(0, size * self.rank, size)
        self._deepspeed.utils.safe_set_local_optimizer_state(parameter, part, key)

    @property
    def _base_optimizer(self) -> Optimizer:
        return self._engine.optimizer.optimizer

    def _make_optimizer_state(self) -> None:
        """One step at rate 0 on gradients 0: ZeRO makes its state on the first step only."""
        rates = [group["lr"] for group in self._engine.optimizer.param_groups]
        training = self.module.training
        self.module.eval()
        self.set_learning_rate(0.0)
        images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=self.device)
        for _ in range(self.accumulation):
            self._engine.backward(self._engine(images).float().sum() * 0)
            self._engine.step()
        for group, rate in zip(self._engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.module.train(training)

    def _link_state(self) -> None:
        """DeepSpeed 0.19.8 links states to parameters after the first group's step: later groups would have none."""
        if self.zero_stage < 3:
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    @contextlib.contextmanager
    def _whole_parameters(self) -> Iterator[None]:
        if self.zero_stage < 3:
            yield
            return
        with self._deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            yield


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def _optimizer_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    found = ((name, optimizer.state.get(p, {})) for name, p in _trained(module))
    return {
        f"{name}/{key}": values[key].detach().cpu().clone()
        for name, values in found
        for key in STATE_KEYS
        if values.get(key) is not None
    }


def _set_optimizer_state(module: nn.Module, optimizer: Optimizer, state: dict[str, Tensor], step: int) -> None:
    for name, p in _trained(module):
        values: dict[str, Any] = {
            key: state[f"{name}/{key}"].to(p.device).clone() for key in STATE_KEYS if f"{name}/{key}" in state
        }
        if "exp_avg" in values:
            values["step"] = torch.tensor(float(step))
        if values:
            optimizer.state[p] = values
