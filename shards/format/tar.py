"""Samples inside plain tar files: parsing a byte span, and finding the spans of a whole tar.

A sample is a run of neighbouring members that share a key: `<key>.jpg`, `<key>.cls`. Python's tarfile reads through
damage without a word (a broken header ends the archive early, a second archive behind the first is dropped); here
every header's checksum counts and every doubt is a `TarError`. Names longer than a USTAR header holds come as GNU `L`
or pax `x` members and are understood. Nothing is unpickled: members whose extension asks for it are refused by name.
Nothing is believed either: sizes are compared with the file before a byte is read, names never become paths.
"""

import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

BLOCK = 512
LARGEST_SAMPLE = 1 << 30
"""Bytes of one sample's span. An index row could hold four times as much; no image comes near it."""

_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
_REGULAR, _FOLDER, _GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL = b"0", b"5", b"L", b"K", b"x", b"g"
_EXTENDED = (_GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL)
_LARGEST_EXTENDED = 65_536
_TAIL = _CHUNK = 1 << 20
_META = re.compile(r"__[^/]*__(/|$)")
_PLAIN = re.compile(rb"(?!__)[ -.0-~]+")
_PLAIN_EXTENSIONS = frozenset(
    (b"cls", b"jpg", b"jpeg", b"png", b"webp", b"bmp", b"json", b"txt", b"boxes.json", b"mask.png")
)
_PAX_RECORD = re.compile(rb"(\d{1,6}) ([^=\n]{1,255})=")
Read = Callable[[int, int], bytes]


class TarError(Exception):
    """What is wrong with a tar, or with one sample in it."""


@dataclass(frozen=True)
class Member:
    """One entry of a tar: its name, the byte ranges of header(s) and content, and whether it is a file."""

    name: str
    start: int
    data: int
    size: int
    is_file: bool = True

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.data + padded(self.size)

    @property
    def belongs_to_a_sample(self) -> bool:
        """Folders, `README`, `.hidden.jpg` and `__meta__` stand in tars but in no sample; WebDataset skips them too."""
        stem, dot, extension = self.name.rpartition("/")[2].partition(".")
        return self.is_file and bool(stem and dot and extension) and not _META.match(self.name)


def padded(size: int) -> int:
    """`size` rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


def member_key(key: str) -> str:
    """A sample key as it stands in a tar: percent-coded, so that no slash or dot is taken for a separator."""
    return quote_from_bytes(key.encode(), safe=" ()+,=@").replace(".", "%2E").replace("~", "%7E")


def sample_key(member: str) -> str:
    """The inverse of `member_key`."""
    return unquote_to_bytes(member.encode(errors="surrogateescape")).decode(errors="backslashreplace")


def split_name(name: str) -> tuple[str, str]:
    """(key, extension in lower case) of a member's name, cut at the first dot after the last slash as WebDataset
    does.
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    extension = extension.lower()
    if extension.rpartition(".")[2] in _PICKLES:
        raise TarError(f"{name}: pickled members are refused, reading one can run any code")
    return folder + slash + stem, extension


def parse_sample(span: bytes, verified: bool = False) -> tuple[str, dict[str, bytes]]:
    """The key and the members by extension of one sample's span. Raises TarError.

    `verified`: the span has the checksum that it was written with, so those of its headers need not be looked at: 2 us
    instead of 14 for a sample as `build` writes it.
    """
    return (verified and _parse_plain(span)) or _parse(span)


def _parse_plain(span: bytes) -> tuple[str, dict[str, bytes]] | None:
    """What `_parse` gives if all members are files with short names in no folder, as `build` writes them; else None."""
    key, fields, at = b"", {}, 0
    while at < len(span):
        header = span[at : at + BLOCK]
        name, _, extension = header[: header.find(b"\0", 0, 100)].partition(b".")
        digits, at = header[124:136].rstrip(b" \0"), at + BLOCK
        if header[156:157] != _REGULAR or header[345:346] != b"\0" or digits.strip(b"01234567") or not digits:
            return None
        size = int(digits, 8)
        is_known = extension in fields or (key and name != key)
        if is_known or at + size > len(span) or not _PLAIN.fullmatch(name) or extension not in _PLAIN_EXTENSIONS:
            return None
        key, fields[extension] = name, span[at : at + size]
        at += padded(size)
    return (key.decode(), {extension.decode(): data for extension, data in fields.items()}) if fields else None


def _parse(span: bytes) -> tuple[str, dict[str, bytes]]:
    key, fields, at = "", {}, 0
    while at < len(span):
        member = _member(lambda start, count: span[start : start + count], at)
        if member is None:
            raise TarError("an empty block where a header belongs")
        if member.data + member.size > len(span):
            raise TarError(f"{member.name} is cut short")
        at = member.end
        if not member.belongs_to_a_sample:
            continue
        name, extension = split_name(member.name)
        if fields and name != key:
            raise TarError(f"members of two samples, {key} and {name}")
        if extension in fields:
            raise TarError(f"{member.name}: two members of one name")
        key, fields[extension] = name, span[member.data : member.data + member.size]
    if not fields:
        raise TarError("no members")
    return key, fields


def scan(path: str | Path) -> Iterator[tuple[str, int, int, int]]:
    """(key, offset, length, crc32) of each sample of a tar, in order. Raises TarError naming the offset."""
    with open(path, "rb") as file:
        for key, start, end in spans(file):
            yield key, start, end - start, _crc(file, start, end)


def spans(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """(key, first byte, end) of each run of members with one key, in order; reads headers only. Raises TarError."""
    key, start, end = None, 0, 0
    for member in members(file):
        if not member.belongs_to_a_sample:
            continue
        name, _ = split_name(member.name)
        if name != key:
            if key is not None:
                yield key, start, end
            key, start = name, member.start
        end = member.end
        if end - start > LARGEST_SAMPLE:
            raise TarError(f"{member.name}: a sample of more than {LARGEST_SAMPLE:,} bytes (at byte {start})")
    if key is not None:
        yield key, start, end


def members(file: BinaryIO) -> Iterator[Member]:
    """Every entry of an open tar, in order; reads headers only. Raises TarError naming the offset."""
    size, at = os.fstat(file.fileno()).st_size, 0

    def read(start: int, count: int) -> bytes:
        file.seek(start)
        return file.read(count)

    while member := _member(read, at):
        if member.end > size:
            raise TarError(f"the file ends inside {member.name} (at byte {member.start}, {size:,} bytes are there)")
        yield member
        at = member.end
    # One archive behind another (`cat a.tar b.tar`) would be lost without a word.
    if read(at, _TAIL).strip(b"\0"):
        raise TarError(f"more follows the end of the archive at byte {at}: two tars joined into one? pack them anew")


def _crc(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    crc = 0
    while start < end:
        data = file.read(min(_CHUNK, end - start))
        if not data:
            raise TarError(f"the file ends inside the sample at byte {start}")
        crc, start = zlib.crc32(data, crc), start + len(data)
    return crc


def _member(read: Read, at: int) -> Member | None:
    """The member whose first header is at byte `at`; None at the empty block that ends a tar."""
    start, long_name = at, None
    while True:
        header = read(at, BLOCK)
        if len(header) < BLOCK:
            raise TarError(f"the file ends inside the header at byte {at}")
        if not header.strip(b"\0"):
            return None
        kind, size, name = _header(header, at)
        at += BLOCK
        if kind not in _EXTENDED:
            if kind not in (_REGULAR, b"\0", _FOLDER):
                raise TarError(f"{long_name or name}: not a regular file; pack links with `tar --dereference`")
            return Member(long_name or name, start, at, 0 if kind == _FOLDER else size, kind != _FOLDER)
        content = read(at, size) if size <= _LARGEST_EXTENDED else b""
        if len(content) < size:
            raise TarError(f"the extended header at byte {at} does not fit")
        if kind == _GNU_LONG_NAME:
            long_name = _text(content)
        elif kind in (_PAX, _PAX_GLOBAL):
            long_name = _pax_name(content, at, kind == _PAX_GLOBAL) or long_name
        at += padded(size)


def _header(header: bytes, at: int) -> tuple[bytes, int, str]:
    """Kind, size and name in one 512-byte header, its checksum verified."""
    if header[257:262] != b"ustar":
        packed = header[:2] == b"\x1f\x8b" or header[:4] in (b"BZh9", b"\xfd7zX", b"\x28\xb5\x2f\xfd")
        why = "; the file is compressed, unpack it: samples are read at any place" if packed and not at else ""
        raise TarError(f"no tar header at byte {at}{why}")
    if sum(header[:148]) + sum(header[156:]) + 8 * 32 != _octal(header[148:156], at):
        raise TarError(f"the header at byte {at} is damaged (its checksum does not match)")
    name, size = _text(header[:100]), _octal(header[124:136], at)
    # GNU tars ("ustar  ") keep times where USTAR ("ustar\0") keeps the front of a long name.
    prefix = _text(header[345:500]) if header[262] == 0 else ""
    return header[156:157], size, f"{prefix}/{name}" if prefix else name


def _octal(field: bytes, at: int) -> int:
    # int(..., 8) would also take "-1" and "1_0": a negative size would send the reader back for ever.
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise TarError(f"the header at byte {at} is damaged")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _pax_name(content: bytes, at: int, for_all: bool) -> str | None:
    """The name in a pax header's records (`<length> <key>=<value>\\n`), if there is one."""
    name, here = None, 0
    while here < len(content) and content[here]:
        found = _PAX_RECORD.match(content, here)
        end = here + int(found.group(1)) if found else 0
        if not found or end <= found.end() or end > len(content) or content[end - 1 : end] != b"\n":
            raise TarError(f"the extended header at byte {at} is damaged")
        key = found.group(2)
        if key == b"size" or key.startswith(b"GNU.sparse") or (for_all and key == b"path"):
            raise TarError(f"the extended header at byte {at} sets {key!r}, which is not supported")
        if key == b"path":
            name = _text(content[found.end() : end - 1])
        here = end
    return name
