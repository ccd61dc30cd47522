"""Files and folders that appear whole or not at all."""

import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pallava.errors import PallavaError

_MANY_FILES = 1000
_IS_WINDOWS = os.name == "nt"


@contextmanager
def report_os_errors(what: str) -> Iterator[None]:
    """Raise a `PallavaError` for what the system refuses within the context: `what` failed, and the reason."""
    try:
        yield
    except OSError as error:
        raise PallavaError(f"{what}: {error.strerror or error}") from None


@contextmanager
def whole_file(path: str | Path, mode: str = "w", *, durable: bool = True, **open_options: Any) -> Iterator[IO[Any]]:
    """Open a file for writing that takes its place only once it is complete.

    The content goes to a hidden temporary file beside it (its own for each writer, so that two runs do not collide), is
    synchronized to the disk and renamed. If anything fails, the temporary file is removed and an older file stays. What
    is not a file, such as a pipe or ``/dev/stdout``, is written to directly; a link stays a link. The mode is "w" or
    "wb"; text is UTF-8 unless the options of `open` say otherwise. A file that is not `durable`, because its reader
    checks it, is renamed without waiting for the disk.
    """
    if "b" not in mode:
        open_options.setdefault("encoding", "utf-8")
    if Path(path).exists() and not Path(path).is_file():
        with Path(path).open(mode, **open_options) as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    temporary = temporary_beside(path)
    try:
        with temporary.open(mode.replace("w", "x"), **open_options) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _name_file(error, temporary, path)
        raise
    if durable:
        synchronize(path.parent, recursive=False)


@contextmanager
def whole_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder that takes the place of `path` once it is complete.

    Missing parents are made. If anything fails, the temporary folder is removed. An older folder that is not empty is
    an error, or with `replace` removed, but only after the new one has its name.
    """
    path = Path(path)
    if not replace and path.exists() and not _is_empty_folder(path):
        raise _exists(path)
    temporary = temporary_beside(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        synchronize(temporary)
        _put_in_place(temporary, path, replace)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_file(error, temporary, path)
        raise
    synchronize(path.parent, recursive=False)


def write_text(path: str | Path, text: str, **open_options: Any) -> None:
    """Write a text file whole, in UTF-8; see `whole_file`."""
    with whole_file(path, **open_options) as file:
        file.write(text)


def write_bytes(path: str | Path, content: bytes, *, durable: bool = True) -> None:
    """Write a binary file whole; see `whole_file`."""
    with whole_file(path, "wb", durable=durable) as file:
        file.write(content)


def write_json(path: str | Path, value: Any, **json_options: Any) -> None:
    """Write a JSON file whole, indented by two unless the options say otherwise; see `whole_file`."""
    write_text(path, json.dumps(value, **{"indent": 2, **json_options}) + "\n", errors="replace")


def append_line(path: str | Path, line: str) -> None:
    """Append a line to a log in UTF-8; of a killed writer's lines, only the last one can be cut."""
    with Path(path).open("a", encoding="utf-8", errors="replace") as file:
        file.write(line + "\n")


def read_package_data(module_file: str) -> Any:
    """Read the YAML file beside a module of this package that has the module's name; give its ``__file__``."""
    import yaml  # most commands need none

    text = Path(module_file).with_suffix(".yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # libyaml's, where it was compiled in


def walk_files(root: Path) -> list[Path]:
    """Return all files below a folder, sorted, those of linked folders too; a folder that holds itself is read once."""
    found, seen = list[Path](), set[str]()
    for folder, inner, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()
            continue
        seen.add(real)
        found += [Path(folder, name) for name in names]
    return sorted(found)


def temporary_beside(path: Path, ending: str = "unfinished") -> Path:
    """Return an unused hidden name in the same folder, for what is not complete yet."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{ending}")


def remove_leftovers(path: str | Path) -> None:
    """Remove what killed writers of a file left beside it; to be called only while nobody else can write the file."""
    for leftover in Path(path).parent.glob(f".{glob.escape(Path(path).name)}.*.unfinished"):
        leftover.unlink(missing_ok=True)


def _put_in_place(temporary: Path, path: Path, replace: bool) -> None:
    if not replace or not path.exists() or _is_empty_folder(path):  # the first of two runs without `replace` wins
        try:
            if _IS_WINDOWS and path.exists():  # it renames no folder over another, be it empty
                path.rmdir()
            temporary.replace(path)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise _exists(path) from None
            raise
        return
    old = temporary_beside(path, "old")
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "File exists", str(path))


def _name_file(error: BaseException, temporary: Path, path: Path) -> None:
    """Put the path into an error that names the temporary file, or no file, as the system does of a full disk."""
    if isinstance(error, OSError) and error.errno and error.filename in (None, temporary, str(temporary)):
        error.filename = str(path)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def synchronize(path: Path, *, recursive: bool = True) -> None:
    """Synchronize a file, or a folder with all that is below it, to the disk.

    Some file systems, and Windows, cannot do it for a folder itself.
    """
    is_folder = path.is_dir()
    if is_folder and recursive:
        if hasattr(os, "sync") and any(islice(path.rglob("*"), _MANY_FILES, None)):
            os.sync()  # the whole disk once, rather than a million files one by one
            return
        for inner in path.rglob("*"):
            synchronize(inner, recursive=False)
    if is_folder and _IS_WINDOWS:
        return
    descriptor = os.open(path, os.O_RDWR if _IS_WINDOWS else os.O_RDONLY)  # it synchronizes what is open for writing
    try:
        os.fsync(descriptor)
    except OSError:
        if not is_folder:
            raise
    finally:
        os.close(descriptor)
