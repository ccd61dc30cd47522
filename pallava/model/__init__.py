"""The network in plain transformers; knows nothing of xtuner, data sets or commands.

Importing it makes transformers' `AutoConfig`, `AutoModelForImageTextToText`, `AutoProcessor` and `pipeline` open model
folders.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from pallava.model.configuration import PALLaVAConfig
from pallava.model.connectors import (
    ConnectorConfig,
    MLPConnector,
    MLPConnectorConfig,
    ScaleInvariantConnector,
    ScaleInvariantConnectorConfig,
    register_connector,
)
from pallava.model.encoders import load_encoder, load_image_processor, load_plip, register_encoder
from pallava.model.modeling import PALLaVAForConditionalGeneration
from pallava.model.processor import PALLaVAProcessor

__all__ = [
    "ConnectorConfig",
    "MLPConnector",
    "MLPConnectorConfig",
    "PALLaVAConfig",
    "PALLaVAForConditionalGeneration",
    "PALLaVAProcessor",
    "ScaleInvariantConnector",
    "ScaleInvariantConnectorConfig",
    "load_encoder",
    "load_image_processor",
    "load_plip",
    "register_connector",
    "register_encoder",
]

AutoConfig.register(PALLaVAConfig.model_type, PALLaVAConfig, exist_ok=True)
AutoModel.register(PALLaVAConfig, PALLaVAForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(PALLaVAConfig, PALLaVAForConditionalGeneration, exist_ok=True)
AutoProcessor.register(PALLaVAConfig, PALLaVAProcessor, exist_ok=True)
