"""Statistics of BatchNorm from training images, for layers whose weights have none that hold."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from xfer.engine import default_device
from xfer.model import FusionModel


@torch.no_grad()
def settle(
    model: FusionModel,
    images: Iterable[Tensor],
    norms: Sequence[nn.BatchNorm2d],
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Makes the statistics of `norms` those of `images`, uint8 [B, 3, S, S], each batch counting alike
    (`torch.optim.swa_utils.update_bn` would reset all others too). The model is left in evaluation mode.
    """
    device = default_device()
    model.to(device).eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
    for batch in images:
        model(batch.to(device))
        advance(len(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
