"""Data sets of the user's own: pairs in JSON or JSONL, and tables with any columns; no class is needed for them."""

from collections.abc import Iterator, Sequence

from pallava.data.sources.base import Pair, Question, Record, Source, SourceFile, register_source
from pallava.data.sources.files import (
    RowDropped,
    answer_type,
    as_object,
    column_name,
    csv_rows,
    image_and_caption,
    question_and_answer,
    tidy,
)
from pallava.errors import PallavaError
from pallava.io.records import Entry

_COLUMNS = {"captions": {"image", "caption"}, "questions": {"image", "question", "answer"}}  # by the kind of the table
_EXPECTED = "--columns image=NAME,caption=NAME or image=NAME,question=NAME,answer=NAME"


class _OwnSource(Source):
    """A file, or a folder with one; of several files the split is the name of one without its ending."""

    endings: tuple[str, ...]

    def find_files(self) -> list[SourceFile]:
        paths = [self.root] if self.root.is_file() else sorted(self.root.glob("*"))
        paths = [path for path in paths if path.suffix.lower() in self.endings or path == self.root]
        if len(paths) > 1 and self.split is None:
            names = ", ".join(path.name for path in paths)
            raise PallavaError(f"'{self.root}' holds several files ({names}); give the path of one")
        folders = ["", "images"]
        if paths:
            beside = paths[0].parent.resolve()
            self.root = self.image_folder or paths[0].parent
            root = self.root.resolve()
            if beside != root and beside.is_relative_to(root):
                inside = beside.relative_to(root)  # the folder may hold several sets: their own folders come first
                folders = [inside.as_posix(), (inside / "images").as_posix(), *folders]
        return [SourceFile(path, path.stem, tuple(folders)) for path in paths]


@register_source
class Pairs(_OwnSource):
    """Pairs of any origin: a JSON list or JSONL of ``{"image", "caption"}``."""

    name = "pairs"
    kind = "captions"
    layout = 'a .json or .jsonl file of {"image", "caption"}'
    endings = (".json", ".jsonl")

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        image, caption = image_and_caption(as_object(row.value))
        return [Pair(self.name, f"{row.index:07d}", image, caption)]


@register_source
class Table(_OwnSource):
    """A CSV or TSV with a header; `columns` names the columns of image and caption, or image, question and answer."""

    name = "csv"
    kind = "captions"
    layout = "a .csv or .tsv file"
    endings = (".csv", ".tsv")
    takes_columns = True

    def find_files(self) -> list[SourceFile]:
        files = super().find_files()
        if files:
            kinds = [kind for kind, columns in _COLUMNS.items() if columns == self.columns.keys()]
            if not kinds:
                found = ",".join(f"{key}={name}" for key, name in self.columns.items()) or "none"
                raise PallavaError(f"'{self.root}' needs {_EXPECTED}, got {found}")
            self.kind = kinds[0]
            self._names = {key: column_name(name) for key, name in self.columns.items()}
            self.needs = self._names.values()
            for file in files:
                next(self.read_rows(file), None)
        return files

    def read_rows(self, file: SourceFile) -> Iterator[Entry | RowDropped]:
        if file.path.suffix.lower() not in (*self.endings, ".txt"):
            raise PallavaError(f"'{file.path}' must be a table that ends in .csv or .tsv")
        return csv_rows(file.path, self.report_progress, columns=self.needs)

    def convert(self, row: Entry, file: SourceFile) -> Sequence[Record]:
        value = {key: tidy(row.value[name]) for key, name in self._names.items()}
        image, row_id = value["image"], f"{row.index:07d}"
        if not image:
            raise RowDropped("empty_name", "the row names no image")
        if self.kind == "captions":
            return [Pair(self.name, row_id, *image_and_caption(value))]
        question, answer = question_and_answer(value["question"], value["answer"])
        return [Question(self.name, row_id, image, question, answer, answer_type=answer_type(answer))]
