"""From a training checkpoint to the one folder that opens with transformers and pallava alone."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor
from xtuner.registry import BUILDER

from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.model.adapters import is_adapted
from pallava.model.checkpoints import load_strictly, read_weights
from pallava.training.model import PALLaVAModel

_DEEPSPEED_SCRIPT = "zero_to_fp32.py"  # DeepSpeed leaves it beside its checkpoints


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
) -> Path:
    """Writes a model folder from a checkpoint.

    Args:
        checkpoint: A ``.pth`` file, a DeepSpeed folder, a file inside one, or a run's work directory (its newest).
        out: The folder to write.
        config: The run's config; default: the one that the run dumped into its work directory.
        llm: The base language model, if not where the config says.
        visual_encoder: The encoder, if not where the config says.
        merge: Merges LoRA into the language model instead of keeping it as an adapter beside it.
        dtype: Of the weights written; default: as the parts come.
        overwrite: Replaces a folder that is there.

    Returns:
        The folder.

    Raises:
        PallavaError: A part cannot be found, the weights do not fit, or the folder exists.
    """
    if Path(out).exists() and not overwrite:
        raise PallavaError(f"{out} exists: choose another folder, or add --overwrite to replace it.")
    state = read_weights(checkpoint)
    path = Path(config) if config is not None else find_config(Path(checkpoint))
    if not path.is_file():
        raise PallavaError(f"No config at {path}: give the config file that the checkpoint was trained with.")
    cfg = Config.fromfile(path)
    if llm is not None:
        cfg.model.llm.pretrained_model_name_or_path = llm
        cfg.train_dataloader.dataset.tokenizer.pretrained_model_name_or_path = llm
    if visual_encoder is not None:
        cfg.model.visual_encoder.source = visual_encoder
        cfg.train_dataloader.dataset.image_processor.source = visual_encoder
    write_folder(cfg, state, out, merge=merge, dtype=dtype, source=checkpoint)
    return Path(out)


def find_config(checkpoint: Path) -> Path:
    """The config that a run dumped into its work directory, beside its checkpoints.

    Raises:
        PallavaError: None there, or several.
    """
    for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        found = sorted(path for path in folder.glob("*.py") if path.name != _DEEPSPEED_SCRIPT)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(p.name for p in found)
            raise PallavaError(f"{folder} holds several configs ({names}): name the checkpoint's own with --config.")
    raise PallavaError(f"No config beside {checkpoint}: give the one it was trained with, by --config.")


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
    processor = build_processor(cfg)
    network = model.network.eval()
    if merge and is_adapted(network.llm):
        network.llm = network.llm.merge_and_unload()
        network.config.base_llm = None
    if dtype is not None:
        network = network.to(dtype)
    network.use_end_tokens(processor.end_token_ids)
    _write(network, processor, Path(out), save_kwargs)


def build_processor(cfg: Any) -> PALLaVAProcessor:
    """The processor of a run: its data set's tokenizer, image processor and template."""
    dataset = cfg.train_dataloader.dataset
    return PALLaVAProcessor(
        BUILDER.build(dataset.image_processor), BUILDER.build(dataset.tokenizer), dataset.prompt_template
    )


def _write(
    network: PALLaVAForConditionalGeneration, processor: PALLaVAProcessor, out: Path, save_kwargs: dict[str, Any]
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    network.save_pretrained(unfinished, **save_kwargs)
    processor.save_pretrained(unfinished)
    if out.exists():
        shutil.rmtree(out)
    unfinished.replace(out)
