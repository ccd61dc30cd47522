"""A connector of one's own, as a user writes it outside the package: an MLP over the overview's tokens."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from pallava.model import ConnectorConfig, register_connector


class MyConnectorConfig(ConnectorConfig):
    """Sizes: every field has a default, and what is given is kept."""

    model_type = "my_mlp"

    def __init__(self, width: int = 1024, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    @property
    def reads_tiles(self) -> bool:
        """Tiles are neither cut nor encoded."""
        return False

    def describe(self) -> str:
        """Return the sentence for the model card."""
        return f"MLP of width {self.width} over the overview's tokens"


@register_connector
class MyConnector(PreTrainedModel):
    """Built from its configuration alone."""

    config_class = MyConnectorConfig

    def __init__(self, config: MyConnectorConfig):
        super().__init__(config)
        self.norm = nn.LayerNorm(config.visual_hidden_size)
        self.into = nn.Linear(config.visual_hidden_size, config.width)
        self.projector = nn.Linear(config.width, config.llm_hidden_size)

    def forward(self, overview: Tensor, tiles: Tensor, tile_mask: Tensor) -> Tensor:
        """Turn overviews (I, T, D) into visual tokens (I, T, H)."""
        return self.projector(self.into(self.norm(overview)).relu())
