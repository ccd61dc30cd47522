"""The configuration of the whole model, which its folder keeps in ``config.json``."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from pallava.model.connectors import ConnectorConfig, make_connector_config
from pallava.model.encoders import encoder_config, num_tokens
from pallava.tiling import MAX_TILES


class PALLaVAConfig(PretrainedConfig):
    """Configuration of the whole model.

    Args:
        text_config: Configuration of the language model; its `model_type` is Llama's by default.
        vision_config: Configuration of the encoder; its `model_type` is CLIP's by default.
        connector_config: Configuration of the connector; its `model_type` is the published one's by default.
        vision_feature_layer: Index of the encoder's hidden states that the connector reads.
        base_llm: Name or path of the language model, if the folder holds an adapter to it.
        encoder_source: Where the encoder came from, which may hold the text tower that belongs to it; the folder
            itself does not need it.
        connector_class: Import path of the connector's class, if it does not come with pallava.

    Raises:
        PallavaError: The kind of encoder or connector is not registered.
    """

    model_type = "pallava"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig, "connector_config": AutoConfig}

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        connector_config: ConnectorConfig | dict[str, Any] | None = None,
        vision_feature_layer: int = -2,
        base_llm: str | None = None,
        encoder_source: str | None = None,
        connector_class: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(text_config, PretrainedConfig):
            values = dict(text_config or {})
            text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        self.text_config = text_config
        self.vision_config: Any = encoder_config(vision_config)
        if not isinstance(connector_config, PretrainedConfig):
            connector_config = make_connector_config(connector_config or {}, connector_class)
        self.connector_config: Any = connector_config
        self.vision_feature_layer = vision_feature_layer
        self.base_llm = base_llm
        self.encoder_source = encoder_source
        self.connector_class = connector_class
        super().__init__(**kwargs)

    @property
    def num_visual_tokens(self) -> int:
        """Largest number of visual tokens of one image."""
        return self.connector_config.num_visual_tokens(num_tokens(self.vision_config), MAX_TILES)
