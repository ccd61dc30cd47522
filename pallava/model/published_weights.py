"""Published weights to the model folder: from a file, a folder, or still inside an archive."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pallava.errors import PallavaError
from pallava.io.archives import unpack
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor, load_image_processor
from pallava.model.loading import loading_errors, open_tokenizer
from pallava.model.published import (
    PUBLISHED_ALPHA,
    PUBLISHED_HEADS,
    PUBLISHED_WIDTH,
    PublishedWeights,
    build_published,
    describe_weights,
    find_lora,
    is_published_folder,
    read_published,
)
from pallava.prompts import get_template

PUBLISHED_TEMPLATE = "llama3_chat"
_GZIP, _TAR, _TAR_AT = b"\x1f\x8b", b"ustar", 257
_ARCHIVES = (".tar", ".tgz", ".gz")


def is_archive(path: Path) -> bool:
    """Whether a file is, or is named like, an archive; PyTorch's own zip is none."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_TAR_AT + len(_TAR))
    return head.startswith(_GZIP) or head[_TAR_AT:] == _TAR or path.suffix in _ARCHIVES


@contextmanager
def unpacked(path: Path, beside: Path) -> Iterator[Path]:
    """A path itself, or what an archive holds: unpacked beside the output, and removed afterwards.

    Raises:
        PallavaError: The archive is damaged, or a member would leave the folder.
    """
    if not is_archive(path):
        yield path
        return
    folder = beside.with_name(f".{beside.name}.{os.getpid()}.{path.name}")
    try:
        unpack([path], folder)
        yield _only_entry(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _only_entry(folder: Path) -> Path:
    """Goes into folders that hold one thing, as the published archives do; what macOS adds does not count."""
    inside = [path for path in folder.iterdir() if not path.name.startswith("._") and path.name != "__MACOSX"]
    if len(inside) != 1 or is_published_folder(folder):
        return folder
    return _only_entry(inside[0]) if inside[0].is_dir() else inside[0]


def build_from_published(
    path: Path,
    out: Path,
    *,
    llm: str | None,
    visual_encoder: str | None,
    merge: bool,
    dtype: torch.dtype | None,
    lora_alpha: float | None,
    connector_heads: int | None,
    prompt_template: str | None,
    tell: Callable[[str], None],
) -> tuple[PALLaVAForConditionalGeneration, PALLaVAProcessor]:
    """Opens published weights beside a base language model and an encoder.

    Args:
        path: Weights: a file, a DeepSpeed folder, ``projector/`` and ``llm_adapter/``, or an archive of one of them.
        out: What will be written; archives are unpacked beside it.
        llm: Folder or hub name of the base language model.
        visual_encoder: Source of the encoder, an archive of one too; default: ``plip/`` beside the weights.
        merge: Whether the base language model's weights are needed.
        dtype: Of the base language model's weights; default: as they are stored.
        lora_alpha: Where no ``adapter_config.json`` tells it; default: twice the rank, as published.
        connector_heads: Where no ``config.json`` tells them; default: 12, as published.
        prompt_template: What the model was trained with; default: ``llama3_chat``, as published.
        tell: Is given what was found, line by line.

    Returns:
        The network, and its processor.

    Raises:
        PallavaError: A part is not named, cannot be read safely or does not fit.
    """
    with unpacked(path, out) as source:
        weights = read_published(source)
        encoder = visual_encoder or weights.encoder
        if llm is None or encoder is None:
            raise PallavaError(
                f"No config beside {path}: give the one it was trained with, by --config; published weights, which "
                "have none, need --llm (the base language model) and --visual-encoder (the folder plip)."
            )
        for line in describe_weights(weights.state):
            tell(line)
        alpha, heads = _alpha(weights, lora_alpha, tell), _heads(weights, connector_heads, tell)
        with unpacked(Path(encoder), out) as opened:
            opened_source = str(opened) if opened != Path(encoder) else str(encoder)  # or timm: and its name
            processor = _processor(opened_source, llm, prompt_template, tell)
            network = build_published(
                weights,
                llm,
                opened_source,
                lora_alpha=alpha,
                num_attention_heads=heads,
                dtype=dtype,
                with_base=merge or find_lora(weights.state) is None,
            )
    return network, processor


def _alpha(weights: PublishedWeights, given: float | None, tell: Callable[[str], None]) -> float:
    lora = find_lora(weights.state)
    if lora is None:
        return 1.0
    alpha = given or weights.lora_alpha or float(PUBLISHED_ALPHA * lora.rank)
    reason = (
        "as given"
        if given
        else "as adapter_config.json says"
        if weights.lora_alpha
        else ("twice the rank, as published; the weights do not tell: --lora-alpha if it was another")
    )
    tell(f"LoRA alpha: {alpha:g} ({reason})")
    return alpha


def _heads(weights: PublishedWeights, given: int | None, tell: Callable[[str], None]) -> int:
    heads = given or weights.num_attention_heads
    width = next((value.numel() for key, value in weights.state.items() if key.endswith(".norm.weight")), 0)
    if heads is None and width != PUBLISHED_WIDTH:
        raise PallavaError(
            f"The connector in {weights.source} is {width} wide, the published one {PUBLISHED_WIDTH}: "
            "give its number of attention heads, which no weight tells, by --connector-heads."
        )
    reason = "as given" if given else "as its config.json says" if heads else "as published"
    tell(f"attention heads of the connector: {heads or PUBLISHED_HEADS} ({reason})")
    return heads or PUBLISHED_HEADS


def _processor(encoder: str, llm: str, name: str | None, tell: Callable[[str], None]) -> PALLaVAProcessor:
    tokenizer = open_tokenizer(llm)
    template = get_template(name or PUBLISHED_TEMPLATE)
    if template.suffix_as_eos and template.suffix not in tokenizer.get_vocab():
        raise PallavaError(
            f"{llm} does not know {template.suffix}, with which {name or PUBLISHED_TEMPLATE} ends an answer: give the "
            "template that the weights were trained with, by --prompt-template."
        )
    tell(f"prompt template: {name or PUBLISHED_TEMPLATE} ({'as given' if name else 'as published'})")
    with loading_errors(encoder, "visual encoder"):
        image_processor = load_image_processor(encoder)
    return PALLaVAProcessor(image_processor, tokenizer, template)
