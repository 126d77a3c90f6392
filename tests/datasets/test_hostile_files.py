"""Hostile and damaged data files are refused by one line, at once, and before memory is taken."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest

from pyro_vae.datasets import csv_file, read_table
from pyro_vae.errors import InputError


def refused(path, says):
    with pytest.raises(InputError, match=says) as error:
        read_table(path)
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert f"`{path}`" in text
    assert ("; " in text) or (": " in text)
    return text


def npy(shape, values=b"", descr="<f8"):
    """The bytes of an array whose header declares any shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + values


ARRAYS = {
    "a million million values": (npy((10**6, 10**6)), "declares 8,000,000,000,000 bytes, and 0 follow"),
    "one value too few": (npy((2, 2), b"\0" * 24), "declares 32 bytes, and 24 follow"),
    "one value too many": (npy((2, 2), b"\0" * 40), "declares 32 bytes, and 40 follow"),
    "a negative shape": (npy((-2, 2), b"\0" * 32), "cannot be read"),
    "a shape that overflows": (npy((2**62, 2**62)), "declares"),
    "values of no size": (npy((10**9, 10**9), descr="|V0"), "is of dtype `|V0`; save real numbers"),
    "complex numbers": (npy((2, 2), b"\0" * 64, "<c16"), "is of dtype `complex128`; save real numbers"),
    "dates": (npy((2, 2), b"\0" * 32, "<M8[s]"), "save real numbers"),
    "a structure": (npy((2,), b"\0" * 32, [("a", "<f8"), ("b", "<f8")]), "save real numbers"),
    "objects": (npy((2, 2), b"\0" * 32, "|O"), "holds Python objects"),
    "a header that is code": (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "cannot be read"),
    "a long header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{" * 99, "cannot be read"),
    "an unknown version": (b"\x93NUMPY\x09\x00\x10\x00{}", "cannot be read"),
    "a cut header": (npy((2, 2))[:40], "cannot be read"),
    "nothing": (b"", "it is empty"),
    "text": (b"height,weight\n1,2\n", "no numpy file"),
}


@pytest.mark.parametrize(("content", "says"), ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_an_array_that_is_none_is_refused(tmp_path, form, content, says):
    path = tmp_path / f"x.{form}"
    if form == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
        says = "no numpy file" if not content else says
    refused(path, says)


def test_foreign_members_of_an_archive_are_passed_over(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(6.0).reshape(3, 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("folder/", "")
    assert read_table(path)[0].tolist() == [[0, 1], [2, 3], [4, 5]]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, r"its arrays are none; expected")


def test_an_archive_that_is_none_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w"):
        pass
    refused(path, "its arrays are none")
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # it is no mistake
        for _ in range(2):
            archive.writestr("x.npy", npy((1, 1), b"\0" * 8))
    refused(path, "holds the array `x` twice")
    np.savez(path, x=np.zeros((3, 2)))
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of encryption, in the member and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(path, "array `x` is encrypted; save it without a password")
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(10_001):
            archive.writestr(f"a{i}.npy", b"")
    refused(path, "holds 10,001 arrays, and at most 10,000 are read")


def bomb(path, size):
    """An archive of zeros that are some thousandths of it; nothing of it is held in memory."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy((size // 8, 1)))
        for _ in range(size // 2**22):
            member.write(bytes(2**22))


@pytest.mark.slow
def test_an_archive_that_expands_beyond_the_limit_is_refused_before_it_does(tmp_path):
    path = tmp_path / "x.npz"
    bomb(path, 5 * 2**30)
    assert path.stat().st_size < 30e6
    refused(path, "expand to 5,368,709,.*, and at most 4,294,967,296 are read from a compressed file; save larger")


def test_a_size_that_an_archive_only_declares_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros((300, 2)))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("x.npy").file_size == 2**32 - 2
    refused(path, "declares 4,800 bytes, and 4,294,967,166 follow")


LIMITED = """
import resource, sys
from pyro_vae.datasets import read_table
from pyro_vae.errors import InputError
read_table(sys.argv[2])
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**27,) * 2)
try:
    read_table(sys.argv[1])
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("form", ["npy", "npz", "csv", "parquet"])
def test_a_file_larger_than_the_memory_there_is_is_refused(tmp_path, form):
    path, small = tmp_path / f"x.{form}", tmp_path / f"small.{form}"
    if form == "npz":
        np.savez(small, x=np.zeros((3, 2)))
        bomb(path, 2**28)
    elif form == "parquet":
        pd.DataFrame({"a": [1.0, 2.0]}).to_parquet(small)
        pd.DataFrame({"a": np.zeros(2**25)}).to_parquet(path)
    else:
        small.write_bytes(npy((1, 1), b"\0" * 8) if form == "npy" else b"a\n1\n")
        path.write_bytes(npy((2**25, 1)) if form == "npy" else b"a\n")
        with path.open("r+b") as stream:
            stream.truncate(2**28 + 128)
    done = subprocess.run([sys.executable, "-c", LIMITED, path, small], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"`{path}` needs ")
    assert "bytes of memory, and" in done.stdout


@pytest.mark.parametrize("form", ["csv", "npy", "npz", "parquet"])
@pytest.mark.parametrize("what", ["folder", "pipe", "socket", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, form, what):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x.{form}"
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as place:
                place.bind(path.name)
        case "device":
            path.symlink_to("/dev/zero")
    refused(path, f"is a {what}, not a file")


def table(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_text_that_is_none_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    refused(table(path, b"a,b\n1,2\n1\x002,3\n"), "is no text in UTF-8: byte 10 is NUL")
    refused(table(path, b"a,b\n" + b"1,2\n" * 300_000 + b"\0"), "byte 1,200,005 is NUL")
    refused(table(path, "a,b\n1,2\n".encode("utf-16-le")), "byte 2 is NUL")
    refused(table(path, "a,b\n1,2\n".encode("utf-16")), "is not in UTF-8")
    monkeypatch.setattr(csv_file, "_MOST_LINE", 5_000_000)
    for end in ("\n", "\r", ""):
        refused(table(path, "a,b\n1,2\n" + "3" * 5_000_001 + end), "has a line of more than 5,000,000 bytes")
    table(path, "a,b\n" + "1,2\n" * 2_000_000)
    assert read_table(path)[0].shape == (2_000_000, 2)


def test_a_table_of_too_many_columns_is_refused_at_once(tmp_path):
    names = ",".join(f"c{i}" for i in range(200_000))
    refused(table(tmp_path / "x.csv", f"{names}\n"), "has 200,000 columns, and at most 100,000 are read")


@pytest.mark.parametrize("cell", ["1" + " " * 200_000 + "x", "x" * 1_000_000, "1," * 300_000, "€" * 300_000])
def test_a_huge_cell_is_refused_at_once_and_not_repeated(tmp_path, cell):
    text = refused(table(tmp_path / "x.csv", f'a\n1\n2\n"{cell}"\n'), "data row 3")
    assert len(text) < 2_000
