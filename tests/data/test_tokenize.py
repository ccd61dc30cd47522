import copy
import json

import pytest
from PIL import Image
from transformers import AutoTokenizer

from pallava.cli import main
from pallava.data.check import check_training_file
from pallava.data.sources.files import RowDropped
from pallava.data.tokenize import prepare
from pallava.data.training_row import EncodingSettings, encode_row
from pallava.errors import PallavaError
from pallava.prompts import IGNORE_INDEX, IMAGE_TOKEN_INDEX


def row(question="<image>\nIs necrosis present?", answer="yes", image="a.png", **extra):
    conversations = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": 1, "image": image, "conversations": conversations, **extra}


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture(scope="module")
def settings(smollm2_tokenizer):
    return EncodingSettings.make(smollm2_tokenizer, "qwen_chat", context_length=64, num_visual_tokens=16)


@pytest.fixture
def run(smollm2_tokenizer, settings, tmp_path):
    def call(path, settings=settings, **options):
        return prepare(path, smollm2_tokenizer, settings, cache_dir=tmp_path / "cache", **options)

    return call


def test_rows_of_all_kinds_are_kept(run, tmp_path):
    rows = [
        row(),
        row(id="b", image=["a.png"], width=3),  # ids of two types, an extra key
        row(question="What does PAS stain?", answer="Glycogen.", image=None, width="4"),
        row(question="Same <image> or <image>?", image=["a.png", "b.png"]),
    ]
    prepared = run(write(tmp_path / "train.jsonl", rows))
    assert prepared.counts == {"read": 4, "kept": 4, "cut": 0, "dropped": {}}
    assert prepared.rows["id"][:] == ["1", "b", "1", "1"]
    assert prepared.rows["images"][:] == [["a.png"], ["a.png"], [], ["a.png", "b.png"]]
    assert [ids.count(IMAGE_TOKEN_INDEX) for ids in prepared.rows["input_ids"]] == [1, 1, 0, 2]
    text = len(prepared.rows[3]["input_ids"]) - 2
    assert prepared.rows[3]["length"] == text + 2 * 16


def test_what_cannot_be_trained_on_is_counted(run, tmp_path):
    rows = [
        row(),
        ["no", "object"],
        {"id": 1, "image": "a.png"},
        row(image=None),
        row(question="no marker"),
        row(image=3),
        row(answer=" "),
        row(answer=None),
        {"conversations": [{"from": "human", "value": "asked, not answered"}]},
        row(answer="word " * 100),
        row(question="<image>\n" + "word " * 100),
        row(question="<image>" * 4, image=["a.png"] * 4),
    ]
    counts = run(write(tmp_path / "train.json", rows)).counts
    assert counts["dropped"] == {
        "malformed": 4,
        "lost_marker": 2,
        "empty_answer": 1,
        "not_alternating": 1,
        "over_room": 2,
    }
    assert (counts["read"], counts["kept"], counts["cut"]) == (12, 2, 1)


def talk(*texts):
    conversations = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"image": "a.png", "conversations": conversations}


@pytest.mark.parametrize(
    "one",
    [
        row(),
        row(image=None),
        row(image="a\0.png"),
        row(image=0),
        row(image=["a.png", ""]),
        row(image="\ud800.png"),
        row(id="\ud800"),
        row(note=["\udcff"]),
        row(note="a \\\\\0"),
        row(note="a \\u0000"),
        row(answer="a gland \ud83d"),
        row(answer="a \0 gland"),
        row(answer="nan"),
        row(question="<image>\nNaN"),
        row(image=float("nan")),
        row(id=float("nan"), note=float("inf")),
        row(answer="\ufeffyes", question="\ufeff<image>\nWhat?", image="\ufeffa.png"),
        {"image": "a.png", "conversations": [{"from": "system", "value": "\0"}, *row()["conversations"]]},
        row(question="no marker"),
        row(answer=" "),
        row(answer=None),
        row(answer="<image>"),
        row(answer="word " * 100),
        row(question="<image>\n" + "word " * 100),
        row(question="<image>" * 4, image=["a.png"] * 4),
        talk("<image> asked"),
        talk("<image> asked", "answered", "asked again <image>"),
        talk("<image> asked", "answered", "asked again", ""),
        talk("<image> asked", "", "asked again", "answered"),
        {"image": "a.png", "conversations": [{"from": "gpt", "value": "<image>"}]},
        {"image": "a.png", "conversations": [{"from": "robot", "value": "<image>"}]},
        {"image": "a.png", "conversations": [{"from": "system", "value": "<image>"}]},
        {"image": "a.png"},
        [1],
    ],
)
def test_what_training_drops_the_check_reports(one, smollm2_folder, smollm2_tokenizer, settings, tmp_path):
    """With the same reason; and what has no fault is trained on as a whole."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    room = {"prompt_template": "qwen_chat", "context_length": 64, "num_visual_tokens": 16}
    file = write(tmp_path / "train.jsonl", [one])
    report = check_training_file(file, tmp_path, tokenizer=str(smollm2_folder), **room)
    reason, is_cut = "", False
    try:
        is_cut = encode_row(one, smollm2_tokenizer, settings)[2]
    except RowDropped as error:
        reason = error.reason
    assert not reason or (report.faults[reason], report.num_faulty) == (1, 1)
    assert reason or (report.faults["malformed"], report.faults["over_room"]) == (0, is_cut)


def test_marks_and_numbers_that_are_none_are_not_taught(smollm2_tokenizer, settings):
    plain, images, _ = encode_row(row(), smollm2_tokenizer, settings)
    marked = row(
        question="\ufeff<image>\nIs necrosis\ufeff present?", answer="yes\ufeff", image="\ufeffa.png", note=float("nan")
    )
    assert encode_row(marked, smollm2_tokenizer, settings) == (plain, images, False)


def test_the_first_dropped_row_of_each_reason_is_named(run, tmp_path):
    rows = [row(), row(answer="\ud83d"), row(image=None), row(answer="nan")]
    described = run(write(tmp_path / "train.jsonl", rows)).describe()
    assert all(text in described for text in ("2 dropped: malformed", "train.jsonl, line 2", "train.jsonl, line 3"))


def test_an_answer_is_cut_at_its_tail(smollm2_tokenizer, settings):
    whole, _, is_cut = encode_row(row(), smollm2_tokenizer, settings)
    assert not is_cut
    cut, _, is_cut = encode_row(row(answer="yes" + " indeed" * 100), smollm2_tokenizer, settings)
    assert is_cut
    assert len(cut.input_ids) == len(cut.labels) == 64 - 16 + 1  # the marker makes way for 16 visual tokens
    begin = next(i for i, label in enumerate(whole.labels) if label != IGNORE_INDEX)
    assert cut.input_ids[: begin + 1] == whole.input_ids[: begin + 1]
    assert cut.labels[begin:] == cut.input_ids[begin:]


def test_a_row_that_just_fits_is_whole(smollm2_tokenizer):
    row_ids = encode_row(row(), smollm2_tokenizer, EncodingSettings.make(smollm2_tokenizer, "qwen_chat"))[0].input_ids
    exact = EncodingSettings.make(smollm2_tokenizer, "qwen_chat", 16 + len(row_ids) - 1, 16)
    assert encode_row(row(), smollm2_tokenizer, exact)[0].input_ids == row_ids
    assert not encode_row(row(), smollm2_tokenizer, exact)[2]


def test_a_cut_later_turn_leaves_the_first(smollm2_tokenizer, settings):
    long = row()
    long["conversations"] += [{"from": "human", "value": "why " * 80}, {"from": "gpt", "value": "so"}]
    encoded, _, is_cut = encode_row(long, smollm2_tokenizer, settings)
    assert is_cut
    assert any(label != IGNORE_INDEX for label in encoded.labels)


def test_the_cache_is_used_and_follows_content_and_settings(run, tmp_path, monkeypatch, smollm2_tokenizer, settings):
    file = write(tmp_path / "train.jsonl", [row()])
    run(file)
    folders = set((tmp_path / "cache").iterdir())
    assert len(folders) == 1  # and nothing unfinished is left
    other = EncodingSettings.make(smollm2_tokenizer, "qwen_chat", 65, 16)
    run(file, settings=other)
    run(write(file, [row(), row()]))
    assert len(set((tmp_path / "cache").iterdir())) == 3
    monkeypatch.setattr("pallava.data.tokenize._write_prepared", lambda *a, **k: pytest.fail("tokenized again"))
    assert run(write(file, [row()])).counts["read"] == 1


def test_several_processes_give_the_same_rows(run, tmp_path, smollm2_tokenizer, settings):
    file = write(tmp_path / "train.jsonl", [row(id=i, answer=f"answer {i}") for i in range(7)])
    one = prepare(file, smollm2_tokenizer, settings, cache_dir=tmp_path / "one")
    two = prepare(file, smollm2_tokenizer, settings, cache_dir=tmp_path / "two", num_workers=2)
    assert one.rows[:] == two.rows[:]


def test_a_folder_is_read_in_order_of_names(run, tmp_path):
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    write(folder / "2.jsonl", [row(id="second")])
    write(folder / "1.json", [row(id="first")])
    write(folder / "below" / "0.jsonl", [row(id="not read")])
    (folder / "notes.txt").write_text("not a training file")
    assert run(folder).rows["id"][:] == ["first", "second"]


def test_tokenizer_hash_is_stable(smollm2_tokenizer, smollm2_folder):
    def hash_of(tokenizer):
        return EncodingSettings.make(tokenizer).tokenizer

    before = hash_of(smollm2_tokenizer)
    used = copy.deepcopy(smollm2_tokenizer)
    used(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert hash_of(used) == before
    assert hash_of(AutoTokenizer.from_pretrained(smollm2_folder)) == before
    used.add_tokens(["<new>"])
    assert hash_of(used) != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", '{"id": 1}\n{"id": \n', "line 2"),
        ("train.json", '[{"id": 1},\n {"id" 2}]', "line 2"),
        ("train.jsonl", "", "empty"),
        ("train.json", "[]", "no row"),
        ("train.jsonl", '{"id": 1}\n', "no row to train on.*1 dropped: malformed"),
        ("train.csv", "id", "train.csv"),
    ],
)
def test_unusable_file_is_one_sentence(name, content, message, run, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(PallavaError, match=message):
        run(tmp_path / name)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_missing_data_is_one_sentence(run, tmp_path):
    with pytest.raises(PallavaError, match=r"nowhere\.jsonl"):
        run(tmp_path / "nowhere.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PallavaError, match=r"folder' must hold \.json"):
        run(tmp_path / "folder")


def test_an_image_that_fills_the_context_is_an_error(smollm2_tokenizer):
    with pytest.raises(PallavaError, match="got 196"):
        EncodingSettings.make(smollm2_tokenizer, "qwen_chat", context_length=196, num_visual_tokens=196)


def test_command_writes_what_training_reads(tmp_path, smollm2_folder, smollm2_tokenizer, settings, run, capsys):
    data, out = write(tmp_path / "train.jsonl", [row(), row(image=None)]), tmp_path / "prepared"
    command = ["data", "prepare", str(data), str(out), "--tokenizer", str(smollm2_folder)]
    command += ["--prompt-template", "qwen_chat", "--context-length", "64", "--num-visual-tokens", "16"]
    assert main(command) == 0
    assert "1 of 2 rows kept" in capsys.readouterr().out
    assert run(out).rows[:] == run(data).rows[:]
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err

    for change, message in (
        ({"prompt_template": "internlm2_chat"}, "prompt_template qwen_chat, and this run has internlm2_chat"),
        ({"context_length": 128}, "context_length 64, and this run has 128"),
    ):
        values = {"prompt_template": "qwen_chat", "context_length": 64, "num_visual_tokens": 16, **change}
        with pytest.raises(PallavaError, match=message):
            run(out, settings=EncodingSettings.make(smollm2_tokenizer, **values))
    other = copy.deepcopy(smollm2_tokenizer)
    other.add_tokens(["<new>"])
    with pytest.raises(PallavaError, match="another tokenizer"):
        run(out, settings=EncodingSettings.make(other, "qwen_chat", 64, 16))
    (out / "pallava_prepare.json").unlink()
    with pytest.raises(PallavaError, match="pallava data prepare"):
        run(out)


def test_command_names_a_missing_tokenizer(tmp_path, capsys):
    data = write(tmp_path / "train.jsonl", [row()])
    missing = str(tmp_path / "llm")
    assert main(["data", "prepare", str(data), str(tmp_path / "out"), "--tokenizer", missing]) == 2
    assert missing in capsys.readouterr().err
