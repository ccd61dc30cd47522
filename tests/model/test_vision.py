"""The encoder from each of its sources gives the same tokens."""

from pathlib import Path

import open_clip
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from pallava.errors import PallavaError
from pallava.model import load_image_processor, load_plip
from tests.tiny import golden

SIZES = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
PIXELS = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def last(encoder: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return encoder(PIXELS).last_hidden_state


@pytest.mark.parametrize("whole", [True, False])
def test_hugging_face_folders(tmp_path: Path, whole: bool) -> None:
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=SIZES)).eval()
    if whole:
        clip.save_pretrained(tmp_path)
    else:
        encoder = load_plip(golden.published_plip_folder(tmp_path / "plip"))
        encoder.save_pretrained(tmp_path)
    opened = load_plip(tmp_path)
    expected = clip.vision_model(PIXELS).last_hidden_state if whole else last(encoder)
    torch.testing.assert_close(last(opened), expected.detach())
    assert not opened.training


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clip_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_gelu: bool) -> None:
    vision_cfg = {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 16}
    text_cfg = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 4, "layers": 1}
    sizes = {"embed_dim": 16, "vision_cfg": vision_cfg, "text_cfg": text_cfg, "quick_gelu": quick_gelu}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: sizes if name == "tiny" else None)
    torch.manual_seed(0)
    clip = open_clip.CLIP(**sizes).eval()
    torch.save({"epoch": 3, "name": "tiny", "state_dict": clip.state_dict()}, tmp_path / "epoch_3.pt")
    encoder = load_plip(tmp_path / "epoch_3.pt", model_name="tiny")
    with torch.no_grad():
        expected = clip.visual(PIXELS)
        pooled = encoder(PIXELS).pooler_output @ clip.visual.proj
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    with pytest.raises(PallavaError, match="named 'other'"):
        load_plip(tmp_path / "epoch_3.pt", model_name="other")
    with pytest.raises(PallavaError, match="model_name='ViT-B-16'"):
        load_plip(tmp_path / "epoch_3.pt")


def test_preprocessing_of_a_folder_without_any_follows_its_image_size(tmp_path: Path) -> None:
    processor = load_image_processor(golden.published_plip_folder(tmp_path))
    assert processor.crop_size == {"height": 32, "width": 32}
    assert processor.image_mean[0] == pytest.approx(0.48145466)


def test_a_whole_clip_misses_no_layer(tmp_path: Path) -> None:
    folder = golden.published_plip_folder(tmp_path)
    state = torch.load(folder / "plip_80w_196token.bin", weights_only=True)
    state.pop("vision_model.encoder.layers.1.mlp.fc1.bias")
    torch.save(state, folder / "plip_80w_196token.bin")
    with pytest.raises(PallavaError, match="1 missing: vision_model.encoder.layers.1.mlp.fc1.bias"):
        load_plip(folder)
