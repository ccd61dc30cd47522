"""The network in plain transformers; knows nothing of xtuner, data sets or commands.

Importing it makes transformers' `AutoConfig`, `AutoModelForImageTextToText`, `AutoProcessor` and `pipeline` open model
folders.
"""
# ruff: noqa: F401 - the names that other parts import from here

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from pallava.devices import find_device
from pallava.model.connectors import (
    ConnectorConfig,
    MLPConnector,
    MLPConnectorConfig,
    ScaleInvariantConnector,
    ScaleInvariantConnectorConfig,
    register_connector,
)
from pallava.model.encoders import load_encoder, load_image_processor, load_plip, register_encoder
from pallava.model.loading import find_folder, for_answering
from pallava.model.modeling import PALLaVAConfig, PALLaVAForConditionalGeneration
from pallava.model.processor import Image, PALLaVAProcessor, list_images
from pallava.model.versions import register_by_name
from pallava.model.weights import read_json
from pallava.prompts import check_vocabulary

AutoConfig.register(PALLaVAConfig.model_type, PALLaVAConfig, exist_ok=True)
AutoModel.register(PALLaVAConfig, PALLaVAForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(PALLaVAConfig, PALLaVAForConditionalGeneration, exist_ok=True)
AutoProcessor.register(PALLaVAConfig, PALLaVAProcessor, exist_ok=True)
register_by_name(PALLaVAForConditionalGeneration)


def load(
    folder: str | os.PathLike[str], device: str = "auto", **options: Any
) -> tuple[PALLaVAForConditionalGeneration, PALLaVAProcessor]:
    """Open a model folder for answering: in evaluation mode, on a device, with an adapter merged into its base.

    The encoder and the connector are in the language model's type, unless `torch_dtype` is given. Use
    `PALLaVAForConditionalGeneration.from_pretrained` for a model that is to be trained or saved.

    Args:
        folder: Output of ``pallava convert``, or its name on the Hugging Face hub.
        device: Name of the device; "auto" is this process's GPU, or else the CPU.
        **options: Options of `PALLaVAForConditionalGeneration.from_pretrained`, such as `base_llm`, `load_in_4bit`
            and `trust_remote_code`.

    Raises:
        PallavaError: The device is not available, or the folder cannot be opened.
    """
    device = find_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    path = find_folder(folder, options)
    if options.get("load_in_4bit") or read_json(path / "config.json").get("base_quantization"):
        options.setdefault("device_map", {"": device})  # where weights are quantized
    model = PALLaVAForConditionalGeneration.from_pretrained(path, **options)
    processor = PALLaVAProcessor.from_pretrained(path)
    check_vocabulary(processor.tokenizer, model.llm.get_input_embeddings().num_embeddings)
    model = for_answering(model.to(device), keep_types="torch_dtype" in options or "dtype" in options)  # type: ignore[arg-type]
    return model, processor


def ask(
    model: PALLaVAForConditionalGeneration,
    processor: PALLaVAProcessor,
    image: Image | Sequence[Image] | None,
    question: str,
    *,
    history: Sequence[tuple[str, str]] = (),
    **options: Any,
) -> str:
    """Answer a question about an image, or several; greedily by default.

    Args:
        model: The first that `load` returns.
        processor: The second.
        image: An image in any form that `pallava.open_image` takes, a list of them, or None.
        question: Text with or without ``<image>``.
        history: Earlier questions with their answers; the images belong to the first.
        **options: Options of transformers' `generate`, such as `max_new_tokens`.

    Raises:
        PallavaError: An image cannot be opened.
    """
    parts: list[dict[str, Any]] = [{"type": "image", "image": each} for each in list_images(image)]
    messages: list[dict[str, Any]] = []
    for each, reply in (*history, (question, None)):
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": each}]})
        messages.append({"role": "assistant", "content": reply})
        parts = []
    return answer(model, processor, [messages[:-1]], **options)[0]


@torch.inference_mode()
def answer(
    model: PALLaVAForConditionalGeneration,
    processor: PALLaVAProcessor,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    **options: Any,
) -> list[str]:
    """Answer a batch of conversations, as `PALLaVAProcessor.apply_chat_template` takes them, greedily by default.

    The options are those of transformers' `generate`.
    """
    inputs = processor.apply_chat_template(conversations, tokenize=True, return_dict=True)
    ids = model.generate(**inputs, **options)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
