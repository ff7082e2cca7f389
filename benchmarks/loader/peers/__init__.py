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
    """`module` in this package; `package`, whose version is reported; `reads`: file or folder of each set that it
    reads; `decoders` it can be measured with.
    """

    module: str
    package: str
    reads: str
    decoders: tuple[str, ...] = ("own", "ours")
    resumes: bool = True
    """Whether it is asked to; one that has no state is read up to the place."""

    def prepare(self, images: Sequence[Image], folder: Path) -> None:
        """Writes the images in the loader's format, once."""
        done = folder / f"{self.module}.prepared"
        if not done.exists():
            _module(self.module).prepare(images, folder)
            done.touch()

    def warm(self, folder: Path) -> None:
        """Reads what it will read: some machines take pages back from the page cache that are idle for a minute."""
        path = folder / self.reads
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as content:
                    while content.read(1 << 24):
                        pass

    def opener(self) -> Callable[[Job], Loader]:
        """Imports the loader."""
        return _module(self.module).open_loader


def _module(name: str):
    return import_module(f"{__name__}.{name}")


PEERS = {
    "shards": Peer("ours", "xfer", "shards", ("own",)),
    "bare loop": Peer("bare", "torch", "images", ("ours",), False),
    "fastest known": Peer("bare", "simplejpeg", "images", ("own",), False),
    "torchvision": Peer("folder", "torchvision", "images"),
    "webdataset": Peer("wds", "webdataset", "shards"),
    "streaming": Peer("mosaic", "mosaicml-streaming", "mds"),
    "litdata": Peer("lit", "litdata", "litdata"),
    "energon": Peer("energon", "megatron-energon", "energon"),
    "grain": Peer("grains", "grain", "images.array_record"),
    "dali": Peer("dali", "nvidia-dali-cuda130", "images"),
    "ffcv": Peer("beton", "ffcv", "jpg.beton", ("own",)),
    "ffcv raw": Peer("beton_raw", "ffcv", "raw.beton", ("own",), False),
    "ray data": Peer("raydata", "ray", "images"),
}
