"""Files and folders that are there whole or not at all, with the mode of the umask."""

import os
import re
import socket
import subprocess
import time
from contextlib import suppress

import pytest

from shards.format.manifest import splits_in
from shards.format.whole import remove_drafts, whole_file, whole_folder, write_text

HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


@pytest.fixture(params=[0o022, 0o007, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_modes_are_those_of_the_umask_whatever_the_writer_does(tmp_path, umask):
    with whole_file(tmp_path / "a.txt") as draft:
        draft.unlink()
        os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))  # as tempfile and safetensors do
    with whole_folder(tmp_path / "b") as draft:
        os.close(os.open(draft / "c", os.O_CREAT | os.O_WRONLY, 0o600))
    assert mode(tmp_path / "a.txt") == mode(tmp_path / "b" / "c") == 0o666 & ~umask
    assert mode(tmp_path / "b") == 0o777 & ~umask


@pytest.mark.parametrize("there", [False, True])
def test_after_an_error_all_is_as_before(tmp_path, there):
    if there:
        (tmp_path / "a.txt").write_text("old")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "c").write_text("old")
    with suppress(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    with suppress(KeyboardInterrupt), whole_folder(tmp_path / "b") as draft:
        (draft / "c").write_text("half")
        raise KeyboardInterrupt
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == ({"a.txt", "b", "b/c"} if there else set())
    assert not there or [(tmp_path / name).read_text() for name in ("a.txt", "b/c")] == ["old", "old"]


def test_a_folder_takes_the_place_of_one_that_is_full(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "b") as draft:
            (draft / text).write_text(text)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["b", "b/new"]


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    with whole_folder(tmp_path / "b") as draft:
        (draft / "c").write_text("old")
    real = os.replace

    def fails_once(source, target):
        if str(target).endswith("/b") and not str(source).endswith(".old"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(OSError, match=r"Input/output error: .*/b'"), whole_folder(tmp_path / "b"):
        pass
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["b", "b/c"]


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: .*/b'"), whole_folder(tmp_path / "b"):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match=r"No space left on device: .*/a'"), whole_file(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_drafts_of_dead_processes_are_removed_and_nothing_else(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = [f".n-1.{HOST}.{dead.pid}", ".n-3.elsewhere.7", f".n-4.{HOST}.{dead.pid}.old"]
    kept = [
        f".n-5.{HOST}.{os.getppid()}",
        f".n-6.{HOST}.{dead.pid}.old",  # its writer died before the new one was in place
        f".m-7.{HOST}.{dead.pid}",
        ".n-8.elsewhere.7",
        ".n-9.2024",
        "n-4",
    ]
    for name in gone + kept:
        (tmp_path / name).mkdir()
    os.utime(tmp_path / gone[1], (time.time() - 7200,) * 2)
    remove_drafts(tmp_path, r"n-\d+")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_draft_is_no_split(tmp_path):
    write_text(tmp_path / "train.manifest.json", "{}")
    write_text(tmp_path / ".train.manifest.7-7.tmp.json", "{}")
    assert splits_in(tmp_path) == ["train"]
