"""Where newer releases of transformers differ from 4.48, which xtuner 0.2.0 pins and training runs on.

A model folder opens under both. Each difference stands here once with its reason and what tells the two apart; drop a
function when the pin has moved past it. ``tests/smoke/test_newest_transformers.py`` fails when one is not needed there.
"""

from typing import Any

import transformers
from transformers import GenerationConfig

from pallava.errors import PallavaError

_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
_NEW_GENERATION = _VERSION >= (5, 0)

NEEDS_CLASS_NAMES = not _NEW_GENERATION
"""4.x asks a processor which class its image processor has; 5.x finds that in the folder, and warns of the name."""


def check_version(version: tuple[int, int]) -> None:
    """Refuses a transformers that no test of ours has seen, before it answers something else.

    Those from 4.49 to 4.57 would sample as the language model's own file says, where greedy answers are asked for.

    Raises:
        PallavaError: It is neither 4.48 nor 5.x.
    """
    if version[0] != 5 and version != (4, 48):
        raise PallavaError(
            f"pallava opens model folders with transformers 4.48 and 5, and this is {version[0]}.{version[1]}, which "
            "may answer differently: install transformers==4.48.0, or one of 5."
        )


def vision_tower(encoder: Any) -> Any:
    """What holds `embeddings` and `encoder`: 4.x wraps them as `vision_model`, 5.x has them in the model itself."""
    return getattr(encoder, "vision_model", encoder)


def fill_defaults(config: GenerationConfig) -> None:
    """Fills what a generation config leaves open as 4.x does, in place.

    5.x takes it from the language model's own file instead, by which Llama 3 would sample, and files do not say
    ``do_sample: false``.
    """
    for name, value in getattr(config, "_get_default_generation_params", dict)().items():
        if getattr(config, name, None) is None and name != "max_length":
            setattr(config, name, value)


check_version(_VERSION[:2])  # type: ignore[arg-type]
