"""One rule for links inside a folder of images: every command follows them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from pallava import clean, write_training_file
from pallava.data.check import check_training_file
from pallava.evaluation.answers.items import EvaluateOptions
from pallava.evaluation.answers.questions import read_labelled
from pallava.training.dataset import PALLaVADataset


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folder `fat` with a file, a linked file, and a linked folder and a link to itself."""
    elsewhere = tmp_path / "disk" / "more"
    folder = tmp_path / "images" / "fat"
    for path in (elsewhere / "b.png", tmp_path / "disk" / "c.png", folder / "a.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((50, 40), 60).save(path)
    (folder / "c.png").symlink_to(tmp_path / "disk" / "c.png")
    (folder / "more").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    return tmp_path / "images"


NAMES = ["fat/a.png", "fat/c.png", "fat/more/b.png"]


def test_every_command_follows_them(images: Path, tmp_path: Path, smollm2_tokenizer: Any) -> None:
    pairs = tmp_path / "images" / "pairs.json"
    pairs.write_text(json.dumps([{"image": name, "caption": f"Many glands {name}."} for name in NAMES]))
    rows = tmp_path / "rows.jsonl"
    summary = write_training_file(pairs, rows, image_folder=images)
    assert summary.num_written == 3, summary.left_out
    assert check_training_file(rows, images, decode_images=True).num_faulty == 0
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    options = {"prompt_template": "qwen_chat", "num_visual_tokens": 4, "num_proc": 1, "cache_dir": tmp_path / "cache"}
    data = PALLaVADataset(rows, images, smollm2_tokenizer, processor, **options)
    assert len([data[index]["pixel_values"] for index in range(len(data))]) == 3
    clean([f"pairs={images}"], tmp_path / "clean", filters=["image"])
    assert json.loads((tmp_path / "clean" / "summary.json").read_text())["num_kept"] == 3


def test_folders_of_classes_follow_them(images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "disk" / "more" / "d.png")
    (images / "tumor").symlink_to(tmp_path / "disk" / "more")
    found = read_labelled(images, "", EvaluateOptions()).items
    names = [*NAMES, "fat/more/d.png", "tumor/b.png", "tumor/d.png"]
    assert [item.id for item in found] == [*NAMES[:2], *names[2:]]
