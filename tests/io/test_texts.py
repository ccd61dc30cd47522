"""Text is read rightly, or refused with its place."""

from pathlib import Path

import pytest

from pallava.errors import PallavaError
from pallava.io.texts import find_damage, read_text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a \ud83d b", r"\ud83d"),
        ("\udcff", "0xff"),
        ("a\0", r"\x00"),
        ("é\udfff", r"\udfff"),
        ("a 😀 \ufffd é\ufeff", ""),
    ],
)
def test_damage_is_named(text: str, named: str) -> None:
    assert named in find_damage(text)
    assert bool(find_damage(text)) == bool(named)
    find_damage(text).encode()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("é 5 µm".encode("cp1252"), "0xe9"),
        (b"a\nb\xff", "line 2"),
        (b"\xed\xa0\xbd", "0xed"),
        ("a".encode("utf-16"), "UTF-16"),
        ("a".encode("utf-32"), "UTF-32"),
        (b"\xfe\xff\0a", "UTF-16"),
        (b"\0\0\xfe\xff\0\0\0a", "UTF-32"),
        ("ab".encode("utf-16-le"), "x00"),
    ],
)
def test_other_encodings_are_refused(content: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(PallavaError, match=r"a\.txt") as error:
        read_text(tmp_path / "a.txt")
    assert named in str(error.value)


def test_marks_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\n\xef\xbb\xbfb\xc3\xa9")
    assert read_text(tmp_path / "a.txt") == "a\nbé"
    with pytest.raises(PallavaError, match="the list '.*none"):
        read_text(tmp_path / "none", "the list")
