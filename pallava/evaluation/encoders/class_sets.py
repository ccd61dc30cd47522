"""Names of classes and the sentences they are put into; those of the public sets come with the package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError

_SHAPE = (
    '{"classes": [{"label": "TUM", "names": ["adenocarcinoma", ...]}, ...], "templates": ["an H&E image of {}.", ...]}'
)


@dataclass(frozen=True)
class ClassSet:
    """Classes of a data set, in words.

    Attributes:
        name: Of the set.
        classes: Label in the data, and what a pathologist calls it: one name or several.
        templates: Sentences with ``{}`` for the name.
        source: Where the classes come from.
    """

    name: str
    classes: tuple[tuple[str, tuple[str, ...]], ...]
    templates: tuple[str, ...]
    source: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the data."""
        return tuple(label for label, _ in self.classes)

    def prompts(self) -> list[list[str]]:
        """Of each class, every name in every sentence."""
        return [[t.replace("{}", name) for name in names for t in self.templates] for _, names in self.classes]

    def with_templates(self, templates: Sequence[str]) -> ClassSet:
        """The same classes in other sentences.

        Raises:
            PallavaError: A template has no ``{}``, or there is none.
        """
        if not templates:
            raise PallavaError("no template is given; one is a sentence with {} for the class's name")
        if wrong := [template for template in templates if "{}" not in template]:
            raise PallavaError(f"the template {wrong[0]!r} has no {{}} for the class's name")
        return dataclasses.replace(self, templates=tuple(templates))


def known_sets() -> tuple[str, ...]:
    """Names of the sets that come with the package."""
    return tuple(_package_data()["sets"])


def known_set(name: str) -> ClassSet:
    """A set that comes with the package.

    Raises:
        PallavaError: There is none of that name.
    """
    sets = _package_data()["sets"]
    if name not in sets:
        raise PallavaError(f"no class set is called {name!r}; there are {', '.join(sets)}, or give a folder of classes")
    return _class_set(name, sets[name])


def read_class_set(path: Path) -> ClassSet:
    """A set of the user's own; without templates it takes the package's.

    Raises:
        PallavaError: The file cannot be read, or is no such set.
    """
    try:
        return _class_set(path.stem, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise PallavaError(f"cannot read the class set {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, PallavaError):
            raise
        raise PallavaError(f"{path} is no class set ({error}); expected {_SHAPE}") from None


def set_of_labels(name: str, labels: Sequence[str]) -> ClassSet:
    """A set whose labels, such as names of folders, are the names."""
    classes = [{"label": label, "names": [label.replace("_", " ")]} for label in labels]
    return _class_set(name, {"classes": classes})


def _class_set(name: str, values: dict[str, Any]) -> ClassSet:
    classes = tuple((str(row["label"]), tuple(map(str, row["names"]))) for row in values["classes"])
    labels = [label for label, _ in classes]
    if len(set(labels)) < max(2, len(labels)) or not all(names for _, names in classes):
        raise PallavaError(f"class set {name!r}: at least two classes are needed, each once and with a name")
    templates = values.get("templates") or _package_data()["templates"]["texts"]
    return ClassSet(name, classes, (), values.get("source", "")).with_templates(templates)


@cache
def _package_data() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
