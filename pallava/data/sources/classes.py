"""Sets of pictures with a class each: BACH, OSCC and ColonPath; folders, names or lists carry the label."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pallava.data.sources.base import Labelled, Record, Source, SourceFile, register_source
from pallava.data.sources.files import RowDropped, tidy
from pallava.errors import PallavaError
from pallava.io.files import walk_files
from pallava.io.records import Entry
from pallava.io.texts import read_text

_BACH_TABLE = "microscopy_ground_truth.csv"
_BACH_NAME = re.compile(r"(n|b|is|iv)\d{3}\.tif")
_OSCC_NAME = re.compile(r"(Normal|OSCC)_(100|400)x_\d+\.jpe?g", re.IGNORECASE)
_OSCC_FOLDER = re.compile(r"(?:100|400)x (Normal|OSCC)\b.*", re.IGNORECASE)
_COLON_FOLDERS = ("colon/images", "colon/image", "images", "image", "colon", "")


@register_source
class BACH(Source):
    """400 pictures of breast tissue: their folder is the label, and the table must not contradict it.

    https://zenodo.org/records/3632035 (arXiv:1808.04277)
    """

    name = "bach"
    kind = "classes"
    classes = ("Normal", "Benign", "InSitu", "Invasive")
    layout = f"Photos/ with the folders {', '.join(classes)}"

    def find_files(self) -> list[SourceFile]:
        for photos in (self.root / "Photos", self.root):
            if files := [SourceFile(photos / name) for name in self.classes if (photos / name).is_dir()]:
                table = photos / _BACH_TABLE
                text = read_text(table) if table.is_file() else ""
                rows = [line.split(",") for line in text.splitlines()]
                self._labels = {tidy(row[0]): tidy(row[1]) for row in rows if len(row) >= 2}
                return files
        return []

    def read_rows(self, file: SourceFile) -> Iterator[Entry | RowDropped]:
        for index, path in enumerate(sorted(file.path.iterdir())):
            yield Entry(index, path.name, path)

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        path: Path = row.value
        if not _BACH_NAME.fullmatch(path.name):
            raise RowDropped("unexpected_name", f"expected a name like n001.tif or is001.tif, got {path.name!r}")
        label = file.path.name
        stated = self._labels.get(path.name, label)
        if stated != label:
            raise RowDropped("label_conflict", f"{path.name!r} is in {label}, but is {stated} in {_BACH_TABLE}")
        image = path.relative_to(self.root).as_posix()
        return [Labelled(self.name, path.stem, image, label, {"index": self.classes.index(label)})]


@register_source
class OSCC(Source):
    """Mouth tissue: a picture's name begins with its label, and its folder must not contradict it.

    https://data.mendeley.com/datasets/ftmp4cvtmb (doi:10.1016/j.dib.2020.105114)
    """

    name = "oscc"
    kind = "classes"
    classes = ("normal oral epithelium", "oral squamous cell carcinoma")
    layout = "First Set/100x Normal Oral Cavity Histopathological Images/Normal_100x_1.jpg and the like"

    def find_files(self) -> list[SourceFile]:
        pictures = (path for path in self._paths() if _OSCC_NAME.fullmatch(path.name))
        return [SourceFile(self.root)] if any(_OSCC_FOLDER.fullmatch(path.parent.name) for path in pictures) else []

    def _paths(self) -> Iterator[Path]:
        for path in walk_files(self.root):
            if "__MACOSX" not in path.relative_to(self.root).parts:
                yield path

    def read_rows(self, file: SourceFile) -> Iterator[Entry | RowDropped]:
        for index, path in enumerate(self._paths()):
            yield Entry(index, path.relative_to(self.root).as_posix(), path)

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        path: Path = row.value
        match = _OSCC_NAME.fullmatch(path.name)
        if path.suffix.casefold() == ".zip":
            raise RowDropped("packed", f"an archive; if its folder is missing: `pallava data unpack '{path}' FOLDER`")
        if match is None:
            raise RowDropped("unexpected_name", f"expected a name like Normal_100x_1.jpg, got {path.name!r}")
        folder = _OSCC_FOLDER.fullmatch(path.parent.name)
        if folder and folder[1].casefold() != match[1].casefold():
            raise RowDropped("label_conflict", f"{path.name!r} is in {path.parent.name!r}")
        index = int(match[1].casefold() == "oscc")
        metadata = {"index": index, "magnification": int(match[2])}
        return [Labelled(self.name, row.position, row.position, self.classes[index], metadata)]


@register_source
class ColonPath(Source):
    """Patches of colon slides with or without tumour, a part of MedFMC: CSV files, else lists.

    Files without labels, such as the challenge's test_WithoutLabel.txt, give dropped rows alone.
    https://github.com/openmedlab/MedFM (arXiv:2306.09579)
    """

    name = "colonpath"
    kind = "classes"
    classes = ("normal", "tumor")
    needs = ("img_id",)
    layout = "colon_train.csv or lists like train.txt, in it or in colon/"

    def find_files(self) -> list[SourceFile]:
        for pattern in ("colon_*.csv", "*.txt"):
            paths = sorted(path for folder in ("", "colon") for path in (self.root / folder).glob(pattern))
            files = [SourceFile(path, path.stem.removeprefix("colon_"), _COLON_FOLDERS) for path in paths]
            if len(files) > 1 and self.split is None:
                splits = ", ".join(file.split for file in files)
                raise PallavaError(f"'{self.root}' has several lists, which may overlap; name a split: {splits}")
            if files:
                return files
        return []

    def read_rows(self, file: SourceFile) -> Iterator[Entry | RowDropped]:
        if file.path.suffix == ".csv":
            yield from super().read_rows(file)
            return
        for index, line in enumerate(read_text(file.path).splitlines()):
            if line.strip():
                name, _, label = line.strip().rpartition(" ")  # a name holds a space, a label none
                yield Entry(index, f"line {index + 1}", {"img_id": name, "tumor": label})

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        image, label = tidy(row.value["img_id"]), tidy(row.value.get("tumor", ""))
        if not image:
            raise RowDropped("empty_name", "the row has no img_id")
        if label not in ("0", "1", "0.0", "1.0"):
            raise RowDropped("bad_label", f"the label of {image!r} must be 0 or 1, got {label!r}")
        name = image if PurePosixPath(image).suffix.casefold() in (".png", ".jpg", ".jpeg", ".tif") else f"{image}.png"
        index, row_id = int(float(label)), f"{file.split}-{row.index:05d}"
        return [Labelled(self.name, row_id, name, self.classes[index], {"index": index, "split": file.split})]
