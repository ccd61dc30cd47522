"""What is evaluated: images with a class each, or images with captions, from wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.evaluation.encoders.class_sets import ClassSet, known_set, known_sets, set_of_labels
from pallava.io.records import Entry, RecordFile

_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".pgm", ".avif"
}  # fmt: skip
Example = tuple[Path, str, str]
"""An image, its class or caption, and its id."""

_TEXT_KEYS = ("caption", "text", "captions")


@dataclass
class Labelled:
    """Images with a class each.

    Attributes:
        class_set: The classes, in words.
        images: Paths.
        labels: Number of each image's class.
        ids: Of each image: as its public set names it, or its path in the folder of classes.
        left_out: Count of what was left out, for each reason.
    """

    class_set: ClassSet
    images: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass
class Captioned:
    """Images with captions; an image with several comes several times.

    Attributes:
        images: Path of each pair.
        captions: Caption of each pair.
        ids: Of each image: as its public set or its record names it, or its path.
        left_out: Count of what was left out, for each reason.
    """

    images: list[Path] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def read_labelled(
    root: Path, name: str = "", *, class_set: ClassSet | None = None, split: str | None = None
) -> Labelled:
    """Reads a folder of classes (``root/<class>/*.png``), or one of the public sets.

    Args:
        root: The folder.
        name: One of `known_sets`; empty for a folder of classes.
        class_set: Classes in words; default: those of the set, or the names of the folders.
        split: The split to read of a public set that has several.

    Raises:
        PallavaError: There is no such folder or set, it holds no image, or a class is not in the class set.
    """
    if name and name not in known_sets():
        raise PallavaError(f"no data set is called {name!r}; there are {', '.join(known_sets())}")
    if not root.is_dir():
        raise PallavaError(f"no folder at {root}: expected one folder a class in it, or a public data set")
    found = _of_source(root, name, "classes", split) if name and name != "nct-crc-he" else _of_folders(root)
    class_set = class_set or (known_set(name) if name else None)
    pairs, left_out = found
    labels = sorted({label for _, label, _ in pairs})
    if not pairs:
        raise PallavaError(f"{root} holds no image: expected root/<class>/image.png; left out: {left_out or 'nothing'}")
    class_set = class_set or set_of_labels(root.name, labels)
    if unknown := [label for label in labels if label not in class_set.labels]:
        raise PallavaError(
            f"{root} has the classes {', '.join(unknown)}, which {class_set.name} lacks: it has "
            f"{', '.join(class_set.labels)}. Rename the folders, or give names by --class-set."
        )
    number = {label: index for index, label in enumerate(class_set.labels)}
    images, found_labels, ids = map(list, zip(*pairs, strict=True))
    return Labelled(class_set, images, [number[label] for label in found_labels], ids, left_out)


def read_captioned(
    path: Path, name: str = "", *, image_folder: Path | None = None, split: str | None = None
) -> Captioned:
    """Reads pairs: records of an image and its caption, text or list of captions; or one of the public sets.

    Args:
        path: A JSON or JSONL file of records; the root of a public set.
        name: Of the public set; empty for a file.
        image_folder: What the images' paths are relative to; default: the folder of the file.
        split: The split to read of a public set that has several.

    Raises:
        PallavaError: It cannot be read, or holds no pair.
    """
    result = Captioned()
    if name:
        pairs, result.left_out = _of_source(path, name, "captions", split)
    else:
        pairs = list(_of_file(path, image_folder or path.parent, result.left_out))
    if not pairs:
        raise PallavaError(f'{path} holds no pair: expected records such as {{"image": "a.png", "caption": "..."}}')
    result.images, result.captions, result.ids = map(list, zip(*pairs, strict=True))
    return result


def _of_folders(root: Path) -> tuple[list[Example], dict[str, int]]:
    pairs, left_out = [], dict[str, int]()
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                pairs.append((path, folder.name, path.relative_to(root).as_posix()))
            else:
                _count(left_out, "not named like an image")
    return pairs, left_out


def _of_source(root: Path, name: str, kind: str, split: str | None) -> tuple[list[Example], dict[str, int]]:
    from pallava.data.sources import open_source

    source: Any = open_source(name, root, split=split, image_policy="each")
    if source.kind != kind:
        raise PallavaError(f"{name} is a set of {source.kind}, but {kind} are needed here")
    pairs = [
        (source.root / record.image, record.label if kind == "classes" else record.text, record.id) for record in source
    ]
    return pairs, dict(source.tally.dropped)


def _of_file(path: Path, folder: Path, left_out: dict[str, int]) -> Iterator[Example]:
    for record in RecordFile(path):
        image, captions = _pair_of(record)
        if not image or not captions:
            _count(left_out, "no image or no caption")
        for caption in captions if image else ():
            yield folder / image, caption, str(record.value.get("id", image))


def _pair_of(record: Entry) -> tuple[str, list[str]]:
    value = record.value if isinstance(record.value, dict) else {}
    given: Any = next((value[key] for key in _TEXT_KEYS if key in value), [])
    captions = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    image = value.get("image")
    texts = [text.strip() for text in captions if isinstance(text, str) and text.strip()]
    return (image if isinstance(image, str) and "\0" not in image else ""), texts


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1
