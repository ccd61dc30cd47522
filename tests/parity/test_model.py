"""The whole model against the recorded numbers: alone, as a batch, padded on either side, saved and opened again."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from pallava.model import PALLaVAForConditionalGeneration, ScaleInvariantConnector, load_plip
from pallava.model.connectors import own_connector_keys
from pallava.model.encoders import patch_tokens
from pallava.model.versions import block_broken_bitsandbytes
from pallava.model.weights import PLIP_RENAMES, compare_keys, load_strictly, read_weights, rename_keys
from tests.tiny import golden

TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PALLaVAForConditionalGeneration:
    return golden.model(tmp_path_factory.mktemp("plip"))


def assert_logits(logits: Tensor, rows: list[dict[str, Tensor]], left: bool = False) -> None:
    for row, found in zip(rows, logits, strict=True):
        length = row["logits"].shape[1]
        found = found[-length:] if left else found[:length]
        torch.testing.assert_close(found, row["logits"][0], **TOLERANCE)


def test_plip_layers(tmp_path: Path) -> None:
    encoder = load_plip(golden.published_plip_folder(tmp_path))
    io = load_file(golden.GOLDEN / "plip_vision_io.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(patch_tokens(encoder, io["pixel_values"]), io["penultimate"][:, 1:], **TOLERANCE)
        torch.testing.assert_close(encoder(io["pixel_values"]).last_hidden_state, io["last"], **TOLERANCE)


@pytest.mark.parametrize("cross", [True, False])
def test_connector(cross: bool) -> None:
    connector = golden.connector(cross)
    io = load_file(golden.GOLDEN / f"connector_cross_{str(cross).lower()}_io.safetensors")
    with torch.no_grad():
        unmasked = connector(io["query"], io["tiles"])
        masked = connector(io["query"], io["tiles"], io["tile_mask"])
    torch.testing.assert_close(unmasked, io["out_unmasked"], **TOLERANCE)
    torch.testing.assert_close(masked, io["out_masked"], **TOLERANCE)


@pytest.mark.parametrize("index", range(golden.NUM_SAMPLES))
def test_each_sample_alone(model: PALLaVAForConditionalGeneration, index: int) -> None:
    row = golden.samples()[index]
    with torch.no_grad():
        visual_tokens = model.encode_images([row["tiles"]])
        out = model(row["input_ids"][None], pixel_values=[row["tiles"]], labels=row["labels"][None])
    torch.testing.assert_close(visual_tokens[0], row["visual_tokens"][0], **TOLERANCE)
    assert_logits(out.logits, [row])
    torch.testing.assert_close(out.loss, row["loss"][0], **TOLERANCE)


@pytest.mark.parametrize("left", [False, True])
def test_one_batch_of_all(model: PALLaVAForConditionalGeneration, left: bool) -> None:
    rows = golden.samples()
    with torch.no_grad():
        out = model(**golden.batch(rows, left))
    assert_logits(out.logits, rows, left)


def test_saved_and_opened_again(model: PALLaVAForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path)
    rows = golden.samples()
    with torch.no_grad():
        assert_logits(opened(**golden.batch(rows)).logits, rows)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> PALLaVAForConditionalGeneration:
    """The model with the recorded training checkpoint in it; its base language model lies in a folder."""
    block_broken_bitsandbytes()
    folder = tmp_path_factory.mktemp("adapted")
    base = golden.llm()
    base.save_pretrained(folder / "base")
    base.config._name_or_path = base.name_or_path = str(folder / "base")
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    llm = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=projections))
    state = read_weights(golden.GOLDEN / "stage_checkpoint.pth")
    lora = {key.removeprefix("llm."): value for key, value in state.items() if key.startswith("llm.")}
    load_strictly(llm, lora, source="golden", expected={k: v for k, v in llm.state_dict().items() if "lora_" in k})
    connector = golden.connector()
    load_strictly(connector, own_connector_keys(state), source="golden")
    encoder = load_plip(golden.published_plip_folder(folder / "plip"))
    return PALLaVAForConditionalGeneration.from_parts(llm, encoder, connector).eval()


def stage_rows() -> list[dict[str, Tensor]]:
    io = load_file(golden.GOLDEN / "stage_checkpoint_io.safetensors")
    return [{**row, "logits": io[f"logits_{i}"], "loss": io[f"loss_{i}"]} for i, row in enumerate(golden.samples())]


@pytest.mark.parametrize("left", [False, True])
def test_training_checkpoint(adapted: PALLaVAForConditionalGeneration, left: bool) -> None:
    rows = stage_rows()
    with torch.no_grad():
        assert_logits(adapted(**golden.batch(rows, left)).logits, rows, left)
        for row in rows:
            out = adapted(row["input_ids"][None], pixel_values=[row["tiles"]], labels=row["labels"][None])
            torch.testing.assert_close(out.loss, row["loss"][0], **TOLERANCE)


def test_adapter_beside_its_base_saved_and_opened_again(
    adapted: PALLaVAForConditionalGeneration, tmp_path: Path
) -> None:
    adapted.save_pretrained(tmp_path)
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path)
    assert not any("llm" in key for key in read_weights(tmp_path))  # the base is named, not copied
    rows = stage_rows()
    with torch.no_grad():
        assert_logits(opened(**golden.batch(rows)).logits, rows)


def published_keys(part: str) -> dict[str, Tensor]:
    shapes = json.loads((golden.GOLDEN / "published_keys_full_size.json").read_text())[part]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("part", "count"), [("connector_cross_true", 59_862_016), ("connector_cross_false", 45_678_592)]
)
def test_every_published_key_of_the_connector(part: str, count: int) -> None:
    with torch.device("meta"):
        connector = ScaleInvariantConnector.from_published(published_keys(part))
    assert sum(p.numel() for p in connector.parameters()) == count
    assert all(p.requires_grad for p in connector.parameters())
    assert connector.config.add_cross_attention is ("true" in part)


def test_every_published_key_of_plip() -> None:
    with torch.device("meta"):
        encoder = CLIPVisionModel(CLIPVisionConfig(patch_size=16))
    published = rename_keys(published_keys("plip_vision_vit_b_16"), PLIP_RENAMES)
    assert compare_keys(encoder.state_dict(), published) == {}
    assert sum(p.numel() for p in encoder.parameters()) == 85_799_424
