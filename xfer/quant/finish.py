"""Finishing: a rounded model is trained for a few steps until it answers as the float model it came from.

Every forward pass sees weights that are rounded. Trained is where each weight lies between two codes, with the gradient
passed through the rounding (straight-through: Bengio, Leonard & Courville, 2013), and beside it the scale and the bias
of each channel, learned as in LSQ (Esser et al., Learned Step Size Quantization, ICLR 2020). The loss asks for the
answers of the float model (Hinton, Vinyals & Dean, 2015; for rounded weights Polino, Pascanu & Alistarh, ICLR 2018):
so it needs no labels, and classes that a source does not annotate, boxes and pixels are no special case.

A weight is w = scale * round(position), position in units of a code. Folded weights differ by orders of magnitude from
channel to channel, codes do not, so one rate serves all layers and widths: a low one, for every weight that crosses
between two codes without need is noise (docs/log.md). Cost of a step: a forward pass of the float
model, and forward and backward of the rounded one, with a copy of the weights and Adam's two moments in memory.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from xfer.quant.bits import layers
from xfer.quant.fold import tensors
from xfer.quant.weights import Codes, Quantized, largest_code, quantize_weight, write


class _Layer(nn.Module):
    """The weight and the bias of a layer as they are trained. weight float32 [C_out, ...]: before it was rounded."""

    def __init__(self, weight: Tensor, bias: Tensor, codes: Codes):
        super().__init__()
        self.top, self.bits = largest_code(codes.bits), codes.bits
        shape = [-1, *[1] * (weight.dim() - 1)]
        first = quantize_weight(weight, codes.bits).scale  # codes may have been corrected since: scales, and these not
        self.scale, self.start = codes.scale.view(shape), bias.detach().clone()
        at = (weight.detach() / first.view(shape)).clamp(-self.top, self.top)
        self.position = nn.Parameter(torch.where(at.round() == codes.q, at, codes.q.float()))
        self.stretch = nn.Parameter(torch.zeros_like(self.scale))  # of the scale, as a logarithm
        self.shift = nn.Parameter(torch.zeros_like(bias))  # of the bias, in units of the largest weight

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        inside = self.position.clamp(-self.top, self.top)
        rounded = inside + (inside.round() - inside).detach()
        scale = self.scale * self.stretch.exp()
        return rounded * scale, self.start + self.shift * self.top * self.scale.flatten()

    @torch.no_grad()
    def codes(self) -> Codes:
        q = self.position.clamp(-self.top, self.top).round().to(torch.int8)
        return Codes(q, (self.scale * self.stretch.exp()).flatten(), self.bits)


def finish(
    quantized: Quantized,
    reference: nn.Module,
    batches: Iterable[Any],
    steps: int,
    rate: float = 0.001,
    bf16: bool = False,
    after_step: Callable[[int], None] = lambda count: None,
) -> None:
    """Trains the codes, scales and biases of `quantized` in place, for one step a batch and at most `steps` of them.

    reference: the folded model in float, with the same layer names; batches: what both models take, usually uint8 [B,
    3, H, W] of training images; rate: of Adam, in codes a step, and for scales in parts of themselves, falling to zero
    on a cosine; bf16: whether the passes are in bfloat16, the rounding never is. The models stay on their device and in
    evaluation mode.
    """
    floats, ours = layers(reference), layers(quantized.model)
    device = next(reference.parameters()).device.type
    learned: dict[str, _Layer] = {}
    for name, codes in quantized.codes.items():
        bias = ours[name].bias
        assert bias is not None, "`quantize` gave it one"
        learned[name] = _Layer(floats[name].weight, bias, codes)
    optimizer = torch.optim.Adam([p for one in learned.values() for p in one.parameters()], lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    reference.eval()
    quantized.model.eval()
    for _, batch in zip(range(steps), batches, strict=False):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                wanted = reference(batch)
            loss = divergence(functional_call(quantized.model, _named(learned), (batch,)), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        after_step(1)
    for name, one in learned.items():
        quantized.codes[name] = one.codes()
        with torch.no_grad():
            write(ours[name], quantized.codes[name])
            ours[name].bias.copy_(one.tensors()[1])  # pyright: ignore[reportOptionalMemberAccess]


def _named(learned: Mapping[str, _Layer]) -> dict[str, Tensor]:
    found = {}
    for name, one in learned.items():
        found[f"{name}.weight"], found[f"{name}.bias"] = one.tensors()
    return found


def divergence(output: Any, wanted: Any) -> Tensor:
    """How far a model's answers are from those wanted, a scalar: of logits [B, K] or [B, K, H, W] the Kullback-Leibler
    divergence in nats an image or pixel, of several tensors the sum of their squared errors, each over the variance of
    what is wanted.
    """
    ours, theirs = list(tensors(output)), list(tensors(wanted))
    if len(ours) == 1 and ours[0].dim() in (2, 4):
        p, q = theirs[0].log_softmax(1), ours[0].log_softmax(1)
        return F.kl_div(q, p, reduction="none", log_target=True).sum(1).mean()
    pairs = zip(ours, theirs, strict=True)
    return torch.stack([(a - b).square().mean() / b.var(correction=0).clamp_min(1e-12) for a, b in pairs]).sum()
