"""Facts on weights that open_clip records and does not act on, and the names that trainers give them."""

import functools
import re
from typing import Any

# The names of modules that DDP and torch.compile put around others; DDP's may be that of a part.
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.")


def unwrap_key(key: str) -> str:
    """Return the name of a weight without the modules that trainers wrap models in, such as ``module._orig_mod.``."""
    return _WRAPPERS.sub("", key)


def read_wrapped_keys() -> None:
    """Make open_clip read checkpoints of wrapped models, of which it knows DDP's alone; once or more a process."""
    from open_clip import factory  # takes seconds

    load = factory.load_state_dict

    @functools.wraps(load)
    def load_and_unwrap(*args: Any, **options: Any) -> dict[str, Any]:
        return {unwrap_key(key): value for key, value in load(*args, **options).items()}

    factory.load_state_dict = load_and_unwrap


def made_with_quick_gelu(model: str, pretrained: str | None) -> bool:
    """Return whether weights were made with quick-GELU; open_clip only warns when it loads them into a model with GELU.

    Args:
        model: open_clip's name of the model, such as ``ViT-B-16``.
        pretrained: Its tag of the weights, such as ``openai``; nothing is recorded for files.
    """
    import open_clip  # takes seconds

    return bool(open_clip.get_pretrained_cfg(model, pretrained or "").get("quick_gelu"))
