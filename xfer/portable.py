"""The state of training as whole tensors on the CPU, by parameter name: any engine, ZeRO stage and world size continues
what any other began.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xfer.optimizer import Average, Optimizer, trained

STATE_KEYS = ("momentum_buffer", "exp_avg", "exp_avg_sq")
RAW = "raw"  # key of weights that are trained, in the optimizer's state, where the model's are their average


def trained_weights(model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that training goes on with, of a state that an engine gave: those of the model, if nothing was
    averaged.
    """
    end = f"/{RAW}"
    return {**model, **{name.removesuffix(end): value for name, value in optimizer.items() if name.endswith(end)}}


def raw_weights(average: Average, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}/{RAW}": state[name].detach().cpu().clone() for name, _ in average.moving}


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def optimizer_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    found = ((name, optimizer.state.get(p, {})) for name, p in trained(module))
    return {
        f"{name}/{key}": values[key].detach().cpu().clone()
        for name, values in found
        for key in STATE_KEYS
        if values.get(key) is not None
    }


def set_optimizer_state(module: nn.Module, optimizer: Optimizer, state: Mapping[str, Tensor], step: int) -> None:
    for name, p in trained(module):
        values: dict[str, Any] = {
            key: state[f"{name}/{key}"].to(p.device).clone() for key in STATE_KEYS if f"{name}/{key}" in state
        }
        if "exp_avg" in values:
            values["step"] = torch.tensor(float(step))
        if values:
            optimizer.state[p] = values
