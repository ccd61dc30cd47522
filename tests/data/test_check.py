"""The check of a training file: each fault is found once, at its line, by any number of workers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pallava.data.check import _open_room, check_training_file
from pallava.errors import PallavaError
from tests.tiny import training as tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.effect_noise((40, 30), 60).save(folder / name)
    content = (folder / "b.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "none.jpg").touch()
    return folder


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def row(name: str, image: object = "a.png", conversations: object = None) -> dict:
    if conversations is None:
        conversations = talk("<image>\nWhat is it?", "a gland")
    return {"id": name, "image": image, "conversations": conversations}


def write(folder: Path, rows: list) -> Path:
    path = folder.parent / "train.jsonl"
    path.write_text("".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in rows))
    return path


def found(folder: Path, rows: list, **options) -> dict[str, int]:
    report = check_training_file(write(folder, rows), folder, **options)
    return {reason: count for reason, count in report.faults.items() if count}


def test_sound_rows(folder: Path) -> None:
    rows = [
        row("1"),
        row("2", ["a.png", "b.png"], talk("<image><image>\nCompare.", "alike", "Why?", "same tissue")),
        row("3", None, talk("What is a gland?", "an organ")),
        row("4", "./b.png", [{"from": "system", "value": "Be brief."}, *talk("What?\n<image>", "a gland")]),
        {"conversations": talk("a", "b")},
    ]
    report = check_training_file(write(folder, rows), folder, decode_images=True)
    assert (report.num_rows, report.num_faulty) == (5, 0)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("not json\n", "malformed"),
        ([1], "malformed"),
        (row("x", 3), "malformed"),
        (row("x", conversations=[]), "malformed"),
        (row("x", conversations=[{"from": "robot", "value": "?"}]), "malformed"),
        (row("1"), "duplicate_id"),
        (row("x", "../images/a.png"), "outside_folder"),
        (row("x", "/a.png"), "outside_folder"),
        (row("x", "lost.png"), "missing_image"),
        (row("x", "none.jpg"), "unreadable_image"),
        (row("x", conversations=talk("What is it?", "a gland")), "lost_marker"),
        (row("x", conversations=talk("<image><image>\nWhat?", "a gland")), "lost_marker"),
        (row("x", None), "lost_marker"),
        (row("x", conversations=talk("<image>\nWhat?", "a <image>")), "lost_marker"),
        (row("x", conversations=talk("<image>\nWhat?")), "not_alternating"),
        (row("x", conversations=talk("<image>\nWhat?", "a gland")[::-1]), "not_alternating"),
        (row("x", conversations=talk("<image>\nWhat?", " ")), "empty_answer"),
    ],
)
def test_each_fault(folder: Path, fault: object, reason: str) -> None:
    report = check_training_file(write(folder, [row("1"), fault, row("3")]), folder)
    assert {key: count for key, count in report.faults.items() if count} == {reason: 1}
    assert (report.num_rows, report.num_faulty) == (3, 1)
    assert "line 2" in report.examples[reason][0]


def test_damage_behind_the_header_is_seen_by_decoding(folder: Path) -> None:
    assert found(folder, [row("1", "cut.png")]) == {}
    assert found(folder, [row("1", "cut.png")], decode_images=True) == {"unreadable_image": 1}


def test_image_of_too_many_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pallava.data.check.MAX_PIXELS", 1199)
    assert found(folder, [row("1")]) == {"unreadable_image": 1}


def test_a_row_with_several_faults_counts_once(folder: Path) -> None:
    rows = [row("1", ["lost.png", "gone.png"], talk("What?", ""))] * 5
    report = check_training_file(write(folder, rows), folder)
    assert report.num_faulty == 5
    assert {key: count for key, count in report.faults.items() if count} == {
        "duplicate_id": 4,
        "missing_image": 5,
        "lost_marker": 5,
        "empty_answer": 5,
    }
    assert [example.split(":")[0] for example in report.examples["missing_image"]] == ["line 1", "line 2", "line 3"]


def test_text_over_the_room(folder: Path) -> None:
    tokenizer = str(tiny.save_parts(folder.parent / "parts")["llm"])
    rows = [row("1"), row("2", ["a.png"] * 2, talk("<image><image>\nWhat?", "gland " * 40))]
    room = {"tokenizer": tokenizer, "prompt_template": "qwen_chat", "num_visual_tokens": 10}
    report = check_training_file(write(folder, rows), folder, context_length=30, **room)
    assert report.faults["over_room"] == 1
    told = re.search(r"line 2: (\d+) tokens of text, and there is room for 10", report.examples["over_room"][0])
    assert told
    fits = int(told[1]) + 2 * 10
    for length, expected in ((fits, {}), (fits - 1, {"over_room": 1})):
        assert found(folder, rows, context_length=length, **room) == expected


def test_a_tokenizer_that_does_not_belong(folder: Path) -> None:
    parts, path = tiny.save_parts(folder.parent / "parts"), write(folder, [row("1")])

    def refusal(**options: Any) -> str:
        _open_room.cache_clear()
        with pytest.raises(PallavaError) as error:
            check_training_file(path, folder, tokenizer=parts["llm"], num_visual_tokens=10, **options)
        return str(error.value)

    assert "<|eot_id|>" in refusal(prompt_template="llama3_chat")
    config = parts["llm"] / "config.json"
    values = json.loads(config.read_text())
    assert check_training_file(path, folder, tokenizer=parts["llm"], num_visual_tokens=10).faults["over_room"] == 0
    config.write_text(json.dumps({"model_type": "pallava", "text_config": {**values, "vocab_size": 9}}))
    assert "below 9" in refusal(prompt_template="qwen_chat")
    own = {"AutoModelForCausalLM": "modeling_a.AForCausalLM"}
    config.write_text(json.dumps({**values, "model_type": "internlm2", "auto_map": own}))
    assert str(parts["llm"]) in refusal()
    config.write_text(json.dumps({**values, "auto_map": own}))  # transformers' own class opens it
    assert check_training_file(path, folder, tokenizer=parts["llm"], num_visual_tokens=10).num_rows == 1
    config.unlink()
    assert check_training_file(path, folder, tokenizer=parts["llm"], num_visual_tokens=10).num_rows == 1


def test_a_list_that_breaks_off_and_an_empty_file(folder: Path) -> None:
    path = write(folder, [row("1")])
    path.write_text(f"[{path.read_text()}, {{")
    report = check_training_file(path, folder)
    assert (report.num_rows, report.faults["malformed"]) == (2, 1)
    path.write_text("\n")
    assert check_training_file(path, folder).faults["malformed"] == 1


def test_report_does_not_depend_on_workers(folder: Path) -> None:
    images = ["a.png", "lost.png", "none.jpg", "cut.png"]
    path = write(folder, [row(str(n % 150), images[n % 4]) for n in range(200)])
    alone, together = (check_training_file(path, folder, decode_images=True, num_workers=count) for count in (1, 2))
    assert alone == together
    assert alone.faults["unreadable_image"] == 100
    assert alone.faults["duplicate_id"] == 50


def test_what_cannot_be_checked(folder: Path) -> None:
    path = write(folder, [row("1")])
    for arguments, options, message in [
        ((folder / "no.jsonl", folder), {}, r"no\.jsonl"),
        ((path, folder / "no"), {}, "is not a folder"),
        ((path, folder), {"tokenizer": "no/such/folder"}, "no/such/folder"),
        ((path, folder), {"num_workers": 0}, "at least 1, got 0"),
    ]:
        with pytest.raises(PallavaError, match=message):
            check_training_file(*arguments, **options)
    with pytest.raises(TypeError, match="context_lenght"):
        check_training_file(path, folder, context_lenght=30)
