"""Writing what comes out of an archive of unknown origin, and refusing what no honest archive holds."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from pallava.errors import PallavaError

# Pictures hardly shrink and tables shrink by ten; deflate can shrink by a thousand, which only a bomb does.
_MAX_RATIO = 100
_SMALL = 8 << 20  # too little to do harm, however well it was packed
_MAX_MEMBERS = 10_000_000
_CHUNK = 1 << 20
_LAST_SECOND = (1 << 31) - 1  # what all file systems can hold
_AGAIN = ".again"
_DRIVE = re.compile("[A-Za-z]:")


class MemberWriter:
    """Writes the members of one archive below a folder, and counts what comes.

    Attributes:
        num_files: Files written.
        num_bytes: Their sizes together.
        archive_bytes: Size of the archive.
        bar: The progress bar.
    """

    def __init__(self, archive: Path, folder: Path, max_bytes: int, *, is_flat: bool) -> None:
        self._folder = folder
        self._is_flat = is_flat
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
        free = shutil.disk_usage(self._folder).free
        if num_bytes > free:
            raise PallavaError(f"{num_bytes / 1e9:.1f} GB would come out, but the disk has {free / 1e9:.1f} left")

    def make_folder(self, name: str) -> None:
        """Makes a folder of the archive."""
        path = self._target(name)
        if not self._is_flat:
            path.mkdir(parents=True, exist_ok=True)

    def write(
        self, name: str, source: IO[bytes], declared: int, packed: int | None = None, *, modified: float = 0
    ) -> None:
        """Writes a file of the archive, and refuses it as soon as more comes than its headers say or is plausible.

        Args:
            name: Of the member.
            source: Its content.
            declared: Its size by its header.
            packed: Its packed size, if it is packed by itself.
            modified: Its date, in seconds since 1970, which the file gets.
        """
        path = self._target(name)
        if self._is_flat and ("__MACOSX" in PurePosixPath(name).parts or path.name == ".DS_Store"):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        is_again = path.is_file()
        target = path.with_name(path.name + _AGAIN) if is_again else path
        self._copy(name, source, target, declared, packed)
        seconds = min(max(int(modified), 0), _LAST_SECOND)
        os.utime(target, (seconds, seconds))  # the same on every machine, as keys of stored scores must be
        if is_again:
            if not filecmp.cmp(path, target, shallow=False):
                raise PallavaError(f"it brings a second file '{path.name}' of other content to the same place")
            target.unlink()

    def _copy(self, name: str, source: IO[bytes], target: Path, declared: int, packed: int | None) -> None:
        num_bytes = 0
        with target.open("xb") as file:
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
        path = inner_name(name)
        return self._folder / (path.name if self._is_flat else path)


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
