"""A conversation in the terminal: its commands, and Ctrl-C."""

import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pallava.cli.terminal import Terminal
from pallava.model import ask, load
from pallava.serving.session import Session
from tests.tiny.answering_model import write_model

QUESTION = "what is shown ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    Image.linear_gradient("L").resize((70, 50)).save(root / "an image.png")
    return write_model(root / "model")


@pytest.fixture(scope="module")
def parts(folder: Path) -> Any:
    return load(folder, "cpu")


class Typed:
    """A terminal whose output is kept."""

    def __init__(self, parts: Any, **how: Any) -> None:
        self.out, self.notes = io.StringIO(), io.StringIO()
        self.session = Session(*parts)
        facts = {"language model": "tiny", "pallava": "1"}
        self.terminal = Terminal(self.session, "a model", facts, 12, out=self.out, notes=self.notes, **how)

    def take(self, line: str) -> tuple[str, str]:
        """What a line adds to the answers and to the notes."""
        before = self.out.tell(), self.notes.tell()
        self.terminal.take(line)
        return self.out.getvalue()[before[0] :], self.notes.getvalue()[before[1] :]


def test_a_conversation(parts: Any, folder: Path) -> None:
    image, typed = folder.parent / "an image.png", Typed(parts)
    assert typed.take(QUESTION)[0] == ask(*parts, None, QUESTION, max_new_tokens=12) + "\n"
    typed.take("/clear")
    typed.take(f"/image '{image}'")
    answer, note = typed.take(QUESTION)
    assert answer == ask(*parts, image, QUESTION, max_new_tokens=12) + "\n"
    assert re.search(r"\d%", note)
    second, _ = typed.take("yes ?")
    history = [(QUESTION, answer.rstrip("\n"))]
    assert second == ask(*parts, image, "yes ?", history=history, max_new_tokens=12) + "\n"


def test_a_saved_conversation(parts: Any, folder: Path, tmp_path: Path) -> None:
    typed, path, other = Typed(parts), tmp_path / "talk.md", tmp_path / "other.md"
    assert "error" in typed.take(f"/save {path}")[1]  # nothing has been said
    assert not path.exists()
    other.write_text("mine")
    typed.take(f"/image {folder.parent / 'an image.png'}")
    answer = typed.take(QUESTION)[0].strip()
    assert str(path) in typed.take(f"/save {path}")[1]
    text = path.read_text()
    named = f"Pictures: {folder.parent.as_posix()}"
    for each in (answer, QUESTION, named, "a model", "language model: tiny", "research only", "largest length"):
        assert each in text
    assert str(other) in typed.take(f"/save {other}")[1]
    assert other.read_text() == "mine"
    assert re.search(r"date: \d{4}-\d\d-\d\dT", text)


def test_paths_as_they_are_typed(parts: Any, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """In quotes, from home, and with a name that is not UTF-8; a picture is never written over."""
    monkeypatch.setenv("HOME", str(tmp_path))
    typed, picture = Typed(parts), tmp_path / "bad\udcff 'x'.png"
    shutil.copy(folder.parent / "an image.png", picture)
    for line in (f"/image ~/{picture.name}", f"/image '{picture}'", f'/image "{picture}"'):
        assert "error" not in typed.take(line)[1]
    typed.take(QUESTION)
    assert len(typed.session.turns[0].pictures) == 3
    content = picture.read_bytes()
    assert str(picture) in typed.take(f"/save {picture}")[1]
    assert picture.read_bytes() == content
    for _ in range(2):
        assert "error" not in typed.take('/save "~/my talk.md"')[1]
    assert "bad\ufffd" in (tmp_path / "my talk.md").read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image", "path of an image"),
        ("/image nowhere.png", "nowhere.png"),
        ("/save", "file name"),
        ("/save no/such/folder/a.md", "no/such/folder/a.md"),
        ("/save a\0b.md", "a\0b.md"),
        ("/sav x", "/save"),
        ("/help", "/quit"),
        ("a \0 b", "encoded"),
    ],
)
def test_wrong_lines_change_nothing(parts: Any, line: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    typed = Typed(parts)
    first = typed.take(QUESTION)[0]
    answer, note = typed.take(line)
    assert not answer
    assert said in note
    assert len(typed.session.turns) == 1
    assert typed.session.turns[0].reply.text == first.strip()


def test_ctrl_c_stops_the_answer_and_not_the_program(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    typed, before = Typed(parts), signal.getsignal(signal.SIGINT)
    whole = ask(*parts, None, QUESTION, max_new_tokens=12)
    write = typed.terminal._write

    def press(text: str) -> None:
        write(text)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(typed.terminal, "_write", press)
    typed.take(QUESTION)  # the new line after the answer presses once more
    monkeypatch.undo()
    (turn,) = typed.session.turns
    assert turn.reply.finish_reason == "cancelled"
    assert 0 < len(turn.reply.text) < len(whole)
    assert typed.take("yes ?")[0]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is typed, line by line, with the output of the program elsewhere: texts, and exceptions at the prompt."""
    coming: list[Any] = []

    def read(prompt: str) -> str:
        print(prompt, end="")
        line = coming.pop(0) if coming else EOFError()
        if isinstance(line, BaseException):
            raise line
        return str(line)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    return coming


def test_the_prompt_is_not_among_the_answers(parts: Any, lines: list[Any], capsys: Any) -> None:
    typed, lines[:] = Typed(parts), [QUESTION, "/help"]
    typed.terminal.run()
    assert not capsys.readouterr().out
    assert typed.notes.getvalue().count("\n> ") == 3


@pytest.mark.parametrize("place", ["reply", "show"])
def test_ctrl_c_before_the_first_word(parts: Any, folder: Path, lines: list[Any], place: str, monkeypatch: Any) -> None:
    """It is heeded at once, and a line is as if it had not been typed."""
    typed = Typed(parts)
    method, pressed = getattr(typed.session._chat, {"reply": "_encode", "show": "see"}[place]), list[int]()

    def press(*args: Any) -> Any:
        pressed.append(1)
        if len(pressed) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return method(*args)

    monkeypatch.setattr(typed.session._chat, method.__name__, press)
    lines[:] = [f"/image {folder.parent / 'an image.png'}", QUESTION, KeyboardInterrupt(), "yes ?"]
    typed.terminal.run()
    assert pressed
    asked = [(turn.question, len(turn.pictures)) for turn in typed.session.turns]
    assert asked == ([("yes ?", 1)] if place == "reply" else [(QUESTION, 0), ("yes ?", 0)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_again_takes_the_question_back(parts: Any, lines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    typed, lines[:] = Typed(parts), [QUESTION, "yes ?"]
    write, pressed = typed.terminal._write, list[int]()

    def press(text: str) -> None:
        write(text)
        while len(pressed) < 2:
            pressed.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            write("[once]")

    monkeypatch.setattr(typed.terminal, "_write", press)
    typed.terminal.run()
    assert typed.out.getvalue().count("[once]") == 1
    assert [turn.question for turn in typed.session.turns] == ["yes ?"]


class Screen:
    """What a command writes to a terminal, read piece by piece."""

    def __init__(self, master: int) -> None:
        self._master, self._unread = master, ""

    def until(self, wanted: str, seconds: float = 240) -> str:
        """What has been written up to a text, that one included."""
        end = time.monotonic() + seconds
        while wanted not in self._unread:
            assert time.monotonic() < end, self._unread
            if select.select([self._master], [], [], 1)[0]:
                self._unread += os.read(self._master, 4096).decode(errors="replace")
        text, wanted, self._unread = self._unread.partition(wanted)
        return text + wanted


@pytest.mark.smoke
def test_the_command_as_it_is_typed(folder: Path, tmp_path: Path) -> None:
    """Questions at a prompt, an earlier one by the arrow key, Ctrl-C at the prompt, the end by Ctrl-D."""
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "pallava", "chat", str(folder), "--max-new-tokens", "5"]
    command = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=tmp_path)
    try:
        screen = Screen(master)
        screen.until("> ")
        os.write(master, f"{QUESTION}\n".encode())
        screen.until("%)")
        screen.until("> ")
        os.write(master, b"\x1b[A\n")  # the arrow up brings the question back
        assert QUESTION in screen.until("%)")
        screen.until("> ")
        time.sleep(1)  # Python misses a signal between the prompt and the wait for a key
        os.killpg(command.pid, signal.SIGINT)
        screen.until("Ctrl-D")
        screen.until("> ")
        os.write(master, b"/image nowhere.png\n")
        assert "error: " in screen.until("no such file")
        screen.until("> ")
        os.write(master, b"\x04")
        assert command.wait(30) == 0
    finally:
        command.kill()
        command.wait()
        os.close(master)
        os.close(slave)
