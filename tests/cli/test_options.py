"""Arguments from annotations: what each type becomes."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pytest

from pallava.cli.options import add_parameters


def command(
    numbers: Annotated[list[int], "numbers"],
    *,
    folder: Annotated[Path, "folder"],
    sizes: Annotated[Sequence[int], "size (repeatable)", "--size"] = (),
    share: Annotated[float | None, "share"] = None,
    columns: Annotated[str | Mapping[str, str] | None, "columns"] = None,
    form: Annotated[Literal["a", "b"], "form"] = "a",
    is_flat: Annotated[bool, "flat", "--flat"] = False,
    unseen: int = 3,
) -> None: ...


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_parameters(made, command)
    return made


def test_values_have_the_types_of_the_signature() -> None:
    words = "1 2 --folder f --size 3 --size 4 --share 0.5 --columns a=b --form b --flat"
    assert vars(parser().parse_args(words.split())) == {
        "numbers": [1, 2],
        "folder": Path("f"),
        "sizes": [3, 4],
        "share": 0.5,
        "columns": "a=b",
        "form": "b",
        "is_flat": True,
    }


def test_what_is_not_given_is_left_to_the_function() -> None:
    assert vars(parser().parse_args(["1", "--folder", "f"])) == {"numbers": [1], "folder": Path("f")}


@pytest.mark.parametrize("words", ["1", "--folder f", "x --folder f", "1 --folder f --size x", "1 --folder f --form c"])
def test_wrong_words_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        parser().parse_args(words.split())
    assert exited.value.code == 2
    assert "error: " in capsys.readouterr().err
