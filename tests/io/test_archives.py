"""Archives are unpacked as they are, or refused as a whole without a trace."""

import gzip
import io
import re
import shutil
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pallava.cli import main
from pallava.errors import PallavaError
from pallava.io import archives
from pallava.io.archives import unpack

FILES = {"images/a b.png": b"picture" * 5000, "images/sub/é.png": b"", "./notes.txt": b"notes"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work" / "archive"


@pytest.fixture(autouse=True)
def _nothing_outside(archive: Path):
    """Beside the archive and the folder that was made, no test leaves anything."""
    yield
    assert {path.name for path in archive.parent.iterdir()} <= {"archive", "out"}
    assert [path.name for path in archive.parents[1].iterdir()] == ["work"]


def write_zip(path: Path, files: dict[str, bytes], **options: Any) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, content in files.items():
            file.writestr(name, content)


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w", **member: Any) -> None:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in member.items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(content))


def write_tar_gz(path: Path, files: dict[str, bytes]) -> None:
    write_tar(path, files, "w:gz")


WRITERS: list[Callable[[Path, dict[str, bytes]], None]] = [write_zip, write_tar, write_tar_gz]
each_kind = pytest.mark.parametrize("write", WRITERS)


def refusal(archive: Path, **options: Any) -> str:
    out = archive.with_name("out")
    with pytest.raises(PallavaError) as error:
        unpack([archive], out, **options)
    assert not out.exists()
    assert str(archive) in str(error.value)
    return str(error.value)


@each_kind
def test_unpacks(archive: Path, write):
    write(archive, FILES)
    out = archive.with_name("out")
    result = unpack([archive], out)
    assert (result.num_files, result.num_bytes) == (3, 35005)
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == {name.removeprefix("./"): content for name, content in FILES.items()}
    assert out.stat().st_mode & 0o777 == archive.parent.stat().st_mode & 0o777


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_files_get_the_dates_of_the_archive(archive: Path, zone: str, monkeypatch):
    """The same on every machine: what is stored on an image is found by them."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    out, expected = archive.with_name("out"), 1_614_834_368
    with zipfile.ZipFile(archive, "w") as file:
        for name, date in {"a": (2021, 3, 4, 5, 6, 8), "none": (1980, 0, 0, 0, 0, 0)}.items():
            file.writestr(zipfile.ZipInfo(name, date), b"")
    unpack([archive], out)
    assert {path.name: path.stat().st_mtime for path in out.iterdir()} == {"a": expected, "none": 0}
    for mtime, kept in {expected: expected, -5: 0, 2**40: 2**31 - 1}.items():
        shutil.rmtree(out)
        write_tar(archive, {"a": b""}, mtime=mtime)
        unpack([archive], out)
        assert (out / "a").stat().st_mtime == kept
    monkeypatch.undo()
    time.tzset()


def test_empty_folders_and_members_that_come_again(archive: Path):
    with tarfile.open(archive, "w") as file:
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for content in (b"same", b"same"):
            info = tarfile.TarInfo("a.txt")
            info.size, info.mode = len(content), 0o4777
            file.addfile(info, io.BytesIO(content))
    unpack([archive], archive.with_name("out"))
    assert (archive.with_name("out") / "empty").is_dir()
    assert (archive.with_name("out") / "a.txt").read_bytes() == b"same"
    assert not (archive.with_name("out") / "a.txt").stat().st_mode & 0o4111


def test_second_file_of_a_name(archive: Path):
    with tarfile.open(archive, "w") as file:
        for content in (b"old", b"new"):
            info = tarfile.TarInfo("a.txt")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    assert "a second file 'a.txt'" in refusal(archive)


@each_kind
def test_several_archives(archive: Path, write, tmp_path_factory):
    second, out = tmp_path_factory.mktemp("more") / "b", archive.with_name("out")
    write(archive, {"images/a.png": b"a", "same.txt": b"same", "__MACOSX/a.png": b"junk", ".DS_Store": b"1"})
    write(second, {"other/b.png": b"b", "same.txt": b"same", "other/.DS_Store": b"2"})
    assert unpack([archive, second], out, is_flat=True).num_files == 4
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        "a.png": b"a",
        "b.png": b"b",
        "same.txt": b"same",
    }
    shutil.rmtree(out)
    unpack([archive, second], out)
    assert sorted(path.name for path in out.iterdir()) == [".DS_Store", "__MACOSX", "images", "other", "same.txt"]
    shutil.rmtree(out)
    with pytest.raises(PallavaError, match="raise --max-gb"):
        unpack([archive, second], out, max_gb=12e-9)
    write(second, {"other/a.png": b"another"})
    with pytest.raises(PallavaError, match=r"b' is refused.* second file 'a\.png'"):
        unpack([archive, second], out, is_flat=True)
    assert not out.exists()


@each_kind
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/pallava_evil", "..\\evil", "C:\\evil", "a/.."])
def test_members_that_leave(archive: Path, write, name: str):
    write(archive, {"good.txt": b"good", name: b"evil"})
    assert "outside of the folder" in refusal(archive)
    assert not Path("/tmp/pallava_evil").exists()


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_and_devices_in_tar(archive: Path, kind: bytes):
    write_tar(archive, {"link": b""}, type=kind, linkname="/etc/passwd")
    assert "'link' is a link, a device or a sparse file" in refusal(archive)


def test_writing_through_a_link(archive: Path):
    with tarfile.open(archive, "w") as file:
        link = tarfile.TarInfo("folder")
        link.type, link.linkname = tarfile.SYMTYPE, str(archive.parents[1])
        file.addfile(link)
        info = tarfile.TarInfo("folder/evil")
        info.size = 4
        file.addfile(info, io.BytesIO(b"evil"))
    assert "is a link" in refusal(archive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_zip(archive: Path, kind: int):
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(info, "/etc/passwd")
    assert "is a link or a device" in refusal(archive)


def test_a_file_where_a_folder_is_due(archive: Path):
    write_tar(archive, {"a": b"file", "a/b": b"file"})
    refusal(archive)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_zip(archive: Path, method: int):
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("a.txt", "text")
    assert "another method" in refusal(archive)


def test_encrypted_zip(archive: Path):
    write_zip(archive, {"a.txt": b"text"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert "encrypted" in refusal(archive)


@each_kind
def test_cap_of_size(archive: Path, write):
    write(archive, {f"{i}.bin": bytes([i]) * 1000 for i in range(10)})
    assert unpack([archive], archive.with_name("out"), max_gb=1e-5).num_bytes == 10_000
    for path in archive.with_name("out").iterdir():
        path.unlink()
    archive.with_name("out").rmdir()
    assert "raise --max-gb" in refusal(archive, max_gb=0.9e-5)


def test_cap_of_one_member(archive: Path):
    info = tarfile.TarInfo("huge.bin")
    info.size = 10**12
    archive.write_bytes(info.tobuf() + bytes(10_240))
    assert re.search("1000.0 GB.*200.0 GB", refusal(archive))


def test_more_than_the_disk_has(archive: Path, monkeypatch):
    write_zip(archive, {"a": bytes(2000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    assert re.search("0.0 GB of the disk", refusal(archive))


@pytest.mark.parametrize("write", [write_zip, write_tar_gz])
def test_bomb(archive: Path, write, monkeypatch):
    monkeypatch.setattr(archives, "_SMALL", 1 << 20)
    write(archive, {"bomb": bytes(8 << 20)})
    assert archive.stat().st_size < 10_000
    assert "bomb" in refusal(archive)


@pytest.mark.parametrize("num_mb", [20, 300])
def test_bomb_as_it_comes(archive: Path, num_mb: int):
    """Zeros, and nothing about the limits is made smaller for the test."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file, file.open("bomb", "w") as member:
        for _ in range(num_mb):
            member.write(bytes(1_000_000))
    assert archive.stat().st_size < num_mb * 2_000
    assert "bomb" in refusal(archive)


def test_bomb_of_overlapping_members(archive: Path, monkeypatch):
    """All of the central directory points at one packed kernel, each entry for itself within the ratio."""
    monkeypatch.setattr(archives, "_SMALL", 1 << 12)
    monkeypatch.setattr(archives, "_MAX_RATIO", 20)
    content = (b"0123456789abcdef" * 8 + bytes(range(250))) * 40
    packed = zlib.compress(content, 9)[2:-4]
    fields = (20, 0, 8, 0, 0x21, zlib.crc32(content), len(packed), len(content), 4, 0)
    kernel = b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", *fields) + b"same" + packed
    entry = b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, *fields, 0, 0, 0, 0, 0) + b"same"
    count = 200
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, len(entry) * count, len(kernel), 0)
    archive.write_bytes(kernel + entry * count + end)
    assert "bomb" in refusal(archive) or "overlapped" in refusal(archive).casefold()


def test_bomb_in_a_header(archive: Path):
    """A tar's extended header is read into memory as a whole."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 40 << 20
    with gzip.open(archive, "wb", compresslevel=1) as file:
        file.write(info.tobuf() + bytes(40 << 20) + bytes(10_240))
    assert "a header of more than" in refusal(archive)


def test_zip_whose_header_lies(archive: Path):
    """The member gives 5,000 bytes and says 10: what is written is checked, not what is said."""
    write_zip(archive, {"a.bin": bytes(range(250)) * 20})
    content = archive.read_bytes().replace(struct.pack("<I", 5000), struct.pack("<I", 10))
    archive.write_bytes(content)
    refusal(archive)


@each_kind
def test_truncated(archive: Path, write):
    write(archive, {"a.bin": bytes(range(250)) * 400, "b.bin": bytes(range(250)) * 400})
    content = archive.read_bytes()
    for size in (len(content) // 3, len(content) // 3 * 2):
        archive.write_bytes(content[:size])
        refusal(archive)


@pytest.mark.parametrize("write", [write_tar, write_tar_gz])
def test_damaged_header_is_not_the_end(archive: Path, write):
    write_tar(archive, {"a.bin": bytes(100), "b.bin": bytes(100)})
    content = bytearray(archive.read_bytes())
    content[1024 + 3] ^= 1  # in the second header
    archive.write_bytes(gzip.compress(content) if write is write_tar_gz else content)
    assert "a header is damaged" in refusal(archive)


def test_damaged_checksum(archive: Path):
    write_tar_gz(archive, {"a.bin": bytes(range(250))})
    content = bytearray(archive.read_bytes())
    content[-6] ^= 1
    archive.write_bytes(content)
    assert "CRC" in refusal(archive)


@pytest.mark.parametrize("content", [b"", b"BZh91AY&SY", b"<html>not found</html>", b"PK\x05", bytes(1024)])
def test_no_archive(archive: Path, content: bytes):
    archive.write_bytes(content)
    assert "zip, tar or tar.gz" in refusal(archive)


def test_packed_file_that_is_no_tar(archive: Path):
    archive.write_bytes(gzip.compress(b'{"image": "a.png"}' * 100))
    refusal(archive)


def test_command(archive: Path, capsys):
    write_zip(archive, FILES)
    out = archive.with_name("out")
    assert main(["data", "unpack", str(archive), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 3 files, 0.00 GB\n"
    assert main(["data", "unpack", str(archive), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["data", "unpack", str(archive) + "2", str(out) + "2"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["data", "unpack", str(archive), str(out) + "2", "--max-gb", "0"]) == 2
    assert main(["data", "unpack", str(archive), str(out) + "2", "--max-gb", "0.00001"]) == 2
    assert "--max-gb" in capsys.readouterr().err
