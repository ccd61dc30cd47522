"""Unpacking archives of unknown origin: what they declare is checked first, and what they give while it comes."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from tqdm import tqdm

from pallava.errors import PallavaError

MAX_GB = 200.0
"""Default cap of what an archive may unpack to, in GB of 10^9 bytes."""

# Pictures hardly shrink and tables shrink by ten; deflate can shrink by a thousand, which only a bomb does.
_MAX_RATIO = 100
_SMALL = 64 << 20  # too little to do harm, however well it was packed
_MAX_HEADER = 16 << 20
_MAX_MEMBERS = 10_000_000
_CHUNK = 1 << 20
_DRIVE = re.compile("[A-Za-z]:")
_DAMAGED = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
_KINDS = "zip, tar and tar.gz"


@dataclass(frozen=True)
class Unpacked:
    """What was written.

    Attributes:
        num_files: Files.
        num_bytes: Their sizes together.
    """

    num_files: int
    num_bytes: int


def unpack(archive: str | Path, out: str | Path, *, max_gb: float = MAX_GB) -> Unpacked:
    """Unpacks a zip, tar or tar.gz into a new folder, which appears complete or not at all.

    An archive is refused as a whole if one member would leave the folder, is a link or a device, is encrypted, or
    if more comes out of it than is allowed, declared, or plausible for its size. Archives inside are left packed.

    Args:
        archive: The file; its kind is told by its content.
        out: The folder to make; must not exist.
        max_gb: Most that may come out, in GB.

    Raises:
        PallavaError: The archive is refused, damaged or of another kind, or the folder exists.
    """
    archive, out = Path(archive), Path(out)
    if os.path.lexists(out):
        raise PallavaError(f"'{out}' exists already; give another folder, or remove it")
    kind = _kind(archive)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        writer = _Writer(archive, unfinished, int(max_gb * 1e9))
        with writer.bar:
            (_unpack_zip if kind == "zip" else _unpack_tar)(archive, writer)
        unfinished.replace(out)
    except PallavaError as refusal:
        raise PallavaError(f"'{archive}' is not unpacked: {refusal}") from None
    except OSError as error:
        raise PallavaError(f"'{archive}' is not unpacked: {error}") from None
    except Exception as error:  # readers of damaged archives raise whatever they stumble over
        reason = str(error) or type(error).__name__
        raise PallavaError(f"'{archive}' is not unpacked: damaged or unsupported ({reason})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Unpacked(writer.num_files, writer.num_bytes)


def _kind(archive: Path) -> str:
    try:
        with archive.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise PallavaError(f"cannot read '{archive}': {error.strerror}") from None
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        return "tar"
    except tarfile.TarError:
        pass
    raise PallavaError(f"'{archive}' is no archive of a known kind ({_KINDS}); it starts with {head[:8]!r}")


class _Writer:
    """Writes members below a folder, and counts what comes."""

    def __init__(self, archive: Path, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.num_files = self.num_bytes = self._num_members = 0
        self.archive_bytes = archive.stat().st_size
        self.max_bytes = max_bytes
        self.bar = tqdm(unit="B", unit_scale=True, desc=f"unpacking {archive.name}", mininterval=1, disable=None)

    def check_declared(self, num_bytes: int) -> None:
        """Refuses before writing what is declared to be too much, for the caller or for the disk."""
        if num_bytes > self.max_bytes:
            raise PallavaError(
                f"{num_bytes / 1e9:.1f} GB would come out, {self.max_bytes / 1e9:.1f} are allowed; "
                "raise --max-gb if you trust it"
            )
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise PallavaError(f"{num_bytes / 1e9:.1f} GB would come out, but the disk has {free / 1e9:.1f} left")

    def make_folder(self, name: str) -> None:
        """Makes a folder of the archive."""
        self._target(name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, source: IO[bytes], declared: int, packed: int | None = None) -> None:
        """Writes a file of the archive, and refuses it as soon as more comes than its headers say or is plausible."""
        target = self._target(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        num_bytes = 0
        with target.open("wb") as file:
            while chunk := source.read(_CHUNK):
                num_bytes += len(chunk)
                self._check(name, num_bytes, declared, packed, len(chunk))
                file.write(chunk)
        if num_bytes != declared:
            raise PallavaError(f"'{name}' ends after {num_bytes} of {declared} bytes")
        self.num_files += 1

    def _check(self, name: str, num_bytes: int, declared: int, packed: int | None, new: int) -> None:
        self.num_bytes += new
        self.bar.update(new)
        if num_bytes > declared:
            raise PallavaError(f"'{name}' is larger than the {declared} bytes that its header says")
        if packed is not None:
            check_ratio(f"'{name}'", num_bytes, packed)
        check_ratio("what came out", self.num_bytes, self.archive_bytes)
        if self.num_bytes > self.max_bytes:
            raise PallavaError(f"more than {self.max_bytes / 1e9:.1f} GB came out; raise --max-gb if you trust it")

    def _target(self, name: str) -> Path:
        self._num_members += 1
        if self._num_members > _MAX_MEMBERS:
            raise PallavaError(f"it has more than {_MAX_MEMBERS} members")
        return self.folder / inner_name(name)


def check_ratio(what: str, num_bytes: int, packed: int) -> None:
    """Refuses what grows in unpacking as no honest file does.

    Raises:
        PallavaError: It is a bomb.
    """
    if num_bytes > max(_SMALL, _MAX_RATIO * packed):
        raise PallavaError(
            f"{what} grows to more than {_MAX_RATIO} times its packed size ({packed} bytes): a zip bomb?"
        )


def inner_name(name: str) -> PurePosixPath:
    """Gives a member's name as a path that stays inside.

    Raises:
        PallavaError: It leaves the folder, or is no name.
    """
    path = PurePosixPath(name.replace("\\", "/"))  # as Windows would read it
    if path.is_absolute() or ".." in path.parts or _DRIVE.match(name):
        raise PallavaError(f"its member {name!r} would be written outside of the folder")
    if "\0" in name:
        raise PallavaError(f"its member {name!r} has no proper name")
    return path


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            _check_zip_member(member)
        writer.bar.total = sum(member.file_size for member in members)
        writer.check_declared(writer.bar.total)
        for member in members:
            if member.is_dir():
                writer.make_folder(member.filename)
                continue
            with file.open(member) as source:
                writer.write(member.filename, source, member.file_size, member.compress_size)


def _check_zip_member(member: zipfile.ZipInfo) -> None:
    inner_name(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PallavaError(f"its member {member.filename!r} is a link or a device, not a file")
    # The decompressors of other methods cannot be told to stop.
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PallavaError(f"its member {member.filename!r} is encrypted, or packed by another method than deflate")


def _unpack_tar(archive: Path, writer: _Writer) -> None:
    with archive.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if is_packed else raw
        metered = _Metered(stream, writer)
        with tarfile.open(fileobj=metered, mode="r|", tarinfo=_TarInfo) as file:  # type: ignore[call-overload]
            for member in _tar_members(file, metered):
                _unpack_tar_member(file, member, writer)
        while metered.read(_CHUNK):  # to its end, where the checksum stands
            pass


class _TarInfo(tarfile.TarInfo):
    """A damaged header is an error, not the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        """Reads the next header."""
        try:
            return super().fromtarfile(tarfile)
        except _DAMAGED as error:
            raise PallavaError(f"a header is damaged ({error})") from None


def _tar_members(file: tarfile.TarFile, metered: _Metered) -> Iterator[tarfile.TarInfo]:
    while True:
        metered.header_left = _MAX_HEADER
        member = file.next()
        if member is None:
            metered.header_left = None
            return
        file.members = []  # type: ignore[attr-defined]  # else a million of them are kept
        metered.header_left = None
        yield member


def _unpack_tar_member(file: tarfile.TarFile, member: tarfile.TarInfo, writer: _Writer) -> None:
    if member.isdir():
        writer.make_folder(member.name)
    elif not member.isreg() or member.issparse():
        raise PallavaError(f"its member {member.name!r} is a link, a device or a sparse file")
    else:
        writer.check_declared(member.size)
        source = file.extractfile(member)
        assert source is not None  # a regular file
        writer.write(member.name, source, member.size)


class _Metered:
    """A stream that counts, so that neither headers nor gaps between files can be a bomb."""

    def __init__(self, stream: BinaryIO, writer: _Writer) -> None:
        self._stream = stream
        self._writer = writer
        self._num_bytes = 0
        self.header_left: int | None = _MAX_HEADER

    def read(self, size: int = -1) -> bytes:
        """Reads on."""
        content = self._stream.read(size)
        self._num_bytes += len(content)
        check_ratio("the archive", self._num_bytes, self._writer.archive_bytes)
        if self.header_left is not None:
            self.header_left -= len(content)
            if self.header_left < 0:
                raise PallavaError(f"a header of more than {_MAX_HEADER} bytes")
        return content
