"""Encoders of every kind, at tiny size with random weights: the tokens read, the folders, the messages."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from pallava.errors import PallavaError
from pallava.model import (
    PALLaVAForConditionalGeneration,
    ScaleInvariantConnector,
    ScaleInvariantConnectorConfig,
    load_encoder,
    load_image_processor,
)
from pallava.model.encoders import count_tokens, num_tokens, patch_tokens
from pallava.model.versions import block_broken_bitsandbytes
from pallava.tiling import TileSpec
from tests.tiny import golden

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
# Class and register tokens, layer scale, packed SwiGLU: what UNI2 and Virchow2 have.
TIMM_ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4, "reg_tokens": 2}
TIMM_ARGS |= {"init_values": 1e-1, "mlp_layer": "SwiGLUPacked", "act_layer": "silu", "dynamic_img_size": True}
NAME = "vit_tiny_patch16_224"
NUM_LAYERS = 3
KINDS = ("clip", "open_clip", "dinov2", "dinov2_registers", "siglip", "timm_folder", "timm_name")
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": NUM_LAYERS, "width": 24, "head_width": 6, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


def save_encoder(kind: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Writes an encoder as its makers do; what `load_encoder` is given to open it."""
    torch.manual_seed(0)
    if kind == "clip":
        CLIPVisionModel(CLIPVisionConfig(intermediate_size=48, **SIZES)).save_pretrained(folder)
    elif kind == "open_clip":
        return save_open_clip(folder)
    elif kind == "dinov2":
        Dinov2Model(Dinov2Config(mlp_ratio=2, **SIZES)).save_pretrained(folder)
    elif kind == "dinov2_registers":
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=3, **SIZES)).save_pretrained(folder)
    elif kind == "siglip":
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = SiglipConfig(vision_config={"intermediate_size": 48, **SIZES}, text_config=text)
        SiglipModel(config).save_pretrained(folder)
    else:
        return save_timm(kind, folder)
    return str(folder), {}


def save_open_clip(folder: Path) -> tuple[str, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(OPEN_CLIP))
    torch.save({"epoch": 1, "state_dict": open_clip.CLIP(**OPEN_CLIP).state_dict()}, folder / "epoch_1.pt")
    return str(folder / "epoch_1.pt"), {"model_name": str(folder / "model.json")}


def save_timm(kind: str, folder: Path) -> tuple[str, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    classes = {**TIMM_ARGS, "mlp_layer": timm.layers.SwiGLUPacked}
    state = timm.create_model(NAME, num_classes=5, **classes).state_dict()
    if kind == "timm_name":
        torch.save(state, folder / "pytorch_model.bin")
        return f"timm:{NAME}", {"checkpoint": str(folder / "pytorch_model.bin"), **TIMM_ARGS}
    save_file(state, folder / "model.safetensors")
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    description = {"architecture": NAME, "model_args": TIMM_ARGS, "pretrained_cfg": preprocessing}
    (folder / "config.json").write_text(json.dumps(description))
    return str(folder), {}


def hidden_states(kind: str, folder: Path, pixels: torch.Tensor) -> list[torch.Tensor]:
    """All hidden states by the makers' own code, patches alone."""
    if kind.startswith("timm"):
        classes = {**TIMM_ARGS, "mlp_layer": timm.layers.SwiGLUPacked}
        model = timm.create_model(NAME, num_classes=5, **classes).eval()
        torch.manual_seed(0)
        model.load_state_dict(timm.create_model(NAME, num_classes=5, **classes).state_dict())
        tokens = model.forward_intermediates(pixels, output_fmt="NLC", intermediates_only=True)
        return [torch.empty(0), *tokens]
    if kind == "open_clip":
        clip = open_clip.CLIP(**OPEN_CLIP).eval()
        clip.load_state_dict(torch.load(folder / "epoch_1.pt")["state_dict"])
        tokens = clip.visual.forward_intermediates(pixels, intermediates_only=True, output_fmt="NLC")
        return [torch.empty(0), *tokens["image_intermediates"]]
    makers: dict[str, tuple[Any, int]] = {
        "clip": (CLIPVisionModel, 1),
        "dinov2": (Dinov2Model, 1),
        "dinov2_registers": (Dinov2WithRegistersModel, 4),
        "siglip": (SiglipModel, 0),
    }
    maker, prefix = makers[kind]
    model = maker.from_pretrained(folder).eval()
    model = model.vision_model if kind == "siglip" else model
    return [state[:, prefix:] for state in model(pixels, output_hidden_states=True).hidden_states]


def pixels_of(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.linspace(-2, 2, count * 3 * size * size).view(count, 3, size, size).sin()


def connector_for(encoder: Any) -> ScaleInvariantConnector:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    return ScaleInvariantConnector(
        ScaleInvariantConnectorConfig(visual_hidden_size=encoder.config.hidden_size, llm_hidden_size=16, **sizes)
    ).eval()


def whole_model(kind: str, folder: Path) -> PALLaVAForConditionalGeneration:
    source, options = save_encoder(kind, folder)
    encoder = load_encoder(source, **options)
    return PALLaVAForConditionalGeneration.from_parts(golden.llm(), encoder, connector_for(encoder)).eval()


@pytest.mark.parametrize("layer", [-2, -1, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_makers_own(kind: str, layer: int, tmp_path: Path) -> None:
    source, options = save_encoder(kind, tmp_path / "encoder")
    encoder = load_encoder(source, **options)
    with torch.no_grad():
        tokens = patch_tokens(encoder, pixels_of(), layer)
        expected = hidden_states(kind, tmp_path / "encoder", pixels_of())[layer]
    assert tokens.shape == (2, num_tokens(encoder.config), encoder.config.hidden_size) == (2, 16, 24)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)
    assert not encoder.training


@pytest.mark.parametrize("kind", KINDS)
def test_later_layers_do_not_run(kind: str, tmp_path: Path) -> None:
    source, options = save_encoder(kind, tmp_path / "encoder")
    encoder = load_encoder(source, **options)
    (layers,) = (
        m for m in encoder.modules() if isinstance(m, torch.nn.ModuleList | torch.nn.Sequential) and len(m) == 3
    )
    ran: list[int] = []
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, i=index: ran.append(i))
    patch_tokens(encoder, pixels_of(), -2)
    assert ran == [0, 1]
    assert len(layers) == NUM_LAYERS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_the_whole_model_round_trips(kind: str, form: str, tmp_path: Path) -> None:
    model = whole_model(kind, tmp_path / "encoder")
    if form == "adapter":
        golden.llm().save_pretrained(tmp_path / "llm")
        model = with_adapter(model, tmp_path / "llm")
    model.save_pretrained(tmp_path / "model")
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert type(opened.visual_encoder) is type(model.visual_encoder)
    assert opened.config.num_visual_tokens == 16
    pixels = pixels_of(3)
    with torch.no_grad():
        torch.testing.assert_close(opened.encode_images(pixels), model.encode_images(pixels), atol=1e-5, rtol=0)
    assert opened.state_dict().keys() == model.state_dict().keys()


def with_adapter(model: PALLaVAForConditionalGeneration, llm_folder: Path) -> PALLaVAForConditionalGeneration:
    block_broken_bitsandbytes()
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_pretrained(llm_folder)
    llm = get_peft_model(llm, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    return PALLaVAForConditionalGeneration.from_parts(llm, model.visual_encoder, model.connector).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_encoder_computes_no_gradient(kind: str, tmp_path: Path) -> None:
    model = whole_model(kind, tmp_path / "encoder")
    model.visual_encoder.requires_grad_(False)
    model.encode_images(pixels_of(3)).sum().backward()
    assert all(p.grad is None for p in model.visual_encoder.parameters())
    assert any(p.grad is not None for p in model.connector.parameters())
    model.visual_encoder.requires_grad_(True)
    model.encode_images(pixels_of(3)).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.visual_encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind: str, tmp_path: Path) -> None:
    source, options = save_encoder(kind, tmp_path / "encoder")
    encoder = load_encoder(source, **options)
    grads = []
    for switch in ("gradient_checkpointing_disable", "gradient_checkpointing_enable"):
        reentrant = {"gradient_checkpointing_kwargs": {"use_reentrant": False}} if switch.endswith("enable") else {}
        getattr(encoder, switch)(**reentrant)
        encoder.zero_grad()
        patch_tokens(encoder.train(), pixels_of()).square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    torch.testing.assert_close(grads[0], grads[1])


def test_tiles_follow_the_encoder(tmp_path: Path) -> None:
    source, _ = save_encoder("timm_folder", tmp_path / "timm")
    spec = TileSpec.from_image_processor(load_image_processor(source))
    assert spec == TileSpec(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resample=2)
    options = {key: TIMM_ARGS[key] for key in ("img_size", "patch_size")}
    named = TileSpec.from_image_processor(load_image_processor(f"timm:{NAME}", **options))
    assert named == TileSpec(32, (0.5,) * 3, (0.5,) * 3)
    source, _ = save_encoder("siglip", tmp_path / "siglip")
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(source)
    assert TileSpec.from_image_processor(load_image_processor(source)) == TileSpec(32, (0.5,) * 3, (0.5,) * 3)
    source, _ = save_encoder("clip", tmp_path / "clip")
    assert load_image_processor(source).crop_size == {"height": 32, "width": 32}


def test_dinov2_takes_the_tiles_of_its_preprocessing(tmp_path: Path) -> None:
    """Its weights are made for 518 pixels, its preprocessing gives 224."""
    source, _ = save_encoder("dinov2", tmp_path)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24}).save_pretrained(source)
    encoder = load_encoder(source)
    assert TileSpec.from_image_processor(load_image_processor(source)).size == encoder.config.image_size == 24
    pixels = pixels_of(size=24)
    with torch.no_grad():
        tokens = patch_tokens(encoder, pixels, -1)
        expected = hidden_states("dinov2", tmp_path, pixels)[-1]
    assert tokens.shape[1] == num_tokens(encoder.config) == 9
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


def test_a_timm_model_of_a_hub_keeps_what_the_hub_added(tmp_path: Path) -> None:
    """A hub and a folder are read by the same code of timm; the saved model needs neither."""
    save_timm("timm_folder", tmp_path / "hub")
    plain = {key: value for key, value in TIMM_ARGS.items() if key not in ("mlp_layer", "act_layer")}
    state = timm.create_model(NAME, num_classes=0, **plain).state_dict()
    save_file(state, tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text(
        json.dumps({"architecture": NAME, "model_args": plain, "pretrained_cfg": {"crop_pct": 1.0}})
    )
    encoder = load_encoder(f"timm:local-dir:{tmp_path / 'hub'}")
    torch.testing.assert_close(encoder.timm_model.state_dict(), state)
    encoder.save_pretrained(tmp_path / "saved")
    (tmp_path / "hub" / "config.json").unlink()
    model = type(encoder).from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(patch_tokens(model, pixels_of()), patch_tokens(encoder, pixels_of()))


def test_timm_weights_take_another_tile_size_as_timm_does_it(tmp_path: Path) -> None:
    source, options = save_encoder("timm_name", tmp_path)
    encoder = load_encoder(source, **{**options, "img_size": 48})
    classes = {**TIMM_ARGS, "mlp_layer": timm.layers.SwiGLUPacked, "img_size": 48}
    file = {"file": options["checkpoint"]}
    theirs = timm.create_model(NAME, num_classes=0, pretrained=True, pretrained_cfg_overlay=file, **classes)
    torch.testing.assert_close(encoder.timm_model.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert num_tokens(encoder.config) == 36
    del options["img_size"]  # nobody asked for another size than the weights'
    with pytest.raises(PallavaError, match="1 reshaped: pos_embed"):
        load_encoder(source, **options)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("timm:no_such_vit", {}, "timm has no model named 'no_such_vit'"),
        ("timm:resnet18", {"pretrained": False}, "square grid of patch tokens"),
        (f"timm:{NAME}", {"pretrained": False, "nonsense": 1}, "timm cannot build .*nonsense"),
        ("nowhere", {}, "'nowhere' does not exist"),
    ],
)
def test_what_is_no_encoder(source: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(PallavaError, match=said):
        load_encoder(source, **options)


def test_a_folder_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "beit"}')
    with pytest.raises(PallavaError, match="clip_vision_model, dinov2.*'beit'"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "timm_folder"])
def test_every_weight_is_accounted_for(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source, _ = save_encoder(kind, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    dropped = next(key for key in state if key.endswith("1.mlp.fc1.bias"))
    save_file({key: value for key, value in state.items() if key != dropped}, tmp_path / "model.safetensors")
    with pytest.raises(PallavaError, match=f"1 missing: {dropped}"):
        load_encoder(source)


def test_tiles_of_another_size_and_layers_that_are_none(tmp_path: Path) -> None:
    source, options = save_encoder("siglip", tmp_path)
    encoder = load_encoder(source, **options)
    with pytest.raises(PallavaError, match="32 pixels wide.*got 48"):
        patch_tokens(encoder, pixels_of(size=48))
    with pytest.raises(PallavaError, match="vision_feature_layer must be -4 to 3.*got 4"):
        patch_tokens(encoder, pixels_of(), 4)


def test_the_processor_of_a_whole_model_keeps_the_tiles(tmp_path: Path) -> None:
    source, _ = save_encoder("timm_folder", tmp_path / "encoder")
    load_image_processor(source).save_pretrained(tmp_path / "processor")
    again = CLIPImageProcessor.from_pretrained(tmp_path / "processor")
    expected = TileSpec.from_image_processor(load_image_processor(source))
    assert TileSpec.from_image_processor(again) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_counted_without_weights(kind: str, tmp_path: Path) -> None:
    source, options = save_encoder(kind, tmp_path)
    for file in (*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")):
        file.unlink()
    assert count_tokens(source, **options) == 16


def test_a_checkpoint_of_open_clip_without_its_name(tmp_path: Path) -> None:
    source, options = save_encoder("open_clip", tmp_path)
    for opener in (load_encoder, load_image_processor, count_tokens):
        with pytest.raises(PallavaError, match=r"epoch_1\.pt.*model_name|model name"):
            opener(source)
        with pytest.raises(PallavaError, match="does not exist|must be a folder"):
            opener("nowhere.pt", **options)
