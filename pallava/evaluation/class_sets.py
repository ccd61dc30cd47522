"""Classes of images in words: those of the public sets, and those of the user's own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pallava.data.sources.files import RowDropped, as_sound_object
from pallava.errors import PallavaError
from pallava.io.texts import read_text

_SET_FORM = (
    '{"classes": [{"label": "TUM", "names": ["adenocarcinoma", ...]}, ...], "templates": ["an H&E image of {}.", ...]}'
)
_DATA: dict[str, Any] = json.loads(Path(__file__).with_name("class_sets.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ClassSet:
    """The classes of a data set in words, with their source."""

    name: str
    classes: tuple[tuple[str, tuple[str, ...]], ...]  # label in the data, and names that a pathologist has for it
    templates: tuple[str, ...]  # sentences with {} for the name
    source: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels."""
        return tuple(label for label, _ in self.classes)

    def prompts(self) -> list[list[str]]:
        """Return, for each class, every name in every sentence."""
        return [[t.replace("{}", name) for name in names for t in self.templates] for _, names in self.classes]

    def with_templates(self, templates: Sequence[str]) -> "ClassSet":
        """Return the same classes in other sentences.

        Raises:
            PallavaError: A template has no ``{}``, or the list is empty.
        """
        if not templates:
            raise PallavaError("at least one template is needed, such as 'an H&E image of {}.'")
        if wrong := [template for template in templates if "{}" not in template]:
            raise PallavaError(f"a template must have {{}} for the name of the class, got {wrong[0]!r}")
        return replace(self, templates=tuple(templates))


@cache
def known_sets() -> Mapping[str, ClassSet]:
    """Return the class sets of the package by name."""
    return {name: _class_set(name, values) for name, values in _DATA["sets"].items()}


def read_class_set(path: Path) -> ClassSet:
    """Read a class set of the user's own; without templates it has the package's.

    Raises:
        PallavaError: The file cannot be read or has another form.
    """
    try:
        return _class_set(path.stem, as_sound_object(json.loads(read_text(path, "the class set"))))
    except PallavaError:
        raise
    except (RowDropped, ValueError, RecursionError, KeyError, TypeError) as error:
        raise PallavaError(f"'{path}' is not a class set ({error}); expected {_SET_FORM}") from None


def set_of_labels(name: str, labels: Sequence[str]) -> ClassSet:
    """Return a class set whose labels, such as names of folders, are the names."""
    classes = [{"label": label, "names": [label.replace("_", " ")]} for label in labels]
    return _class_set(name, {"classes": classes})


def _class_set(name: str, values: Mapping[str, Any]) -> ClassSet:
    if not all(isinstance(text, str | int) for row in values["classes"] for text in [row["label"], *row["names"]]):
        raise TypeError("labels and names must be texts")
    classes = tuple((str(row["label"]), tuple(map(str, row["names"]))) for row in values["classes"])
    labels = [label for label, _ in classes]
    if len(set(labels)) < max(2, len(labels)) or not all(names for _, names in classes):
        raise PallavaError(f"class set {name!r} must have at least two classes, each once and with a name")
    templates = values.get("templates") or _DATA["templates"]["texts"]
    return ClassSet(name, classes, (), values.get("source", "")).with_templates(templates)
