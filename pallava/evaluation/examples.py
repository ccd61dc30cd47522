"""Data of encoders and of zero-shot questions: images with classes, these in words, and images with captions."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.io.records import RecordFile

_SET_FORM = (
    '{"classes": [{"label": "TUM", "names": ["adenocarcinoma", ...]}, ...], "templates": ["an H&E image of {}.", ...]}'
)
_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".pgm", ".avif"
}  # fmt: skip
_TEXT_KEYS = ("caption", "text", "captions")
_Row = tuple[Path, str, str]  # image, its class or caption, its id


@dataclass(frozen=True)
class ClassSet:
    """The classes of a data set in words, with their source.

    Each class has its label in the data, and one or several names that a pathologist has for it; templates are
    sentences with ``{}`` for the name.
    """

    name: str
    classes: tuple[tuple[str, tuple[str, ...]], ...]
    templates: tuple[str, ...]
    source: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels."""
        return tuple(label for label, _ in self.classes)

    def prompts(self) -> list[list[str]]:
        """Return, for each class, every name in every sentence."""
        return [[t.replace("{}", name) for name in names for t in self.templates] for _, names in self.classes]

    def with_templates(self, templates: Sequence[str]) -> ClassSet:
        """Return the same classes in other sentences.

        Raises:
            PallavaError: A template has no ``{}``, or the list is empty.
        """
        if not templates:
            raise PallavaError("at least one template is needed, such as 'an H&E image of {}.'")
        if wrong := [template for template in templates if "{}" not in template]:
            raise PallavaError(f"a template must have {{}} for the name of the class, got {wrong[0]!r}")
        return replace(self, templates=tuple(templates))


@dataclass
class LabelledImages:
    """Images with the number of their class and an id, and the number of files left out, for each reason.

    The id is the image's name in a public set, or its path in the folder of classes.
    """

    class_set: ClassSet
    images: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass
class CaptionedImages:
    """Pairs of an image and a caption; an image with several captions has several pairs.

    The id is the image's name in a public set or a record, or its path; `left_out` counts records for each reason.
    """

    images: list[Path] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def known_sets() -> tuple[str, ...]:
    """Return the names of the class sets in the package."""
    return tuple(_package_data()["sets"])


def known_set(name: str) -> ClassSet:
    """Return a class set of the package.

    Raises:
        PallavaError: The package has no set of that name.
    """
    sets = _package_data()["sets"]
    if name not in sets:
        raise PallavaError(f"{name!r} is not a class set; choose {', '.join(sets)}, or give a folder of classes")
    return _class_set(name, sets[name])


def read_class_set(path: Path) -> ClassSet:
    """Read a class set of the user's own; without templates it has the package's.

    Raises:
        PallavaError: The file cannot be read or has another form.
    """
    try:
        return _class_set(path.stem, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise PallavaError(f"cannot read the class set '{path}': {error.strerror}") from None
    except PallavaError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise PallavaError(f"'{path}' is not a class set ({error}); expected {_SET_FORM}") from None


def set_of_labels(name: str, labels: Sequence[str]) -> ClassSet:
    """Return a class set whose labels, such as names of folders, are the names."""
    classes = [{"label": label, "names": [label.replace("_", " ")]} for label in labels]
    return _class_set(name, {"classes": classes})


def read_labelled(
    root: Path,
    name: str = "",
    *,
    class_set: ClassSet | None = None,
    templates: Sequence[str] = (),
    split: str | None = None,
) -> LabelledImages:
    """Read a folder of classes (``root/<class>/*.png``) or, by its name, one of `known_sets`.

    Without a class set, the words are those of the public set, or the names of the folders; templates take the place
    of those of the class set.

    Raises:
        PallavaError: The folder or set does not exist or holds no image, or a class is not in the class set.
    """
    if name and name not in known_sets():
        raise PallavaError(f"{name!r} is not a data set with classes; choose {', '.join(known_sets())}")
    if not root.is_dir():
        raise PallavaError(f"'{root}' is not a folder; expected one with a folder for each class, or a public data set")
    is_source = name and name != "nct-crc-he"
    rows, left_out = _read_source(root, name, "classes", split) if is_source else _read_folders(root)
    if not rows:
        expected = f"{root.name}/<class>/image.png"
        raise PallavaError(f"'{root}' must have images {expected}; left out: {left_out or 'nothing'}")
    images, given, ids = map(list, zip(*rows, strict=True))
    found = sorted(set(given))
    class_set = class_set or (known_set(name) if name else set_of_labels(root.name, found))
    if unknown := [label for label in found if label not in class_set.labels]:
        raise PallavaError(
            f"the classes {', '.join(unknown)} of '{root}' are not in the class set {class_set.name}, which has "
            f"{', '.join(class_set.labels)}; rename the folders, or name the classes by --class-set"
        )
    known = class_set.labels
    labels = [known.index(label) for label in given]
    return LabelledImages(
        class_set.with_templates(templates) if templates else class_set, images, labels, ids, left_out
    )


def read_captioned(
    path: Path,
    name: str = "",
    *,
    image_folder: Path | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> CaptionedImages:
    """Read a JSON or JSONL file of records of an image and its caption or captions, or, by its name, a public set.

    The images of a file are in `image_folder`, by default its own folder; only a table ("csv") has columns.

    Raises:
        PallavaError: It cannot be read, or holds no pair.
    """
    if name:
        rows, left_out = _read_source(path, name, "captions", split, columns=columns, image_folder=image_folder)
    else:
        rows, left_out = _read_pairs(path, image_folder or path.parent)
    if not rows:
        expected = '{"image": "a.png", "caption": "..."}'
        raise PallavaError(f"'{path}' does not have any pair; expected records such as {expected}")
    images, captions, ids = map(list, zip(*rows, strict=True))
    return CaptionedImages(images, captions, ids, left_out)


def _read_folders(root: Path) -> tuple[list[_Row], dict[str, int]]:
    rows, num_others = [], 0
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                rows.append((path, folder.name, path.relative_to(root).as_posix()))
            else:
                num_others += 1
    return rows, {"not named like an image": num_others} if num_others else {}


def _read_source(
    root: Path, name: str, kind: str, split: str | None, **table: Any
) -> tuple[list[_Row], dict[str, int]]:
    from pallava.data.sources import open_source

    source: Any = open_source(name, root, split=split, image_policy="each", **table)
    if source.kind != kind:
        raise PallavaError(f"{name} is a set of {source.kind}, but {kind} are needed here")
    value = operator.attrgetter("label" if kind == "classes" else "text")
    return [(source.root / each.image, value(each), each.id) for each in source], dict(source.tally.dropped)


def _read_pairs(path: Path, folder: Path) -> tuple[list[_Row], dict[str, int]]:
    """Read records of an image and a caption, or a list of them."""
    rows: list[_Row] = []
    num_others = 0
    for record in RecordFile(path):
        value = record.value if isinstance(record.value, dict) else {}
        image = value.get("image")
        given: Any = next((value[key] for key in _TEXT_KEYS if key in value), [])
        captions = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        texts = [text.strip() for text in captions if isinstance(text, str) and text.strip()]
        if texts and isinstance(image, str) and image and "\0" not in image:
            rows += [(folder / image, text, str(value.get("id", image))) for text in texts]
        else:
            num_others += 1
    return rows, {"no image or no caption": num_others} if num_others else {}


def _class_set(name: str, values: Mapping[str, Any]) -> ClassSet:
    classes = tuple((str(row["label"]), tuple(map(str, row["names"]))) for row in values["classes"])
    labels = [label for label, _ in classes]
    if len(set(labels)) < max(2, len(labels)) or not all(names for _, names in classes):
        raise PallavaError(f"class set {name!r} must have at least two classes, each once and with a name")
    templates = values.get("templates") or _package_data()["templates"]["texts"]
    return ClassSet(name, classes, (), values.get("source", "")).with_templates(templates)


@cache
def _package_data() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("class_sets.json").read_text(encoding="utf-8"))
