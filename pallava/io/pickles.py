"""Read pickles of unknown origin: builtin containers and scalars, and nothing that could run code."""

import pickle
import pickletools
from collections.abc import Callable, Sized
from io import BytesIO
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.io.files import read_package_data, report_os_errors

_MAX_BYTES = 1 << 30  # the largest pickle of PathVQA has some megabytes

_REFUSED_CODES: dict[str, str] = read_package_data(__file__)
_MADE: dict[str, Callable[..., Any]] = {"set": set, "frozenset": frozenset, "complex": complex}
_EXPECTED = "a pickle must hold only dicts, lists, tuples, sets, text, numbers, booleans and None"


def load_plain(path: str | Path) -> Any:
    """Read a pickle; refuse one that asks for more than builtin containers and scalars, by the name of that."""
    path = Path(path)
    with report_os_errors(f"cannot read '{path}'"):
        if path.stat().st_size > _MAX_BYTES:
            raise PallavaError(f"'{path}' must have at most {_MAX_BYTES} bytes, got {path.stat().st_size} bytes")
        content = path.read_bytes()
    try:
        _check_codes(content)
        return _PlainUnpickler(content).load()
    except _Refused as refused:
        raise PallavaError(f"'{path}' asks for {refused}; {_EXPECTED}") from None
    except Exception as error:  # a damaged pickle raises whatever its codes stumble over
        reason = str(error) or type(error).__name__
        raise PallavaError(f"'{path}' is not a readable pickle: damaged, or of another format ({reason})") from None


class _Refused(Exception):
    """The message names what the pickle asks for."""


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(BytesIO(content), encoding="utf-8", errors="surrogateescape")  # the rows are checked
        self._num_left = len(content)  # of elements: one list can be made a set again and again

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if module not in ("builtins", "__builtin__") or name not in _MADE:
            raise _Refused(f"{module}.{name}")
        return lambda *values: self._make(name, *values)  # no object, whose state a pickle could set

    def _make(self, name: str, *values: Any) -> Any:
        """Make a set or a complex number, for which older protocols have no code."""
        self._num_left -= sum(len(value) for value in values if isinstance(value, Sized))
        if self._num_left < 0:
            raise _Refused("more elements than it holds")
        return _MADE[name](*values)


def _check_codes(content: bytes) -> None:
    """Refuse what does not go through `find_class`, and numbers that reserve memory out of proportion."""
    for code, argument, _ in pickletools.genops(content):
        if code.name in _REFUSED_CODES:
            raise _Refused(_REFUSED_CODES[code.name])
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(content):
            raise _Refused(f"place {argument} of its memory")
