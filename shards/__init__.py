"""Data from many sources as plain tar shards, streamed in one exact order on any number of workers.

    data = shards.open({"photo": "data/photo", "sketch": "s3://bucket/sketch"}, image_size=224, batch_size=64)
    for images, targets in data.train():
        ...

Names are looked up when they are used: `import shards` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.ingest.build import build
    from shards.loading.batch import Batch
    from shards.settings import ConfigError
    from shards.surface import Data, open

_HOMES = {
    "Batch": "shards.loading.batch",
    "ConfigError": "shards.settings",
    "Data": "shards.surface",
    "build": "shards.ingest.build",
    "open": "shards.surface",
}
__all__ = ["Batch", "ConfigError", "Data", "build", "open"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shards' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
