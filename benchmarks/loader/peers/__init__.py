"""The contestants. Each module has `prepare(images, folder)`, which writes its format beside the images, and
`open_loader(job)`, and says in its docstring what it follows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.loader.contest import Job, Loader
from benchmarks.loader.dataset import Image


@dataclass(frozen=True)
class Peer:
    """`module` in this package; `package`, whose version is reported; `decoders` it can be measured with."""

    module: str
    package: str
    decoders: tuple[str, ...] = ("own", "ours")
    resumes: bool = True
    """Whether it is asked to; one that has no state is read up to the place."""

    def prepare(self, images: Sequence[Image], folder: Path) -> None:
        """Writes the images in the loader's format, once."""
        done = folder / f"{self.module}.prepared"
        if not done.exists():
            _module(self.module).prepare(images, folder)
            done.touch()

    def opener(self) -> Callable[[Job], Loader]:
        """Imports the loader."""
        return _module(self.module).open_loader


def _module(name: str):
    return import_module(f"{__name__}.{name}")


PEERS = {
    "shards": Peer("ours", "xfer", ("own",)),
    "bare loop": Peer("bare", "torch", ("ours",), False),
    "fastest known": Peer("bare", "simplejpeg", ("own",), False),
    "torchvision": Peer("folder", "torchvision"),
    "webdataset": Peer("wds", "webdataset"),
    "streaming": Peer("mosaic", "mosaicml-streaming"),
    "litdata": Peer("lit", "litdata"),
    "energon": Peer("energon", "megatron-energon"),
    "grain": Peer("grains", "grain"),
    "dali": Peer("dali", "nvidia-dali-cuda130"),
    "ffcv": Peer("beton", "ffcv", ("own",)),
    "ffcv raw": Peer("beton_raw", "ffcv", ("own",), False),
    "ray data": Peer("raydata", "ray"),
}
