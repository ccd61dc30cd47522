"""The one exception a user may meet: a sentence, not a traceback."""

import os
import re
from typing import Any

_MAX_LENGTH, _TAIL = 290, 120  # characters; the tail says what to do
_MAX_PATH, _MAX_NAME = 4095, 255  # bytes
# What follows ``base64,`` in a URL; bytes that are not text; and base64 alone, which has longer parts between slashes
# than most paths, and more kinds of characters than a hash.
_CONTENT = re.compile(
    r"(?<=;base64,)[^\s'\"]+|\bb(['\"])(?:(?!\1).){0,200}?\\x.*?(?:\1|$)|(?<![\w+/=])(?:[a-zA-Z0-9+=]{0,39}/)*"
    r"(?=[\w+=]*[A-Z])(?=[\w+=]*[a-z])(?=[\w+=]*[0-9])[a-zA-Z0-9+=]{40}[a-zA-Z0-9+/=]*",
    re.DOTALL | re.ASCII,
)


class PallavaError(ValueError):
    """Bad input of the user's: the message says what was found, what was expected and what to do.

    Commands print the message after ``error:`` and exit with code 2.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(cap_message(without_worker(message)))


def cap_message(message: str) -> str:
    """Return a message without the contents of pictures that it quotes; if it is long, cut its paths, then itself."""
    message = _CONTENT.sub("...", message)
    if len(message) > _MAX_LENGTH:
        message = re.sub(r"(\S{25})\S{20,}(\S{35})", r"\1...\2", message)
    if len(message) > _MAX_LENGTH:
        message = f"{message[: _MAX_LENGTH - _TAIL - 5]} ... {message[-_TAIL:]}"
    return message


def check_paths(*paths: Any) -> None:
    """Raise PallavaError for a path too long for a file system, all of which the system's own error would quote."""
    for path in paths:
        if isinstance(path, list | tuple):
            check_paths(*path)
        elif isinstance(path, str | os.PathLike):
            name = max(os.fsencode(path).split(b"/"), key=len)
            if len(name) > _MAX_NAME or len(os.fsencode(path)) > _MAX_PATH:
                raise PallavaError(f"the path '{path}' must be at most {_MAX_PATH} bytes, each name {_MAX_NAME}")


def check_at_least(least: int, **options: int | None) -> None:
    """Check values of options by the options' names; None is not given.

    Raises:
        PallavaError: A value is smaller than `least`.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise PallavaError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def without_worker(message: str) -> str:
    """Return an error's message alone: a data loader re-raises it after its worker's whole traceback."""
    message = message.strip()
    return message.splitlines()[-1].split("Error: ", 1)[-1] if "Original Traceback" in message else message
