"""Opening a base language model and its tokenizer: by folder or name, whole, and without running code from there."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from pallava.errors import PallavaError
from pallava.model.weights import check_finite, list_keys

_MAX_REASON = 300  # characters
_ADVICE = "Give the path of a Hugging Face folder, or a name on the hub that this machine can reach and may read."


def open_llm(name_or_path: str | os.PathLike[str], **options: Any) -> Any:
    """Opens a causal language model of which no weight may be missing, left over, reshaped or broken.

    transformers would draw what is missing at random and go on.

    Args:
        name_or_path: A folder or a name on the Hugging Face hub.
        **options: Of `AutoModelForCausalLM.from_pretrained`; code from the folder runs with `trust_remote_code` only.

    Raises:
        PallavaError: There is no such model, it cannot be read, or it is not whole.
    """
    options = {"trust_remote_code": False, **options}
    with explained(name_or_path):
        model, report = AutoModelForCausalLM.from_pretrained(name_or_path, output_loading_info=True, **options)
    # A key that is missing can stay on the meta device, where transformers takes it for one that is tied to another.
    # Meant to be there are weights that accelerate offloads, and those of a model that is built without memory.
    weights = model.state_dict()
    is_meant = "device_map" in options or all(parameter.is_meta for parameter in model.parameters())
    on_meta = set() if is_meant else {key for key, value in weights.items() if value.is_meta}
    _refuse_holes(report, on_meta, name_or_path)
    check_finite(weights, name_or_path)
    return model


def open_tokenizer(name_or_path: str | os.PathLike[str], **options: Any) -> Any:
    """Opens a language model's tokenizer; takes what `open_llm` takes.

    Raises:
        PallavaError: There is no such tokenizer, or it cannot be read.
    """
    with explained(name_or_path, "tokenizer"):
        return AutoTokenizer.from_pretrained(name_or_path, **{"trust_remote_code": False, **options})


@contextmanager
def explained(source: str | os.PathLike[str], part: str = "language model") -> Iterator[None]:
    """Turns whatever transformers raises on a missing or broken part of the model into a sentence.

    Raises:
        PallavaError: Instead of any other exception.
    """
    if _is_local(str(source)) and not Path(source).exists():
        raise PallavaError(f"No {part} at {source}: the path does not exist. {_ADVICE}")
    try:
        yield
    except PallavaError:
        raise
    except Exception as error:  # a broken folder makes transformers stumble over anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PallavaError(f"No {part} at {source} that can be opened: {reason[:_MAX_REASON]} {_ADVICE}") from None


def _is_local(source: str) -> bool:
    """A hub name has at most one slash and no leading dot or slash."""
    return source.startswith((".", "/", "~")) or (source.count("/") > 1 and ":" not in source)


def _refuse_holes(report: Mapping[str, Any], on_meta: set[str], source: str | os.PathLike[str]) -> None:
    found = {
        "missing": sorted({*report["missing_keys"], *on_meta}),
        "unexpected": sorted(report["unexpected_keys"]),
        "reshaped": sorted(map(str, report["mismatched_keys"])),
    }
    if wrong := list_keys(found):
        raise PallavaError(f"The language model {source} is not whole: {wrong}. Copy or download it again.")
