"""Training files: captions below a drawn prompt, or questions of several sources merged by weight.

The row of a caption depends on its record, its number and the seed alone, so that any number of workers writes the
same bytes, and memory stays small. Questions are shuffled, and therefore held in memory.
Both are in one file of more than 300 lines, since they share the form of a row, the writer and the summary.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pallava.data.material import Conversation, Records, SourceSpec, open_records, read_source
from pallava.data.sources.base import Question, Record
from pallava.data.sources.files import RowDropped, as_object, tidy
from pallava.data.training_row import check_image, is_file_name
from pallava.errors import PallavaError, cap_message, check_paths
from pallava.io.files import whole_file
from pallava.io.hashing import short_hash
from pallava.io.processes import batches, map_in_order
from pallava.io.records import Entry, RecordFile
from pallava.io.texts import BOM, read_text
from pallava.prompts import CAPTION_PROMPTS, IMAGE_TOKEN, build_choice_question, build_question

MAX_PIXELS = 16_777_216  # default cap for images of captions, as in PA-LLaVA
REASONS = ("missing", "unreadable", "too_large", "empty_caption", "outside_folder", "malformed")  # of captions
_BATCH = 256
_ENCODER = json.JSONEncoder(ensure_ascii=False)  # made once, since json.dumps makes one for each row
_EXAMPLES = 3


class _LeftOut(NamedTuple):
    reason: str
    position: str
    detail: str = ""


@dataclass
class SourceCount:
    """Counts of one source."""

    weight: float = 1.0  # how often each row is taken
    num_records: int = 0  # including those that its reader could not use
    num_questions: int = 0  # that can be trained on
    num_written: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason


@dataclass
class TrainingFileSummary:
    """What became of the records of a training file."""

    image_folder: str  # that image names in the file are relative to
    sources: dict[str, SourceCount] = field(default_factory=dict)  # by name; for captions the stem of their file
    examples: dict[str, list[str]] = field(default_factory=dict)  # the first few records left out, by reason

    @property
    def num_records(self) -> int:
        """Number of records read."""
        return sum(count.num_records for count in self.sources.values())

    @property
    def num_written(self) -> int:
        """Number of rows in the file."""
        return sum(count.num_written for count in self.sources.values())

    @property
    def left_out(self) -> dict[str, int]:
        """Number of records left out, by reason."""
        total: Counter[str] = Counter()
        for count in self.sources.values():
            total.update(count.dropped)
        return dict(total)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and examples as JSON values."""
        totals = {name: getattr(self, name) for name in ("num_records", "num_written", "left_out")}
        return {**totals, **asdict(self)}

    def source(self, name: str) -> SourceCount:
        """Return the counts of a source, which start at zero."""
        return self.sources.setdefault(name, SourceCount())

    def leave_out(self, source: str, record: _LeftOut) -> None:
        """Count a record that is left out."""
        counts, examples = self.source(source).dropped, self.examples.setdefault(record.reason, [])
        counts[record.reason] = counts.get(record.reason, 0) + 1
        if len(examples) < _EXAMPLES:
            examples.append(cap_message(": ".join(filter(None, (record.position, record.detail)))))


_Results = Iterator[tuple[str, bytes | _LeftOut]]  # each with the name of its source


def write_training_file(
    sources: str | Path | Sequence[str | SourceSpec | Records],
    output: str | Path,
    *,
    image_folder: str | Path | None = None,
    seed: int = 0,
    prompts: Sequence[str] = CAPTION_PROMPTS,
    max_pixels: int = MAX_PIXELS,
    id_prefix: str | None = None,
    decode_images: bool = False,
    num_workers: int = 1,
    weights: Mapping[str, float] | None = None,
    left_out: str | Path | None = None,
) -> TrainingFileSummary:
    """Write the training file of domain alignment (captions) or of instruction tuning (questions).

    It appears complete or not at all. Of the images of captions only the headers are read, unless they are decoded;
    those of questions are not opened (`pallava data check` does it).

    Args:
        sources: For captions the path of a JSON list or JSONL of ``{"image", "caption"}``; for questions a list of
            data sets: ``NAME=ROOT`` (its split "train"), the kept.jsonl of cleaning, a `SourceSpec` or open records.
            The second data set of a name is called "NAME-2", as by cleaning.
        output: The JSONL to write; an existing one is replaced at the end.
        image_folder: The folder that image names are relative to; required for captions, and by default the deepest
            folder that holds all roots for questions.
        seed: Random seed of prompts and their order (captions), or of fractions of weights and the order of rows.
        prompts: Wordings of the request for a caption, one of which is drawn for each row.
        max_pixels: The cap on width times height of a caption's image.
        id_prefix: The beginning of captions' ids; the stem of the source's name and a hyphen by default.
        decode_images: Whether to find damage behind the headers of captions' images, at some hundred times the cost.
        num_workers: Number of processes that read captions' images; the output does not depend on it.
        weights: How often to take each row, by name of the source (default: 1). A weight of 1.5 takes every row once
            and half of them, drawn by the seed, a second time.
        left_out: JSONL to write with reason, position and detail of every record that is left out, even if all are.

    Raises:
        PallavaError: A source cannot be read (with the position), an argument is not usable, or no row is left.
    """
    check_paths(sources, output, image_folder, left_out)
    output = Path(output).resolve()
    list_path = None if left_out is None else Path(left_out).resolve()
    if not sources:
        raise PallavaError("sources must be a file of captions or a list of at least one data set, got none")
    _check_outputs(output, list_path, sources)
    if isinstance(sources, str | Path):
        if weights:
            raise PallavaError(f"weights are for a list of data sets, got them for the captions of '{sources}'")
        if image_folder is None or not Path(image_folder).is_dir():
            raise PallavaError(f"the image folder '{image_folder}' is not a folder")
        if not prompts:
            raise PallavaError("prompts must hold at least one prompt to draw from")
        source, root = Path(sources), str(Path(image_folder).resolve()).rstrip(os.sep) + os.sep
        prefix = f"{source.stem}-" if id_prefix is None else id_prefix
        make_rows = _CaptionRows(root, tuple(prompts), seed, max_pixels, prefix, decode_images)
        summary = TrainingFileSummary(root.rstrip(os.sep), examples={reason: [] for reason in REASONS})
        results = _caption_results(source, make_rows, num_workers, summary)
    else:
        given = {"prompts": prompts != CAPTION_PROMPTS, "id_prefix": id_prefix is not None}
        given |= {"max_pixels": max_pixels != MAX_PIXELS, "decode_images": decode_images}
        if names := ", ".join(name for name, is_given in given.items() if is_given):
            raise PallavaError(f"{names} must be left out for a list of data sets; only captions need them")
        records = list(_open_sources(sources, image_folder))
        folder = Path(image_folder or os.path.commonpath([each.folder for each in records])).resolve()
        summary = TrainingFileSummary(str(folder))
        results = _question_results(records, folder, weights or {}, seed, summary)
    _write(results, output, list_path, summary)
    return summary


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Read question wordings, one a line; none may hold an image marker.

    Raises:
        PallavaError: The file cannot be read, has no wording, or a wording with an image marker.
    """
    lines = read_text(path, "the prompts file").split("\n")
    for number, line in enumerate(lines, 1):
        if IMAGE_TOKEN in line:
            raise PallavaError(f"'{path}', line {number}: {IMAGE_TOKEN} is added automatically; leave it out")
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise PallavaError(f"the prompts file '{path}' must hold at least one prompt, each on its line")
    return prompts


def question_text(question: Question) -> str:
    """Return the question without image marker, and with its options if it has some."""
    text = question.question.replace(IMAGE_TOKEN, "")
    return build_choice_question(text, question.options) if question.options else text


def _check_outputs(output: Path, list_path: Path | None, sources: str | Path | Sequence[Any]) -> None:
    for path in filter(None, (output, list_path)):
        if path.is_dir():
            raise PallavaError(f"the output '{path}' is a folder; give the name of a file")
        if isinstance(sources, str | Path) and Path(sources).exists() and path.exists() and path.samefile(sources):
            raise PallavaError(f"input and output are the same file, '{path}'; give the output another name")
    if list_path == output:
        raise PallavaError(f"the list of what is left out would replace '{output}'; give it another name")


def _write(results: _Results, output: Path, list_path: Path | None, summary: TrainingFileSummary) -> None:
    for path in filter(None, (output, list_path)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output, "wb") as file:
        with whole_file(list_path, "wb") if list_path else nullcontext() as left_out:
            for source, result in results:
                if isinstance(result, bytes):
                    summary.source(source).num_written += 1
                    file.write(result)
                else:
                    summary.leave_out(source, result)
                    if left_out is not None:
                        left_out.write(_line(result._asdict()))
        if not summary.num_written:
            counts = ", ".join(f"{count} {reason}" for reason, count in summary.left_out.items() if count)
            first = next((text for texts in summary.examples.values() for text in texts), "none")
            read = f"{summary.num_records} records of {', '.join(summary.sources) or 'no source'}"
            raise PallavaError(f"no row to write from the {read}; left out: {counts or 'none'}; first: {first}")


def _line(row: dict[str, Any]) -> bytes:
    return _ENCODER.encode(row).encode(errors="replace") + b"\n"


def _row(row_id: str, image: str, question: str, answer: str) -> dict[str, Any]:
    conversations = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": row_id, "image": image, "conversations": conversations}


@dataclass(frozen=True)
class _CaptionRows:
    """Makes the rows of pairs of image and caption; is sent to worker processes."""

    root: str  # the image folder without links, with a closing separator
    prompts: tuple[str, ...]
    seed: int
    max_pixels: int
    id_prefix: str
    decode_images: bool

    def __call__(self, batch: list[Entry]) -> list[bytes | _LeftOut]:
        return [self._make_line(record) for record in batch]

    def _make_line(self, record: Entry) -> bytes | _LeftOut:
        try:
            image, caption = _image_and_caption(record.value)
            name = self._name_in_folder(image)
            if not caption:
                raise RowDropped("empty_caption", f"the caption of '{image}' is empty")
            check_image(self.root + name, self.max_pixels, decode=self.decode_images)
        except RowDropped as error:
            return _LeftOut(error.reason, record.position, str(error))
        return _line(_row(f"{self.id_prefix}{record.index:08d}", name, self._question(record.index), caption))

    def _name_in_folder(self, image: str) -> str:
        """Return the image's name relative to the folder, which it must not leave; links in the folder are followed."""
        path = os.path.normpath(os.path.join(self.root, image))  # noqa: PTH118 - a tenth of the time of Path
        if not path.startswith(self.root):
            path = os.path.realpath(path)  # an absolute name may use a link to the folder
        if not path.startswith(self.root):
            raise RowDropped("outside_folder", f"'{image}' leaves the image folder")
        return path.removeprefix(self.root)

    def _question(self, index: int) -> str:
        draw, is_image_first = divmod(int.from_bytes(short_hash(f"{self.seed}:{index}"), "big"), 2)
        prompt = self.prompts[draw % len(self.prompts)]
        return f"{IMAGE_TOKEN}\n{prompt}" if is_image_first else f"{prompt}\n{IMAGE_TOKEN}"


def _image_and_caption(value: Any) -> tuple[str, str]:
    for key in ("image", "caption"):
        if key not in as_object(value):
            raise RowDropped("malformed", f"the record lacks '{key}'; its keys are {sorted(value)[:8]}")
    image, caption = value["image"], "" if value["caption"] is None else value["caption"]
    if not is_file_name(image):
        raise RowDropped("malformed", f"'image' must be the name of a file, got {image!r:.80}")
    if not isinstance(caption, str):
        raise RowDropped("malformed", f"'caption' must be text, got {type(caption).__name__}")
    # Half of a surrogate pair is "?", as in the published file, which the first version of this function wrote.
    caption = caption.encode(errors="replace").decode().replace(BOM, "").strip()
    return image, tidy(caption) and caption


def _caption_results(source: Path, make_rows: _CaptionRows, num_workers: int, summary: TrainingFileSummary) -> _Results:
    records, count = RecordFile(source), summary.source(source.stem)
    count.dropped = dict.fromkeys(REASONS, 0)
    desc = "images" if make_rows.decode_images else "dataformat"
    with tqdm(total=records.num_bytes, unit="B", unit_scale=True, desc=desc, mininterval=1) as bar:
        for results in map_in_order(make_rows, batches(records, _BATCH), num_workers):
            count.num_records += len(results)
            for result in results:
                yield source.stem, result
            bar.set_postfix(rows=count.num_written, refresh=False)
            bar.update(records.num_bytes_read - bar.n)


def _open_sources(sources: Sequence[str | SourceSpec | Records], image_folder: str | Path | None) -> Iterator[Records]:
    """Open the sources, the second data set of a name as "csv-2"; the ids in the file begin with it."""
    roots: dict[str, list[Path]] = {}
    for source in sources:
        if isinstance(source, Records):
            yield source
            continue
        spec = read_source(source, default_split="train") if isinstance(source, str) else source
        root, others = Path(spec.root).resolve(), roots.setdefault(spec.name, [])
        if root in others:
            raise PallavaError(f"the source '{spec.root}' is given twice; a weight of 2 takes its rows twice")
        others.append(root)
        label = f"{spec.name}-{len(others)}" if spec.name and len(others) > 1 else ""
        yield open_records(spec, image_folder=image_folder if spec.columns else None, label=label)


def _question_results(
    sources: Sequence[Records], folder: Path, weights: Mapping[str, float], seed: int, summary: TrainingFileSummary
) -> _Results:
    rows: dict[str, list[dict[str, Any]]] = {}
    for records in sources:
        if twice := summary.sources.keys() & set(records.names):
            raise PallavaError(f"the source '{min(twice)}' is given twice, so that ids would repeat; give it once")
        for record, path in tqdm(records, desc=", ".join(records.names), unit=" records", disable=None):
            count = summary.source(record.source)
            count.num_records += 1
            try:
                row = _question_row(record, path, folder)
            except RowDropped as error:
                yield record.source, _LeftOut(error.reason, f"{record.source}:{record.id}")
            else:
                count.num_questions += 1
                rows.setdefault(record.source, []).append(row)
        count = summary.source(records.names[0])
        for reason, number in records.tally.dropped.items():  # by the reader itself
            count.num_records += number
            count.dropped[reason] = count.dropped.get(reason, 0) + number
            summary.examples.setdefault(reason, records.tally.examples.get(reason, []))
    _set_weights(summary, weights)
    chosen = [(name, row) for name in rows for row in _choose(rows[name], name, summary.source(name).weight, seed)]
    random.Random(f"{seed}:order").shuffle(chosen)
    for name, row in chosen:
        yield name, _line(row)


def _question_row(question: Record | Conversation, path: Path, folder: Path) -> dict[str, Any]:
    if not isinstance(question, Question):
        raise RowDropped("not_a_question", "")
    for name in ("question", "answer"):
        if not getattr(question, name).strip():
            raise RowDropped(f"empty_{name}", "")
    if not path.is_relative_to(folder):
        raise PallavaError(f"'{path}' is outside the image folder '{folder}'; give a folder that holds it")
    text = build_question(question_text(question))
    return _row(f"{question.source}-{question.id}", path.relative_to(folder).as_posix(), text, question.answer.strip())


def _set_weights(summary: TrainingFileSummary, weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if name not in summary.sources:
            raise PallavaError(f"a weight is given for '{name}'; the sources are {', '.join(summary.sources)}")
        if not 0 < weight < float("inf"):
            raise PallavaError(f"the weight of '{name}' must be a number above 0, got {weight:g}")
        summary.sources[name].weight = weight


def _choose(rows: list[dict[str, Any]], name: str, weight: float, seed: int) -> Iterator[dict[str, Any]]:
    """Yield each row as often as the weight says; ids stay unique."""
    num_rounds = int(weight)
    num_more = round((weight - num_rounds) * len(rows))
    more = sorted(random.Random(f"{seed}:{name}").sample(range(len(rows)), num_more))
    for repeat, indices in enumerate([range(len(rows))] * num_rounds + [more]):
        for index in indices:
            yield {**rows[index], "id": rows[index]["id"] + (f"-again{repeat}" if repeat else "")}
