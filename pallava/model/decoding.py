"""How answers are generated: greedily, up to the language model's own end tokens, unless told otherwise."""

import copy
from typing import Any

from transformers import GenerationConfig

from pallava.model.transformers_versions import fill_defaults

_MAX_NEW_TOKENS = 256


def greedy(llm: Any) -> GenerationConfig:
    """The language model's own end and padding tokens, and nothing of its sampling."""
    own = getattr(llm, "generation_config", None) or getattr(llm, "config", None) or GenerationConfig()
    eos = own.eos_token_id
    first = eos[0] if isinstance(eos, list) else eos
    return GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=eos,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else first,
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=False,
        use_cache=True,
    )


def merge_options(config: GenerationConfig, options: dict[str, Any]) -> dict[str, Any]:
    """A model's generation config with a call's options over it, as what the language model's `generate` takes.

    Args:
        config: The model's; left as it is.
        options: Of one call; a `generation_config` among them takes the model's place.
    """
    options = dict(options)
    config = copy.deepcopy(options.pop("generation_config", None) or config)
    fill_defaults(config)
    rest = config.update(**options)
    return {"generation_config": config, **rest}
