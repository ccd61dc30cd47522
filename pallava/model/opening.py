"""Opening a model folder: where it lies, its language model beside it, and that every weight found its place."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from pallava.errors import PallavaError
from pallava.model.adapters import load_adapter
from pallava.model.configuration import PALLaVAConfig
from pallava.model.decoding import greedy
from pallava.model.weights import check_finite

ADAPTER_FOLDER = "adapter"
_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_OF_THE_LLM = ("device_map", "max_memory", "offload_folder", "quantization_config", "attn_implementation")


class _LanguageModelToCome(nn.Module):
    """Keeps the place of a language model that is opened apart."""

    def tie_weights(self) -> None:
        """Has no weights."""


def find_folder(folder: str | os.PathLike[str], options: dict[str, Any]) -> Path:
    """The folder itself, or the copy of a repository of the Hugging Face hub.

    Args:
        folder: A path, or ``owner/name``.
        options: Of `from_pretrained`; those of the hub are taken out.

    Raises:
        PallavaError: There is no model.
    """
    path, hub = Path(folder), {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
    if not path.exists() and str(folder).count("/") == 1 and not str(folder).startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(str(folder), **hub))
        except (OSError, ValueError) as error:  # not there, or no name that the hub could have
            reason = str(error).strip().splitlines()[0]
            raise PallavaError(f"{folder} is no folder here, and the Hugging Face hub gave none: {reason}") from None
    if not (path / "config.json").is_file():
        raise PallavaError(f"No model folder at {path}: it has no config.json. `pallava convert` writes one.")
    return path


def open_whole(opener: Any, path: Path, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Opens by transformers' own `from_pretrained`, strictly and from safetensors alone.

    Args:
        opener: `PreTrainedModel.from_pretrained`, bound to the class.
        path: The folder.
        args: For the class.
        options: For the opener.

    Returns:
        What the opener gives.

    Raises:
        PallavaError: Weights cannot be read, or one is missing, unexpected, of another shape or not finite.
    """
    options = {"use_safetensors": True, "ignore_mismatched_sizes": True, **options}
    with_info = options.pop("output_loading_info", False)
    try:
        model, info = opener(path, *args, output_loading_info=True, **options)
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PallavaError(f"The weights in {path} cannot be read ({reason}): copy or convert it again.") from None
    _refuse_misfits(info, path)
    check_finite(model.state_dict(), path)
    return (model, info) if with_info else model


def open_beside_llm(
    opener: Any, path: Path, args: tuple[Any, ...], options: dict[str, Any], base_llm: str | None
) -> Any:
    """Opens encoder and connector from a folder, and its adapter beside the base language model.

    Args:
        opener: As for `open_whole`.
        path: The folder.
        args: For the class.
        options: For the opener; those of where and how large weights become go to the language model.
        base_llm: Where the base language model lies, if not where the folder says.

    Raises:
        PallavaError: As of `open_whole`, or the base language model cannot be found.
    """
    config = options.pop("config", None) or PALLaVAConfig.from_pretrained(path)
    of_llm = {key: options.pop(key) for key in _OF_THE_LLM if options.get(key) is not None}
    llm = load_adapter(base_llm or config.base_llm, path / ADAPTER_FOLDER, torch_dtype=options["torch_dtype"], **of_llm)
    own = copy.deepcopy(config)
    # "auto" is for what lies in the folder the type it is stored in, and not what the config says of the whole.
    setattr(own, "dtype" if hasattr(own, "dtype") else "torch_dtype", None)
    opened = open_whole(opener, path, (_LanguageModelToCome(), *args), {**options, "config": own})
    model = opened[0] if isinstance(opened, tuple) else opened
    model.to(llm.device).llm = llm
    if not (path / "generation_config.json").is_file():
        model.generation_config = greedy(llm)
    model.eval()
    return opened


def _refuse_misfits(info: Mapping[str, Any], path: Path) -> None:
    found = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(key[0] for key in info["mismatched_keys"]),
    }
    wrong = [f"{len(keys)} {kind} (such as {keys[0]})" for kind, keys in found.items() if keys]
    if wrong:
        raise PallavaError(f"The weights in {path} are not those of its config.json: {'; '.join(wrong)}.")
