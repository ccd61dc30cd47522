"""What is asked: items of every task, what is left out, and what is refused."""

import csv
import json
import pickle
from pathlib import Path

import pytest

from pallava.errors import PallavaError
from pallava.evaluation.answers.items import Answer, EvaluateOptions, Item, Questions
from pallava.evaluation.answers.questions import (
    read_custom,
    read_excluded,
    read_questions,
    read_training_answers,
    select,
)
from pallava.evaluation.tasks import TASKS, Task, register_task
from pallava.prompts import CAPTION_PROMPTS
from tests.tiny.clips import write_classes


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_pathvqa(root: Path) -> Path:
    types = [("yes/no", "yes "), ("other", " the nucleus"), ("number", "2"), ("other", "")]
    rows = [
        {
            "answer_type": kind,
            "img_id": "test_0000",
            "label": {answer: 1},
            "question_id": 300000000 + n,
            "sent": f"q{n}?",
        }
        for n, (kind, answer) in enumerate(types)
    ]
    (root / "qas").mkdir(parents=True)
    (root / "qas" / "test_vqa.pkl").write_bytes(pickle.dumps(rows))
    return root


def save_pmc_vqa(root: Path) -> Path:
    root.mkdir()
    columns = ["Figure_path", "Question", "Answer", *(f"Choice {c}" for c in "ABCD"), "Answer_label"]
    with (root / "test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerow(["a.jpg", "Which stain?", "H&E", " A: PAS ", " B:H&E ", " C: DAB ", " D: none ", "B"])
    return root


def test_pathvqa_is_asked_as_it_is_trained(tmp_path: Path):
    questions = read_questions(save_pathvqa(tmp_path / "pv"), "path-vqa", EvaluateOptions())
    assert [(item.id, item.question, item.reference, item.kind) for item in questions.items] == [
        ("300000000", "q0?", "yes", "closed"),
        ("300000001", "q1?", "the nucleus", "open"),
        ("300000002", "q2?", "2", "open"),
    ]
    assert questions.items[0].image == str(tmp_path / "pv" / "images" / "test" / "test_0000.jpg")
    assert questions.left_out == {"empty_answer": 1}
    with pytest.raises(PallavaError, match="train"):
        read_questions(tmp_path / "pv", "path-vqa", EvaluateOptions(split="train"))


def test_pmc_vqa_shows_its_choices_as_training_does(tmp_path: Path):
    (item,) = read_questions(save_pmc_vqa(tmp_path / "pmc"), "pmc-vqa", EvaluateOptions()).items
    assert (item.reference, item.kind, item.choices) == ("B", "choice", ("PAS", "H&E", "DAB", "none"))
    expected = "Which stain?\nA. PAS\nB. H&E\nC. DAB\nD. none\nAnswer with the letter of the right option."
    assert item.question == expected


def test_questions_of_ones_own(tmp_path: Path):
    rows = [
        {"image": "a.png", "question": "<image>\nIs it H&E?", "answer": "Yes."},
        {"id": 7, "image": "a.png", "question": "Which stain?", "answer": "H&E", "group": "stain"},
        {"id": "c", "image": "a.png", "question": "Which?", "answer": "PAS", "choices": ["H&E", "PAS"]},
        {"id": "d", "image": "", "question": "Which?", "answer": "a", "choices": ["H&E", "PAS"], "group": 3},
    ]
    items = read_custom(write_lines(tmp_path / "q.jsonl", rows)).items
    image, choices = str(tmp_path / "a.png"), ("H&E", "PAS")
    asked = "Which?\nA. H&E\nB. PAS\nAnswer with the letter of the right option."
    assert items == [
        Item("0", image, "Is it H&E?", "Yes.", "closed"),
        Item("7", image, "Which stain?", "H&E", "open", group="stain"),
        Item("c", image, asked, "B", "choice", choices),
        Item("d", "", asked, "A", "choice", choices, "3"),
    ]
    answered = Answer(items[3], "B")
    assert Answer.from_record(json.loads(json.dumps(answered.as_record()))) == answered
    elsewhere = read_custom(tmp_path / "q.jsonl", tmp_path / "images").items[0]
    assert elsewhere.image == str(tmp_path / "images" / "a.png")


RIGHT = {"image": "", "question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("text", "got a str"),
        ({"image": "", "question": "q"}, "'answer' is missing"),
        ({**RIGHT, "question": " "}, "'question' is empty"),
        ({**RIGHT, "answer": 3}, "'answer'"),
        ({**RIGHT, "kind": "caption"}, "open, closed, choice, got 'caption'"),
        ({**RIGHT, "answer": "maybe", "kind": "closed"}, "yes or no, got 'maybe'"),
        ({**RIGHT, "answer": "c", "choices": ["x", "y"]}, "choices or its letter, got 'c'"),
        ({**RIGHT, "answer": "x", "choices": ["x"]}, "2 to 10 options"),
        ({**RIGHT, "answer": "x0", "choices": [f"x{number}" for number in range(40)]}, "2 to 10 options"),
        ({**RIGHT, "answer": "x", "choices": "xy"}, "'choices'"),
        ({**RIGHT, "answer": "x", "choices": ["x", "y"], "kind": "open"}, "the kind 'open'"),
        ({**RIGHT, "answer": "no", "choices": ["yes", "no"], "kind": "closed"}, "the kind 'closed'"),
        ({**RIGHT, "answer": "fat", "kind": "choice"}, "got 'fat'"),
        ({**RIGHT, "answer": "K", "kind": "choice"}, "a letter from A to J, got 'K'"),
        ({"img": "a.png", "question": "q", "answer": "a"}, '\'image\' is missing; expected {"image" ("" for none)'),
        ({**RIGHT, "image": None}, "'image'"),
        ({**RIGHT, "chioces": ["x", "y"]}, "'chioces' is not a known key; did you mean 'choices'?"),
        ({**RIGHT, "Kind": "open"}, "'kind'"),
        ({"Image": "a.png", "question": "q", "answer": "a"}, "'image'?"),
        ({**RIGHT, "A": "x", "B": "y"}, "'A' is not a known key; did you mean 'choices'?"),
        ({**RIGHT, "option_2": "y"}, "'option_2' is not"),
        ({**RIGHT, "choices": {"A": "x", "C": "y"}}, "'choices' must be a list of texts"),
        ({**RIGHT, "options": ["a", "y"], "choices": []}, "'options' is not a known key; did you mean 'choices'?"),
        ({**RIGHT, "id": None}, "'id' must be a text or a number, got null"),
        ({**RIGHT, "id": float("nan")}, "'id'"),
        ({**RIGHT, "question": "is it \ud83d"}, "ud83d"),
        ({**RIGHT, "answer": "a\0"}, "x00"),
        ({**RIGHT, "answer": "nan"}, "'answer' is empty"),
        ({**RIGHT, "question": float("nan")}, "'question' must be a text"),
        ({**RIGHT, "choices": ["a", "nan"]}, "'choices'"),
        ({**RIGHT, "id": ["a"]}, 'got ["a"]'),
    ],
)
def test_a_wrong_record_is_told_with_its_place(tmp_path: Path, row: object, reason: str):
    rows = [RIGHT, row]
    with pytest.raises(PallavaError, match="line 2") as error:
        read_custom(write_lines(tmp_path / "q.jsonl", rows))
    assert reason in str(error.value)


@pytest.mark.parametrize("form", ["{}. {}", "({}) {}", "{}: {}", "{}){}"])
@pytest.mark.parametrize("answer", ["PAS", "B"])
def test_letters_of_the_choices_are_written_once(tmp_path: Path, form: str, answer: str):
    choices = [form.format(*each) for each in zip("ABC", ("H&E", "PAS", "A stain"), strict=True)]
    answer = choices[1] if answer == "PAS" else answer
    (item,) = read_custom(write_lines(tmp_path / "q.jsonl", [{**RIGHT, "answer": answer, "choices": choices}])).items
    assert (item.reference, item.choices) == ("B", ("H&E", "PAS", "A stain"))
    assert "\nB. PAS\n" in item.question
    choices[2] = "A stain"  # not of all
    (item,) = read_custom(write_lines(tmp_path / "q.jsonl", [{**RIGHT, "answer": "B", "choices": choices}])).items
    assert item.choices == tuple(choices)


@pytest.mark.parametrize("key", ["options", "Options", "Choices", "choice", "answer_choices", "candidates", "A"])
@pytest.mark.parametrize("choices", [["H&E", "PAS"], {"A": "H&E", "B": "PAS"}, "H&E"], ids=repr)
def test_choices_under_another_name_are_not_lost(tmp_path: Path, key: str, choices: object):
    with pytest.raises(PallavaError, match=f"line 1: '{key}' .*did you mean 'choices'"):
        read_custom(write_lines(tmp_path / "q.jsonl", [{**RIGHT, key: choices}]))


def test_further_keys_of_a_record_are_let_alone(tmp_path: Path):
    row = {
        **RIGHT,
        "answers": ["a"],
        "questions": 1,
        "idx": 4,
        "source": "x",
        "image_id": 7,
        "choices": [],
        "options": None,
    }
    (item,) = read_custom(write_lines(tmp_path / "q.jsonl", [row])).items
    assert (item.kind, item.choices) == ("open", ())
    (item,) = read_custom(write_lines(tmp_path / "q.jsonl", [{**row, "choices": ["a", "b"], "options": ["a"]}])).items
    assert item.choices == ("a", "b")


def test_a_choice_whose_question_holds_the_choices(tmp_path: Path):
    (item,) = read_custom(write_lines(tmp_path / "q.jsonl", [{**RIGHT, "answer": "b", "kind": "choice"}])).items
    assert (item.kind, item.reference, item.choices) == ("choice", "b", ())


def test_questions_and_captions_of_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    table = tmp_path / "mine.csv"
    table.write_text("file,asked,said\na.png,Is it?,yes\na.png,What is it?,a gland\n,What?,nothing\n")
    options = EvaluateOptions(columns="image=file,question=asked,answer=said")
    questions = TASKS["custom"].read_questions(table, "csv", options)
    assert [(item.image, item.question, item.reference, item.kind) for item in questions.items] == [
        (str(tmp_path / "a.png"), "Is it?", "yes", "closed"),
        (str(tmp_path / "a.png"), "What is it?", "a gland", "open"),
    ]
    assert questions.left_out == {"empty_name": 1}
    assert "empty_name: mine.csv, line 4" in caplog.text
    options = EvaluateOptions(columns={"image": "file", "caption": "said"}, image_folder=tmp_path / "images")
    captions = TASKS["caption"].read_questions(table, "csv", options)
    assert [(item.image, item.reference) for item in captions.items] == [(str(tmp_path / "images" / "a.png"), "yes")]
    pairs = TASKS["retrieval"].read(table, "csv", options)
    assert [item.reference for item in pairs.items] == ["yes", "a gland"]
    with pytest.raises(PallavaError, match="KEY=COLUMN|--columns"):
        TASKS["custom"].read_questions(table, "csv", EvaluateOptions())


def test_captions_are_no_questions(tmp_path: Path):
    path = write_lines(tmp_path / "pairs.jsonl", [{"id": "1", "image": "a.png", "caption": "a gland"}])
    with pytest.raises(PallavaError, match="pairs is a set of captions, but questions are needed"):
        TASKS["custom"].read_questions(path, "pairs", EvaluateOptions())


def test_captions_ask_once_an_image(tmp_path: Path):
    rows = [{"id": "1", "image": "a.png", "caption": ["one", "two"]}, {"image": "b.png", "caption": "three"}]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    questions = TASKS["caption"].read_questions(path, "", EvaluateOptions())
    assert [(item.id, item.reference, item.kind) for item in questions.items] == [
        ("1", "one", "caption"),
        ("b.png", "three", "caption"),
    ]
    assert {item.question for item in questions.items} == {CAPTION_PROMPTS[0]}
    assert questions.left_out == {"a further caption of an image": 1}


def test_classes_are_asked_by_their_names(tmp_path: Path):
    write_classes(tmp_path / "data", {"TUM": 1, "ADI": 2})
    words = {"classes": [{"label": "ADI", "names": ["fat", "adipose"]}, {"label": "TUM", "names": ["a tumour"]}]}
    (tmp_path / "words.json").write_text(json.dumps(words))
    options = EvaluateOptions(class_set=tmp_path / "words.json")
    items = TASKS["zero-shot"].read_questions(tmp_path / "data", "", options).items
    assert [item.id for item in items] == ["ADI/0.png", "ADI/1.png", "TUM/0.png"]
    assert [item.reference for item in items] == ["ADI", "ADI", "TUM"]
    assert items[0].question == "Which of these does this pathology image show: fat or a tumour?"
    assert items[0].choices == ("ADI", "TUM")


def test_a_task_without_a_question_is_refused(tmp_path: Path):
    empty = Task(
        name="empty", help="nothing", data="nothing", read=lambda path, source, options: Questions([], {"x": 2})
    )
    with pytest.raises(PallavaError, match=r"nowhere.*'x': 2"):
        empty.read_questions(tmp_path / "nowhere", "", EvaluateOptions())


def test_a_name_is_registered_once():
    with pytest.raises(PallavaError, match="'custom'"):
        register_task(TASKS["custom"])


def test_exclusion_and_limit():
    data = {"a": Questions([Item(str(n), "", "q", "r") for n in range(5)])}
    chosen, num_excluded = select(data, excluded=["0", "3", "elsewhere"], limit=2)
    assert [item.id for item in chosen["a"].items] == ["1", "2"]
    assert num_excluded == 2
    assert len(data["a"].items) == 5
    with pytest.raises(PallavaError, match="none of the 1 ids.*'0'"):
        select(data, excluded=["elsewhere"])
    with pytest.raises(PallavaError, match="all questions of 'a'"):
        select(data, excluded=map(str, range(5)))
    both, _ = select({**data, "b": data["a"]}, excluded=["0"], limit=1)
    assert [item.id for each in both.values() for item in each.items] == ["a/1", "b/1"]


def test_every_question_of_an_excluded_id_is_left_out():
    data = {"a": Questions([Item(name, "", f"q{n}", "r") for n, name in enumerate(["a", "b", "a", "a~2", "b"])])}
    chosen, num_excluded = select(data, excluded=["a"])
    assert [(item.id, item.question) for item in chosen["a"].items] == [("b", "q1"), ("a~2", "q3"), ("b~2", "q4")]
    assert num_excluded == 2


@pytest.mark.parametrize(
    ("ids", "unique"),
    [
        (["a", "a", "a~2"], ["a", "a~3", "a~2"]),
        (["a~2", "a", "a", "a"], ["a~2", "a", "a~3", "a~4"]),
        (["a", "a", "a~2", "a~2"], ["a", "a~3", "a~2", "a~2~2"]),
    ],
)
def test_ids_that_come_again_become_unique(ids: list[str], unique: list[str]):
    data = {"a": Questions([Item(name, "", "q", "r") for name in ids])}
    assert [item.id for item in select(data)[0]["a"].items] == unique


def test_lists_of_the_user(tmp_path: Path):
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf1\r\n\n test 2 \n")
    assert read_excluded(tmp_path / "ids.txt") == ["1", "test 2"]
    with pytest.raises(PallavaError, match=r"none\.txt"):
        read_excluded(tmp_path / "none.txt")


def test_training_answers_have_the_form_of_items(tmp_path: Path):
    from pallava.data.material import SourceSpec
    from pallava.data.training_file import write_training_file

    root = save_pmc_vqa(tmp_path / "pmc")
    write_training_file([SourceSpec("pmc-vqa", str(root), "test")], tmp_path / "train.jsonl")
    (item,) = read_questions(root, "pmc-vqa", EvaluateOptions(split="test")).items
    assert read_training_answers(tmp_path / "train.jsonl") == [(item.question, "B")]
    with pytest.raises(PallavaError, match=r"other\.jsonl.*conversation"):
        read_training_answers(write_lines(tmp_path / "other.jsonl", [{"question": "q"}]))
