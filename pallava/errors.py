"""The one exception a user may meet: a sentence, not a traceback."""

import re

_MAX_LENGTH = 300
_TAIL = 120  # characters of a long message's end, which says what to do
_DATA_URL = re.compile(r"(data:[\w/+.;=-]{0,100},)[^\s'\"]{20,}")
_BYTES = re.compile(r"\bb(['\"])(?:(?!\1).){0,200}?\\x.*?(?:\1|$)", re.DOTALL)
_RUN = re.compile(r"[A-Za-z0-9+/=]{40,}")


class PallavaError(ValueError):
    """Bad input of the user's: the message says what was found, what was expected and what to do.

    Commands print the message after ``error:`` and exit with code 2.
    """

    def __init__(self, *values: object) -> None:
        super().__init__(*(shorten(value) if isinstance(value, str) else value for value in values))


def shorten(message: str) -> str:
    """Return a message without the content of pictures that it quotes, and cut in its middle if it is long."""
    message = _DATA_URL.sub(r"\1...", message)
    message = _BYTES.sub("bytes", message)
    message = _RUN.sub(_without_base64, message)
    if len(message) <= _MAX_LENGTH:
        return message
    return f"{message[: _MAX_LENGTH - _TAIL - 5]} ... {message[-_TAIL:]}"


def _without_base64(run: re.Match[str]) -> str:
    """Replace a run whose longest part between slashes is neither a file name nor a hash."""
    longest = max(run[0].split("/"), key=len)
    is_base64 = len(longest) >= 40 and all(re.search(kind, longest) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    return f"({len(run[0])} characters)" if is_base64 or len(longest) > 255 else run[0]


def check_at_least(least: int, **options: int | None) -> None:
    """Check values of options by the options' names; None is not given.

    Raises:
        PallavaError: A value is smaller than `least`.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise PallavaError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def without_worker(message: str) -> str:
    """Return an error's message alone: a data loader puts its worker's whole traceback before it."""
    message = message.strip()
    return message.splitlines()[-1].split("Error: ", 1)[-1] if "Original Traceback" in message else message
