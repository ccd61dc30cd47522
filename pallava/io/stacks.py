"""Versions of transformers that the project is tested with, found without importing it."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pallava.errors import PallavaError


@dataclass(frozen=True)
class Stack:
    """A transformers that the project is tested with."""

    name: str
    version: tuple[int, ...]  # how it begins
    trains: bool  # or answers alone

    @property
    def versions(self) -> str:
        """Return the versions as text, such as ``4.48``."""
        return ".".join(map(str, self.version))


STACKS = (Stack("default", (4, 48), True), Stack("newer", (4, 57), True), Stack("newest", (5,), False))
"""What is tested: the reference that xtuner pins, one for newer language models, and one that only answers."""

INSTALL_NEWER = "pip install --no-deps transformers==4.57.6 tokenizers==0.22.2"
"""The command for the newer stack; ``constraints/newer.txt`` has the same versions."""
INSTALL = f"`pip install transformers==4.48.0`, or for newer language models `{INSTALL_NEWER}`"


def check_version(version: tuple[int, ...], *, trains: bool = False) -> Stack:
    """Return the tested stack of a version of transformers.

    Raises:
        PallavaError: It is not tested, and so might answer differently without a word, or it cannot train.
    """
    known = [stack for stack in STACKS if stack.trains or not trains]
    for stack in known:
        if version[: len(stack.version)] == stack.version:
            return stack
    *names, last = (stack.versions for stack in known)
    raise PallavaError(
        f"transformers must be {', '.join(names)} or {last}{' to train' if trains else ''}, got "
        f"{'.'.join(map(str, version))}; run {INSTALL}"
    )


def installed_stack(*, trains: bool = False) -> Stack:
    """Return the tested stack that is installed.

    Raises:
        PallavaError: transformers is not installed, or as `check_version`.
    """
    try:
        found = version("transformers")
    except PackageNotFoundError:
        raise PallavaError(f"transformers must be installed, got none; run {INSTALL}") from None
    return check_version(tuple(int(part) for part in found.split(".")[:2]), trains=trains)
