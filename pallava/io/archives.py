"""Unpacking archives of unknown origin: what they declare is checked first, and what they give while it comes."""

from __future__ import annotations

import calendar
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pallava.errors import PallavaError
from pallava.io.archive_writer import MemberWriter, check_ratio, inner_name

MAX_GB = 200.0
"""Default cap of what an archive may unpack to, in GB of 10^9 bytes."""

_MAX_HEADER = 16 << 20
_CHUNK = 1 << 20
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


def unpack(
    archives: Sequence[str | Path], out: str | Path, *, max_gb: float = MAX_GB, is_flat: bool = False
) -> Unpacked:
    """Unpacks zip, tar or tar.gz files into one new folder, which appears complete or not at all.

    All are refused if one member would leave the folder, is a link or a device, is encrypted, if two members of
    other content have one name, or if more comes out than is allowed, declared, or plausible for an archive's size.
    Archives inside are left packed.

    Args:
        archives: The files; their kinds are told by their content.
        out: The folder to make; must not exist.
        max_gb: Most that may come out of all of them, in GB.
        is_flat: Whether the folders in the archives are left out, so that all files lie in the new folder itself.

    Raises:
        PallavaError: An archive is refused, damaged or of another kind, or the folder exists.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise PallavaError(f"'{out}' exists already; give another folder, or remove it")
    kinds = {Path(archive): _kind(Path(archive)) for archive in archives}
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.unfinished")
    num_files = num_bytes = 0
    try:
        unfinished.mkdir(parents=True)
        for archive, kind in kinds.items():
            writer = MemberWriter(archive, unfinished, int(max_gb * 1e9) - num_bytes, is_flat=is_flat)
            _unpack_one(archive, kind, writer)
            num_files, num_bytes = num_files + writer.num_files, num_bytes + writer.num_bytes
        unfinished.replace(out)
    except OSError as error:
        raise PallavaError(f"cannot write '{out}': {error.strerror}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Unpacked(num_files, num_bytes)


def _unpack_one(archive: Path, kind: str, writer: MemberWriter) -> None:
    try:
        with writer.bar:
            (_unpack_zip if kind == "zip" else _unpack_tar)(archive, writer)
    except PallavaError as refusal:
        raise PallavaError(f"'{archive}' is not unpacked: {refusal}") from None
    except Exception as error:  # readers of damaged archives raise whatever they stumble over
        reason = str(error) or type(error).__name__
        raise PallavaError(f"'{archive}' is not unpacked: damaged or unsupported ({reason})") from error


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


def _unpack_zip(archive: Path, writer: MemberWriter) -> None:
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
                writer.write(
                    member.filename, source, member.file_size, member.compress_size, modified=_seconds(member.date_time)
                )


def _seconds(date_time: tuple[int, int, int, int, int, int]) -> int:
    """Seconds since 1970 of a zip's date, which has no time zone: taken as UTC it is the same everywhere."""
    try:
        return calendar.timegm(date_time)
    except ValueError:  # month 0
        return 0


def _check_zip_member(member: zipfile.ZipInfo) -> None:
    inner_name(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PallavaError(f"its member {member.filename!r} is a link or a device, not a file")
    # The decompressors of other methods cannot be told to stop.
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PallavaError(f"its member {member.filename!r} is encrypted, or packed by another method than deflate")


def _unpack_tar(archive: Path, writer: MemberWriter) -> None:
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


def _unpack_tar_member(file: tarfile.TarFile, member: tarfile.TarInfo, writer: MemberWriter) -> None:
    if member.isdir():
        writer.make_folder(member.name)
    elif not member.isreg() or member.issparse():
        raise PallavaError(f"its member {member.name!r} is a link, a device or a sparse file")
    else:
        writer.check_declared(member.size)
        source = file.extractfile(member)
        assert source is not None  # a regular file
        writer.write(member.name, source, member.size, modified=member.mtime)


class _Metered:
    """A stream that counts, so that neither headers nor gaps between files can be a bomb."""

    def __init__(self, stream: BinaryIO, writer: MemberWriter) -> None:
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
