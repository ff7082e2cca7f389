"""A Recipe (data + model + training) in one process: fusion model, transfer, quantization, the shipped bundle.

    run = xfer.fit("recipe.yaml", {"train.steps": 300})
    bundle = run.quantize(bits=4)
    xfer.load("runs/a/bundle").predict(["cat.jpg"])

Names are looked up when they are used: `import xfer` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.settings import ConfigError
    from xfer.surface import Model, Run, Seeds, fit, load

_HOMES = {
    "ConfigError": "shards.settings",
    "Model": "xfer.surface",
    "Run": "xfer.surface",
    "Seeds": "xfer.surface",
    "fit": "xfer.surface",
    "load": "xfer.surface",
}
__all__ = ["ConfigError", "Model", "Run", "Seeds", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'xfer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
