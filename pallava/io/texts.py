"""The one rule for text from outside: it is read rightly or refused, and never becomes another text."""

import codecs
import re
from pathlib import Path

from pallava.errors import PallavaError
from pallava.io.files import report_os_errors

BOM = "\ufeff"  # files that were joined hold it inside, too
_DAMAGE = re.compile(r"[\0\ud800-\udfff]")


def find_damage(text: str) -> str:
    """Return what keeps a text from being encoded, with the words before it; an empty text if nothing does.

    Decoded by "surrogateescape", a text holds bytes that are not UTF-8 as halves of surrogate pairs.
    """
    if (text.isascii() and "\0" not in text) or not (found := _DAMAGE.search(text)):
        return ""
    code, before = ord(found[0]), text[: found.start()]
    what = f"byte 0x{code & 0xFF:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(found[0])
    place = f" (line {before.count(chr(10)) + 1})" if "\n" in before else ""
    return f"{what} after {before[-20:]!a}{place} is not UTF-8 text"


def check_encoding(path: Path, head: bytes) -> None:
    """Raise PallavaError if a file begins with the byte order mark of another encoding."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        name = "UTF-32" if bytes(2) in head else "UTF-16"
        raise PallavaError(f"'{path}' must be UTF-8 text, got {name}; save it as UTF-8")


def read_text(path: str | Path, what: str = "the file") -> str:
    """Return a text file without byte order marks, or raise PallavaError, which says `what` cannot be read and why."""
    with report_os_errors(f"cannot read {what} '{path}'"):
        content = Path(path).read_bytes()
    check_encoding(Path(path), content[:4])
    text = content.decode(errors="surrogateescape")
    if damage := find_damage(text):
        raise PallavaError(f"cannot read {what} '{path}': {damage}; save it as UTF-8")
    return text.replace(BOM, "").replace("\r\n", "\n").replace("\r", "\n")
