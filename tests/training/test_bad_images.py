"""Images that cannot be opened: which row takes the place of theirs, who counts them, and when they end a training."""

import errno
import json
import logging
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from pallava.errors import PallavaError
from pallava.model import load_image_processor
from pallava.training import dataset as dataset_module
from pallava.training.dataset import PALLaVADataset, collate
from pallava.training.hooks import bad_images
from pallava.training.hooks.bad_images import BadImagesHook
from tests.tiny.pictures import break_pictures, noise
from tests.tiny.training import save_parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    paths = save_parts(folder)
    return AutoTokenizer.from_pretrained(paths["llm"]), load_image_processor(paths["plip"])


def make_dataset(parts, folder, names, **options):
    """Write a row for each name, called by its number; pictures that do not exist are made."""
    (folder / "images").mkdir(exist_ok=True)
    question = [{"from": "human", "value": "<image>\nwhat is shown ?"}, {"from": "gpt", "value": "necrosis"}]
    rows = [{"id": str(number), "image": name, "conversations": question} for number, name in enumerate(names)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in {*names} - {"missing.png"}:
        if not (folder / "images" / name).exists():
            noise(40, 24).save(folder / "images" / name)
    tokenizer, image_processor = parts
    sizes = {"prompt_template": "qwen_chat", "context_length": 64, "num_visual_tokens": 4, "num_proc": 1}
    where = {"data_path": folder / "rows.jsonl", "image_folder": folder / "images", "cache_dir": folder / "cache"}
    return PALLaVADataset(tokenizer=tokenizer, image_processor=image_processor, **where, **sizes, **options)


def test_eight_ways_are_replaced_by_the_next_row_that_opens(parts, tmp_path):
    (tmp_path / "images").mkdir()
    reasons = break_pictures(tmp_path / "images")
    names = [name for bad in reasons for name in (bad, "sound.png")] + ["missing.png"]
    dataset = make_dataset(parts, tmp_path, names, on_bad_image="skip")
    for index, name in enumerate(names):
        row = dataset[index]
        if name == "sound.png":
            assert (row["id"], row["replaced"]) == (str(index), [])
            continue
        (replaced, *others) = row["replaced"]
        assert {key: replaced[key] for key in ("index", "id", "image")} == {
            "index": index,
            "id": str(index),
            "image": name,
        }
        assert reasons[name] in replaced["reason"]
        assert str(tmp_path) not in replaced["reason"]
        assert row["id"] == str(index + 1 if index < 16 else 1)  # at the end it begins anew: row 0 is bad, too
        assert [each["index"] for each in others] == ([] if index < 16 else [0])


def test_a_replacement_depends_on_the_row_alone(parts, tmp_path):
    names = ["missing.png", "missing.png", "a.png", "missing.png", "b.png", "c.png"]
    dataset = make_dataset(parts, tmp_path, names, on_bad_image="skip")
    expected = {0: "2", 1: "2", 2: "2", 3: "4", 4: "4", 5: "5"}
    for order in (range(6), reversed(range(6)), (3, 0, 3)):
        assert all(dataset[index]["id"] == expected[index] for index in order)
    batches = list(DataLoader(dataset, batch_size=3, num_workers=2, collate_fn=collate))
    assert [batch["data_samples"]["ids"] for batch in batches] == [["2", "2", "2"], ["4", "4", "5"]]
    places = [[each["index"] for each in batch["data_samples"]["replaced"]] for batch in batches]
    assert places == [[0, 1, 1], [3]]


def test_where_all_rows_are_bad_it_ends(parts, tmp_path):
    dataset = make_dataset(parts, tmp_path, ["missing.png"] * 5, on_bad_image="skip")
    with pytest.raises(PallavaError, match=r"5 rows .*row '2', 'missing.png'.*no such file"):
        dataset[2]


def test_a_replacement_is_given_up_beyond_the_budget(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "_TRIES", 2)
    dataset = make_dataset(parts, tmp_path, ["missing.png"] * 9 + ["a.png"], on_bad_image="skip", max_bad_images=0.3)
    with pytest.raises(PallavaError, match="images of 5 rows"):
        dataset[0]
    assert dataset[5]["id"] == "9"


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.ENOMEM])
def test_what_another_run_may_open_is_not_replaced(number, parts, tmp_path, monkeypatch):
    dataset = make_dataset(parts, tmp_path, ["a.png", "b.png"], on_bad_image="skip")

    def fail(*args, **options):
        raise OSError(number, "now and then")

    monkeypatch.setattr("pallava.images.Image.open", fail)
    with pytest.raises(PallavaError, match=r"row '0', image .*a.png"):
        dataset[0]


@pytest.mark.parametrize(("share", "budget"), [(0.0, 1), (0.001, 1), (0.29, 2), (0.3, 3), (1, 10)])
def test_the_budget_is_a_share_of_the_rows(share, budget, parts, tmp_path):
    assert make_dataset(parts, tmp_path, ["a.png"] * 10, max_bad_images=share).bad_image_budget == budget


@pytest.mark.parametrize("setting", [{"on_bad_image": "ignore"}, {"max_bad_images": 1.5}, {"max_bad_images": -1}])
def test_settings_that_do_not_exist(setting, parts, tmp_path):
    with pytest.raises(PallavaError, match="on_bad_image .*max_bad_images"):
        make_dataset(parts, tmp_path, ["a.png"], **setting)


def bad(index, reason="no such file"):
    return {"index": index, "id": f"row {index}", "image": f"{index}.png", "reason": reason}


class Rows(list):
    on_bad_image, max_bad_images, bad_image_budget = "skip", 0.03, 3


def make_runner(folder: Path, name: str, accumulative_counts: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        iter=0,
        max_iters=100,
        work_dir=folder,
        optim_wrapper=SimpleNamespace(_accumulative_counts=accumulative_counts),
        message_hub=MessageHub.get_instance(name),
        train_dataloader=SimpleNamespace(dataset=Rows(range(100))),
        logger=logging.getLogger(name),
    )


def see(hook, runner, *rows):
    hook.after_train_iter(runner, runner.iter, {"data_samples": {"ids": [], "replaced": list(rows)}})
    runner.iter += 1


def listed(folder):
    return [json.loads(line) for line in (folder / "bad_images.jsonl").read_text().splitlines()]


def test_each_row_counts_once(tmp_path, caplog):
    hook, runner = BadImagesHook(), make_runner(tmp_path, "once")
    for rows in ([bad(7), bad(3), bad(7)], [], [bad(3)], [bad(5, "is too large: 9 x 9")]):
        see(hook, runner, *rows)
    assert [each["index"] for each in listed(tmp_path)] == [3, 7, 5]
    with caplog.at_level("INFO"):
        hook.after_train(runner)
    assert "3 of 100 rows" in caplog.text
    assert "2 no such file, 1 is too large" in caplog.text
    with pytest.raises(PallavaError, match=r"4 of 100 rows .*0\.03 allows 3.*bad_images\.jsonl.*'9\.png'"):
        see(hook, runner, bad(9))
    assert [each["index"] for each in listed(tmp_path)] == [3, 7, 5, 9]


def test_the_processes_agree_at_the_end_of_a_step(tmp_path, monkeypatch):
    """What another process replaced ends this one, too, and only where both look."""
    hook, runner = BadImagesHook(), make_runner(tmp_path, "agree", accumulative_counts=2)
    monkeypatch.setattr(bad_images, "all_reduce", lambda count, op: count.fill_(4))
    monkeypatch.setattr(bad_images, "all_gather_object", lambda own: [own, [bad(index) for index in (9, 8, 7)]])
    see(hook, runner, bad(1))
    assert "bad_images" not in runner.message_hub.runtime_info
    with pytest.raises(PallavaError, match="4 of 100 rows"):
        see(hook, runner)
    assert [each["index"] for each in listed(tmp_path)] == [1, 7, 8, 9]


def test_the_counts_are_in_a_checkpoint_that_loads_safely(tmp_path):
    hook, runner = BadImagesHook(), make_runner(tmp_path, "saved")
    see(hook, runner, bad(1), bad(2))
    torch.save(runner.message_hub.state_dict(), tmp_path / "hub.pth")
    with torch.serialization.safe_globals([HistoryBuffer, ConfigDict]):
        state = torch.load(tmp_path / "hub.pth", weights_only=True)
    resumed = make_runner(tmp_path / "resumed", "resumed")
    resumed.work_dir.mkdir()
    resumed.message_hub.load_state_dict(state)
    hook = BadImagesHook()
    see(hook, resumed, bad(2), bad(3))
    assert Counter(each["index"] for each in listed(tmp_path / "resumed")) == {1: 1, 2: 1, 3: 1}


def test_nothing_is_done_where_bad_images_raise(tmp_path):
    runner = make_runner(tmp_path, "raise")
    runner.train_dataloader.dataset = [1, 2]  # a user's own has no such setting
    hook = BadImagesHook()
    see(hook, runner, bad(1))
    hook.after_train(runner)
    assert not list(tmp_path.iterdir())
