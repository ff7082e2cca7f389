"""Tars as other tools leave them, of pictures drawn on the spot."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import webdataset

from tests.shards.images import encoded

NAMES = ("cat", "dog", "owl")


def webdataset_tars(folder: Path, kind: str = "jpg+cls", count: int = 24, prefix: str = "", maxcount: int = 10) -> Path:
    """What webdataset's own ShardWriter makes of `count` samples, label n % 3."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(f"{folder}/{prefix}%06d.tar", maxcount=maxcount, verbose=0) as writer:  # pyright: ignore[reportAttributeAccessIssue]
        for n in range(count):
            writer.write({"__key__": f"set/{n:04d}", **members(kind, n)})
    return folder


def members(kind: str, n: int) -> dict[str, object]:
    """The parts of the n-th sample; their encoding is the writer's affair."""
    label = n % 3
    match kind:
        case "jpg+cls":
            return {"jpg": encoded(n), "cls": label}
        case "jpg+json":
            meta = {"breed": NAMES[label], "deep": [1, {"x": None}]}
            return {"jpg": encoded(n), "json": {"id": n, "label": NAMES[label], "meta": meta}}
        case "png+txt":
            return {"png": encoded(n, "PNG"), "txt": NAMES[label]}
        case "jpg+caption":
            return {"jpg": encoded(n), "txt": f"the {n}th picture, of a {NAMES[label]}"}
    raise AssertionError(kind)


def plain_tar(path: Path, entries: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar of these entries, written by Python's tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(n: int, key: str = "") -> list[tuple[str, bytes]]:
    """The entries of one sample."""
    key = key or f"{n:04d}"
    return [(f"{key}.jpg", encoded(n)), (f"{key}.cls", b"%d" % (n % 3))]


def energon_folder(folder: Path, train: str = "train-{000000..000001}.tar", exclude: tuple[str, ...] = ()) -> Path:
    """Two tars to train on and one to validate on, as `energon prepare` leaves them."""
    webdataset_tars(folder, "jpg+json", 20, prefix="train-")
    webdataset_tars(folder, "jpg+json", 10, prefix="held-out-")
    meta = folder / ".nv-meta"
    meta.mkdir()
    counts = {"train-000000.tar": 10, "train-000001.tar": 10, "held-out-000000.tar": 10}
    (meta / ".info.json").write_text(json.dumps({"energon_version": "7.4.0", "shard_counts": counts}))
    lines = [f"- {name}" for name in exclude]
    (meta / "split.yaml").write_text(
        "\n".join(["exclude:", *lines] if lines else ["exclude: []"])
        + f"\nsplit_parts:\n  train:\n  - {train}\n  val:\n  - held-out-000000.tar\n"
    )
    (meta / "dataset.yaml").write_text(
        "__module__: megatron.energon\n__class__: ImageClassificationDataset\n"
        "field_map:\n  image: jpg\n  label: json[meta][breed]\n"
    )
    return folder
