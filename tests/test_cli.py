"""The ``pallava`` command itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pallava.cli import COMMANDS, main
from pallava.errors import PallavaError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main([*name.split(), "--help"])
    assert exited.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: pallava {name}" in out
    assert "example" in out.lower()


def test_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ["convert"])
    assert main([]) == 2
    assert main(["data"]) == 2
    assert "data prepare" in capsys.readouterr().err
    assert main(["--version"]) == 0


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, advice in ((["evaluat"], "`pallava evaluate`"), (["data", "cleen"], "`pallava data clean`")):
        assert main(words) == 2
        message = capsys.readouterr().err.splitlines()[0]
        assert f"`pallava {' '.join(words)}`" in message
        assert advice in message


@pytest.mark.parametrize("words", [["chat", "m", "--question", "is it \udcff ?"], ["\udcff"], ["look", "\ud83d"]])
def test_an_argument_that_is_not_text(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "UTF-8" in error


def test_what_another_side_cannot_encode_ends_no_command() -> None:
    """A terminal without letters beyond ASCII, and a typed question that is not UTF-8."""
    program = (
        "import sys; from pallava import cli; cli.load_command = lambda name: "
        "(lambda parser: None, lambda: print(ascii(sys.stdin.readline()), '\\xb5'), '')\n"
        "sys.exit(cli.main(['config', 'list']))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", program], input=b"a\xff", capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (0, b"'a\\udcff' \\xb5\n"), done.stderr


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["config", "copy", "pallava_domain_alignment", str(tmp_path / "file" / "own.py")]) == 2
    assert capsys.readouterr().err == f"error: File exists: {tmp_path / 'file'}\n"


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise PallavaError("found this, expected that")

    monkeypatch.setattr("pallava.cli.load_command", lambda name: (lambda parser: None, fail, ""))
    assert main(["config", "list"]) == 2
    assert capsys.readouterr().err == "error: found this, expected that\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("judge p.jsonl --concurrency 0", "--concurrency must be at least 1, got 0"),
        ("judge p.jsonl --seed -1", "--seed must be at least 0, got -1"),
        ("data prepare d.jsonl out --tokenizer none --workers 0", "--workers"),
        ("data check d.jsonl --image-folder . --workers -2", "--workers"),
        ("data check d.jsonl --image-folder . --context-length 0", "--context-length"),
        ("data check d.jsonl --image-folder . --num-visual-tokens -1", "--num-visual-tokens"),
        ("data leak train.jsonl test.jsonl --workers 0", "--workers"),
        ("data clean out --source csv=a.csv --columns image=a,caption=b --max-background 2", "--max-background"),
        ("data clean out --source csv=a.csv --columns image=a,caption=b --clip-threshold nan", "--clip-threshold"),
        ("data clean out --source csv=a.csv --columns image=a,caption=b --workers 0", "--workers"),
        ("data unpack a.zip out --max-gb 0", "--max-gb"),
        ("convert a.pth out --lora-alpha 0", "--lora-alpha"),
        ("convert a.pth out --connector-heads 0", "--connector-heads"),
        ("demo --scale nan", "scale"),
        ("doctor pallava_domain_alignment --nproc 0", "--nproc must be at least 1, got 0"),
        ("doctor pallava_domain_alignment --nodes 0", "--nodes must be at least 1, got 0"),
        ("doctor pallava_domain_alignment --share 0", "--share"),
        ("doctor pallava_domain_alignment --share 1.5", "--share"),
        ("doctor pallava_domain_alignment --card-gb nan", "--card-gb"),
        ("doctor nowhere.py", "nowhere.py"),
        ("pretrain p.jsonl out --image-folder . --shards -1", "--shards"),
        ("pretrain p.jsonl out --image-folder . -- --batch-size 0", "--batch-size"),
        ("pretrain p.jsonl out --image-folder . -- --accum-freq 0", "--accum-freq"),
        ("pretrain p.jsonl out --image-folder . -- --epochs 0", "--epochs"),
    ],
)
def test_numbers_out_of_range_are_one_sentence(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read: the files do not exist."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("a,b\n")
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["chat", "nowhere", "--image", "none.png", "--question", "?"], "none.png"),
        (["chat", "nowhere", "--question", "?"], "nowhere"),
        (["convert", "none.pth", "out"], "none.pth"),
    ],
)
def test_commands_say_what_is_missing(arguments: list[str], reason: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pallava", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
