"""Keys and values that are computed once: of the beginning that questions about one image share, or of earlier turns.

Letters in shape comments are those of `modeling.py`; G is the number of different beginnings, P that of its positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from pallava.model.loading import is_adapted
from pallava.model.versions import CACHE_ARGUMENT, embeddings_behind_cache
from pallava.prompts import IMAGE_TOKEN_INDEX

_ONE_ROW_EACH = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def causal_lm(llm: Any) -> Any:
    """Return the language model whose `forward` is called in `generate`: that inside an adapter's, or itself."""
    return llm.get_base_model() if is_adapted(llm) else llm


def takes_cache(llm: Any, config: GenerationConfig, options: dict[str, Any]) -> bool:
    """Return whether a language model, so asked, can begin behind a cache that holds a key for each position.

    Beams need a copy of it each; a layer that sees a window of positions forgets the others; and a recurrent one has
    none.
    """
    own = causal_lm(llm)
    if not own._supports_default_dynamic_cache() or getattr(own.config, "sliding_window", None) is not None:
        return False
    if config.cache_implementation is not None or config.num_return_sequences != 1:
        return False
    kinds = set(getattr(own.config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and config.get_generation_mode(options.get("assistant_model")) in _ONE_ROW_EACH


def generate_behind(llm: Any, cache: Cache | None, fused: dict[str, Tensor], **options: Any) -> Any:
    """Generate from what `fuse` returned; a cache holds its first positions, or none yet.

    Returns:
        The new tokens alone, as transformers' `generate` does without ids.
    """
    if cache is None:
        return llm.generate(**fused, **options)
    options[CACHE_ARGUMENT] = cache
    with embeddings_behind_cache(causal_lm(llm), fused["inputs_embeds"]):
        return llm.generate(**fused, **options)


def share_beginnings(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    visual_tokens: Sequence[Tensor],
    image_of: Sequence[int],
) -> tuple[dict[str, Tensor], Cache] | None:
    """Compute, once for each different one, the beginnings of prompts up to and with their image.

    Args:
        model: The `PALLaVAForConditionalGeneration`.
        input_ids: (B, L), with one image marker in each row.
        attention_mask: (B, L), with 0 for padding.
        visual_tokens: (T_i, H) of each different image.
        image_of: For each row, the number of its image.

    Returns:
        What `fuse` returns for all rows, each with its padding between the shared beginning and the rest, and the
        cache of the first P positions: (B, heads, P, width) in each layer. None where it would not pay: fewer than half
        of the rows share, or a row has several images, none, or nothing behind it.
    """
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids.cpu(), real.cpu(), strict=True)]
    counts = [row.count(IMAGE_TOKEN_INDEX) for row in rows]
    if set(counts) != {1} or len(image_of) != len(rows) or any(row[-1] == IMAGE_TOKEN_INDEX for row in rows):
        return None
    ends = [row.index(IMAGE_TOKEN_INDEX) + 1 for row in rows]
    keys = [(tuple(row[:end]), image) for row, end, image in zip(rows, ends, image_of, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if 2 * len(numbers) > len(rows):
        return None
    beginnings = _fuse(model, [ids for ids, _ in numbers], [visual_tokens[image] for _, image in numbers])
    rests = _fuse(model, [row[end:] for row, end in zip(rows, ends, strict=True)], [])
    cache = DynamicCache()
    causal_lm(model.llm).base_model(**beginnings, use_cache=True, **{CACHE_ARGUMENT: cache})
    row_of = torch.tensor([numbers[key] for key in keys])  # (B,)
    cache.batch_select_indices(row_of)
    return {name: torch.cat([beginnings[name][row_of], rests[name]], dim=1) for name in rests}, cache


def _fuse(model: Any, rows: Sequence[Sequence[int]], visual_tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    """Fuse rows of ids, padded on the left."""
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return model.fuse(ids, visual_tokens, mask, left=True)
