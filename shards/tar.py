"""Samples inside plain tar files: parsing a byte span, and finding the spans of a whole tar.

A sample is a run of neighbouring members that share a key: `<key>.jpg`, `<key>.cls`. Python's tarfile reads through
damage without a word (a broken header ends the archive early); here every header's checksum counts and every doubt is
a `TarError`. Names longer than a USTAR header holds come as GNU `L` or pax `x` members and are understood. Nothing is
unpickled: members whose extension asks for it are refused by name.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

BLOCK = 512
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
_REGULAR, _GNU_LONG_NAME, _PAX, _PAX_GLOBAL = b"0", b"L", b"x", b"g"
_LARGEST_NAME = 65_536


class TarError(Exception):
    """What is wrong with a tar, or with one sample in it."""


@dataclass(frozen=True)
class Member:
    """One file of a tar: its name and the byte ranges of header(s) and content."""

    name: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.data + padded(self.size)


def padded(size: int) -> int:
    """`size` rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


def member_key(key: str) -> str:
    """A sample key as it stands in a tar: percent-coded, so that no slash or dot is taken for a separator."""
    return quote_from_bytes(key.encode(), safe=" ()+,=@").replace(".", "%2E").replace("~", "%7E")


def sample_key(member: str) -> str:
    """The inverse of `member_key`."""
    return unquote_to_bytes(member).decode(errors="backslashreplace")


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member's name, cut at the first dot after the last slash as WebDataset does."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    if extension.lower().rpartition(".")[2] in _PICKLES:
        raise TarError(f"{name}: pickled members are refused, reading one can run any code")
    return folder + slash + stem, extension


def parse_sample(span: bytes) -> tuple[str, dict[str, bytes]]:
    """The key and the members by extension of one sample's span. Raises TarError."""
    key, fields, at = "", {}, 0
    while at < len(span):
        member = _member(span, at)
        if member is None:
            raise TarError("an empty block where a header belongs")
        if member.data + member.size > len(span):
            raise TarError(f"{member.name} is cut short")
        name, extension = split_name(member.name)
        if fields and name != key:
            raise TarError(f"members of two samples, {key} and {name}")
        key, fields[extension] = name, span[member.data : member.data + member.size]
        at = member.end
    if not fields:
        raise TarError("no members")
    return key, fields


def scan(path: str | Path) -> Iterator[tuple[str, int, int, int]]:
    """(key, offset, length, crc32) of each sample of a tar, in order. Raises TarError naming the offset."""
    with open(path, "rb") as file:
        key, start, end = None, 0, 0
        for member in _members(file):
            name, _ = split_name(member.name)
            if name != key:
                if key is not None:
                    yield key, start, end - start, _crc(file, start, end)
                key, start = name, member.start
            end = member.end
        if key is not None:
            yield key, start, end - start, _crc(file, start, end)


def _members(file: BinaryIO) -> Iterator[Member]:
    at = 0
    while True:
        file.seek(at)
        # One read usually covers header and long-name blocks; a longer run of them is read again, whole.
        member = _member(file.read(8 * BLOCK), 0, at)
        if member is None:
            return
        yield member
        at = member.end


def _crc(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    data = file.read(end - start)
    if len(data) < end - start:
        raise TarError(f"the file ends inside the sample at byte {start}")
    return zlib.crc32(data)


def _member(buffer: bytes, at: int, base: int = 0) -> Member | None:
    """The member whose first header is at `buffer[at:]`; None at the empty block that ends a tar."""
    start, long_name = at, None
    while True:
        header = buffer[at : at + BLOCK]
        if len(header) < BLOCK:
            raise TarError(f"the file ends inside the header at byte {base + at}")
        if not header.strip(b"\0"):
            return None
        kind, size, name = _header(header, base + at)
        at += BLOCK
        if kind not in (_GNU_LONG_NAME, _PAX, _PAX_GLOBAL):
            if kind not in (_REGULAR, b"\0"):
                raise TarError(f"{name}: not a regular file")
            return Member(long_name or name, base + start, base + at, size)
        content = buffer[at : at + size]
        if size > _LARGEST_NAME or len(content) < size:
            raise TarError(f"the extended header at byte {base + at} does not fit")
        if kind == _GNU_LONG_NAME:
            long_name = content.rstrip(b"\0").decode(errors="surrogateescape")
        elif kind == _PAX:
            found = re.search(rb"\d+ path=([^\n]*)\n", content)
            long_name = found.group(1).decode(errors="surrogateescape") if found else long_name
        at += padded(size)


def _header(header: bytes, at: int) -> tuple[bytes, int, str]:
    """Kind, size and name in one 512-byte header, its checksum verified."""
    if header[257:262] != b"ustar":
        raise TarError(f"no tar header at byte {at}")
    try:
        stated = int(header[148:156].rstrip(b"\0 ") or b"0", 8)
        size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise TarError(f"the header at byte {at} is damaged") from None
    if sum(header[:148]) + sum(header[156:]) + 8 * 32 != stated:
        raise TarError(f"the header at byte {at} is damaged (its checksum does not match)")
    name = header[:100].rstrip(b"\0").decode(errors="surrogateescape")
    # GNU tars ("ustar  ") keep times where USTAR ("ustar\0") keeps the front of a long name.
    prefix = header[345:500].rstrip(b"\0").decode(errors="surrogateescape") if header[262] == 0 else ""
    return header[156:157], size, f"{prefix}/{name}" if prefix else name
