"""WebDataset tars that others wrote, packed anew: mixed, checked and cut into shards of one size.

What `index` must refuse is put right here: members of one sample may stand apart. Keys get the name of their tar in
front (`000003/cat`), for others number their samples anew in each tar; the keys of a data set of ours stay as they are.
Listing reads all headers and the labels, one tar at a time; `index` costs less where the tars are fit to be used.
"""

from collections.abc import Iterator
from pathlib import Path

from shards.format.fields import IMAGES, Roles, member_text, number_labels, of_dots, read_classes
from shards.format.manifest import Manifest, canonical, read_manifest, splits_in
from shards.format.tar import LARGEST_SAMPLE, TarError, members, sample_key, split_name
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.notes import Notes
from shards.sources.source import Item, Refused, SourceOptions
from shards.sources.tars import OUTSIDE, Foreign, open_foreign

Parts = dict[str, tuple[int, int]]
"""Where the members of a sample are, by extension: first byte, bytes."""


class WebDataset:
    """The samples of some tars. `own`: the manifest, if it is a data set of ours."""

    def __init__(self, foreign: Foreign, given: tuple[str, ...], own: Manifest | None):
        self.foreign, self.roles, self.own, self.ignored = foreign, foreign.roles, own, 0
        self.task, self.classes, self.table, self.notes = self.roles.task, given, {}, Notes()
        packed = {"label": "cls", "boxes": "boxes.json", "mask": "mask.png", "side": "json"}
        self.fields = {role: packed[role] for role in self.roles.fields() if role in packed}
        if self.roles.label:
            texts = sorted({text for tar in foreign.tars for text, *_ in self._walk(tar) if text is not None})
            if not texts:
                raise ConfigError(f"{foreign.folder}: no sample has a label ({self.roles.label})")
            where, numeric = f"{foreign.folder}: {self.roles.label}", self.roles.label == "cls"
            self.numbering = number_labels(texts, given, where, numeric, own.classes if own else ())
            self.classes, self.table = self.numbering.classes, self.numbering.places

    def items(self) -> Iterator[Item]:
        """Every sample."""
        self.ignored, self.notes = 0, Notes()
        for note in self.numbering.notes if self.roles.label else ():
            self.notes.tell(note, count=0)
        for tar in self.foreign.tars:
            stamp = files.measure(tar)[1]
            for text, key, parts in self._walk(tar):
                if f"{tar.name}/{key}" in self.foreign.excluded:
                    self.ignored += 1
                    self.notes.tell("samples excluded by .nv-meta", f"{tar.name}/{key}")
                    continue
                name = sample_key(key) if self.own else f"{tar.stem}/{sample_key(key)}"
                size = sum(length for _, length in parts.values())
                label = -1 if text is None else self.table[text]
                yield Item(name, size, f"{stamp}:{key}", label, {"tar": tar.name, "parts": parts})

    def read(self, item: Item) -> dict[str, bytes]:
        """The image untouched, and what the roles name."""
        roles, tar, parts = self.roles, self.foreign.folder / item.payload["tar"], item.payload["parts"]
        if roles.label and item.label < 0:
            raise Refused(self._why_no_label(tar, parts))
        images = [extension for extension in parts if extension in roles.image]
        if len(images) != 1:
            dots = "" if images else of_dots(parts)
            raise Refused(f"{len(images)} images among its members ({', '.join(parts)}), expected one{dots}")
        found = {images[0].rpartition(".")[2]: _read(tar, *parts[images[0]])}
        if roles.label:
            found["cls"] = b"%d" % item.label
        for role in (roles.boxes, roles.mask):
            if role and role in parts:
                found[role] = _read(tar, *parts[role])
        if roles.side and roles.side in parts:
            data = _read(tar, *parts[roles.side])
            found["json"] = data if roles.side == "json" else canonical({roles.side: data.decode(errors="replace")})
        return found

    def _walk(self, tar: Path) -> Iterator[tuple[str | None, str, Parts]]:
        """(label, key, members) of each sample of a tar. Raises ConfigError."""
        samples: dict[str, Parts] = {}
        try:
            with open(tar, "rb") as file:
                for member in members(file):
                    if not member.belongs_to_a_sample:
                        if member.is_file:
                            self.notes.tell(OUTSIDE, member.name)
                        continue
                    key, extension = split_name(member.name)
                    parts = samples.setdefault(key, {})
                    if extension in parts:
                        raise TarError(f"{member.name}: two members of one name")
                    if member.size > LARGEST_SAMPLE:
                        raise TarError(f"{member.name}: more than {LARGEST_SAMPLE:,} bytes")
                    parts[extension] = member.data, member.size
        except (TarError, OSError) as error:
            raise ConfigError(f"{tar}: {error}") from None
        for key, parts in samples.items():
            yield self._label(tar, parts), key, parts

    def _why_no_label(self, tar: Path, parts: Parts) -> str:
        role = self.roles.label or ""
        extension = role.partition(":")[0]
        try:
            text = member_text({extension: _read(tar, *parts[extension])}, role)
        except ValueError as error:
            return str(error)
        except KeyError:
            return f"no label ({role}) among its members ({', '.join(parts)})"
        return f"its {role} is {text!r}, which is none of the {len(self.classes)} classes"

    def _label(self, tar: Path, parts: Parts) -> str | None:
        extension = (self.roles.label or "").partition(":")[0]
        if extension not in parts:
            return None
        try:
            return member_text({extension: _read(tar, *parts[extension])}, self.roles.label or "")
        except (ValueError, Refused):
            return None


def open_webdataset(folder: Path, options: SourceOptions) -> WebDataset:
    """Raises ConfigError with every fault."""
    if len(options.side) > 1:
        raise ConfigError(f"--side: {', '.join(options.side)}; expected one extension")
    own = _own(folder, options.part)
    roles = Roles((options.image,) if options.image else (), options.label, side=next(iter(options.side), None))
    foreign = open_foreign(folder, options.part, roles)
    numbered = foreign.roles.boxes or foreign.roles.mask
    classes = read_classes(options.classes) or (own.classes if own and numbered else ())
    if numbered and not classes:
        raise ConfigError(f"{folder}: {numbered} holds class numbers; name the classes with --classes")
    odd = [extension for extension in foreign.roles.image if extension.rpartition(".")[2] not in IMAGES]
    if odd:
        raise ConfigError(f"--image: {odd[0]!r}; expected an extension that ends in one of {', '.join(IMAGES)}")
    return WebDataset(foreign, classes, own)


def _own(folder: Path, part: str | None) -> Manifest | None:
    """The manifest of a data set that was built here, not indexed."""
    splits = splits_in(folder)
    split = part or (splits[0] if len(splits) == 1 else None)
    if split not in splits:
        return None
    manifest = read_manifest(folder, split)
    return None if "indexed" in manifest.made_by else manifest


def _read(tar: Path, start: int, length: int) -> bytes:
    try:
        with open(tar, "rb") as file:
            file.seek(start)
            return file.read(length)
    except OSError as error:
        raise Refused(f"{tar}: {error.strerror or error}") from None
