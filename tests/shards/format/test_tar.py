"""Tars of every dialect are understood, and no damage to one goes unnoticed."""

import contextlib
import io
import pickle
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.format.tar import TarError, member_key, parse_sample, sample_key, scan, split_name


def tar_bytes(members: list[tuple[str, bytes]], dialect: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


SAMPLE = [("cat%2F1.cls", b"0"), ("cat%2F1.jpg", b"picture" * 100)]


NAMES = st.sampled_from(["a", "b", "__a__", "f/a", "a b", "ü", "", "n" * 96, "n" * 99, "n" * 140, "..", "a~1"])
KINDS = st.sampled_from(["jpg", "cls", "json", "boxes.json", "JPG", "pkl", "jpg.pth", "left.png", "", "x", "mask.png"])


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(NAMES, KINDS, st.integers(0, 1100)), min_size=1, max_size=4),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
)
def test_the_short_way_through_a_sample_gives_what_the_long_one_gives(parts, dialect, kind):
    """One name for all members half of the time, and the last one of any kind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as tar:
        for number, (name, extension, size) in enumerate(parts):
            info = tarfile.TarInfo(f"{parts[0][0] if size % 2 else name}.{extension}")
            info.size, info.type = size, kind if number == len(parts) - 1 else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(bytes([number]) * size))
        end = tar.offset
    for span in (buffer.getvalue()[:end], buffer.getvalue()[: end - 100], buffer.getvalue()[: end + 512]):
        assert outcome(span, verified=True) == outcome(span, verified=False)


def outcome(span: bytes, verified: bool) -> object:
    try:
        return parse_sample(span, verified)
    except TarError as error:
        return str(error)


def test_samples_as_they_are_built_go_the_short_way():
    """Their checksums are not looked at again."""
    span = bytearray(tar_bytes(SAMPLE)[:2560])
    whole = parse_sample(bytes(span))
    span[150] ^= 1
    assert parse_sample(bytes(span), verified=True) == whole
    with pytest.raises(TarError, match="checksum"):
        parse_sample(bytes(span))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_keys_are_reversible_and_cannot_be_misread(key):
    member = member_key(key)
    assert sample_key(member) == key
    assert member.isascii()
    assert not set("/.") & set(member)
    assert split_name(f"{member}.jpg") == (member, "jpg")


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [10, 95, 130])
def test_every_dialect(tmp_path, dialect, length):
    folder = "f" * 20 + "/"
    members = [(f"{folder}{i:0{length}d}.{kind}", bytes([i]) * 700) for i in range(3) for kind in ("cls", "jpg")]
    if dialect == tarfile.USTAR_FORMAT and length > 95:
        pytest.skip("USTAR cannot hold such a name")
    (tmp_path / "x.tar").write_bytes(content := tar_bytes(members, dialect))
    found = list(scan(tmp_path / "x.tar"))
    assert [key for key, *_ in found] == [name[:-4] for name, _ in members[::2]]
    for i, (key, offset, size, _) in enumerate(found):
        assert parse_sample(content[offset : offset + size]) == (key, {k: bytes([i]) * 700 for k in ("cls", "jpg")})


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 511), st.integers(1, 255))
def test_a_changed_header_is_noticed(at, flip):
    span = bytearray(tar_bytes(SAMPLE)[: 5 * 512])
    whole = parse_sample(bytes(span))
    span[at] ^= flip
    with contextlib.suppress(TarError):
        assert parse_sample(bytes(span)) == whole, "a change that matters was not noticed"


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (b"", "no members"),
        (bytes(1024), "empty block"),
        (tar_bytes(SAMPLE)[:300], "ends inside the header"),
        (tar_bytes(SAMPLE)[: 4 * 512], "cut short"),
        (tar_bytes([("a.cls", b"0"), ("b.jpg", b"x")])[: 4 * 512], "two samples, a and b"),
        (b"x" * 1024, "no tar header"),
    ],
)
def test_spans_that_are_no_sample(span, message):
    with pytest.raises(TarError, match=message):
        parse_sample(span)


@pytest.mark.parametrize("extension", ["pkl", "pth", "x.PYD", "pickle"])
def test_pickles_are_refused_by_name(extension):
    with pytest.raises(TarError, match="pickled members are refused"):
        parse_sample(tar_bytes([(f"a.{extension}", pickle.dumps(1))])[:1024])


def test_a_tar_that_ends_early(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_bytes(SAMPLE)[: 3 * 512 + 100])
    with pytest.raises(TarError, match="ends inside"):
        list(scan(tmp_path / "x.tar"))
