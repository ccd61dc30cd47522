"""The configuration of the whole model, which its folder keeps in ``config.json``."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from pallava.model.connector import ScaleInvariantConnectorConfig
from pallava.model.encoders import encoder_config, num_tokens


class PALLaVAConfig(PretrainedConfig):
    """Configuration of the whole model.

    Args:
        text_config: The language model's configuration, or its dictionary.
        vision_config: The encoder's; its `model_type` tells which kind, CLIP unless it says so.
        connector_config: The connector's.
        vision_feature_layer: Which hidden states of the encoder the connector reads.
        base_llm: Name or path of the language model, where the folder holds an adapter beside it.
        encoder_source: Where the encoder was taken from, which may hold the text tower that belongs to it; the folder
            itself does not need it.
    """

    model_type = "pallava"
    sub_configs = {
        "text_config": AutoConfig,
        "vision_config": AutoConfig,
        "connector_config": ScaleInvariantConnectorConfig,
    }

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        connector_config: ScaleInvariantConnectorConfig | dict[str, Any] | None = None,
        vision_feature_layer: int = -2,
        base_llm: str | None = None,
        encoder_source: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(text_config, PretrainedConfig):
            values = dict(text_config or {})
            text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        self.text_config = text_config
        self.vision_config: Any = encoder_config(vision_config)
        if not isinstance(connector_config, PretrainedConfig):
            connector_config = ScaleInvariantConnectorConfig(**(connector_config or {}))
        self.connector_config = connector_config
        self.vision_feature_layer = vision_feature_layer
        self.base_llm = base_llm
        self.encoder_source = encoder_source
        super().__init__(**kwargs)

    @property
    def num_visual_tokens(self) -> int:
        """How many tokens of the language model one image takes."""
        return num_tokens(self.vision_config)
