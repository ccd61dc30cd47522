"""A conversation in the terminal: commands, answers that come word by word and can be stopped."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from pallava.errors import PallavaError
from pallava.io.files import write_text
from pallava.serving.record import NOTICE, describe_reply, to_markdown
from pallava.serving.session import Session

HELP = """/image PATH    show an image with the next question
/clear         begin a new conversation, without images
/save FILE.md  write the conversation, with the model and its settings
/help          this list
/quit          end; so does Ctrl-D
Ctrl-C stops an answer; before the first word, or pressed again, it takes the question back, too.
Everything else is a question."""


class Terminal:
    """A conversation with somebody who types.

    Args:
        session: The conversation.
        name: Name of the model.
        facts: What a saved conversation says of the model and its settings.
        max_new_tokens: Largest number of tokens of an answer.
        out: Where answers go.
        notes: Where everything else goes.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        facts: dict[str, Any],
        max_new_tokens: int,
        *,
        out: TextIO | None = None,
        notes: TextIO | None = None,
    ) -> None:
        self._session, self._name, self._facts, self._max_new_tokens = session, name, facts, max_new_tokens
        self._out, self._notes = out or sys.stdout, notes or sys.stderr
        self._saved: set[str] = set()
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._show,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: self._note(HELP),
        }

    def run(self) -> None:
        """Take lines until the end; Ctrl-C at the prompt does nothing but say how to end."""
        if is_typed := sys.stdin.isatty():
            with suppress(ImportError):  # lines are edited, and earlier ones are at the arrow keys, where it exists
                import readline  # noqa: F401
            self._note(f"{self._name}. {NOTICE} /help lists commands, Ctrl-D ends.")
        while True:
            try:
                line = self._read("> " if is_typed else "").strip()
            except EOFError:
                if is_typed:
                    self._note("")
                return
            except KeyboardInterrupt:
                self._note("\nCtrl-D or /quit ends")
                continue
            if line == "/quit":
                return
            if line:
                self.take(line)

    def _read(self, prompt: str) -> str:
        if not sys.stdout.isatty():  # `input` would write the prompt where answers go
            print(prompt, end="", file=self._notes, flush=True)
            prompt = ""
        return input(prompt)

    def take(self, line: str) -> None:
        """Do what a line says; what is wrong with it is reported, and changes nothing, as does Ctrl-C."""
        command, _, rest = line.partition(" ")
        try:
            if not line.startswith("/"):
                self.answer(line)
            elif command in self._commands:
                self._commands[command](_read_path(rest.strip()))
            else:
                raise PallavaError(f"{command} is not a command; choose {', '.join([*self._commands, '/quit'])}")
        except PallavaError as error:
            self._note(f"error: {error}")
        except KeyboardInterrupt:
            self._note("\ninterrupted; Ctrl-D or /quit ends")

    def answer(self, question: str) -> None:
        """Ask, and write the answer as it comes."""
        pieces: list[str] = []

        def write(text: str) -> None:
            pieces.append(text)
            self._write(text)

        with _stop_at_ctrl_c(lambda: bool(pieces)) as is_stopped:
            reply = self._session.reply(
                question, max_new_tokens=self._max_new_tokens, on_text=write, is_cancelled=is_stopped
            )
        self._write("\n")
        self._note(f"({describe_reply(reply)})")

    def _show(self, path: str) -> None:
        if not path:
            raise PallavaError("/image needs the path of an image")
        self._session.show(path, [path])
        self._note("the next question is about this image, too")

    def _clear(self, rest: str) -> None:
        self._session.clear()
        self._note("a new conversation, without images")

    def _save(self, path: str) -> None:
        if not path:
            raise PallavaError("/save needs a file name, such as /save conversation.md")
        if not self._session.turns:
            raise PallavaError("/save needs a conversation, got no answer yet; ask first")
        if Path(path).exists() and path not in self._saved:
            raise PallavaError(f"'{path}' exists; choose another name")
        try:
            write_text(Path(path), to_markdown(self._name, self._session.turns, self._facts))
        except (OSError, ValueError) as error:  # such as a zero byte in its name
            raise PallavaError(f"cannot write '{path}': {getattr(error, 'strerror', None) or error}") from None
        self._saved.add(path)
        self._note(f"wrote {path}")

    def _write(self, text: str) -> None:
        print(text, end="", file=self._out, flush=True)

    def _note(self, text: str) -> None:
        print(text, file=self._notes, flush=True)


def _read_path(text: str) -> str:
    """Return the path that is typed, in quotes or not."""
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return os.path.expanduser(text[1:-1] if is_quoted else text)  # noqa: PTH111 - no error where a user is unknown


@contextmanager
def _stop_at_ctrl_c(has_begun: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C has been pressed; before the answer, or again, it interrupts."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        if pressed or not has_begun():
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
