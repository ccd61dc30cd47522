"""Training files: what a row holds, what is left out and why, the same bytes from any number of workers."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pallava.data import training_file
from pallava.data.training_file import REASONS, read_prompts, write_training_file
from pallava.errors import PallavaError
from pallava.prompts import CAPTION_PROMPTS

PROMPTS = ("Describe it.", "What is it?", "Name the tissue.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    Image.new("L", (5, 5)).save(folder / "sub" / "b.jpg")
    return folder


def write(folder: Path, records: list, **options) -> tuple[list, training_file.TrainingFileSummary]:
    source, output = folder.parent / "pairs.json", folder.parent / "out" / "train.jsonl"
    source.write_text(json.dumps(records), encoding="utf-8")
    options.setdefault("prompts", PROMPTS)
    summary = write_training_file(source, output, image_folder=folder, **options)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]], summary


def pair(image: str = "a.png", caption: str = "Glands.") -> dict:
    return {"image": image, "caption": caption}


def test_row_holds_what_training_reads(folder: Path):
    rows, summary = write(folder, [pair(caption=" Glandé\n🔬 \ud800"), pair("./sub/../sub/b.jpg")])
    assert [row["id"] for row in rows] == ["pairs-00000000", "pairs-00000001"]
    assert [row["image"] for row in rows] == ["a.png", "sub/b.jpg"]
    human, answer = rows[0]["conversations"]
    assert answer == {"from": "gpt", "value": "Glandé\n🔬 ?"}
    assert human["from"] == "human"
    assert human["value"].replace("<image>", "").strip("\n") in PROMPTS
    assert (summary.num_records, summary.num_written) == (2, 2)
    assert summary.left_out == dict.fromkeys(REASONS, 0)


def test_prompts_and_orders_are_drawn_evenly_and_by_seed(folder: Path):
    def questions(seed: int) -> list[str]:
        rows, _ = write(folder, [pair()] * 600, seed=seed)
        assert len({row["id"] for row in rows}) == 600
        return [row["conversations"][0]["value"] for row in rows]

    first = questions(0)
    counts = Counter(first)
    assert set(counts) == {text for p in PROMPTS for text in (f"<image>\n{p}", f"{p}\n<image>")}
    assert min(counts.values()) > 60
    assert questions(0) == first
    assert sum(a != b for a, b in zip(questions(1), first, strict=True)) > 300


def test_number_of_workers_does_not_change_a_byte(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training_file, "_BATCH", 4)
    for i in range(100):
        (folder / f"{i}.png").symlink_to("a.png")
    records = [pair(f"{i}.png", "" if i % 7 == 0 else f"Caption {i}.") for i in range(130)]
    outcomes = []
    for num_workers in (1, 3):
        _, summary = write(folder, records, num_workers=num_workers)
        outcomes.append(((folder.parent / "out" / "train.jsonl").read_bytes(), summary))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1].left_out["missing"] == 26


@pytest.mark.posix
def test_each_reason_is_counted_and_has_its_position(folder: Path):
    outside = folder.parent / "secret.png"
    Image.new("RGB", (2, 2)).save(outside)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "empty.png").touch()
    (folder / "page.png").write_text("<html>")
    os.mkfifo(folder / "pipe.png")
    Image.new("1", (400, 50)).save(folder / "large.png")
    bad = {
        "missing": ["none.png", "a.png/b.png", "dangling.png", "x" * 300],
        "unreadable": ["empty.png", "page.png", "sub", "pipe.png"],
        "too_large": ["large.png"],
        "outside_folder": ["../secret.png", str(outside), ".."],
        "malformed": ["", "a\0.png", "\ud800.png", None, 3, ["a.png"]],
    }
    records = [pair(image) for images in bad.values() for image in images]
    records += [pair(caption=""), pair(caption=" \n"), pair(caption=None), pair(caption=5)]
    records += [{"image": "a.png"}, {"caption": "Glands."}, "a.png", None, [], pair()]
    rows, summary = write(folder, records, max_pixels=19_999)
    assert [row["id"] for row in rows] == [f"pairs-{len(records) - 1:08d}"]
    assert summary.left_out == {
        "missing": 4,
        "unreadable": 4,
        "too_large": 1,
        "empty_caption": 3,
        "outside_folder": 3,
        "malformed": 12,
    }
    assert summary.examples["unreadable"][0].startswith("record 5 (line 1, column ")
    assert "400 x 50 pixels, more than 19999" in summary.examples["too_large"][0]
    assert all(0 < len(messages) <= 3 for messages in summary.examples.values())
    assert json.loads(json.dumps(summary.to_dict()))["num_written"] == 1


def test_damage_behind_the_header_is_found_where_pictures_are_decoded(folder: Path):
    whole = Image.effect_noise((40, 40), 60)
    for name in ("cut.png", "cut.jpg"):
        whole.save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])
    records = [pair(), pair("cut.png"), pair("cut.jpg"), pair("none.png")]
    assert len(write(folder, records)[0]) == 3
    rows, summary = write(folder, records, decode_images=True)
    assert [row["image"] for row in rows] == ["a.png"]
    assert (summary.left_out["unreadable"], summary.left_out["missing"]) == (2, 1)


def test_an_image_of_just_the_limit_stays(folder: Path):
    assert len(write(folder, [pair()], max_pixels=48)[0]) == 1
    with pytest.raises(PallavaError, match=r"no row .* 1 records .* 1 too_large"):
        write(folder, [pair()], max_pixels=47)


def test_absolute_names_inside_the_folder_become_relative(folder: Path):
    link = folder.parent / "linked_images"
    link.symlink_to(folder)
    rows, _ = write(link, [pair(str(folder / "a.png")), pair(str(link / "sub/b.jpg")), pair("a.png")])
    assert [row["image"] for row in rows] == ["a.png", "sub/b.jpg", "a.png"]


def test_folder_whose_name_begins_alike_is_outside(folder: Path):
    other = folder.parent / "images_too"
    other.mkdir()
    Image.new("RGB", (2, 2)).save(other / "a.png")
    _, summary = write(folder, [pair("../images_too/a.png"), pair()])
    assert summary.left_out["outside_folder"] == 1


@pytest.mark.parametrize("content", ['[{"image": "a.png", "caption": "x"}, {]', "[]", '[{"image": "a.png"}]'])
def test_failure_leaves_the_old_output_and_no_rubbish(folder: Path, content: str):
    source, output = folder.parent / "pairs.json", folder.parent / "train.jsonl"
    source.write_text(content)
    output.write_text("old")
    with pytest.raises(PallavaError, match=r"record 2, line 1, column|the 0 records|lacks 'caption'"):
        write_training_file(source, output, image_folder=folder)
    assert output.read_text() == "old"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["images", "pairs.json", "train.jsonl"]


def test_arguments_that_cannot_work(folder: Path):
    source = folder.parent / "pairs.jsonl"
    source.write_text(json.dumps(pair()))
    output = folder.parent / "o.jsonl"
    for message, out, options in [
        ("pairs.jsonl' is not a folder", output, {"image_folder": source}),
        ("None", output, {"image_folder": None}),
        ("images' is a folder", folder, {}),
        ("the same file", folder / ".." / "pairs.jsonl", {}),
        ("at least 1, got 0", output, {"num_workers": 0}),
        ("prompts", output, {"prompts": ()}),
        ("weights.*pairs.jsonl", output, {"weights": {"pairs": 2}}),
    ]:
        with pytest.raises(PallavaError, match=message):
            write_training_file(source, out, **{"image_folder": folder, **options})
    with pytest.raises(PallavaError, match="No such file"):
        write_training_file(folder / "no.json", output, image_folder=folder)
    assert source.read_text() == json.dumps(pair())


@pytest.mark.parametrize(
    ("caption", "reason"),
    [(float("nan"), "malformed"), ("nan", "empty_caption"), ("a\0b", "malformed"), ("\ufeff \ufeff", "empty_caption")],
)
def test_captions_that_are_none_are_left_out(folder: Path, caption: object, reason: str):
    rows, summary = write(folder, [pair(), pair(caption=caption), pair(caption="a\ufeff b\ufeff")])
    assert summary.left_out[reason] == sum(summary.left_out.values()) == 1
    assert rows[1]["conversations"][1]["value"] == "a b"


def test_prompts_file(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffDescribe it.\r\n\n  What is it?  \n", encoding="utf-8")
    assert read_prompts(path) == ("Describe it.", "What is it?")
    for content, message in [("A.\nShow <image>\n", "line 2: <image>"), (" \n", "prompts.txt")]:
        path.write_text(content)
        with pytest.raises(PallavaError, match=message):
            read_prompts(path)
    with pytest.raises(PallavaError, match="cannot read"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_record_that_is_left_out_is_listed(folder: Path, num_workers: int):
    records = [pair(), *(pair(f"{number}.png") for number in range(600)), pair(caption=" "), 7, pair()]
    path = folder.parent / "lists" / "left_out.jsonl"
    _, summary = write(folder, records, left_out=path, num_workers=num_workers)
    listed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [each["position"].partition(" (")[0] for each in listed] == [f"record {n}" for n in range(2, 604)]
    assert Counter(each["reason"] for each in listed) == {"missing": 600, "empty_caption": 1, "malformed": 1}
    assert listed[-1]["detail"].endswith("got int")
    assert len(summary.examples["missing"]) == 3
    assert [each.name for each in path.parent.iterdir()] == ["left_out.jsonl"]


def test_the_list_of_what_is_left_out_is_there_where_no_row_is(folder: Path):
    path = folder.parent / "left_out.jsonl"
    with pytest.raises(PallavaError, match="no row to write"):
        write(folder, [pair("none.png")], left_out=path)
    assert json.loads(path.read_text())["reason"] == "missing"
    for wrong, message in ((folder, "is a folder"), (folder.parent / "pairs.json", "the same file")):
        with pytest.raises(PallavaError, match=message):
            write(folder, [pair()], left_out=wrong)


GOLDEN = {
    0: "81dca57557dbd8b55139695920a1b07a9be43c022b0a5db8ddc1009c0c5dffbe",
    7: "55c7f649188f6aebb3ac9b7aedbcee0ca55fc7a977d02d7f31ada496160a4808",
}


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("seed", GOLDEN)
def test_bytes_are_those_of_the_first_version(folder: Path, seed: int, num_workers: int):
    """The hashes were recorded from `tools/dataformat.py` before it and `data instruct` became one function."""
    write(folder, golden_records(), prompts=CAPTION_PROMPTS, seed=seed, num_workers=num_workers)
    assert hashlib.sha256((folder.parent / "out" / "train.jsonl").read_bytes()).hexdigest() == GOLDEN[seed]


def golden_records() -> list:
    captions = ["Glands.", " Glandé\n🔬 \ud800 ", "\u200bzero width\u200b", "<image> in it", "a" * 5000, "", None, 5]
    images = ["a.png", "./sub/../sub/b.jpg", "none.png", "../a.png", "a\0.png", 3]
    records = [pair(image, caption) for image in images for caption in captions] * 12
    return [*records, None, [], "a.png", {"image": "a.png"}, {"caption": "x"}, {**pair(), "other": 1}]
