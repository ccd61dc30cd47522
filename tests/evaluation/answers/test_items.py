import json
from pathlib import Path

import pytest

from pallava.errors import PallavaError
from pallava.evaluation.answers.items import Answer, Item, read_predictions

ANSWERED = [
    Answer(Item("1", "a.png", "What is it?", "B", "choice", ("fat", "vessel")), "B"),
    Answer(Item("2", "", "Describe it.", "a gland", "caption"), ""),
    Answer(Item("3", "", "Is it fat?", "yes", "closed"), "no", 0.75, 2),
]


def write(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_answers_come_back_from_file_or_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "predictions.jsonl", [each.as_record() for each in ANSWERED])
    assert read_predictions(path) == read_predictions(tmp_path) == ANSWERED


def test_answers_without_a_probability_are_written_as_before(tmp_path: Path) -> None:
    assert not {"probability", "num_possible"} & ANSWERED[0].as_record().keys()
    assert {"probability": 0.75, "num_possible": 2}.items() <= ANSWERED[2].as_record().items()


def changed(**values) -> dict:
    return {**ANSWERED[0].as_record(), **values}


def without(name: str) -> dict:
    return {key: value for key, value in ANSWERED[0].as_record().items() if key != name}


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (["a"], "line 1: .*str"),
        ([changed(), without("answer")], "line 2: .*'answer'"),
        ([without("choices")], "'choices'"),
        ([changed(answer=None)], "'answer' must be a text"),
        ([changed(id=7)], "'id' must be a text"),
        ([changed(answer="\ud83d")], "'answer' must be a text"),
        ([changed(choices="ab")], "'choices' must be a list"),
        ([changed(kind="video")], "'video'"),
        ([changed(probability=1.5)], "'probability' must be a number from 0 to 1, got 1.5"),
        ([changed(probability=True)], "'probability'"),
        ([changed(probability=float("nan"))], "'probability'"),
        ([changed(probability=0.5, num_possible=-1)], "'num_possible' must be a count, got -1"),
        ([changed(), changed()], "line 2: .*the id '1'"),
        ([], "is empty"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, records: list, reason: str) -> None:
    with pytest.raises(PallavaError, match=reason):
        read_predictions(write(tmp_path / "p.jsonl", records))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PallavaError, match=r"cannot read .*predictions\.jsonl"):
        read_predictions(tmp_path)
