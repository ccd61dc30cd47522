"""The leak audit: copies under other names are found, others are not, and no image is hashed twice."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pallava.cli import main
from pallava.data import image_hashes
from pallava.data.image_hashes import TURNS, ImageHashes, hash_images, perceptual_hash, turned_hashes
from pallava.data.leak import ImageMatch, LeakReport, _conversations, _Known, write_leak_report
from pallava.data.material import Conversation, open_records
from pallava.data.sources.base import Pair, Question, to_json
from pallava.errors import PallavaError
from pallava.io.store import Store
from pallava.prompts import CAPTION_PROMPTS, build_choice_question


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def asked(image: str, question: str, name: str) -> dict:
    talk = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": "yes"}]
    return {"id": name, "image": image, "conversations": talk}


class Sets:
    """Training and test files with their images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: dict[str, list[dict]] = {"train": [], "test": []}

    def add(self, side: str, image: Image.Image | None, question: str, name: str = "a.png") -> None:
        rows = self.rows[side]
        file = f"{len(rows)}_{name}"
        (self.root / side).mkdir(exist_ok=True)
        if image is not None:
            image.save(self.root / side / file)
        rows.append(asked(file, question, f"{side}{len(rows)}"))

    def audit(self, out: str = "leak.json", **options) -> LeakReport:
        files = {}
        for side, rows in self.rows.items():
            files[side] = self.root / f"{side}.jsonl"
            files[side].write_text("".join(json.dumps(row) + "\n" for row in rows))
            options[f"{side}_images"] = self.root / side
        return write_leak_report(str(files["train"]), str(files["test"]), self.root / out, **options)


@pytest.fixture
def sets(tmp_path: Path) -> Sets:
    sets = Sets(tmp_path)
    for seed in range(8):
        sets.add("train", picture(seed), f"What is {seed}?")
    return sets


def test_copies_are_found_and_others_are_not(sets: Sets) -> None:
    sets.add("test", picture(3), "How many?")
    sets.add("test", picture(4, (480, 360)), "How many?", "b.jpg")
    sets.add("test", picture(99), "How many?")
    report = sets.audit()
    assert [(leak.id, leak.match.train_id) for leak in report.leaks if leak.match] == [
        ("test0", "train3"),
        ("test1", "train4"),
    ]
    assert report.leaks[0].match.distance == 0
    assert report.leaks[0].image == str(sets.root / "test" / "0_a.png")
    assert (report.num_train_rows, report.num_train_images, report.num_test_rows) == (8, 8, 3)
    assert sum(report.distances.values()) == 2


def test_turned_copies_are_found_when_asked_for(sets: Sets) -> None:
    for turn in list(TURNS.values())[1:]:
        sets.add("test", picture(2).transpose(turn), "How many?")
    assert sets.audit().leaks == []
    found = sets.audit(with_turns=True).leaks
    assert [leak.match.train_id for leak in found if leak.match] == ["train2"] * 7
    # What undoes a turn by 90 degrees is one by 270; the others undo themselves.
    undone = {"turned by 90": "turned by 270", "turned by 270": "turned by 90"}
    assert [leak.match.turn for leak in found if leak.match] == [undone.get(name, name) for name in list(TURNS)[1:]]


def test_turned_hashes_begin_with_the_plain_one() -> None:
    for seed in range(5):
        hashes = turned_hashes(picture(seed, (700, 500)))
        assert hashes[0] == perceptual_hash(picture(seed, (700, 500)))
        assert len(set(hashes)) == 8


def test_the_nearest_turn_is_told() -> None:
    known = _Known(4)
    list(known.images_of([Conversation("x", "near", ("a",), ()), Conversation("x", "same", ("b",), ())], LeakReport()))
    known.add("a", ImageHashes("1", (f"{0xF0F0F0F0F0F0F0F0:016x}",)))
    known.add("b", ImageHashes("2", (f"{0x123456789ABCDEF0:016x}",)))
    asked = ImageHashes("3", (f"{0xF0F0F0F0F0F0F0F7:016x}", f"{0x123456789ABCDEF0:016x}"))
    assert known.find(asked) == ImageMatch("same", 0, "mirrored")
    assert known.find(ImageHashes("3", asked.hashes[:1])) == ImageMatch("near", 3)


def test_images_that_several_rows_show_are_counted_once(sets: Sets) -> None:
    sets.rows["train"].append(asked("3_a.png", "Why?", "again"))
    sets.add("test", picture(3), "A?")
    sets.rows["test"].append(asked("0_a.png", "B?", "again"))
    report = sets.audit()
    assert (report.num_train_rows, report.num_train_images) == (9, 8)
    assert (report.num_test_rows, report.num_test_images) == (2, 1)
    assert report.shared("images") == ["test0", "again"]
    assert report.leaks[1].match == ImageMatch("train3", 0)


def test_questions_are_compared_as_words(sets: Sets) -> None:
    sets.add("train", picture(20), build_choice_question("Which stain is it?", ["PAS", "Congo red"]))
    sets.add("train", picture(21), CAPTION_PROMPTS[0])
    for question in ("WHAT is 3", "which stain - is it?\nA: Congo red", "What is 33?", CAPTION_PROMPTS[0], "?"):
        sets.add("test", picture(100 + len(sets.rows["test"])), question)
    report = sets.audit()
    assert [(leak.id, leak.question_train_id, leak.match) for leak in report.leaks] == [
        ("test0", "train3", None),
        ("test1", "train8", None),
    ]


def test_what_is_shared(sets: Sets) -> None:
    sets.add("test", picture(0), "What is 0?")
    sets.add("test", picture(1), "New?")
    sets.add("test", picture(50), "What is 1?")
    sets.add("test", picture(51), "New?")
    report = sets.audit()
    assert {what: report.shared(what) for what in ("images", "questions", "both", "either")} == {
        "images": ["test0", "test1"],
        "questions": ["test0", "test2"],
        "both": ["test0"],
        "either": ["test0", "test1", "test2"],
    }
    assert json.loads(json.dumps(report.to_dict()))["num_shared"]["either"] == 3


def test_empty_pictures_match_by_content_alone(sets: Sets) -> None:
    sets.add("train", Image.new("RGB", (60, 60), "white"), "A?")
    sets.add("test", Image.new("RGB", (50, 60), (250, 240, 250)), "B?")
    sets.add("test", Image.new("RGB", (60, 60), "white"), "C?")
    assert [(leak.id, leak.match.train_id) for leak in sets.audit().leaks if leak.match] == [("test1", "train8")]


def test_images_that_cannot_be_compared_are_counted(sets: Sets) -> None:
    sets.add("train", None, "A?")
    sets.add("test", None, "B?")
    sets.add("test", picture(0), "C?")
    (sets.root / "test" / "1_a.png").write_bytes(b"no picture")
    report = sets.audit()
    assert report.problems == {"train: missing": 1, "test: missing": 1, "test: unreadable": 1}
    assert report.leaks == []


def test_nothing_is_hashed_twice(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    sets.add("test", picture(0), "A?")
    hashed: list[str] = []
    hash_image = image_hashes._hash_image

    def count(file, with_turns):
        hashed.append(Path(file.path).name)
        return hash_image(file, with_turns)

    monkeypatch.setattr(image_hashes, "_hash_image", count)
    first = sets.audit()
    assert len(hashed) == 9
    assert sets.audit() == first
    assert len(hashed) == 9
    sets.audit(with_turns=True)
    assert len(hashed) == 10  # the test image alone
    path = sets.root / "train" / "3_a.png"
    picture(70).save(path)
    os.utime(path, (1, 1))
    sets.audit(with_turns=True)
    assert hashed[10:] == ["3_a.png"]


def test_a_stopped_run_keeps_its_hashes(sets: Sets) -> None:
    store = Store(sets.root / "cache.sqlite")
    paths = [str(sets.root / "train" / row["image"]) for row in sets.rows["train"]] * 20
    hashing = hash_images(paths, store)
    next(hashing)
    hashing.close()
    store.close()
    with Store(sets.root / "cache.sqlite") as again:
        assert len(again.get("image hashes", set(paths))) == 8


def test_workers_change_nothing(sets: Sets) -> None:
    for seed in range(70):
        sets.add("test", picture(seed), "A?")
    alone, together = sets.audit("1.json"), sets.audit("2.json", num_workers=2)
    assert alone == together
    assert len(alone.shared("images")) == 8


def test_kept_records_and_training_files_are_told_apart(tmp_path: Path) -> None:
    records = [Pair("a", "1", "x.jpg", "Glands."), Question("b", "2", "y.jpg", "Is it?", "yes")]
    (tmp_path / "kept.jsonl").write_text(
        "".join(json.dumps({**to_json(one), "path": f"sub/{one.image}", "scores": {}}) + "\n" for one in records)
    )
    (tmp_path / "summary.json").write_text(json.dumps({"image_folder": "/data", "sources": {"a": {}, "b": {}}}))
    kept = str(tmp_path / "kept.jsonl")
    assert list(_conversations(open_records(kept))) == [
        Conversation("a", "a:1", ("/data/sub/x.jpg",), ()),
        Conversation("b", "b:2", ("/data/sub/y.jpg",), ("is it",)),
    ]
    assert next(_conversations(open_records(kept, image_folder=tmp_path))).images == (f"{tmp_path}/sub/x.jpg",)
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps(asked("x.jpg", "Is it?", "7")) + "\n{broken\n[1]\n" + json.dumps({"image": None}))
    rows = _conversations(open_records(str(train), image_folder=tmp_path))
    assert list(rows) == [
        Conversation(str(train), "7", (f"{tmp_path}/x.jpg",), ("is it",)),
        Conversation(str(train), "line 4", (), ()),
    ]


@pytest.mark.parametrize(("sources", "ids"), [(["a"], ["7"]), (["a", "b"], ["a:7", "b:7"])])
def test_one_id_in_two_sources_is_told_apart(tmp_path: Path, sources: list[str], ids: list[str]) -> None:
    """The ids of one source stay as `pallava evaluate --exclude` knows them."""
    rows = [{**to_json(Question(name, "7", "x.jpg", "Is it?", "yes")), "path": "x.jpg"} for name in sources]
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "summary.json").write_text(json.dumps({"image_folder": "/data", "sources": dict.fromkeys(sources)}))
    assert [row.id for row in _conversations(open_records(str(tmp_path / "kept.jsonl")))] == ids


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(asked("x.jpg", "Is it?", "7")))
    (tmp_path / "other.jsonl").write_text('{"question": 1}')
    for text, message in [
        (f"{tmp_path}/train.jsonl", "train.jsonl.*folder of its images"),
        (f"{tmp_path}/other.jsonl", "other.jsonl.*keys: question"),
        ("nothing.jsonl", "nothing.jsonl"),
        ("vqa-rad=x", "'vqa-rad'"),
    ]:
        with pytest.raises(PallavaError, match=message):
            write_leak_report(text, text, tmp_path / "leak.json")
    assert not (tmp_path / "leak.json").exists()


def test_the_report_names_what_to_exclude(sets: Sets) -> None:
    sets.add("test", picture(3), "What is 5?")
    sets.add("test", picture(99), "How many?")
    sets.add("test", None, "Who?")
    sets.audit()  # writes the files
    out = sets.root / "audit" / "leak.json"
    sides = [str(sets.root / f"{side}.jsonl") for side in ("train", "test")]
    folders = {f"{side}_images": sets.root / side for side in ("train", "test")}
    report = write_leak_report(*sides, out, **folders)
    written = json.loads(out.read_text())
    assert written["settings"] == {"train": sides[0], "test": sides[1], "distance": 4, "turned": False}
    assert written["num_shared"] == {"images": 1, "questions": 1, "both": 1, "either": 1}
    assert (written["problems"], written["distances"]) == ({"test: missing": 1}, {"0": 1})
    assert written["leaks"] == json.loads(json.dumps(report.to_dict()["leaks"]))
    assert out.with_suffix(".exclude.txt").read_text() == "test0\n"
    assert {path.name for path in out.parent.iterdir()} == {"leak.json", "leak.exclude.txt", "leak.image_hashes.sqlite"}


def test_a_file_of_hashes_of_an_earlier_version_is_left_alone(sets: Sets) -> None:
    sets.add("test", picture(3), "What is 5?")
    earlier = sets.root / "leak.hashes.sqlite"
    with closing(sqlite3.connect(earlier)) as database:
        database.executescript("CREATE TABLE images (path TEXT); PRAGMA user_version = 7;")
    content = earlier.read_bytes()
    assert sets.audit().shared("both") == ["test0"]
    assert earlier.read_bytes() == content


@pytest.mark.parametrize("is_database", [True, False])
def test_a_foreign_file_is_not_replaced(sets: Sets, is_database: bool) -> None:
    sets.add("test", picture(3), "What is 5?")
    foreign = sets.root / "leak.image_hashes.sqlite"
    if is_database:
        with closing(sqlite3.connect(foreign)) as database:
            database.executescript("CREATE TABLE mine (path TEXT);")
    else:
        foreign.write_text("someone's notes")
    content = foreign.read_bytes()
    with pytest.raises(PallavaError, match=r"leak\.image_hashes\.sqlite' is not a store.*another output") as error:
        sets.audit()
    assert "folder" not in str(error.value)  # the report is a file
    assert is_database or foreign.read_bytes() == content


HUMAN = {"from": "human", "value": "<image>\nWhat is 1?"}
NULL = {"from": "gpt", "value": None}


@pytest.mark.parametrize(
    ("row", "shares"),
    [
        ({"conversations": [HUMAN, NULL]}, "both"),
        ({"conversations": [HUMAN, "no message", {"from": "human"}, {"value": "Why?"}]}, "both"),
        ({"conversations": [{**HUMAN, "from": "user"}, {"from": "assistant", "value": "yes"}]}, "images"),
        ({"conversations": []}, "images"),
        ({"conversations": None}, "images"),
        ({}, "images"),
        ({"image": ["1_a.png", 5, None, ""], "conversations": [HUMAN, NULL]}, "both"),
        ({"image": 5, "conversations": [HUMAN, NULL]}, "questions"),
        ({"image": None, "conversations": [{"from": "human", "value": "How?"}, HUMAN]}, "questions"),
        ({"image": "\0.png", "conversations": [HUMAN]}, "questions"),
    ],
)
def test_rows_that_training_drops_are_compared(sets: Sets, row: dict, shares: str) -> None:
    sets.add("test", picture(1), "What is 1?")
    picture(1).save(sets.root / "train" / "1_a.png")
    sets.rows["train"] = [asked("none.png", "Else?", "first"), {"id": "odd", "image": "1_a.png", **row}]
    (leak,) = sets.audit().leaks
    assert (leak.match is not None, leak.question_train_id is not None) == (
        shares in ("both", "images"),
        shares in ("both", "questions"),
    )
    assert leak.match is None or leak.match.train_id == "odd"
    assert leak.question_train_id in (None, "odd")


def test_each_of_two_human_messages_in_a_row_is_compared(sets: Sets) -> None:
    talk = [{"from": "human", "value": text} for text in ("<image>\nLook.", "Which stain?")]
    sets.rows["train"].append(
        {"id": "two", "image": "0_a.png", "conversations": [*talk, {"from": "gpt", "value": "PAS"}]}
    )
    sets.add("test", picture(99), "Which stain?")
    sets.add("test", picture(98), "Look!")
    assert [leak.question_train_id for leak in sets.audit().leaks] == ["two", "two"]


def test_rows_that_cannot_be_compared_are_counted(sets: Sets, capsys: pytest.CaptureFixture) -> None:
    sets.rows["train"] += [[1], "text", {"id": "empty", "image": None, "conversations": []}]
    sets.add("test", picture(99), "How many?")
    sets.rows["test"] += [7, {"id": "empty"}]
    report = sets.audit()
    assert report.rows_not_compared == {
        "train: malformed": 2,
        "train: no image or question": 1,
        "test: malformed": 1,
        "test: no image or question": 1,
    }
    assert json.loads((sets.root / "leak.json").read_text())["rows_not_compared"] == report.rows_not_compared
    words = ["data", "leak", *(str(sets.root / f"{side}.jsonl") for side in ("train", "test")), "--workers", "1"]
    words += ["--out", str(sets.root / "leak.json")]
    assert main([*words, "--train-images", str(sets.root / "train"), "--test-images", str(sets.root / "test")]) == 0
    assert "train: malformed: 2 rows" in capsys.readouterr().out
