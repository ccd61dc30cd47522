"""Unpack archives of unknown origin: check what they declare first, and what they yield while it is written.

`tarfile`'s data filter and `zipfile`'s `extract` mend or allow what is refused here (absolute names, links inside), and
neither limits what a member unpacks to; so members are read as streams, and every file is written by this module.
"""

from __future__ import annotations

import calendar
import filecmp
import gzip
import math
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, NamedTuple

from tqdm import tqdm

from pallava.errors import PallavaError
from pallava.io.files import report_os_errors, whole_folder

MAX_GB = 200.0
"""Default limit of the unpacked size of an archive, in GB of 10^9 bytes."""

# Pictures hardly shrink and tables shrink by ten; deflate can shrink by a thousand, which only a bomb does.
_MAX_RATIO = 100
_SMALL = 8 << 20  # too little to do harm, however well it was packed
_MAX_MEMBERS = 10_000_000
_MAX_HEADER = 16 << 20
_CHUNK = 1 << 20
_LAST_SECOND = (1 << 31) - 1  # what all file systems can hold
_DRIVE = re.compile("[A-Za-z]:")
_DAMAGED = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


class Unpacked(NamedTuple):
    """Number of files that were written, and the sum of their sizes."""

    num_files: int
    num_bytes: int


def unpack(
    archives: Sequence[str | Path], out: str | Path, *, max_gb: float = MAX_GB, is_flat: bool = False
) -> Unpacked:
    """Unpack zip, tar or tar.gz files into one new folder, which appears complete or not at all.

    All are refused if one member would leave the folder, is a link or a device or is encrypted, if two members of
    other content have one name, or if more is unpacked than is allowed, declared, or plausible for an archive's size.
    Archives inside are left packed. Files get the dates that the archive records. `max_gb` limits all archives
    together; `is_flat` leaves out the folders in them, so that all files are in the new folder itself.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise PallavaError(f"'{out}' exists already; give another folder, or remove it")
    readers = {Path(archive): _reader(Path(archive)) for archive in archives}
    num_files = num_bytes = 0
    with report_os_errors(f"cannot write '{out}'"), whole_folder(out) as folder:
        for archive, read in readers.items():
            writer = _MemberWriter(archive, folder, int(max_gb * 1e9) - num_bytes, is_flat=is_flat)
            _unpack_one(read, writer)
            num_files, num_bytes = num_files + writer.num_files, num_bytes + writer.num_bytes
    return Unpacked(num_files, num_bytes)


def _reader(archive: Path) -> Callable[[_MemberWriter], None]:
    with report_os_errors(f"cannot read '{archive}'"), archive.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head.startswith(b"\x1f\x8b"):
        return partial(_unpack_tar, open_archive=gzip.open)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _unpack_zip
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        raise PallavaError(f"'{archive}' must be a zip, tar or tar.gz archive, got {head[:8]!r}") from None
    return _unpack_tar


def _unpack_one(read: Callable[[_MemberWriter], None], writer: _MemberWriter) -> None:
    try:
        with writer.bar:
            read(writer)
    except PallavaError as refusal:
        raise PallavaError(f"'{writer.archive}' is refused: {refusal}") from None
    except Exception as error:  # readers of damaged archives raise whatever they stumble over
        reason = str(error) or type(error).__name__
        raise PallavaError(f"'{writer.archive}' is damaged or unsupported: {reason}") from error


def _unpack_zip(writer: _MemberWriter) -> None:
    with zipfile.ZipFile(writer.archive) as file:
        members = file.infolist()
        for member in members:
            _check_zip_member(member)
        writer.bar.total = sum(member.file_size for member in members)
        writer.check_declared(writer.bar.total)
        for member in members:
            if member.is_dir():
                writer.make_folder(member.filename)
                continue
            modified = 0  # also for a date of month 0
            with suppress(ValueError):  # a zip's date lacks a time zone: as UTC it is the same everywhere
                modified = calendar.timegm(member.date_time)
            with file.open(member) as source:
                writer.write(member.filename, source, member.file_size, member.compress_size, modified=modified)


def _check_zip_member(member: zipfile.ZipInfo) -> None:
    _inner_name(member.filename)
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PallavaError(f"its member {member.filename!r} is a link or a device, not a file")
    # The decompressors of other methods cannot be told to stop.
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PallavaError(f"its member {member.filename!r} is encrypted, or packed by another method than deflate")


def _unpack_tar(writer: _MemberWriter, open_archive: Callable[..., Any] = open) -> None:
    with open_archive(writer.archive, "rb") as stream:
        metered = _Metered(stream, writer)
        with tarfile.open(fileobj=metered, mode="r|", tarinfo=_TarInfo) as file:  # type: ignore[call-overload]
            while True:
                metered.header_left = _MAX_HEADER
                member = file.next()
                metered.header_left = math.inf
                if member is None:
                    break
                file.members = []  # else a million of them are kept
                if member.isdir():
                    writer.make_folder(member.name)
                    continue
                if not member.isreg() or member.issparse():
                    raise PallavaError(f"its member {member.name!r} is a link, a device or a sparse file")
                writer.check_declared(member.size)
                writer.write(member.name, file.extractfile(member), member.size, modified=member.mtime)
        while metered.read(_CHUNK):  # to its end, where the checksum stands
            pass


class _TarInfo(tarfile.TarInfo):
    """A damaged header is an error, not the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except _DAMAGED as error:
            raise PallavaError(f"a header is damaged ({error})") from None


class _Metered:
    """A stream that counts, so that neither headers nor gaps between files can be a bomb."""

    def __init__(self, stream: BinaryIO, writer: _MemberWriter) -> None:
        self._stream, self._writer, self._num_bytes = stream, writer, 0
        self.header_left: float = _MAX_HEADER

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._num_bytes += len(content)
        _check_ratio("the archive", self._num_bytes, self._writer.archive_bytes)
        self.header_left -= len(content)
        if self.header_left < 0:
            raise PallavaError(f"a header of more than {_MAX_HEADER} bytes")
        return content


class _MemberWriter:
    def __init__(self, archive: Path, folder: Path, max_bytes: int, *, is_flat: bool) -> None:
        self.archive, self._folder, self._is_flat = archive, folder, is_flat
        self.num_files = self.num_bytes = self._num_members = 0
        self.archive_bytes, self.max_bytes = archive.stat().st_size, max_bytes
        self.bar = tqdm(unit="B", unit_scale=True, desc=f"unpacking {archive.name}", mininterval=1, disable=None)

    def check_declared(self, num_bytes: int) -> None:
        size, free = f"{num_bytes / 1e9:.1f} GB", shutil.disk_usage(self._folder).free
        if num_bytes > self.max_bytes:
            allowed = f"{self.max_bytes / 1e9:.1f} GB"
            raise PallavaError(f"it unpacks to {size}, and {allowed} are allowed; raise --max-gb if you trust it")
        if num_bytes > free:
            raise PallavaError(f"it unpacks to {size}, and {free / 1e9:.1f} GB of the disk are free")

    def make_folder(self, name: str) -> None:
        path = self._target(name)
        if not self._is_flat:
            path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, source: IO[bytes], declared: int, packed: int | None = None, *, modified: float) -> None:
        """Write a file of the archive, and refuse it as soon as more comes than its headers declare or is plausible."""
        path = self._target(name)
        if self._is_flat and ("__MACOSX" in PurePosixPath(name).parts or path.name == ".DS_Store"):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        is_again = path.is_file()
        target = path.with_name(f"{path.name}.again") if is_again else path
        self._copy(name, source, target, declared, packed)
        seconds = min(max(int(modified), 0), _LAST_SECOND)
        os.utime(target, (seconds, seconds))  # the same on every machine, as keys of stored scores must be
        if is_again:
            if not filecmp.cmp(path, target, shallow=False):
                raise PallavaError(f"it holds a second file '{path.name}' of other content for the same place")
            target.unlink()

    def _copy(self, name: str, source: IO[bytes], target: Path, declared: int, packed: int | None) -> None:
        num_bytes = 0
        with target.open("xb") as file:
            while chunk := source.read(_CHUNK):
                num_bytes += len(chunk)
                self.num_bytes += len(chunk)
                self.bar.update(len(chunk))
                if num_bytes > declared:
                    raise PallavaError(f"'{name}' is larger than the {declared} bytes that its header says")
                if packed is not None:
                    _check_ratio(f"'{name}'", num_bytes, packed)
                _check_ratio("the unpacked content", self.num_bytes, self.archive_bytes)
                if self.num_bytes > self.max_bytes:
                    allowed = f"{self.max_bytes / 1e9:.1f} GB"
                    raise PallavaError(f"it unpacks to more than {allowed}; raise --max-gb if you trust it")
                file.write(chunk)
        if num_bytes != declared:
            raise PallavaError(f"'{name}' ends after {num_bytes} of {declared} bytes")
        self.num_files += 1

    def _target(self, name: str) -> Path:
        self._num_members += 1
        if self._num_members > _MAX_MEMBERS:
            raise PallavaError(f"it has more than {_MAX_MEMBERS} members")
        path = _inner_name(name)
        return self._folder / (path.name if self._is_flat else path)


def _check_ratio(what: str, num_bytes: int, packed: int) -> None:
    if num_bytes > max(_SMALL, _MAX_RATIO * packed):
        raise PallavaError(f"{what} grows to over {_MAX_RATIO} times its packed size ({packed} bytes), as a bomb does")


def _inner_name(name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))  # as Windows would read it
    if path.is_absolute() or ".." in path.parts or _DRIVE.match(name):
        raise PallavaError(f"its member {name!r} would be written outside of the folder")
    if "\0" in name:
        raise PallavaError(f"the name of its member {name!r} must not contain a null character")
    return path
