"""What an engine steps with: the optimizer's groups and rates, the pull to where weights began, and their average."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Optimizer = torch.optim.Optimizer


def trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, by name."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def depth(model: nn.Module, name: str) -> int:
    """How far below fusion and head (0) a parameter of the model lies: the last stage of a branch is 1."""
    if not name.startswith("branches."):
        return 0
    _, branch, rest = name.split(".", 2)
    return model.get_submodule(f"branches.{branch}").depth(rest)  # pyright: ignore[reportCallIssue]


def build_optimizer(
    model: nn.Module,
    kind: str,
    rate: float,
    momentum: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    decay_branches: bool = True,
    decay_head: bool = True,
) -> Optimizer:
    """SGD (Nesterov) or AdamW (momentum is beta 1) on the trained parameters; no decay on vectors: norms, biases.

    The rate of a layer is `rate` x `layer_decay` ** its depth (Howard & Ruder, Universal Language Model Fine-tuning for
    Text Classification, ACL 2018, sec. 3.2, discriminative fine-tuning). `decay_branches`, `decay_head`: whether weight
    decay is on these too.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in trained(model):
        part = name.partition(".")[0]
        decays = p.dim() > 1 and (decay_branches or part != "branches") and (decay_head or part != "head")
        groups.setdefault((layer_decay ** depth(model, name), weight_decay if decays else 0.0), []).append(p)
    built = [
        {"params": params, "weight_decay": decay, "lr": rate * scale, "rate_scale": scale}
        for (scale, decay), params in groups.items()
    ]
    if kind == "adamw":
        return torch.optim.AdamW(built, lr=rate, betas=(momentum, 0.999))
    return torch.optim.SGD(built, lr=rate, momentum=momentum, nesterov=momentum > 0)


def set_rate(groups: Sequence[dict[str, float]], rate: float) -> None:
    """The rate of each group of parameters, in proportion to its depth."""
    for group in groups:
        group["lr"] = rate * group["rate_scale"]


def hold_near(model: nn.Module, start: Mapping[str, Tensor], strength: float, accumulation: int) -> None:
    """Adds the gradient of strength / 2 x ||w - start||^2 over the trained weights of the branches to that of each step
    (L2-SP: Li, Grandvalet & Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML
    2018, sec. 3.2). `start`: values by parameter name, of which a copy is kept on the model's device.

    By hooks and not as a part of the loss: under ZeRO 3 a parameter is whole only while its own gradient is made. Call
    it before DeepSpeed wraps the model. Each of the `accumulation` backward passes of a step adds its part.
    """
    for name, p in trained(model):
        if name.startswith("branches."):
            p.register_hook(partial(_pulled, p=p, origin=start[name].to(p.device), strength=strength / accumulation))


def _pulled(gradient: Tensor, p: Tensor, origin: Tensor, strength: float) -> Tensor:
    return gradient.add(p.detach() - origin, alpha=strength)


def between(start: Tensor, end: Tensor, share: float) -> Tensor:
    """start + share x (end - start): WiSE-FT, weights between those that fine-tuning began with and those it ended with
    (Wortsman et al., Robust Fine-tuning of Zero-shot Models, CVPR 2022, sec. 3). Three operations that round by
    themselves, so a part of a tensor gets the same bits as the whole.
    """
    return start + (end - start) * share


@contextmanager
def moved_back(own: Sequence[tuple[Tensor, Tensor]], share: float) -> Iterator[None]:
    """Inside, the first of each pair is `between` the second and itself; afterwards what it was, bit by bit."""
    before = [tensor.detach().clone() for tensor, _ in own]
    with torch.no_grad():
        for tensor, start in own:
            tensor.copy_(between(start, tensor, share))
    try:
        yield
    finally:
        with torch.no_grad():
            for (tensor, _), value in zip(own, before, strict=True):
                tensor.copy_(value)


def hold_together(rows: Tensor, pull: Tensor, accumulation: int) -> None:
    """Adds P V, the gradient of half the sum of P_jk v_j . v_k over `rows` V [K, d], to that of each step: the penalty
    of a table of names (xfer/heads/label_table.py). `pull`: P [K, K] float32. By a hook, for the reasons and with the
    `accumulation` of `hold_near`.
    """
    rows.register_hook(partial(_pulled_together, rows=rows, pull=pull.to(rows.device) / accumulation))


def _pulled_together(gradient: Tensor, rows: Tensor, pull: Tensor) -> Tensor:
    return gradient.add(pull @ rows.detach())


class Average:
    """The exponential moving average of what training moves: trained parameters, and the statistics of BatchNorm. The
    weight vector of a fusion is not averaged.

    The n-th update leaves the weight min(decay, (1 + n) / (10 + n)) to what was, so that a short run forgets where it
    began; `torch.optim.swa_utils` does the sums. Of ZeRO 3 each rank averages its part of a parameter.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        kept = module.state_dict()
        buffers = [
            (name, one)
            for name, one in module.named_buffers()
            if one.is_floating_point() and name in kept and not name.startswith("fusion.")
        ]
        self.moving: list[tuple[str, Tensor]] = [*trained(module), *buffers]
        self._values = [one.detach().clone() for one in self._own()]
        self.buffers = self._values[len(self.moving) - len(buffers) :]

    def _own(self) -> list[Tensor]:
        """What this rank has of each."""
        return [getattr(tensor, "ds_tensor", tensor) for _, tensor in self.moving]

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(self._values, self._own(), torch.tensor(self.updates))

    def load(self, values: Sequence[Tensor], updates: int) -> None:
        """Goes on from what was averaged by then; of each tensor this rank's part."""
        self.updates = updates
        for own, value in zip(self._values, values, strict=True):
            own.copy_(value)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the module has the averages; afterwards what it had, bit by bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for value, tensor in zip(self._values, self._own(), strict=True):
            before = tensor.detach().clone()
            tensor.copy_(value)
            value.copy_(before)


def swapped(average: Average | None) -> AbstractContextManager[None]:
    """As `Average.swapped`, if there is one."""
    return average.swapped() if average else nullcontext()
