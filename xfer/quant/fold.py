"""Fold every BatchNorm into the convolution before it, so that a layer is one weight and one bias.

In eval mode BatchNorm is y = a (x - mean) + beta with a = gamma / sqrt(var + eps), a constant per channel, and a
convolution absorbs it exactly: W' = a W, b' = a (b - mean) + beta. Quantizing before folding would let `a` multiply
the rounding error unseen by the search for the best clip.

Pairs are found by registration order (a Conv2d child directly followed by a BatchNorm2d child of the same width), which
is how torchvision and this project write their blocks; registration is not execution, so `check_fold` runs both models.
Cost: one copy of the model and a few milliseconds.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def fold(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode without its foldable BatchNorms (each becomes Identity, or the activation that it
    holds); `model` is untouched.

    A convolution that stands in several places cannot carry several BatchNorms in one bias: ValueError.
    """
    folded = copy.deepcopy(model).eval()
    found = list(pairs(folded))
    _refuse_shared(folded, found)
    for conv_name, bn_name in found:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(bn_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        _absorb(conv, norm)
    # Only now: one BatchNorm object may follow two convolutions, and each of them has to absorb it.
    for _, bn_name in found:
        parent, _, child = bn_name.rpartition(".")
        rest = getattr(folded.get_submodule(bn_name), "act", nn.Identity())  # timm's may have its activation inside
        setattr(folded.get_submodule(parent), child, rest)
    return folded


def check_fold(
    before: nn.Module,
    after: nn.Module,
    images: Any,
    tolerance: float = 1e-4,
    of: Callable[[Any, Any], Any] = lambda model, images: model(images),
) -> float:
    """Largest output difference relative to the output's scale; ValueError above `tolerance`.

    images: whatever both models take, usually float [B, 3, H, W]; of: what of a model and images is compared.
    """
    worst = 0.0
    ours, theirs = _outputs(after, images, of), _outputs(before, images, of)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        raise ValueError("the folded model's outputs have other shapes than the model's before folding")
    for mine, reference in zip(ours, theirs, strict=True):
        if not reference.numel():
            continue
        scale = reference.abs().max().clamp_min(1e-12)
        worst = max(worst, _finite((mine - reference).abs().max() / scale))
    if worst > tolerance:
        raise ValueError(
            f"folding changed the outputs by {worst:.2e} of their scale (allowed {tolerance:.0e}): some BatchNorm is "
            "registered directly after a convolution that it does not normalise; register the modules in call order"
        )
    return worst


def pairs(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of (convolution, BatchNorm) that follow each other under one parent; a shared parent is met once."""
    for prefix, parent in model.named_modules():
        # `_modules` and not named_children(): that one skips a module registered twice and would hide a neighbour.
        children = [(name, child) for name, child in parent._modules.items() if child is not None]
        for (conv_name, conv), (bn_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                if conv.out_channels != norm.num_features:
                    continue
                dot = f"{prefix}." if prefix else ""
                yield dot + conv_name, dot + bn_name


def _refuse_shared(model: nn.Module, found: list[tuple[str, str]]) -> None:
    uses = Counter(id(p) for m in _places(model) if (p := m._parameters.get("weight")) is not None)
    for conv_name, bn_name in found:
        if uses[id(model.get_submodule(conv_name).weight)] > 1:
            raise ValueError(
                f"{conv_name} shares its weight with another layer, so {bn_name} cannot be folded into it: "
                "give each source its own convolution before quantizing"
            )
        norm = model.get_submodule(bn_name)
        if norm._buffers.get("running_mean") is None:
            raise ValueError(f"{bn_name} keeps no running statistics, so there is nothing constant to fold")


def _places(model: nn.Module) -> Iterator[nn.Module]:
    """Every registered place, a module that stands in two places twice (unless their parent is itself shared)."""
    yield model
    for parent in model.modules():
        yield from (child for child in parent._modules.values() if child is not None)


@torch.no_grad()
def _absorb(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """In float64: gamma / sqrt(var) reaches 1e3 for nearly dead channels, and this runs once."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    gamma = norm.weight.double() if norm.weight is not None else torch.ones_like(var, dtype=torch.float64)
    beta = norm.bias.double() if norm.bias is not None else torch.zeros_like(gamma)
    bias = conv.bias.double() if conv.bias is not None else torch.zeros_like(gamma)
    factor = gamma / (var.double() + norm.eps).sqrt()  # [C_out]
    conv.weight.copy_(conv.weight.double() * factor.view(-1, 1, 1, 1))  # [C_out, C_in / groups, kH, kW]
    shifted = (bias - mean.double()) * factor + beta
    conv.bias = nn.Parameter(shifted.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)


@torch.no_grad()
def _outputs(model: nn.Module, images: Any, of: Callable[[Any, Any], Any]) -> list[Tensor]:
    modes = {module: module.training for module in model.modules()}
    try:
        return list(tensors(of(model.eval(), images)))
    finally:
        for module, training in modes.items():
            module.training = training


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.float()
    elif isinstance(value, Mapping):
        for key in value:
            yield from tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def _finite(value: Tensor) -> float:
    """NaN compares false with everything and would pass the check: it counts as infinitely far."""
    return float(torch.nan_to_num(value, nan=float("inf"), posinf=float("inf")))
