"""Another encoder in a published config: the line that names it is all that changes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.config import Config
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from xtuner.registry import BUILDER

from pallava.config_files import find_config
from pallava.training.dataset import collate
from pallava.training.optimizer import grouped_adamw
from tests.tiny import training as tiny

LENGTHS = {"num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
KINDS = {  # tokens of a tile, the encoder's width, heads of the connector
    "clip": (4, 24, 12),
    "dinov2": (16, 40, 10),
    "siglip": (9, 128, 2),
    "timm": (36, 36, 12),
}


def save_encoder(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    if kind == "clip":
        config = CLIPVisionConfig(hidden_size=24, intermediate_size=48, image_size=16, **LENGTHS)
        CLIPVisionModel(config).save_pretrained(folder)
    elif kind == "dinov2":
        Dinov2Model(Dinov2Config(hidden_size=40, mlp_ratio=2, image_size=32, **LENGTHS)).save_pretrained(folder)
    elif kind == "siglip":
        sizes = SiglipVisionConfig(hidden_size=128, intermediate_size=48, image_size=24, **LENGTHS)
        SiglipVisionModel(sizes).save_pretrained(folder)
    else:
        sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 4}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        described = {"architecture": "vit_tiny_patch16_224", "model_args": sizes, "pretrained_cfg": {"crop_pct": 1.0}}
        (folder / "config.json").write_text(json.dumps(described))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The published config on a small language model and a few rows, and where it names its encoder."""
    folder = tmp_path_factory.mktemp("swap")
    parts, data = tiny.save_parts(folder), tiny.save_data(folder, num_rows=3)
    own = {"llm_name_or_path": parts["llm"], "data_path": data["rows"], "image_folder": data["images"]}
    own |= {"prompt_template": "qwen_chat", "plip_path": folder / "encoder"}
    text = find_config("pallava_domain_alignment").read_text()
    for name, value in own.items():
        text, found = re.subn(rf"^{name} = .*$", f"{name} = {str(value)!r}", text, flags=re.M)
        assert found == 1
    return text, folder / "encoder"


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_swaps_the_encoder(kind: str, ready: tuple[str, Path], tmp_path: Path) -> None:
    text, named = ready
    save_encoder(kind, tmp_path / kind)
    assert text.count(repr(str(named))) == 1
    (tmp_path / "config.py").write_text(text.replace(str(named), str(tmp_path / kind)))
    Config.fromfile(tmp_path / "config.py").dump(tmp_path / "dumped.py")  # as a run reads and keeps it
    config = Config.fromfile(tmp_path / "dumped.py")
    config.train_dataloader.dataset.update(num_proc=1, cache_dir=str(tmp_path / "cache"))
    dataset: Any = BUILDER.build(config.train_dataloader.dataset)
    torch.manual_seed(0)
    model = BUILDER.build(config.model)
    tokens, width, heads = KINDS[kind]
    sizes = model.connector.config
    assert (sizes.visual_hidden_size, sizes.num_attention_heads) == (width, heads)
    rows = [dataset[index] for index in range(2)]
    assert dataset.modality_length[:2] == [len(row["input_ids"]) - 1 + tokens for row in rows]
    assert train_a_step(model, rows, config.optim_wrapper.optimizer)
    assert model.network.config.num_visual_tokens == tokens


def train_a_step(model: Any, rows: list[dict[str, Any]], settings: dict[str, Any]) -> bool:
    """Whether the connector's weights, and none of the encoder's, are others afterwards."""
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = grouped_adamw(model.parameters(), **{k: v for k, v in settings.items() if k != "type"})
    loss = model(**collate(rows), mode="loss")["loss"]
    loss.backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    return bool(loss.isfinite()) and "connector" in changed and "visual_encoder" not in changed
