"""From a training checkpoint or published weights to the one folder that opens with transformers and pallava alone."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor
from xtuner.registry import BUILDER

from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.model.loading import is_adapted
from pallava.model.model_card import write_model_card
from pallava.model.published import describe_weights, is_published_folder
from pallava.model.published_weights import build_from_published, is_archive
from pallava.model.run_config import find_config
from pallava.model.run_description import PUBLISHED_TRAINING, describe_run
from pallava.model.weights import load_strictly, read_weights
from pallava.training.model import PALLaVAModel

SHARD_SIZE = "2GB"


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    llm: str | None = None,
    visual_encoder: str | None = None,
    merge: bool = False,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    lora_alpha: float | None = None,
    connector_heads: int | None = None,
    prompt_template: str | None = None,
    max_shard_size: str = SHARD_SIZE,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes a model folder from a checkpoint of a run, or from published weights.

    Args:
        checkpoint: A ``.pth`` file, a DeepSpeed folder, a file inside one, or a run's work directory (its newest). Of
            published weights also a folder with ``projector/`` and ``llm_adapter/``, and an archive of any of them.
        out: The folder to write.
        config: The run's config; default: the one that the run dumped into its work directory. Published weights have
            none.
        llm: The base language model, if not where the config says.
        visual_encoder: The encoder, if not where the config says, or in ``plip/`` beside published weights.
        merge: Merges LoRA into the language model instead of keeping it as an adapter beside it.
        dtype: Of the weights written; default: as the parts come.
        overwrite: Replaces a model folder that is there.
        lora_alpha: Without a config: LoRA's alpha; default: twice the rank, as published.
        connector_heads: Without a config: attention heads of the connector; default: 12, as published.
        prompt_template: Without a config: its name; default: ``llama3_chat``, as published.
        max_shard_size: Of each file of weights.
        tell: Is given what was found, line by line.

    Returns:
        The folder.

    Raises:
        PallavaError: A part cannot be found or read safely, the weights do not fit, or the folder holds something.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_out(out, overwrite=overwrite)
    _check_checkpoint(checkpoint, out)
    untold: dict[str, Any] = {
        "lora_alpha": lora_alpha, "connector_heads": connector_heads, "prompt_template": prompt_template
    }  # fmt: skip
    cfg = None if is_archive(checkpoint) or is_published_folder(checkpoint) else _open_config(checkpoint, config)
    if cfg is None:
        network, processor = build_from_published(
            checkpoint, out, llm=llm, visual_encoder=visual_encoder, merge=merge, dtype=dtype, tell=tell, **untold
        )
        network.config.encoder_source = visual_encoder
        _finish(network, processor, out, PUBLISHED_TRAINING, merge=merge, dtype=dtype, max_shard_size=max_shard_size)
        return out
    if any(untold.values()):
        raise PallavaError(
            "--lora-alpha, --connector-heads and --prompt-template are for weights without a config, and one was given "
            "or lies beside the checkpoint: leave them out, or move the weights away from it."
        )
    _set_parts(cfg, llm, visual_encoder)
    state = read_weights(checkpoint)
    for line in describe_weights(state):
        tell(line)
    write_folder(cfg, state, out, merge=merge, dtype=dtype, source=checkpoint, max_shard_size=max_shard_size)
    return out


def _check_checkpoint(checkpoint: Path, out: Path) -> None:
    if not checkpoint.exists():
        raise PallavaError(f"No weights at {checkpoint}: the path does not exist. Give a checkpoint file or folder.")
    if out.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents) and any(out.iterdir()):
        raise PallavaError(f"{out} holds the checkpoint {checkpoint}, which replacing it would delete: choose another.")


def check_out(out: str | Path, *, overwrite: bool) -> None:
    """Refuses to write a model folder where something else lies.

    Args:
        out: The folder; none, or an empty one, is always right.
        overwrite: Whether a model folder may be replaced.

    Raises:
        PallavaError: It is a file, the working directory, holds something else than a model, or a model that may not
            be replaced.
    """
    out = Path(out)
    if out.resolve() == Path.cwd():
        raise PallavaError("The working directory cannot be replaced by a model folder: name a folder in it.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "config.json").is_file():
        raise PallavaError(f"{out} exists and is no model folder: nothing was written. Choose another folder.")
    if not overwrite:
        raise PallavaError(f"{out} exists: choose another folder, or add --overwrite to replace it.")


def _open_config(checkpoint: Path, config: str | Path | None) -> Config | None:
    if config is None:
        return find_config(checkpoint)
    if not Path(config).is_file():
        raise PallavaError(f"No config at {config}: give the config file that the checkpoint was trained with.")
    return Config.fromfile(config)


def _set_parts(cfg: Config, llm: str | None, visual_encoder: str | None) -> None:
    """Puts the given parts into a config, and has its language model read without a second copy of it."""
    if llm is not None:
        cfg.model.llm.pretrained_model_name_or_path = llm
        cfg.train_dataloader.dataset.tokenizer.pretrained_model_name_or_path = llm
    if visual_encoder is not None:
        cfg.model.visual_encoder.source = visual_encoder
        cfg.train_dataloader.dataset.image_processor.source = visual_encoder
    cfg.model.llm.setdefault("low_cpu_mem_usage", True)


def write_folder(
    cfg: Any,
    state: Mapping[str, Tensor],
    out: str | Path,
    *,
    merge: bool,
    source: object,
    dtype: torch.dtype | None = None,
    **save_kwargs: Any,
) -> None:
    """Builds the trained model from its config and weights, and writes it with its processor.

    The folder appears whole or not at all: it is written under a temporary name and renamed.

    Args:
        cfg: The run's config.
        state: The trained weights, under our keys or the published ones.
        out: The folder; replaced if it is there.
        merge: Merges LoRA into the language model.
        source: Where the weights come from, for messages.
        dtype: Of the weights written; default: as the parts come.
        **save_kwargs: Passed on to `save_pretrained`.

    Raises:
        PallavaError: The weights do not fit the config's model.
    """
    model = PALLaVAModel(**{k: v for k, v in cfg.model.items() if k not in ("type", "pretrained_pth")})
    load_strictly(model, model.own_keys(state, source), source=source, expected=model.state_dict())
    model.network.config.encoder_source = cfg.model.visual_encoder.get("source")
    processor = build_processor(cfg)
    _finish(model.network.eval(), processor, Path(out), describe_run(cfg), merge=merge, dtype=dtype, **save_kwargs)


def build_processor(cfg: Any) -> PALLaVAProcessor:
    """The processor of a run: its data set's tokenizer, image processor and template."""
    dataset = cfg.train_dataloader.dataset
    return PALLaVAProcessor(
        BUILDER.build(dataset.image_processor), BUILDER.build(dataset.tokenizer), dataset.prompt_template
    )


def _finish(
    network: PALLaVAForConditionalGeneration,
    processor: PALLaVAProcessor,
    out: Path,
    training: Mapping[str, Any],
    *,
    merge: bool,
    dtype: torch.dtype | None,
    **save_kwargs: Any,
) -> None:
    """Merges, casts and writes, each in place: the language model is never twice in memory."""
    if merge and is_adapted(network.llm):
        network.llm = network.llm.merge_and_unload()
        network.config.base_llm = None
    if dtype is not None:
        network = network.to(dtype)
    network.use_end_tokens(processor.end_token_ids)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.unfinished")
    try:
        network.save_pretrained(unfinished, **save_kwargs)
        processor.save_pretrained(unfinished)
        write_model_card(unfinished, training=training)
        for path in unfinished.rglob("*.safetensors"):  # newer safetensors let nobody else read them
            path.chmod((unfinished / "config.json").stat().st_mode)
        if out.exists():
            shutil.rmtree(out)
        unfinished.replace(out)
    except OSError as error:
        raise PallavaError(f"Cannot write {out}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
