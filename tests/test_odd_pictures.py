"""Odd pictures are read as a person sees them, wherever they come in: the same as in plain RGB."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from pallava.cli import main
from pallava.evaluation.encoders.embeddings import EmbeddingCache, embed_images
from pallava.evaluation.encoders.load import load_encoder
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor, load_image_processor
from pallava.pretraining.pairs import write_pairs
from pallava.pretraining.trainer import PairDataset
from pallava.prompts import get_template
from pallava.tiling import normalize
from pallava.training.dataset import PALLaVADataset
from tests.tiny import golden
from tests.tiny.clips import write_hugging_face, write_open_clip
from tests.tiny.pictures import noise, write_odd_pictures, write_plain_pictures
from tests.tiny.training import save_parts


def through_pretraining(paths: list[Path], folder: Path) -> list[Tensor]:
    rows = [{"image": path.name, "caption": path.name} for path in paths]
    (folder / "pairs.json").write_text(json.dumps(rows))
    assert write_pairs(folder / "pairs.json", paths[0].parent, folder / "out") == (len(paths), {})
    table = PairDataset(
        str(folder / "out" / "pairs.tsv"),
        lambda image: torch.from_numpy(np.array(image)).float(),
        "filepath",
        "title",
        tokenizer=lambda texts: texts,
    )
    return [table[index][0] for index in range(len(paths))]


def through_training(paths: list[Path], folder: Path) -> list[Tensor]:
    parts = save_parts(folder)
    question = [{"from": "human", "value": "<image>\nwhat is shown ?"}, {"from": "gpt", "value": "necrosis"}]
    rows = [{"id": path.name, "image": path.name, "conversations": question} for path in paths]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = PALLaVADataset(
        data_path=str(folder / "rows.jsonl"),
        image_folder=str(paths[0].parent),
        tokenizer=AutoTokenizer.from_pretrained(parts["llm"]),
        image_processor=load_image_processor(parts["plip"]),
        prompt_template="qwen_chat",
        context_length=64,
        num_visual_tokens=4,
        num_proc=1,
        cache_dir=folder / "cache",
    )
    rows = [dataset[index] for index in range(len(paths))]
    return [normalize(row["pixel_values"], row["normalization"])[0] for row in rows]


def through_zero_shot(paths: list[Path], folder: Path) -> list[Tensor]:
    encoder = load_encoder(str(write_open_clip(folder / "plip")))
    return embedded(encoder, paths, folder)


def through_zero_shot_of_hugging_face(paths: list[Path], folder: Path) -> list[Tensor]:
    encoder = load_encoder(str(write_hugging_face(folder / "clip")))
    return embedded(encoder, paths, folder)


def embedded(encoder, paths: list[Path], folder: Path) -> list[Tensor]:
    found = embed_images(encoder, paths, EmbeddingCache(folder / "cache", encoder))
    assert not found.unreadable
    return list(found.vectors)


def through_chat(paths: list[Path], folder: Path) -> list[Tensor]:
    """What `pallava chat` gives to the model for each picture."""
    parts = save_parts(folder)
    golden.model(folder / "encoder").save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(parts["llm"])
    processor = PALLaVAProcessor(load_image_processor(parts["plip"]), tokenizer, get_template("qwen_chat"))
    processor.save_pretrained(folder / "model")
    seen: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PALLaVAForConditionalGeneration, "encode_images", noting(seen))
        for path in paths:
            words = ["--image", str(path), "--question", "what is shown ?", "--max-new-tokens", "1", "--device", "cpu"]
            assert main(["chat", str(folder / "model"), *words]) == 0
    return seen


def noting(seen: list[Tensor]) -> Callable:
    encode = PALLaVAForConditionalGeneration.encode_images

    def noted(model: PALLaVAForConditionalGeneration, images: list[Tensor]):
        seen.extend(images)
        return encode(model, images)

    return noted


WAYS = [through_pretraining, through_training, through_zero_shot, through_zero_shot_of_hugging_face, through_chat]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_odd_pictures_come_through_as_plain_ones(way: Callable, tmp_path: Path) -> None:
    shown = write_odd_pictures(tmp_path / "odd")
    plain = write_plain_pictures(shown, tmp_path / "plain")
    found, expected = [], []
    for paths, values in ((list(shown), found), (plain, expected)):
        folder = tmp_path / f"of_{paths[0].parent.name}"
        folder.mkdir()
        torch.manual_seed(0)
        values += way(paths, folder)
    for path, one, other in zip(shown, found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0, msg=path.name)
    assert (expected[0] - expected[1]).abs().max() > 1e-2, "what comes through does not tell pictures apart"


def test_what_is_compared_is_odd(tmp_path: Path) -> None:
    """Pillow alone, read without care, gives other pixels: else the comparison would show nothing."""
    for path, seen in write_odd_pictures(tmp_path).items():
        if path.name in ("alpha.png", "deep.tif", "deep.png", "turned.png"):
            with Image.open(path) as image:
                careless = np.asarray(image.convert("RGB"))
            assert not np.array_equal(careless, np.asarray(seen)), path.name


def test_a_picture_that_is_none_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise(40, 24).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:90])
    assert main(["chat", str(tmp_path), "--image", str(tmp_path / "cut.png"), "--question", "what ?"]) == 2
    assert "cut.png" in capsys.readouterr().err
