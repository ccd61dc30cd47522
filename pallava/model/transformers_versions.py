"""Where newer releases of transformers differ from 4.48, which xtuner 0.2.0 pins and training runs on.

A model folder opens under both. Each difference stands here once with its reason and what tells the two apart; drop a
function when the pin has moved past it. ``tests/smoke/test_newest_transformers.py`` fails when one is not needed there.
"""

from typing import Any

import transformers
from transformers import GenerationConfig

_NEW_GENERATION = int(transformers.__version__.split(".")[0]) >= 5
_OLDEST_REFUSED = 6  # what no test of ours has seen


def check_version() -> None:
    """Refuses a transformers that no test of ours has seen, before it answers something else.

    Raises:
        ImportError: It is of a later generation.
    """
    if int(transformers.__version__.split(".")[0]) >= _OLDEST_REFUSED:
        raise ImportError(
            f"pallava was tested with transformers 4.48 to 5, and this is {transformers.__version__}, which may read "
            "a model folder differently: install transformers<6, or a newer pallava."
        )


def vision_tower(encoder: Any) -> Any:
    """What holds `embeddings` and `encoder`: 4.x wraps them as `vision_model`, 5.x has them in the model itself."""
    return getattr(encoder, "vision_model", encoder)


def tied_weights(*names: str) -> Any:
    """`_tied_weights_keys`: 4.x needs the names of weights that may be another's, 5.x learns them from the parts."""
    return None if _NEW_GENERATION else list(names)


def fill_defaults(config: GenerationConfig) -> None:
    """Fills what a generation config leaves open as 4.x does, in place.

    5.x takes it from the language model's own file instead, by which Llama 3 would sample, and files do not say
    ``do_sample: false``.
    """
    for name, value in getattr(config, "_get_default_generation_params", dict)().items():
        if getattr(config, name, None) is None and name != "max_length":
            setattr(config, name, value)
