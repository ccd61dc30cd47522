import json
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, PreTrainedModel, SiglipImageProcessor
from xtuner.dataset.samplers.length_grouped import LengthGroupedSampler
from xtuner.registry import BUILDER, MAP_FUNC

from pallava.config_files import find_config
from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.model import load_image_processor
from pallava.model.connectors import ConnectorConfig, MLPConnector, build_connector
from pallava.prompts import IMAGE_TOKEN_INDEX
from pallava.tiling import TileSpec, make_tiles, normalize
from pallava.training import dataset as dataset_module
from pallava.training.dataset import PALLaVADataset, _one_per_node_first, check_connectors, collate
from pallava.training.hooks.config import TrainingConfigHook
from pallava.training.model import PALLaVAModel
from tests.model.test_encoders import save_encoder
from tests.tiny import my_base
from tests.tiny.training import save_tokenizer

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
    assert torch.equal(normalize(row["pixel_values"], row["normalization"]), torch.cat([wide, tall]))
    assert row["pixel_values"].nbytes * 4 == wide.nbytes + tall.nbytes
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


def test_an_image_of_rows_near_each_other_is_decoded_once(dataset, monkeypatch):
    """Also twice in a row; but only a few are kept."""
    opened, expected = [], dataset[0]["pixel_values"].clone()
    monkeypatch.setattr(dataset_module, "open_image", lambda path: opened.append(path.name) or open_image(path))
    monkeypatch.setattr(dataset_module, "_NUM_KEPT", 1)
    dataset._kept.clear()
    for index in (0, 0, 2, 0):
        dataset[index]["pixel_values"].zero_()  # of the row alone
    assert opened == ["wide.png", "tall.png", "wide.png"]
    assert torch.equal(dataset[0]["pixel_values"], expected)
    assert len(opened) == 3


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


def test_the_template_is_the_tokenizers(files, smollm2_tokenizer, dataset):
    sizes = {"num_visual_tokens": 4, "num_proc": 1, "cache_dir": files / "other"}
    where = {"data_path": files / "train.jsonl", "image_folder": files / "images", "image_processor": PROCESSOR}
    built = PALLaVADataset(tokenizer=smollm2_tokenizer, **where, **sizes)
    assert built[0]["input_ids"] == dataset[0]["input_ids"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_template": "llama3_chat"}, "<|eot_id|>"),
        ({"image_processor": SiglipImageProcessor()}, "SiglipImageProcessor"),
        ({"tokenizer": my_base.MyTokenizer}, "MyTokenizer of its own code"),
    ],
)
def test_parts_that_no_folder_could_hold_are_refused_before_tokenizing(change, message, files, smollm2_tokenizer):
    if "tokenizer" in change:
        change = {"tokenizer": my_base.MyTokenizer(tokenizer_object=smollm2_tokenizer.backend_tokenizer)}
    options = {"tokenizer": smollm2_tokenizer, "image_processor": PROCESSOR, "prompt_template": "qwen_chat"}
    where = {"data_path": files / "train.jsonl", "image_folder": files / "images", "cache_dir": files / "cache"}
    with pytest.raises(PallavaError, match=re.escape(message)):
        PALLaVADataset(**where, **{**options, **change}, num_visual_tokens=4)
    assert not (files / "cache").exists()


@pytest.mark.parametrize("num_extra", [0, 1])
def test_a_tokenizer_with_too_many_tokens_stops_before_the_first_step(num_extra, tmp_path):
    num_tokens = save_tokenizer(tmp_path, ["blue"] * num_extra)
    tokenizer = {"type": "load_tokenizer", "pretrained_model_name_or_path": str(tmp_path)}
    llm = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(num_tokens - num_extra, 2))
    runner = SimpleNamespace(
        model=SimpleNamespace(module=SimpleNamespace(llm=llm)),  # as DeepSpeed and DDP wrap it
        cfg=Config({"train_dataloader": {"dataset": {"tokenizer": tokenizer}}}),
    )
    if not num_extra:
        TrainingConfigHook().before_train(runner)
        return
    with pytest.raises(PallavaError, match=f"below {num_tokens - 1}.*blue"):
        TrainingConfigHook().before_train(runner)


@pytest.mark.parametrize(
    ("variables", "order"),
    [
        ({"LOCAL_RANK": "0"}, ["work", "barrier"]),
        ({"LOCAL_RANK": "1"}, ["barrier", "work"]),
        ({"LOCAL_RANK": "0", "SLURM_LOCALID": "0"}, ["work", "barrier"]),
        ({"LOCAL_RANK": "0", "SLURM_LOCALID": "1"}, ["barrier", "work"]),  # each process sees one card, number 0
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, ["barrier", "work"]),  # torchrun as one task of a node
    ],
)
def test_the_first_process_of_a_node_tokenizes_first(variables, order, monkeypatch):
    done = []
    monkeypatch.setattr(dataset_module, "is_distributed", lambda: True)
    monkeypatch.setattr(dataset_module, "barrier", lambda: done.append("barrier"))
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
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
    with pytest.raises(PallavaError, match="num_visual_tokens .*image_processor"):
        PALLaVADataset(image_processor=PROCESSOR, **options)


def test_the_published_encoder_gives_196_visual_tokens(files, smollm2_tokenizer, tmp_path):
    (tmp_path / "plip").mkdir()
    described = {"model_type": "clip_vision_model", "hidden_size": 768, "image_size": 224, "patch_size": 16}
    (tmp_path / "plip" / "config.json").write_text(json.dumps(described))
    part = dict(type=load_image_processor, source=str(tmp_path / "plip"))
    options = dict(data_path=files / "train.jsonl", image_folder=files / "images", tokenizer=smollm2_tokenizer)
    dataset = PALLaVADataset(image_processor=part, cache_dir=tmp_path / "cache", **options)
    assert dataset.modality_length[0] == len(dataset[0]["input_ids"]) + 195


class TwoTokensConfig(ConnectorConfig):
    model_type = "two_tokens"

    def num_visual_tokens(self, tokens_per_tile, max_tiles):
        return 2


class TwoTokens(PreTrainedModel):
    config_class = TwoTokensConfig


def config_with(model_connector, dataset_connector, tmp_path):
    save_encoder("timm_folder", tmp_path / "encoder")
    part = {"type": load_image_processor, "source": str(tmp_path / "encoder")}
    dataset = {"type": PALLaVADataset, "image_processor": part, "connector": dataset_connector}
    model = {"type": PALLaVAModel, "connector": model_connector}
    return Config({"model": model, "train_dataloader": {"dataset": dataset}})


PUBLISHED = {"type": build_connector, "num_hidden_layers": 6, "num_attention_heads": None}
NO_TILES = {**PUBLISHED, "add_cross_attention": False}


@pytest.mark.parametrize(
    ("of_model", "of_dataset", "facts"),
    [
        (NO_TILES, PUBLISHED, "reads_tiles is False and True"),
        (PUBLISHED, NO_TILES, "reads_tiles is True and False"),
        ({"type": MLPConnector}, None, "reads_tiles is False and True"),
        (PUBLISHED, {"type": TwoTokens}, "16 and 2 visual tokens"),
    ],
)
def test_two_connectors_in_a_config_are_refused_before_the_first_step(of_model, of_dataset, facts, tmp_path):
    config = config_with(of_model, of_dataset, tmp_path)
    with pytest.raises(PallavaError, match=rf"model\.connector.*train_dataloader\.dataset\.connector.*{facts}"):
        TrainingConfigHook().before_run(SimpleNamespace(cfg=config, work_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["add_cross_attention=False", "kind=pallava_mlp"])
@pytest.mark.parametrize("part", ["model", "train_dataloader.dataset"])
def test_an_option_that_changes_one_of_the_two_connectors_is_refused(part, setting, tmp_path):
    config = Config.fromfile(find_config("pallava_domain_alignment"))
    save_encoder("timm_folder", tmp_path / "encoder")
    name, value = setting.split("=")
    options = {f"{part}.connector.{name}": False if value == "False" else value}
    config.merge_from_dict({**options, "train_dataloader.dataset.image_processor.source": str(tmp_path / "encoder")})
    with pytest.raises(PallavaError, match="reads_tiles"):
        TrainingConfigHook().before_run(SimpleNamespace(cfg=config, work_dir=tmp_path))


@pytest.mark.parametrize(
    ("of_model", "of_dataset"),
    [(PUBLISHED, {**PUBLISHED, "num_hidden_layers": 2}), (PUBLISHED, None), (NO_TILES, {"type": MLPConnector})],
)
def test_connectors_with_the_same_tiles_and_tokens_may_differ(of_model, of_dataset, tmp_path):
    check_connectors(config_with(of_model, of_dataset, tmp_path).to_dict())


def test_a_config_without_our_dataset_may_leave_the_connector_out():
    check_connectors({})
    check_connectors({"model": {"type": PALLaVAModel, "connector": NO_TILES}, "train_dataloader": None})


def encoded_row(length, tiles_per_image):
    tiles = sum(tiles_per_image)
    return {
        "id": f"row {length}",
        "input_ids": list(range(1, length + 1)),
        "labels": [-100, *range(2, length + 1)],
        "pixel_values": torch.full((tiles, 3, 2, 2), float(length)),
        "tiles_per_image": tiles_per_image,
        "replaced": [{"id": f"bad {length}", "image": "bad.png", "reason": "empty"}] if length == 4 else [],
    }


def test_batch_is_padded_on_the_right_and_keeps_the_order_of_images():
    batch = collate([encoded_row(2, [3]), encoded_row(4, []), encoded_row(3, [2, 4])])
    assert set(batch) == {"data", "data_samples"}
    assert batch["data_samples"] == {
        "ids": ["row 2", "row 4", "row 3"],
        "replaced": [{"id": "bad 4", "image": "bad.png", "reason": "empty"}],
    }
    assert BaseDataPreprocessor()(batch)["data_samples"] == batch["data_samples"]
    data = batch["data"]
    assert data["input_ids"].tolist() == [[1, 2, 0, 0], [1, 2, 3, 4], [1, 2, 3, 0]]
    assert data["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert data["labels"].tolist() == [[-100, 2, -100, -100], [-100, 2, 3, 4], [-100, 2, 3, -100]]
    assert data["tiles_per_image"].tolist() == [3, 2, 4]
    assert data["pixel_values"][:, 0, 0, 0].tolist() == [2.0] * 3 + [3.0] * 6
    assert "normalization" not in data  # of pixels that are not bytes


def test_batch_without_images_has_empty_ones():
    data = collate([encoded_row(2, []), encoded_row(1, [])])["data"]
    assert data["pixel_values"].shape == (0, 3, 2, 2)
    assert data["tiles_per_image"].shape == (0,)
    assert data["tiles_per_image"].dtype == data["input_ids"].dtype == torch.long


def test_collate_is_registered():
    assert MAP_FUNC.get("collate") is collate
