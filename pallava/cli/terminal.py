"""A conversation in the terminal: commands, answers that come word by word and can be stopped."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from pallava.errors import PallavaError
from pallava.io.files import write_text
from pallava.serving.record import NOTICE, describe_probability, to_markdown
from pallava.serving.session import Session

HELP = """/image PATH    show an image with the next question
/clear         begin a new conversation, without images
/save FILE.md  write the conversation, with the model and its settings
/help          this list
/quit          end; so does Ctrl-D
Ctrl-C stops an answer. Everything else is a question."""


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
                line = input("> " if is_typed else "").strip()
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

    def take(self, line: str) -> None:
        """Do what a line says; what is wrong with it is reported, and changes nothing."""
        command, _, rest = line.partition(" ")
        try:
            if not line.startswith("/"):
                self.answer(line)
            elif command in self._commands:
                self._commands[command](rest.strip())
            else:
                raise PallavaError(f"{command} is not a command; choose {', '.join([*self._commands, '/quit'])}")
        except PallavaError as error:
            self._note(f"error: {error}")

    def answer(self, question: str) -> None:
        """Ask, and write the answer as it comes."""
        with _stop_at_ctrl_c() as is_stopped:
            reply = self._session.reply(
                question, max_new_tokens=self._max_new_tokens, on_text=self._write, is_cancelled=is_stopped
            )
        self._write("\n")
        cut = {"length": "cut at its largest length; ", "cancelled": "stopped; "}.get(reply.finish_reason, "")
        self._note(f"({cut}{describe_probability(reply)})")

    def _show(self, path: str) -> None:
        if not path:
            raise PallavaError("/image needs the path of an image")
        self._session.show(path.strip("'\""))
        self._note("the next question is about this image, too")

    def _clear(self, rest: str) -> None:
        self._session.clear()
        self._note("a new conversation, without images")

    def _save(self, path: str) -> None:
        if not path:
            raise PallavaError("/save needs a file name, such as /save conversation.md")
        try:
            write_text(Path(path), to_markdown(self._name, self._session.turns, self._facts))
        except OSError as error:
            raise PallavaError(f"cannot write '{path}': {error.strerror}") from None
        self._note(f"wrote {path}")

    def _write(self, text: str) -> None:
        print(text, end="", file=self._out, flush=True)

    def _note(self, text: str) -> None:
        print(text, file=self._notes, flush=True)


@contextmanager
def _stop_at_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C has been pressed; a second one interrupts at once."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
