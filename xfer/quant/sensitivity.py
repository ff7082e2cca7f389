"""How much each layer minds each width: the Fisher quadratic form, from one pass over a few images.

To second order, weights moved by dW change the predicted distribution by KL = 1/2 dW' F dW, with F the Fisher matrix:
the mean over samples of g g', g the gradient of log p(y | x) and y *drawn from the model* (the data's labels give the
"empirical" Fisher, which is another matrix: Kunstner, Balles & Hennig, 2019). So the value is 1/2 mean of (g . dW)^2,
and it keeps the covariance within a layer that diagonal sums of g^2 dW^2 throw away. g . dW needs no gradient per
sample: it is the sum over output pixels of dL/dY times dY, where dY is the layer run on its own input with weights dW.

`corrected` takes dY after the affine correction (see correct.py), which is what will be shipped: errors that the
correction removes should not win bits. Values are nats per image and add over layers.

What the labels are is the model's own business: `likelihood` draws them. Labels of many places in an image (pixels,
boxes) are drawn independently of each other, as the model says them, so the products of two places have mean zero and
the square of the sum is the sum of the squares: one draw for all places is enough. Cost per batch: one forward, one
backward without weight gradients, and one forward of the layers per width; memory of about two training steps.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xfer.quant.bits import WIDTHS, layers
from xfer.quant.correct import Moments, affine, moments
from xfer.quant.weights import Codes, dequantize, quantize_weight

Layer = nn.Conv2d | nn.Linear
Call = tuple[str, Tensor, Tensor]  # layer name, its input, its output
Found = Iterator[tuple[int, Tensor]]
Products = dict[str, dict[int, Tensor]]  # layer -> width -> g . dW per image of a batch, [B]
Likelihood = Callable[[Any, torch.Generator], Tensor]
"""Of labels that it draws from an output of the model, one set an image: log p, float [B], with its graph."""


def of_classes(logits: Any, generator: torch.Generator) -> Tensor:
    """The `Likelihood` of a classifier: a class drawn for each image of logits [B, K]."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError("sensitivities to classes need a model that returns logits [B, K]")
    scores = logits.float().log_softmax(1)
    drawn = torch.multinomial(scores.detach().exp().cpu(), 1, generator=generator)
    return scores.gather(1, drawn.to(scores.device)).squeeze(1)


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    generator: torch.Generator,
    widths: Sequence[int] = WIDTHS,
    corrected: bool = True,
    likelihood: Likelihood = of_classes,
) -> dict[str, dict[int, float]]:
    """Expected KL in nats per image, for each layer and width, of quantizing that layer alone.

    model: folded, in float. batches: what it takes, usually float [B, 3, H, W]. generator: on the CPU; labels are drawn
    from it, by `likelihood`. A value that is not finite is left out, so no search can pick it. Raises ValueError if no
    gradient reaches a layer.
    """
    watched = layers(model)
    codes = {name: {width: quantize_weight(layer.weight, width) for width in widths} for name, layer in watched.items()}
    totals = {name: dict.fromkeys(widths, 0.0) for name in watched}
    num_images = 0
    for batch in batches:
        log_likelihood, calls = _forward(model, watched, batch, lambda output: likelihood(output, generator))
        num_images += len(log_likelihood)
        for name, row in _products(log_likelihood, calls, watched, codes, corrected).items():
            for width, product in row.items():
                totals[name][width] += float(product.double().square().sum())
    if not num_images:
        raise ValueError("no calibration images: sensitivities need at least one batch")
    return {
        name: {width: value / (2 * num_images) for width, value in row.items() if math.isfinite(value)}
        for name, row in totals.items()
    }


def _forward(
    model: nn.Module, watched: dict[str, Layer], batch: Any, likelihood: Callable[[Any], Tensor]
) -> tuple[Tensor, list[Call]]:
    """Log-likelihood [B] of labels drawn from the model, and every call of every watched layer."""
    calls: list[Call] = []

    def hook_for(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output.requires_grad_()  # a frozen model: this is where its graph begins
            calls.append((name, args[0].detach(), output))
            return output.clone()  # an in-place ReLU comes next and would overwrite what we keep

        return hook

    modes = {module: module.training for module in model.modules()}
    handles = [layer.register_forward_hook(hook_for(name)) for name, layer in watched.items()]
    try:
        with torch.enable_grad():
            return likelihood(model.eval()(batch)), calls
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training


def _products(
    log_likelihood: Tensor,
    calls: list[Call],
    watched: dict[str, Layer],
    codes: dict[str, dict[int, Codes]],
    corrected: bool,
) -> Products:
    """g . dW per image; the calls of a layer that runs several times a forward add up before they are squared."""
    grads = torch.autograd.grad(log_likelihood.sum(), [output for _, _, output in calls], allow_unused=True)
    products: Products = {name: {} for name in watched}
    with torch.no_grad():
        for (name, given, output), grad in zip(calls, grads, strict=True):
            if grad is None:
                # Zero would be a lie that costs this layer all its bits.
                raise ValueError(
                    f"{name}: no gradient reaches it from the output; build the model with no frozen stages "
                    "(parts that run without a graph) and without side outputs"
                )
            if len(output) != len(log_likelihood):
                raise ValueError(f"{name}: its first axis is {len(output)}, not the {len(log_likelihood)} images")
            changes = ((width, _change(watched[name], given, one)) for width, one in codes[name].items())
            along = _corrected if corrected else _plain
            for width, product in along(watched[name], output, grad, changes):
                products[name][width] = products[name].get(width, 0) + product
    return products


def _change(layer: Layer, given: Tensor, codes: Codes) -> Tensor:
    """What rounding this layer's weight does to its output."""
    moved = dequantize(codes) - layer.weight
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(given, moved, None)
    return nn.functional.linear(given, moved)


def _plain(layer: Layer, output: Tensor, grad: Tensor, changes: Iterable[tuple[int, Tensor]]) -> Found:
    """Widths, and grad . change of each image, [B]."""
    for width, change in changes:
        yield width, _by_channel(layer, grad * change).sum(1)


def _corrected(layer: Layer, output: Tensor, grad: Tensor, changes: Iterable[tuple[int, Tensor]]) -> Found:
    """The same of changes after correction, which are r (Y + change) + s - Y with r and s per channel: products with Y
    and with 1 are the same for all widths, and nothing of the size of Y is made for r and s.
    """
    with_output, with_one = _by_channel(layer, grad * output), _by_channel(layer, grad)
    target = Moments()
    target.add(*moments(layer, output))
    for width, change in changes:
        own = Moments()
        own.add(*moments(layer, output + change))
        ratio, shift = affine(target, own, limit=2.0)
        with_change = _by_channel(layer, grad * change)
        yield width, ((ratio - 1) * with_output + ratio * with_change + shift * with_one).sum(1)


def _by_channel(layer: Layer, values: Tensor) -> Tensor:
    """Summed over all but images and channels, float64 [B, C]."""
    if isinstance(layer, nn.Conv2d):
        return values.flatten(2).sum(2).double()
    return values.flatten(1, -2).sum(1).double() if values.dim() > 2 else values.double()
