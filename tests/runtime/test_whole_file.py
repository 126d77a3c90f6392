"""A file is written as a whole or not at all, and the error says what to do."""

from __future__ import annotations

import errno
import os

import pytest

from pyro_vae.errors import WriteError
from pyro_vae.runtime.whole_file import beside, check_writable, write_whole


def test_a_file_is_made_and_replaced(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"one", memoryview(b" two"))
    assert path.read_bytes() == b"one two"
    write_whole(path)
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]


FULL = [
    (errno.ENOSPC, "No space left on device; free some space there, or choose another place"),
    (errno.EDQUOT, "quota exceeded; free some space there, or choose another place"),
    (errno.EFBIG, "File too large; raise the limit of a file's size"),
    (errno.EACCES, "Permission denied; choose a place where you may write"),
]


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize(("number", "says"), FULL)
def test_where_it_cannot_be_written_the_old_content_stands(tmp_path, monkeypatch, where, number, says):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(WriteError, match=says) as error:
        write_whole(path, b"new")
    assert str(error.value).startswith(f"`{path}` is not written: ")
    assert len(str(error.value).splitlines()) == 1
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_taken_away_and_a_link_is_not_followed(tmp_path):
    path, precious = tmp_path / "file", tmp_path / "precious"
    precious.write_bytes(b"mine")
    beside(path).symlink_to(precious)
    check_writable(path)
    beside(path).symlink_to(precious)
    write_whole(path, b"new")
    assert (path.read_bytes(), precious.read_bytes()) == (b"new", b"mine")
    assert sorted(tmp_path.iterdir()) == [path, precious]


def test_a_place_that_is_none_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, says in ((tmp_path / "folder", "directory"), (tmp_path / "absent" / "file", "No such file")):
        with pytest.raises(WriteError, match=f"{says}.*; choose a place where you may write"):
            write_whole(path, b"new")
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]
