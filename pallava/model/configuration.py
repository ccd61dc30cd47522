"""The configuration of the whole model, which its folder keeps in ``config.json``."""

from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, PretrainedConfig

from pallava.model.connector import ScaleInvariantConnectorConfig


class PALLaVAConfig(PretrainedConfig):
    """Configuration of the whole model.

    Args:
        text_config: The language model's configuration, or its dictionary.
        vision_config: The encoder's.
        connector_config: The connector's.
        vision_feature_layer: Which hidden states of the encoder the connector reads.
        base_llm: Name or path of the language model, where the folder holds an adapter beside it.
    """

    model_type = "pallava"
    sub_configs = {
        "text_config": AutoConfig,
        "vision_config": CLIPVisionConfig,
        "connector_config": ScaleInvariantConnectorConfig,
    }

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        vision_config: CLIPVisionConfig | dict[str, Any] | None = None,
        connector_config: ScaleInvariantConnectorConfig | dict[str, Any] | None = None,
        vision_feature_layer: int = -2,
        base_llm: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(text_config, PretrainedConfig):
            values = dict(text_config or {})
            text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        self.text_config = text_config
        self.vision_config = _as_config(CLIPVisionConfig, vision_config)
        self.connector_config = _as_config(ScaleInvariantConnectorConfig, connector_config)
        self.vision_feature_layer = vision_feature_layer
        self.base_llm = base_llm
        super().__init__(**kwargs)

    @property
    def num_visual_tokens(self) -> int:
        """How many tokens of the language model one image takes."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2


def _as_config(kind: type[PretrainedConfig], value: PretrainedConfig | dict[str, Any] | None) -> Any:
    return value if isinstance(value, PretrainedConfig) else kind(**(value or {}))
