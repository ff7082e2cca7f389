"""An exported file in the place of its model: what it is given and what it gives are the model's, on the CPU.

So everything that takes a model (answers, outcomes, scores) takes a file too.
"""

from typing import Any

import torch
from torch import Tensor, nn

from xfer.export.session import run


class OnnxModel(nn.Module):
    """Images uint8 [B, 3, S, S] -> what the model gives, on the device of the images. `task`: of the model."""

    def __init__(self, session: Any, task: str):
        super().__init__()
        self.session, self.task = session, task
        self.nothing = nn.Parameter(torch.zeros(0), requires_grad=False)  # models are asked where they are

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        found = run(self.session, images.cpu().numpy())
        outputs = {name: torch.from_numpy(value).to(images.device) for name, value in found.items()}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))
