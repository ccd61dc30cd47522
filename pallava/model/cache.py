"""Keys and values that are computed once: of the beginning that questions about one image share, or of earlier turns.

Letters in shape comments are those of `modeling.py`; G is the number of different beginnings, P that of its positions.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from pallava.model.loading import is_adapted
from pallava.model.versions import CACHE_ARGUMENT, decoder_of, embeddings_behind_cache, keys_and_values, own_settings
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
    if config.cache_implementation is not None or config.num_return_sequences not in (None, 1):
        return False
    kinds = set(getattr(own.config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and config.get_generation_mode(options.get("assistant_model")) in _ONE_ROW_EACH


def generate_behind(llm: Any, cache: Cache | None, fused: dict[str, Tensor], **options: Any) -> Any:
    """Generate from what `fuse` returned; a cache holds its first positions, or none yet.

    Returns:
        The new tokens alone, as transformers' `generate` does without ids.
    """
    options |= own_settings()
    if cache is None:
        return llm.generate(**fused, **options)
    options[CACHE_ARGUMENT] = cache
    with embeddings_behind_cache(causal_lm(llm), fused["inputs_embeds"]):
        return llm.generate(**fused, **options)


class RowCaches:
    """Keys and values of the beginning of each row of a batch, which may differ in length.

    `generate` computes what is behind them, and `split` returns those of what was computed, too. The given caches are
    left as they are.

    Args:
        rows: For each row, a cache and how many of its first positions the row begins with: fewer than the row has.
    """

    def __init__(self, rows: Sequence[tuple[Cache, int]]) -> None:
        self._rows = rows
        self._joined: Cache | None = None
        self._real = torch.empty(0)

    def repeat(self, counts: Sequence[int]) -> "RowCaches":
        """Return those of rows that are repeated, each as often as its count says."""
        return RowCaches([row for row, count in zip(self._rows, counts, strict=True) for _ in range(count)])

    def join(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor | None, visual_tokens: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Cache]:
        """Lay out a batch behind its beginnings, as `share_beginnings` does; arguments are those of `fuse`."""
        rows, images = real_ids(input_ids, attention_mask), iter(visual_tokens)
        beginnings, rests = [], []
        for ids, (_, length) in zip(rows, self._rows, strict=True):
            own = list(islice(images, ids.count(IMAGE_TOKEN_INDEX)))
            embeds = model.fuse(torch.tensor([ids]), own)["inputs_embeds"][0]  # (L', H)
            beginnings.append(embeds[:length])
            rests.append(embeds[length:])
        parts = [_pad_left(part) for part in (beginnings, rests)]  # (B, P, H) and (B, L' - P, H)
        embeds, self._real = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
        self._joined = self._join_caches()
        return {"inputs_embeds": embeds, "attention_mask": self._real}, self._joined

    def split(self, num_new: Sequence[int]) -> list[Cache]:
        """Return a cache for each row, of all its positions but its last token's, after `num_new` new tokens of it.

        There are none if `generate` could not use them.
        """
        if self._joined is None:
            return []
        states = keys_and_values(self._joined)
        rows = list[Cache]()
        for row, count in enumerate(num_new):
            new = torch.arange(count - 1, device=self._real.device) + self._real.shape[1]
            kept = torch.cat([self._real[row].nonzero()[:, 0], new])
            rows.append(_new_cache([(keys[[row]][:, :, kept], values[[row]][:, :, kept]) for keys, values in states]))
        return rows

    def _join_caches(self) -> Cache:
        lengths = [length for _, length in self._rows]
        known = [keys_and_values(cache) for cache, _ in self._rows]
        filled = next((states for states, length in zip(known, lengths, strict=True) if length), [])
        known = [states or filled for states in known]  # an empty cache has no layers; of these nothing is taken

        def join_rows(layer: int, side: int) -> Tensor:
            rows = [states[layer][side][:, :, :length] for states, length in zip(known, lengths, strict=True)]
            return torch.cat([pad(row, (0, 0, max(lengths) - row.shape[2], 0)) for row in rows])

        return _new_cache([(join_rows(layer, 0), join_rows(layer, 1)) for layer in range(len(filled))])


def _new_cache(layers: Sequence[Sequence[Tensor]]) -> Cache:
    """Return a cache of keys and values (B, heads, L, width) of each layer."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def _pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad (L, H) each to (B, max L, H), and return it with its mask (B, max L)."""
    longest = max(map(len, rows))
    padded = torch.stack([pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    lengths = torch.tensor(list(map(len, rows)), device=padded.device)
    return padded, (torch.arange(longest, device=padded.device) >= longest - lengths[:, None]).long()


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Any, Tensor]:
    """Return the ids of rows, padded on the left, and their attention mask, both (B, L)."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (length - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])


def real_ids(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Return the ids of each row without padding."""
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids.cpu(), real.cpu(), strict=True)]


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
        cache of the first P positions: (B, heads, P, width) in each layer. None where it would not pay, as less than a
        quarter is saved, or where a row has several images, none, or nothing behind it.
    """
    rows = real_ids(input_ids, attention_mask)
    counts = [row.count(IMAGE_TOKEN_INDEX) for row in rows]
    if set(counts) != {1} or len(image_of) != len(rows) or any(row[-1] == IMAGE_TOKEN_INDEX for row in rows):
        return None
    ends = [row.index(IMAGE_TOKEN_INDEX) + 1 for row in rows]
    keys = [(tuple(row[:end]), image) for row, end, image in zip(rows, ends, image_of, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if 4 * len(numbers) > 3 * len(rows):  # another pass through the weights costs more
        return None
    beginnings = _fuse(model, [ids for ids, _ in numbers], [visual_tokens[image] for _, image in numbers])
    rests = _fuse(model, [row[end:] for row, end in zip(rows, ends, strict=True)], [])
    cache = DynamicCache()
    decoder_of(causal_lm(model.llm))(**beginnings, use_cache=True, **{CACHE_ARGUMENT: cache})
    row_of = torch.tensor([numbers[key] for key in keys])  # (B,)
    cache.batch_select_indices(row_of)
    return {name: torch.cat([beginnings[name][row_of], rests[name]], dim=1) for name in rests}, cache


def _fuse(model: Any, rows: Sequence[Sequence[int]], visual_tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    """Fuse rows of ids, padded on the left."""
    ids, mask = pad_ids(rows)
    return model.fuse(ids, visual_tokens, mask, left=True)
