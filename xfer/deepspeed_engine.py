"""The engine of one rank of many: DeepSpeed, ZeRO stages 0 to 3. Its state is portable, as in `xfer/portable.py`.

DeepSpeed's own checkpoints are not: stages 1 to 3 refuse another world size, and the universal form loses BatchNorm
statistics.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xfer.optimizer import Average, Optimizer, moved_back, set_rate, swapped, trained
from xfer.portable import STATE_KEYS, copied, optimizer_state, raw_weights, set_optimizer_state
from xfer.timing import Clock, Spans

COLLECTIVES = (
    *("all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_reduce", "all_reduce_coalesced"),
    *("broadcast", "reduce", "reduce_scatter", "reduce_scatter_tensor"),
)


class _Timed:
    """DeepSpeed's way to the process group, with the time that it takes: DeepSpeed's own log of it makes a GPU wait for
    each call.
    """

    def __init__(self, backend: Any, spans: Spans):
        self.backend = backend
        calls = {name: getattr(backend, name) for name in COLLECTIVES if hasattr(backend, name)}
        vars(self).update({name: self._measured(call, spans) for name, call in calls.items()})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    @staticmethod
    def _measured(call: Callable[..., Any], spans: Spans) -> Callable[..., Any]:
        timed = spans.measured(call)

        def called(*arguments: Any, **options: Any) -> Any:
            work = timed(*arguments, **options)
            return _Work(work, spans.measured(work.wait)) if options.get("async_op") and work is not None else work

        return called


class _Work:
    """A collective that goes on; waiting for it is measured too."""

    def __init__(self, work: Any, wait: Callable[..., Any]):
        self._work, self.wait = work, wait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


class DeepSpeedEngine:
    """One rank under DeepSpeed. The process group (gloo on CPU, NCCL on GPU) exists already and is wrapped, never
    made here.

    bf16 goes through `torch_autocast`: DeepSpeed's own `bf16` breaks BatchNorm. Weights stay NCHW.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
        zero_stage: int = 1,
        accumulation: int = 1,
        micro_batch: int = 1,
        precision: Literal["fp32", "bf16"] = "fp32",
        clip_norm: float | None = None,
        ema: float | None = None,
    ):
        """`ema` as in `PlainEngine`; of ZeRO 3 each rank averages its part of a parameter."""
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel("WARNING")
        # On CPU it would compile a shared-memory all-reduce, which only inference uses and which needs a C++ compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.device = device
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
        self._spans = Spans(Clock(device))
        backend = deepspeed.comm.comm.cdb  # of this process, for all engines
        self._backend = backend.backend if isinstance(backend, _Timed) else backend
        deepspeed.comm.comm.cdb = _Timed(self._backend, self._spans)
        self._average = Average(self.module, ema) if ema is not None else None
        self._pending = 0

    def forward(self, images: Tensor, *side: Tensor) -> Any:
        return self._engine(images, *side)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self.accumulation)  # DeepSpeed divides by it

    def step(self) -> None:
        self._engine.step()
        self._pending = (self._pending + 1) % self.accumulation
        if self._average and not self._pending:
            self._average.update()

    def set_learning_rate(self, rate: float) -> None:
        set_rate(self._engine.optimizer.param_groups, rate)

    def sum(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values

    def exchanged(self) -> float:
        return self._spans.take()

    def gather(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.device)
        counts = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        counts[self.rank] = len(rows)
        dist.all_reduce(counts)
        padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])  # collectives take equal shapes only
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])

    def average_buffers(self) -> None:
        buffers = [buffer for buffer in self.module.buffers() if buffer.is_floating_point()]
        for buffer in [*buffers, *(self._average.buffers if self._average else ())]:
            dist.all_reduce(buffer)
            buffer /= self.world_size

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        if not self._average:
            yield
            return
        self._part()
        with swapped(self._average):
            yield
            self._part()

    @contextlib.contextmanager
    def moved_back(self, start: Mapping[str, Tensor], share: float) -> Iterator[None]:
        self._part()
        named = self.module.named_parameters()
        own = [(getattr(p, "ds_tensor", p), self._own_part(p, start[name].to(self.device))) for name, p in named]
        with moved_back(own, share):
            yield
            self._part()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with self.averaged(), self._whole_parameters():
            model = copied(self.module.state_dict())
        if not self._average:
            return model, self._optimizer_state()
        with self._whole_parameters():
            raw = raw_weights(self._average, self.module.state_dict())
        return model, self._optimizer_state() | raw

    def _optimizer_state(self) -> dict[str, Tensor]:
        if isinstance(self._engine.optimizer, Optimizer):  # stage 0 leaves the optimizer as it is
            return optimizer_state(self.module, self._engine.optimizer)
        self._link_state()
        keys = [key for key in STATE_KEYS if any(key in s for s in self._base_optimizer.state.values())]
        # Every rank has to take part, also one whose own partition has no state.
        flags = torch.tensor([float(key in keys) for key in STATE_KEYS])
        keys = [key for key, found in zip(STATE_KEYS, self.sum(flags).tolist(), strict=True) if found]
        get = self._deepspeed.utils.safe_get_full_optimizer_state
        return {f"{name}/{key}": get(p, key).detach().cpu().clone() for name, p in trained(self.module) for key in keys}

    def load(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int) -> None:
        self._load_optimizer(optimizer, step)
        if self._average:
            parts = [self._own_part(tensor, model[name].to(self.device)) for name, tensor in self._average.moving]
            self._average.load(parts, step)

    def _load_optimizer(self, state: Mapping[str, Tensor], step: int) -> None:
        if isinstance(self._engine.optimizer, Optimizer):
            set_optimizer_state(self.module, self._engine.optimizer, state, step)
            return
        if not state:
            return
        self._make_optimizer_state()
        self._link_state()
        for name, p in trained(self.module):
            for key in STATE_KEYS:
                if f"{name}/{key}" in state:
                    self._set_state(p, state[f"{name}/{key}"].to(self.device), key)
        for values in self._base_optimizer.state.values():
            if "step" in values:
                values["step"].fill_(step)

    def close(self) -> None:
        self._engine.destroy()
        self._deepspeed.comm.comm.cdb = self._backend

    def _set_state(self, parameter: Any, value: Tensor, key: str) -> None:
        """Stage 3 cuts each parameter into equal parts, one a rank, the last one padded. DeepSpeed 0.19.8 sets whole
        values only where nothing is padded; elsewhere it fails on the last rank, and the others wait for ever.
        """
        if self.zero_stage < 3:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        self._deepspeed.utils.safe_set_local_optimizer_state(parameter, self._own_part(parameter, value), key)

    def _own_part(self, tensor: Any, value: Tensor) -> Tensor:
        """What this rank has of the whole `value` of a parameter or buffer."""
        if not hasattr(tensor, "ds_tensor"):
            return value
        size = tensor.ds_tensor.numel()
        padded = nn.functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        return padded.narrow(0, size * self.rank, size)

    def _part(self) -> None:
        """ZeRO 3 keeps small parameters whole for a while: after this each rank has its part only, so that what is
        written there is what is seen.
        """
        with self._whole_parameters():
            pass

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
