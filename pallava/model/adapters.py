"""LoRA adapters of the language model, through peft."""

from pathlib import Path
from typing import Any

from torch import nn

from pallava.errors import PallavaError
from pallava.model.bitsandbytes import block_broken_bitsandbytes
from pallava.model.language_models import open_llm
from pallava.model.weights import check_finite, read_json, read_weights, shorten


def is_adapted(llm: nn.Module) -> bool:
    """Whether a language model carries an adapter."""
    return hasattr(llm, "peft_config")


def load_adapter(base_llm: str | None, adapter: Path, **kwargs: Any) -> Any:
    """The base language model with an adapter beside it.

    Raises:
        PallavaError: The base is not named or not there, the adapter cannot be read safely, or either is not whole.
    """
    if not base_llm:
        raise PallavaError(f"{adapter} needs its base language model, and names none: give base_llm=... (its path).")
    state = read_weights(adapter)
    check_finite(state, adapter)
    if read_json(adapter / "adapter_config.json").get("megatron_config"):  # peft would import a module that it names
        raise PallavaError(f"{adapter} asks for Megatron, which no adapter of PA-LLaVA needs.")
    block_broken_bitsandbytes()
    from peft import PeftModel, get_peft_model_state_dict  # imports bitsandbytes where it finds it

    llm = open_llm(base_llm, **kwargs)
    try:
        model = PeftModel.from_pretrained(llm, str(adapter))
    except Exception as error:  # a broken description makes peft stumble over anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PallavaError(f"The adapter {adapter} does not fit {base_llm}: {reason[:300]}") from None
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    if missing := sorted(expected.keys() - state.keys()):  # which peft itself leaves as they were drawn
        raise PallavaError(f"The adapter {adapter} lacks {len(missing)} weights: {shorten(missing)}.")
    return model
