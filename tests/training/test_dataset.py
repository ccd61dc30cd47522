import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor
from xtuner.dataset.samplers.length_grouped import LengthGroupedSampler
from xtuner.registry import BUILDER

from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.model import load_image_processor
from pallava.prompts import IMAGE_TOKEN_INDEX
from pallava.tiling import TileSpec, make_tiles
from pallava.training import dataset as dataset_module
from pallava.training.dataset import PALLaVADataset, _one_per_node_first
from tests.model.test_encoders import save_encoder

PROCESSOR = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@pytest.fixture
def files(tmp_path):
    """An image folder with a wide and a tall picture, and rows with none, one, two, and a missing one."""
    images = tmp_path / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for name, shape in (("wide.png", (20, 90, 3)), ("tall.png", (64, 40, 3))):
        Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(images / name)
    rows = [(["wide.png"], 1), (None, 0), (["wide.png", "tall.png"], 2), ("missing.png", 1)]
    lines = [
        {
            "id": index,
            "image": image,
            "conversations": [
                {"from": "human", "value": "<image>" * count + "\nWhat is it?"},
                {"from": "gpt", "value": "tissue"},
            ],
        }
        for index, (image, count) in enumerate(rows)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


@pytest.fixture
def dataset(files, smollm2_tokenizer):
    return PALLaVADataset(
        data_path=str(files / "train.jsonl"),
        image_folder=str(files / "images"),
        tokenizer=smollm2_tokenizer,
        image_processor=PROCESSOR,
        prompt_template="qwen_chat",
        context_length=64,
        num_visual_tokens=4,
        num_proc=1,
        cache_dir=files / "cache",
    )


def test_rows_carry_the_tiles_of_all_their_images(dataset, files):
    spec = TileSpec.from_image_processor(PROCESSOR)
    wide, tall = (make_tiles(open_image(files / "images" / name), spec) for name in ("wide.png", "tall.png"))
    assert len(dataset) == 4
    row = dataset[2]
    assert row["tiles_per_image"] == [len(wide), len(tall)]
    assert torch.equal(row["pixel_values"], torch.cat([wide, tall]))
    assert row["input_ids"].count(IMAGE_TOKEN_INDEX) == 2
    assert len(row["labels"]) == len(row["input_ids"])
    assert dataset[0]["tiles_per_image"] == [len(wide)]
    text = dataset[1]
    assert text["tiles_per_image"] == []
    assert text["pixel_values"].shape == (0, 3, 16, 16)


def test_lengths_count_visual_tokens_and_tell_text_apart(dataset):
    lengths = dataset.modality_length
    tokens = [len(row["input_ids"]) for row in dataset.rows]
    assert lengths == [tokens[0] + 3, -tokens[1], tokens[2] + 2 * 3, tokens[3] + 3]
    sampler = LengthGroupedSampler(dataset, 2, "modality_length", seed=0)
    assert sorted(sampler) == [0, 1, 2, 3]


def test_missing_image_names_row_and_path(dataset, files):
    with pytest.raises(PallavaError, match="row '3', image .*missing.png"):
        dataset[3]
    (files / "images" / "wide.png").write_bytes(b"not a picture")
    with pytest.raises(PallavaError, match="row '0', image .*wide.png"):
        dataset[0]


def test_it_pickles_small(dataset):
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 20_000  # neither tokenizer nor rows
    again = pickle.loads(pickled)[2]
    assert torch.equal(again["pixel_values"], dataset[2]["pixel_values"])


def test_it_is_built_from_a_config(dataset, files, smollm2_folder):
    config = {
        "type": "PALLaVADataset",
        "data_path": str(files / "train.jsonl"),
        "image_folder": str(files / "images"),
        "tokenizer": {"type": AutoTokenizer.from_pretrained, "pretrained_model_name_or_path": str(smollm2_folder)},
        "image_processor": {"type": CLIPImageProcessor, "size": PROCESSOR.size, "crop_size": PROCESSOR.crop_size},
        "prompt_template": dataset_module.PromptTemplate(name="mine", instruction="Q {input} A ").to_dict(),
        "num_visual_tokens": 4,
        "cache_dir": files / "cache",
    }
    built = BUILDER.build(config)
    assert len(built) == 4
    assert built[0]["input_ids"] != dataset[0]["input_ids"]


@pytest.mark.parametrize(("local_rank", "order"), [("0", ["work", "barrier"]), ("1", ["barrier", "work"])])
def test_the_first_process_of_a_node_tokenizes_first(local_rank, order, monkeypatch):
    done = []
    monkeypatch.setattr(dataset_module, "is_distributed", lambda: True)
    monkeypatch.setattr(dataset_module, "barrier", lambda: done.append("barrier"))
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert _one_per_node_first(lambda: done.append("work") or "result") == "result"
    assert done == order


def test_a_failure_on_the_first_process_lets_the_others_go(monkeypatch):
    done = []
    monkeypatch.setattr(dataset_module, "barrier", lambda: done.append("barrier"))

    def fail():
        raise PallavaError("no data")

    with pytest.raises(PallavaError, match="no data"):
        _one_per_node_first(fail)
    assert done == ["barrier"]


def test_as_many_visual_tokens_as_the_encoder_gives(files, smollm2_tokenizer, tmp_path):
    save_encoder("timm_folder", tmp_path / "encoder")
    part = dict(type=load_image_processor, source=str(tmp_path / "encoder"))
    options = dict(data_path=files / "train.jsonl", image_folder=files / "images", tokenizer=smollm2_tokenizer)
    with pytest.raises(PallavaError, match=r"num_visual_tokens must be 16 .*encoder.*got 196"):
        PALLaVADataset(image_processor=part, num_visual_tokens=196, **options)
    for given in (16, None):
        dataset = PALLaVADataset(image_processor=part, num_visual_tokens=given, cache_dir=tmp_path / "cache", **options)
        assert dataset.tile_spec.size == 32
        assert dataset.modality_length[0] == len(dataset[0]["input_ids"]) + 15  # the marker becomes 16 tokens
    with pytest.raises(PallavaError, match=r"num_visual_tokens is not given, and image_processor names no encoder"):
        PALLaVADataset(image_processor=PROCESSOR, **options)


def test_the_published_encoder_gives_196_visual_tokens(files, smollm2_tokenizer, tmp_path):
    (tmp_path / "plip").mkdir()
    described = {"model_type": "clip_vision_model", "hidden_size": 768, "image_size": 224, "patch_size": 16}
    (tmp_path / "plip" / "config.json").write_text(json.dumps(described))
    part = dict(type=load_image_processor, source=str(tmp_path / "plip"))
    options = dict(data_path=files / "train.jsonl", image_folder=files / "images", tokenizer=smollm2_tokenizer)
    dataset = PALLaVADataset(image_processor=part, cache_dir=tmp_path / "cache", **options)
    assert dataset.modality_length[0] == len(dataset[0]["input_ids"]) + 195
