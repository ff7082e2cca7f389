"""Affine correction: give each quantized layer's output channels the mean and the spread they have in float.

Rounding shrinks or stretches a channel and shifts it, and the next layers never saw that. Per channel, with m and s the
mean and standard deviation over images and pixels,  y' = (y - m_q) s_f / s_q + m_f  undoes both, and being affine per
output channel it goes into the layer's scale and bias: no bytes, no run time, the integer codes untouched. The mean
alone is bias correction (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019,
section 4.2); matching the spread as well is what BatchNorm re-estimation does in a model that still has BatchNorms.

A layer is corrected inside the very forward pass that measures it, so the layers after it already see the corrected
output: all layers together cost one forward of the float model and one of the quantized model per batch.
With several batches a layer uses everything seen so far; batches of 32 images or more make the first guess good.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xfer.quant.bits import layers
from xfer.quant.weights import Quantized, write

Layer = nn.Conv2d | nn.Linear


@dataclass
class Moments:
    """Running mean and variance per channel, float64 [C], of `count` values each."""

    count: int = 0
    mean: Tensor | float = 0.0
    var: Tensor | float = 0.0

    def add(self, count: int, mean: Tensor, var: Tensor) -> None:
        """Pooled by Chan, Golub & LeVeque (1979): no sum of squares, which would cancel for large means."""
        if not count:
            return
        total = self.count + count
        share, step = count / total, mean - self.mean
        self.var = self.var + (var - self.var) * share + step * step * (share * (1 - share))
        self.mean = self.mean + step * share
        self.count = total


Measured = tuple[int, Tensor, Tensor]  # count, mean [C], var [C]


@torch.no_grad()
def correct(quantized: Quantized, reference: nn.Module, batches: Iterable[Any], limit: float = 2.0) -> None:
    """Correct scales and biases of `quantized` in place.

    reference: the folded model in float, with the same layer names. batches: what the models take, one argument each,
    usually float [B, 3, H, W]; a generator will do. limit: no channel is stretched or shrunk by more than this factor;
    a channel that is constant on these images keeps its spread and gets its mean.
    """
    names = list(quantized.codes)
    floats, ours = layers(reference), layers(quantized.model)
    if missing := [name for name in names if name not in floats]:
        raise ValueError(f"the reference model has no layer {', '.join(missing)}: hand in the folded float model")
    pools = {name: (Moments(), Moments()) for name in names}
    seen = 0
    for batch in batches:
        calls = _measure(reference, {name: floats[name] for name in names}, batch)
        _correct_on_the_way(quantized.model, {name: ours[name] for name in names}, batch, calls, pools, limit)
        seen += 1
    if not seen:
        raise ValueError("no calibration batches: the correction needs at least one")
    for name, (target, own) in pools.items():
        if own.count:
            _settle(quantized, name, ours[name], target, own, limit)


def _measure(model: nn.Module, watched: dict[str, Layer], batch: Any) -> dict[str, list[Measured]]:
    """Output moments of every call of every watched layer, in order."""
    calls: dict[str, list[Measured]] = {name: [] for name in watched}

    def hook_for(name: str) -> Callable[..., None]:
        return lambda layer, args, output: calls[name].append(moments(layer, output))

    _run(model, watched, hook_for, batch)
    return calls


def _correct_on_the_way(
    model: nn.Module,
    watched: dict[str, Layer],
    batch: Any,
    calls: dict[str, list[Measured]],
    pools: dict[str, tuple[Moments, Moments]],
    limit: float,
) -> None:
    """Run the quantized model, each layer's output corrected before the next layer reads it."""

    def hook_for(name: str) -> Callable[..., Tensor]:
        def hook(layer: Layer, args: Any, output: Tensor) -> Tensor:
            if not calls[name]:
                raise ValueError(f"{name} runs more often in the quantized model than in the reference")
            target, own = pools[name]
            # A layer called several times a forward (a head over pyramid levels) pairs call by call.
            target.add(*calls[name].pop(0))
            own.add(*moments(layer, output))
            ratio, shift = affine(target, own, limit)
            return output * over_channels(ratio, layer, output) + over_channels(shift, layer, output)

        return hook

    _run(model, watched, hook_for, batch)


def affine(target: Moments, own: Moments, limit: float) -> tuple[Tensor, Tensor]:
    """(ratio, shift), float64 [C], with ratio * own + shift distributed like target as far as `limit` allows."""
    own_mean, own_std = torch.as_tensor(own.mean), torch.as_tensor(own.var).clamp_min(0).sqrt()
    mean, std = torch.as_tensor(target.mean), torch.as_tensor(target.var).clamp_min(0).sqrt()
    # Constant up to float32 rounding of its own mean: what is left there is noise, and a ratio of noises means nothing.
    alive = (std > 1e-5 * mean.abs() + 1e-12) & (own_std > 1e-5 * own_mean.abs() + 1e-12)
    ratio = torch.where(alive, std / own_std.clamp_min(1e-30), 1.0).clamp(1 / limit, limit)
    shift = mean - ratio * own_mean
    usable = torch.isfinite(ratio) & torch.isfinite(shift)
    return torch.where(usable, ratio, 1.0), torch.where(usable, shift, 0.0)


def _settle(quantized: Quantized, name: str, layer: Layer, target: Moments, own: Moments, limit: float) -> None:
    ratio, shift = affine(target, own, limit)
    codes = quantized.codes[name]
    quantized.codes[name] = replace(codes, scale=(codes.scale.double() * ratio).float())
    assert layer.bias is not None  # `quantize` gave it one
    layer.bias.copy_(layer.bias.double() * ratio + shift)
    write(layer, quantized.codes[name])


def _run(
    model: nn.Module, watched: dict[str, Layer], hook_for: Callable[[str], Callable[..., Any]], batch: Any
) -> None:
    modes = {module: module.training for module in model.modules()}
    handles = [layer.register_forward_hook(hook_for(name)) for name, layer in watched.items()]
    try:
        model.eval()(batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training


def moments(layer: nn.Module, output: Tensor) -> Measured:
    """output: [B, C, H, W] of a convolution or [..., C] of a linear layer."""
    channels = _channel_axis(layer, output)
    axes = [axis for axis in range(output.dim()) if axis != channels]
    count = output.numel() // max(output.shape[channels], 1)
    values = output.float()
    mean = values.mean(axes)
    # Two passes and no torch.var_mean: it is ten times slower where the axes are not the last ones.
    spread = torch.linalg.vector_norm(values - over_channels(mean, layer, values), dim=axes)
    return count, mean.double(), spread.double().square() / max(count, 1)


def over_channels(values: Tensor, layer: nn.Module, output: Tensor) -> Tensor:
    shape = [1] * output.dim()
    shape[_channel_axis(layer, output)] = -1
    return values.to(output.dtype).view(shape)


def _channel_axis(layer: nn.Module, output: Tensor) -> int:
    return output.dim() - (3 if isinstance(layer, nn.Conv2d) else 1)
