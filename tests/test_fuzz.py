"""Whatever rows, files and pictures hold: one sentence and no other exception; `data check` agrees with the trainer."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from pallava.data.check import check_training_file
from pallava.data.material import open_records
from pallava.data.sources import open_source
from pallava.data.sources.files import RowDropped
from pallava.data.tokenize import prepare
from pallava.data.training_row import EncodingSettings, check_image, encode_row
from pallava.errors import PallavaError
from pallava.evaluation.answers.items import EvaluateOptions
from pallava.evaluation.answers.questions import read_custom, read_excluded, read_pairs, read_training_answers
from pallava.evaluation.class_sets import read_class_set
from pallava.images import MAX_PIXELS, open_image
from pallava.io.records import RecordFile
from tests.tiny import training as tiny

LONGEST_MESSAGE = 300
ROOM = {"prompt_template": "qwen_chat", "context_length": 64, "num_visual_tokens": 16}
SHARES = {"rows": 4000, "texts": 3000, "pictures": 3000}  # of 10,000 inputs
QUICK = 10  # one of so many is tried by `make test`
PLACES = {"missing", "outside_folder", "duplicate_id"}  # what the check finds beyond the text


def fuzz(room: str, is_whole: bool, inputs: SearchStrategy, try_one: Callable[[Any], None]) -> None:
    """Try the same inputs each time, or with FUZZ_SEED in the environment those of a seed."""
    seed = os.environ.get("FUZZ_SEED")
    count = SHARES[room] if is_whole else SHARES[room] // QUICK
    how = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": seed is None}
    run = settings(max_examples=count, **how)(given(inputs)(try_one))
    (run if seed is None else hypothesis.seed(int(seed))(run))()


how_many = pytest.mark.parametrize(
    "is_whole", [pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.slow)]
)


def sentence(read: Callable[[], Any]) -> Any:
    """Return what is read, or the refusal, which must be a sentence."""
    try:
        return read()
    except (PallavaError, RowDropped) as error:
        result = error
    assert 0 < len(str(result)) <= LONGEST_MESSAGE, str(result)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    Image.effect_noise((24, 16), 60).save(folder / "a.png")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_parts(tmp_path_factory.mktemp("parts"))["llm"])


@pytest.fixture(scope="module")
def trainer(tokenizer: str) -> Callable[[Path], list[str]]:
    """Return the trainer's reasons to drop the rows of a file; "" for a row kept, "cut" for a cut answer."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    how = EncodingSettings.make(loaded, **ROOM)

    def reason(value: Any) -> str:
        try:
            return "cut" if encode_row(value, loaded, how)[2] else ""
        except RowDropped as error:
            return error.reason

    return lambda path: [reason(entry.value) for entry in RecordFile(path)]


# fmt: off
ODD_TEXTS = [
    "", " ", "nan", "NaN", "Infinity", "-inf", "\ud83d", "a \udcff", "\0", "a\0b", "\ufeff", "\ufeffa.png", "a.png",
    "<image>", "<image>\n\ud83d", "<image>\nnan", "<image>\nWhat is it?", "What?\n<image>", "a gland", "{input}",
    "human", "gpt", "system", "../a.png", "/a.png", "a" * 5000, "<image>" * 9, "<|im_end|>", "\u200b", "x " * 90,
]
# fmt: on
odd_texts = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.text(st.characters(codec=None, categories=["Cs", "Cc", "Cf", "Co", "Lo", "Lu", "Nd", "Zs", "Po"]), max_size=12),
)
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([float("nan"), float("inf"), 10**400, True]))
scalars = st.one_of(st.none(), numbers, odd_texts)
nested = st.integers(1, 130).map(lambda depth: json.loads("[" * depth + "]" * depth))
anything = st.one_of(
    scalars,
    nested,
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(odd_texts, inner), max_leaves=8),
)


def mostly(usual: SearchStrategy, *, odd: SearchStrategy = anything) -> SearchStrategy:
    return st.integers(0, 7).flatmap(lambda draw: usual if draw else odd)


questions = mostly(st.sampled_from(["<image>\nWhat is it?", "What?\n<image>", "Why?"]), odd=odd_texts)
answers = mostly(st.sampled_from(["a gland", "yes", "many words " * 40]), odd=odd_texts)
messages = st.one_of(
    st.fixed_dictionaries({"from": st.just("human"), "value": questions}),
    st.fixed_dictionaries({"from": st.just("gpt"), "value": answers}),
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "robot"]), "value": odd_texts}),
)
talks = st.one_of(
    st.tuples(
        *[
            st.fixed_dictionaries({"from": st.just(who), "value": texts})
            for who, texts in (("human", questions), ("gpt", answers))
        ]
    ).map(list),
    st.lists(mostly(messages), max_size=5),
)
rows = mostly(
    st.fixed_dictionaries(
        {"conversations": mostly(talks)},
        optional={"id": anything, "image": mostly(st.sampled_from(["a.png", ["a.png"], None, []])), "note": anything},
    )
)


def dumps(value: Any, is_ascii: bool = True) -> bytes:
    return json.dumps(value, ensure_ascii=is_ascii).encode(errors="surrogateescape" if is_ascii else "surrogatepass")


@how_many
def test_rows(folder: Path, tokenizer: str, trainer: Callable[[Path], list[str]], is_whole: bool) -> None:
    """A row is dropped by the trainer for a reason that the check finds, and what the check finds is not trained on."""
    path = folder / "row.jsonl"

    def try_one(row: Any) -> None:
        path.write_bytes(dumps([row] if isinstance(row, list) else row))  # a list would be read as the file's rows
        report = check_training_file(path, folder, tokenizer=tokenizer, **ROOM)
        messages = [text for texts in report.examples.values() for text in texts]
        assert all(len(text) <= LONGEST_MESSAGE for text in messages)
        read = sentence(lambda: trainer(path))
        reason = "malformed" if isinstance(read, PallavaError) else read[0]  # the trainer stops at a broken line
        assert report.num_rows == 1
        if reason in ("", "cut"):
            assert (report.faults["malformed"], report.faults["over_room"]) == (0, int(reason == "cut"))
        else:
            assert report.faults[reason] == report.num_faulty == 1, reason

    fuzz("rows", is_whole, rows, try_one)


marks = st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\xff", b"\xed\xa0\xbd", b"\n", b'"', b",", b"[", b"]"])
pieces = st.one_of(
    rows.map(dumps),
    st.fixed_dictionaries({"image": odd_texts, "caption": odd_texts}).map(dumps),
    st.fixed_dictionaries({"image": odd_texts, "question": odd_texts, "answer": odd_texts}).map(dumps),
    st.lists(odd_texts, min_size=2, max_size=3).map(lambda cells: ",".join(cells).encode(errors="surrogatepass")),
    st.just(b"image,caption"),
    st.just(b"image,question,answer"),
    st.sampled_from(
        [b"[", b"]", b"{", b"}", b",", b"[" * 200, b"NaN", b"1e999", b"9" * 5000, b"\\u0000", b'"\\ud83d"']
    ),
    st.binary(max_size=20),
    marks,
)
plain_files = st.lists(pieces, max_size=6).flatmap(
    lambda parts: st.sampled_from([b"\n".join(parts), b"".join(parts), b"[" + b",".join(parts) + b"]"])
)
files = st.one_of(
    plain_files,
    st.tuples(marks, plain_files).map(b"".join),
    st.lists(rows, max_size=4).map(dumps),
    plain_files.map(lambda content: content.decode("latin-1").encode("utf-16")),
)


def readers(folder: Path, path: Path) -> Iterator[Callable[[], Any]]:
    """Yield all that read text of the user's."""
    options = EvaluateOptions(image_folder=folder)
    yield lambda: list(RecordFile(path).tolerant())
    yield lambda: read_custom(path, folder)
    yield lambda: read_pairs(path, "", options)
    yield lambda: read_training_answers(path)
    yield lambda: read_excluded(path)
    yield lambda: read_class_set(path)
    yield lambda: list(open_records(str(path), image_folder=folder))
    yield lambda: list(open_source("pairs", path))
    yield lambda: list(open_source("path-vqa", path.parent))
    for columns in ({"image": "image", "caption": "caption"}, {key: key for key in ("image", "question", "answer")}):
        yield lambda columns=columns: list(open_source("csv", path.with_suffix(".csv"), columns=columns))


@how_many
def test_texts(tmp_path: Path, tokenizer: str, trainer: Callable[[Path], list[str]], is_whole: bool) -> None:
    """The bytes of a file, as any kind of file; the check counts what the trainer counts."""
    path = tmp_path / "text.json"

    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        path.with_suffix(".csv").write_bytes(content)
        for read in readers(tmp_path, path):
            sentence(read)
        report = sentence(lambda: check_training_file(path, tmp_path, tokenizer=tokenizer, **ROOM))
        read = sentence(lambda: trainer(path))
        if isinstance(read, PallavaError):
            assert report.num_faulty
            return
        dropped = Counter(reason for reason in read if reason not in ("", "cut"))
        assert report.num_rows == max(1, len(read))  # a file without rows is one fault
        assert report.faults["malformed"] == (dropped["malformed"] if read else 1)
        assert report.faults["over_room"] >= dropped["over_room"] + read.count("cut")
        assert all(report.faults[reason] >= count for reason, count in dropped.items())

    fuzz("texts", is_whole, files, try_one)


def test_the_trainer_reads_as_it_prepares(
    folder: Path, tokenizer: str, trainer: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    """What these tests take for the trainer's reading is that of `prepare`."""
    from transformers import AutoTokenizer

    loaded, path = AutoTokenizer.from_pretrained(tokenizer), tmp_path / "rows.jsonl"
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "yes"}]
    sound = {"id": "\ufeff1", "image": "a.png", "conversations": talk, "note": float("nan")}
    damaged = [
        {**sound, "image": "\ud83d"},
        {**sound, "id": "\ud83d"},
        {**sound, "note": ["\udcff"]},
        {**sound, "image": 3},
    ]
    path.write_bytes(b"\n".join(map(dumps, [sound, *damaged, {"conversations": talk}])))
    prepared = prepare(path, loaded, EncodingSettings.make(loaded, **ROOM), cache_dir=tmp_path)
    expected = Counter(filter(None, trainer(path)))
    assert prepared.counts["dropped"] == expected == {"malformed": 4, "lost_marker": 1}
    assert "rows.jsonl, line 2" in prepared.describe()


def picture_bytes(folder: Path) -> list[bytes]:
    picture, contents = Image.effect_noise((20, 12), 60), []
    for name, mode, options in [
        ("a.png", "RGB", {}),
        ("b.png", "P", {}),
        ("c.jpg", "RGB", {}),
        ("d.jpg", "CMYK", {}),
        ("e.tif", "RGB", {"compression": "tiff_lzw"}),
        ("f.tif", "I;16", {}),
        ("g.bmp", "RGB", {}),
        ("h.webp", "RGB", {"lossless": True}),
        ("i.gif", "L", {}),
    ]:
        picture.convert("RGB").convert("L" if mode == "I;16" else mode).convert(mode).save(folder / name, **options)
        contents.append((folder / name).read_bytes())
    return contents


def mutated(contents: list[bytes]) -> SearchStrategy:
    def change(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
        for kind, place, given_bytes in edits:
            place %= len(content) + 1
            end = place if kind == "insert" else place + len(given_bytes)
            content = content[:place] if kind == "cut" else content[:place] + given_bytes + content[end:]
        return content

    kinds = st.sampled_from(["set", "set", "insert", "cut"])
    places = st.one_of(st.integers(0, 80), st.integers(0, 1 << 14))
    edits = st.lists(st.tuples(kinds, places, st.binary(min_size=1, max_size=4)), max_size=3)
    return st.builds(change, st.sampled_from(contents), edits)


@how_many
@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged tags
def test_pictures(tmp_path: Path, is_whole: bool) -> None:
    """The bytes of a picture: what the check decodes, training opens, and nothing else."""
    path = tmp_path / "picture"

    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        opened = sentence(lambda: open_image(path))
        fault = sentence(lambda: check_image(path, MAX_PIXELS, decode=True))
        assert isinstance(opened, PallavaError) == isinstance(fault, RowDropped)
        assert isinstance(opened, PallavaError) or opened.mode == "RGB"
        sentence(lambda: check_image(path, MAX_PIXELS, decode=False))

    fuzz("pictures", is_whole, mutated(picture_bytes(tmp_path)), try_one)
