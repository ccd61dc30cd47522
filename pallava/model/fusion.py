"""Where text and images meet: visual tokens take the place of the image markers.

Letters in shape comments: B samples, L text tokens, L' positions after fusing, I images of T_i visual tokens, H width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pallava.errors import PallavaError
from pallava.prompts import IGNORE_INDEX, IMAGE_TOKEN_INDEX


def fuse(
    embed: Callable[[Tensor], Tensor],
    input_ids: Tensor,
    visual_tokens: Tensor | Sequence[Tensor] | None,
    *,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    left: bool | None = None,
) -> dict[str, Tensor]:
    """Puts visual tokens in the place of the image markers.

    Args:
        embed: The language model's input embeddings.
        input_ids: (B, L), with -200 for each image.
        visual_tokens: (T_i, H) for each image, or None without images.
        attention_mask: (B, L), 0 for padding.
        labels: (B, L).
        left: Whether padding goes to the left; default: the side it is on in `attention_mask`.

    Returns:
        `inputs_embeds` (B, L', H), `attention_mask` and `position_ids` (B, L'), and `labels` if given.

    Raises:
        PallavaError: The number of markers is not the number of images.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids)
    is_image = (input_ids == IMAGE_TOKEN_INDEX) & mask.bool()
    is_text = (input_ids != IMAGE_TOKEN_INDEX) & mask.bool()
    visual_tokens = [] if visual_tokens is None else list(visual_tokens)
    _check_markers(int(is_image.sum()), len(visual_tokens))
    sizes = [len(tokens) for tokens in visual_tokens]
    counts = torch.tensor(sizes, dtype=torch.long, device=mask.device)  # (I,)
    spans = mask.masked_scatter(is_image, counts.to(mask))  # number of positions that each token takes
    starts = spans.cumsum(1) - spans  # (B, L)
    lengths = spans.sum(1)
    total = int(lengths.max())
    left = bool((mask[:, 0] == 0).any()) if left is None else left
    offsets = (total - lengths) * int(left)
    starts = starts + offsets[:, None]
    rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids)

    text_embeds = embed(input_ids[is_text])
    embeds = text_embeds.new_zeros(len(input_ids), total, text_embeds.shape[-1])
    embeds = embeds.index_put((rows[is_text], starts[is_text]), text_embeds)
    if visual_tokens:
        row, start = (each[is_image].repeat_interleave(counts, output_size=sum(sizes)) for each in (rows, starts))
        index = (row, start + torch.cat([torch.arange(size, device=mask.device) for size in sizes]))  # (sum of T_i,)
        embeds = embeds.index_put(index, torch.cat(visual_tokens).to(embeds.dtype))
    positions = torch.arange(total, device=input_ids.device) - offsets[:, None]
    real = (positions >= 0) & (positions < lengths[:, None])
    fused = {
        "inputs_embeds": embeds,
        "attention_mask": real.long(),
        "position_ids": positions.clamp(min=0),
    }
    if labels is not None:
        padded = torch.full((len(input_ids), total), IGNORE_INDEX, device=input_ids.device)
        fused["labels"] = padded.index_put((rows[is_text], starts[is_text]), labels.to(input_ids)[is_text])
    return fused


def _check_markers(num_markers: int, num_images: int) -> None:
    if num_markers != num_images:
        raise PallavaError(
            f"The text holds {num_markers} image marker(s), but {num_images} image(s) were given: "
            "each image needs exactly one <image> in the text."
        )
