"""Answers on the disk while they come in, so that a stopped evaluation goes on where it stopped.

Each process appends to a file of its own, a batch at a time; a line cut short by a kill is passed over and its question
asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.evaluation.answers.processes import Processes
from pallava.io.hashing import hash_file
from pallava.io.locks import hold_lock

_FOLDER, _SETTINGS = "answers", "settings.json"
_DECIDING = (
    "*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.index.json", "*config.json",
    "*token*.json", "vocab.*", "merges.txt", "chat_template.*", "*.model", "*.tiktoken", "*.jinja", "*.py",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Said:
    """One answer.

    Attributes:
        asked: What `ask_key` gives for the question.
        answer: What the model said; empty if it could not be asked.
        problem: Why it could not be asked, if so.
    """

    asked: str
    answer: str
    problem: str = ""


def ask_key(*parts: str) -> str:
    """A number for what is asked, by which an answer is found again: 32 hexadecimal digits."""
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def folder_hash(folder: str | Path) -> str:
    """One number for what decides the answers of a model folder, whatever it is called; of what is none, its name.

    Weights, configurations and tokenizer decide; a card does not, nor do results that lie in the folder.
    """
    root = Path(folder)
    if not root.is_dir():
        return str(folder)
    paths = sorted({path for pattern in _DECIDING for path in root.rglob(pattern) if path.is_file()})
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(hash_file, paths))
    names = [path.relative_to(root).as_posix() for path in paths]
    return ask_key(*names, *hashes)


class AnswerStore:
    """The answers of a run, kept in a folder of its own below the results.

    Args:
        out: Folder of the results.
        settings: What the answers depend on, beside the questions; other settings do not mix.
        rank: Number of this process.

    Raises:
        PallavaError: The folder has answers of other settings, cannot be written, or another run writes to it now.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self._folder, self._rank = out / _FOLDER, rank
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._check(settings, rank)
            self._file = (self._folder / f"process_{rank}.jsonl").open("ab+", buffering=0)
            self._take()
        except OSError as error:
            raise PallavaError(f"cannot write answers to '{self._folder}': {error.strerror}") from None

    @classmethod
    def open(cls, out: Path, settings: Mapping[str, Any], processes: Processes) -> AnswerStore:
        """Opens the store in every process, the first of them first, since it writes the settings.

        Raises:
            PallavaError: As the class does, in all processes if in one.
        """
        store, failures = None, [""]
        for is_due in (processes.rank == 0, processes.rank > 0):
            failure = ""
            try:
                store = cls(out, settings, processes.rank) if is_due and not any(failures) else store
            except PallavaError as error:
                failure = str(error)
            failures += processes.gather(failure)
        if any(failures):
            raise PallavaError(next(filter(None, failures)))
        assert store is not None
        return store

    def read(self) -> dict[str, Said]:
        """All answers of all processes, by what was asked; one goes before a problem, wherever it stands."""
        found: dict[str, Said] = {}
        for path in sorted(self._folder.glob("process_*.jsonl")):
            for said in _lines(path):
                if not said.problem or found.get(said.asked, said).problem:
                    found[said.asked] = said
        return found

    def append(self, answers: Sequence[Said]) -> None:
        """Writes answers in one piece.

        Raises:
            PallavaError: The disk does not take them.
        """
        text = "".join(json.dumps(asdict(said), ensure_ascii=False) + "\n" for said in answers)
        try:
            self._file.write(text.encode(errors="replace"))
        except OSError as error:
            raise PallavaError(f"cannot write answers to '{self._folder}': {error.strerror}") from None

    def close(self) -> None:
        """Lets another run have the file."""
        self._file.close()
        self._lock.__exit__(None, None, None)

    def _take(self) -> None:
        """Keeps others off the file, and cuts off a line that a kill has left unfinished."""
        refusal = f"another evaluation is writing to '{self._folder}': wait for its end, or give another --out"
        self._lock = hold_lock(self._folder / f"process_{self._rank}.lock", refusal)
        self._lock.__enter__()
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def _check(self, settings: Mapping[str, Any], rank: int) -> None:
        path, wanted = self._folder / _SETTINGS, json.loads(json.dumps(settings))
        has_answers = any(each.stat().st_size for each in self._folder.glob("process_*.jsonl"))
        if rank == 0 and not has_answers:
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
            unfinished.replace(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, FileNotFoundError):
            raise PallavaError(
                f"'{self._folder}' holds answers, but {_SETTINGS}, which says of what model, is missing or broken: "
                "give another --out, or remove the folder"
            ) from None
        names = sorted({*found, *wanted})
        if other := [name for name in names if found.get(name) != wanted.get(name)]:
            named = ", ".join(f"{name} ({found.get(name)} there, {wanted.get(name)} now)" for name in other)
            raise PallavaError(
                f"'{self._folder.parent}' holds answers of another evaluation, which differs in {named}: give another "
                f"--out, or remove '{self._folder}'"
            )


def _lines(path: Path) -> Iterator[Said]:
    """Whole lines; what a kill or a full disk has left in between is passed over."""
    with path.open("rb") as file:
        for line in file:
            try:
                yield Said(**json.loads(line)) if line.endswith(b"\n") else Said("", "")
            except (ValueError, TypeError):
                continue
