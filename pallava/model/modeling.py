"""PA-LLaVA: overview and tiles through the encoder, the connector, and into the language model's text.

The whole network is this one file, if a long one, so that it is read from top to bottom. Letters in shape comments: B
samples, L text tokens, L' positions after fusing, I images, N tiles of an image, T tokens of a tile, T_i visual tokens
of an image, D encoder width, H language model width.
"""

import copy
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import LongTensor, Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, Cache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from pallava.errors import PallavaError
from pallava.four_bit import check_settings
from pallava.model.cache import RowCaches, causal_lm, generate_behind, pad_ids, real_ids, share_beginnings, takes_cache
from pallava.model.card import CARD, write_model_card
from pallava.model.connectors import CONNECTORS, ConnectorConfig, import_connector, import_path, make_connector_config
from pallava.model.encoders import adapter_of, encoder_config, num_tokens, patch_tokens, spare_memory
from pallava.model.loading import (
    ADAPTER_FOLDER,
    check_not_in_4bit,
    find_folder,
    greedy,
    is_adapted,
    open_beside_llm,
    open_whole,
    whole_in_4bit,
)
from pallava.model.versions import (
    CACHE_ARGUMENT,
    choose_attention,
    decoder_of,
    fill_defaults,
    keep_attention,
    keep_attention_cap,
    keep_name,
    names_to_write,
    read_rope,
)
from pallava.prompts import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pallava.tiling import MAX_TILES

# Fields of language models (Gemma 2, Cohere, Granite) that change the output layer's scores before they are logits.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class PALLaVAConfig(PretrainedConfig):
    """Configuration of the whole model.

    Args:
        text_config: Configuration of the language model; its `model_type` is Llama's by default.
        vision_config: Configuration of the encoder; its `model_type` is CLIP's by default.
        connector_config: Configuration of the connector; its `model_type` is the published one's by default.
        vision_feature_layer: Index of the encoder's hidden states that the connector reads.
        base_llm: Name or path of the language model, if the folder holds an adapter to it.
        base_quantization: How that is quantized (`pallava.four_bit.SETTINGS`), if the adapter was trained on 4 bit.
        encoder_source: Where the encoder came from, which may hold the text tower that belongs to it; the folder
            itself does not need it.
        connector_class: Import path of the connector's class, if it does not come with pallava.

    Raises:
        PallavaError: The kind of encoder or connector is not registered.
    """

    model_type = "pallava"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig, "connector_config": AutoConfig}

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        connector_config: ConnectorConfig | dict[str, Any] | None = None,
        vision_feature_layer: int = -2,
        base_llm: str | None = None,
        encoder_source: str | None = None,
        connector_class: str | None = None,
        base_quantization: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(text_config, PretrainedConfig):
            values = dict(text_config or {})
            text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        read_rope(text_config)
        self.text_config = text_config
        self.vision_config: Any = encoder_config(vision_config)
        if not isinstance(connector_config, PretrainedConfig):
            connector_config = make_connector_config(connector_config or {}, connector_class)
        self.connector_config: Any = connector_config
        self.vision_feature_layer = vision_feature_layer
        self.base_llm = base_llm
        if base_quantization is not None:
            check_settings(base_quantization)
        self.base_quantization = base_quantization
        self.encoder_source = encoder_source
        self.connector_class = connector_class
        with keep_attention(self):
            super().__init__(**kwargs)

    @property
    def num_visual_tokens(self) -> int:
        """Largest number of visual tokens of one image."""
        return self.connector_config.num_visual_tokens(num_tokens(self.vision_config), MAX_TILES)


class PALLaVAForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The whole network: `visual_encoder`, `connector` and `llm`."""

    config_class = PALLaVAConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn_2 = True
    _supports_flash_attn = True  # its name in newer transformers

    def __init__(
        self,
        config: PALLaVAConfig,
        llm: nn.Module | None = None,
        *,
        visual_encoder: nn.Module | None = None,
        connector: PreTrainedModel | None = None,
    ) -> None:
        with keep_attention(config):
            super().__init__(config)
        if llm is None:
            llm = AutoModelForCausalLM.from_config(config.text_config)
        if hasattr(llm, "config"):  # a placeholder has none
            keep_attention_cap(llm)
        if visual_encoder is None:
            visual_encoder = adapter_of(config.vision_config).build(choose_attention(config.vision_config))
        if connector is None:
            connector = CONNECTORS[config.connector_config.model_type](choose_attention(config.connector_config))
        spare_memory(visual_encoder)
        self.llm: Any = llm
        self.visual_encoder: Any = visual_encoder
        self.connector: Any = connector
        self.generation_config = greedy(self.llm)
        self.post_init()

    @classmethod
    def from_parts(
        cls, llm: Any, encoder: Any, connector: PreTrainedModel, *, vision_feature_layer: int = -2
    ) -> "PALLaVAForConditionalGeneration":
        """Build the whole from a causal language model (with or without LoRA), an encoder and a connector that fit.

        `vision_feature_layer` is the index of the encoder's hidden states that the connector reads.

        Raises:
            PallavaError: The widths of the parts do not fit, or the encoder's kind is not registered.
        """
        for field, part in (("visual_hidden_size", encoder), ("llm_hidden_size", llm)):
            width, expected = part.config.hidden_size, getattr(connector.config, field)
            if width != expected:
                name = "language model" if part is llm else "encoder"
                raise PallavaError(f"the {name} must be {expected} wide for this connector ({field}), got {width}")
        name = import_path(type(connector))
        config = PALLaVAConfig(
            text_config=llm.config,
            vision_config=encoder.config,
            connector_config=connector.config,
            vision_feature_layer=vision_feature_layer,
            base_llm=llm.config.name_or_path or None,
            connector_class=None if name.startswith("pallava.") else name,
        )
        return cls(config, llm=llm, visual_encoder=encoder, connector=connector)

    def encode_images(
        self, pixel_values: Tensor | Sequence[Tensor], tiles_per_image: Tensor | Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Turn images into visual tokens.

        Args:
            pixel_values: (1+N, 3, P, P) for each image, the overview first: as a list, or all of them in one
                tensor. One tensor without `tiles_per_image` is one image; of five dimensions, one image a row. N may
                be 0 where the connector does not read tiles.
            tiles_per_image: (I,), the number of rows of each image, its overview included.

        Returns:
            (I, T, H), visual tokens; a list of (T_i, H) where the connector gives images different numbers of them.

        Raises:
            PallavaError: The rows do not add up, or an image has no tile.
        """
        config = self.config.connector_config
        pixels, counts = _flatten_images(pixel_values, tiles_per_image, needs_tiles=config.reads_tiles)
        if not counts:
            return pixels.new_zeros(0, self.config.num_visual_tokens, config.llm_hidden_size)
        if not config.reads_tiles:
            pixels, counts = pixels[[0, *accumulate(counts)][:-1]], [1] * len(counts)
        return self.connect(self.encode_tiles(pixels), counts)

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Turn normalized tiles (N, 3, P, P) into the encoder's tokens (N, T, D) that the connector reads."""
        return patch_tokens(self.visual_encoder, pixel_values.to(self.device), self.config.vision_feature_layer)

    def connect(self, tokens: Tensor, tiles_per_image: Sequence[int]) -> Tensor | list[Tensor]:
        """Turn the encoder's tokens (sum of 1+N, T, D), each image's overview first, into visual tokens.

        The result is that of `encode_images`; `tiles_per_image` counts each overview, too.
        """
        images = tokens.to(self.connector.dtype).split(list(tiles_per_image))  # I x (1+N, T, D)
        overview = torch.stack([image[0] for image in images])  # (I, T, D)
        tiles = pad_sequence([image[1:].flatten(0, 1) for image in images], batch_first=True)  # (I, max N*T, D)
        lengths = torch.tensor([(count - 1) * overview.shape[1] for count in tiles_per_image], device=tiles.device)
        tile_mask = torch.arange(tiles.shape[1], device=tiles.device) < lengths[:, None]
        return self.connector(overview, tiles, tile_mask.long())

    def forward(
        self,
        input_ids: LongTensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        tiles_per_image: Tensor | Sequence[int] | None = None,
        labels: LongTensor | None = None,
        **llm_kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model over text with images in it.

        `input_ids` (B, L) have -200 once for each image, in reading order over the batch; `attention_mask` (B, L) has 0
        for padding, on either side; `labels` (B, L) have -100 for positions without a loss; images are as in
        `encode_images`. Other arguments are the language model's.

        Returns:
            Logits (B, L', V), where each image's marker has become T_i positions and padding stays on its side.

        Raises:
            PallavaError: The number of image markers is not the number of images.
        """
        visual_tokens = None if pixel_values is None else self.encode_images(pixel_values, tiles_per_image)
        fused = self.fuse(input_ids, visual_tokens, attention_mask, labels)
        return self.llm(**fused, use_cache=False, **llm_kwargs)

    def compute_loss(
        self,
        input_ids: LongTensor,
        labels: LongTensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        tiles_per_image: Tensor | Sequence[int] | None = None,
        *,
        visual_tokens: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the loss of `forward` without computing the logits of positions without a label.

        The vocabulary's scores are needed for the answer alone: with 128,256 words, those of the question and the
        visual tokens would take most of the memory, and in the backward pass twice. The loss is the mean cross-entropy
        over the labels that are not -100; arguments as in `forward`, and `visual_tokens` as in `generate`.

        Raises:
            PallavaError: The number of image markers is not the number of images.
        """
        if pixel_values is not None:
            visual_tokens = self.encode_images(pixel_values, tiles_per_image)
        fused = self.fuse(input_ids, visual_tokens, attention_mask, labels)
        targets = fused.pop("labels")[:, 1:]
        taught = targets != IGNORE_INDEX
        logits = self._logits_at(taught, **fused, use_cache=False)  # (taught labels, V)
        return nn.functional.cross_entropy(logits.float(), targets[taught])

    def _logits_at(self, chosen: Tensor, **inputs: Any) -> Tensor:
        """Return the language model's logits (C, V) at the C positions chosen (B, L'-1) of all but the last one."""
        llm = causal_lm(self.llm)
        if any(getattr(llm.config, name, None) for name in _LOGIT_CHANGES):
            return llm(**inputs).logits[:, :-1][chosen]
        hidden = decoder_of(llm)(**inputs).last_hidden_state[:, :-1]  # (B, L'-1, H)
        return llm.get_output_embeddings()(hidden[chosen])

    @torch.no_grad()
    def generate(
        self,
        input_ids: LongTensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        tiles_per_image: Tensor | Sequence[int] | None = None,
        *,
        visual_tokens: Tensor | Sequence[Tensor] | None = None,
        image_of: Sequence[int] | None = None,
        cache: RowCaches | None = None,
        **generate_kwargs: Any,
    ) -> LongTensor:
        """Answer each sample of a batch, greedily by default.

        The first arguments are as in `forward`; `visual_tokens`, as `encode_images` returns them, take the place of
        `pixel_values`. With `image_of`, for each image marker the number of its image, an image with several questions
        is given once; what their prompts begin with, up to the image, is computed once, too, where that pays. `cache`
        has keys and values of the beginnings of rows, and afterwards those of the answers; it is not used where it
        cannot be (`pallava.model.cache.takes_cache`). Other arguments are options of transformers' `generate`, such as
        `max_new_tokens` or `streamer`, which gets the new tokens alone.

        Returns:
            (B, L + new tokens): `input_ids` as they were given, followed by the answers, each with its end token, then
            padding. Of `num_return_sequences` those of a sample follow each other, and
            `return_dict_in_generate` has them as `sequences`.

        Raises:
            PallavaError: The number of image markers is not the number of images.
        """
        if pixel_values is not None:
            visual_tokens = self.encode_images(pixel_values, tiles_per_image)
        config = copy.deepcopy(generate_kwargs.pop("generation_config", None) or self.generation_config)
        fill_defaults(config)
        rest = config.update(**generate_kwargs)
        can_cache = takes_cache(self.llm, config, rest)
        fused, known = self._lay_out(input_ids, attention_mask, visual_tokens, image_of, cache, can_cache=can_cache)
        output = generate_behind(self.llm, known, fused, generation_config=config, **rest)
        answers = output if isinstance(output, Tensor) else output.sequences
        prompts = input_ids.to(answers).repeat_interleave(len(answers) // len(input_ids), dim=0)
        sequences = torch.cat([prompts, answers], dim=1)
        if isinstance(output, Tensor):
            return sequences  # type: ignore[return-value]
        output.sequences = sequences
        return output

    @torch.no_grad()
    def score_answers(
        self,
        input_ids: LongTensor,
        answers: Sequence[Sequence[Sequence[int]]],
        attention_mask: Tensor | None = None,
        *,
        visual_tokens: Tensor | Sequence[Tensor] | None = None,
        image_of: Sequence[int] | None = None,
        cache: RowCaches | None = None,
    ) -> list[Tensor]:
        """Return how likely given answers to each sample of a batch are.

        Args:
            input_ids: (B, L), prompts, as in `generate`, whose arguments the others are, too.
            answers: For each row the ids of its possible answers, each with its end token; at least one in all.
            attention_mask: (B, L), with 0 for padding.
            visual_tokens: (T_i, H) of each image.
            image_of: For each image marker the number of its image.
            cache: Keys and values of the beginnings of rows, each shorter than its prompt.

        Returns:
            For each row, the log-probability of each of its answers as a whole, in float32.
        """
        rows, num_answers = real_ids(input_ids, attention_mask), list(map(len, answers))
        numbers = iter(range(sum(row.count(IMAGE_TOKEN_INDEX) for row in rows)) if image_of is None else image_of)
        images_of = [[next(numbers) for _ in range(row.count(IMAGE_TOKEN_INDEX))] for row in rows]
        whole = [[*row, *answer] for row, own in zip(rows, answers, strict=True) for answer in own]
        fused, known = self._lay_out(
            *pad_ids(whole),
            visual_tokens,
            [image for own, count in zip(images_of, num_answers, strict=True) for image in own * count],
            None if cache is None else cache.repeat(num_answers),
            can_cache=takes_cache(self.llm, self.generation_config, {}),
        )
        start = 0 if known is None else known.get_seq_length()
        mask, embeds = fused["attention_mask"], fused["inputs_embeds"][:, start:]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, start:]
        inputs = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions, CACHE_ARGUMENT: known}
        ids = [torch.tensor(answer, device=self.device) for own in answers for answer in own]
        lengths = torch.tensor(list(map(len, ids)), device=self.device)
        chosen = torch.arange(embeds.shape[1] - 1, device=self.device) >= embeds.shape[1] - 1 - lengths[:, None]
        logits = self._logits_at(chosen, **inputs, use_cache=known is not None)  # (sum of lengths, V)
        found = logits.float().log_softmax(-1).gather(1, torch.cat(ids)[:, None])[:, 0]
        return list(torch.stack([each.sum() for each in found.split(lengths.tolist())]).split(num_answers))

    def _lay_out(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        visual_tokens: Tensor | Sequence[Tensor] | None,
        image_of: Sequence[int] | None,
        cache: RowCaches | None,
        *,
        can_cache: bool,
    ) -> tuple[dict[str, Tensor], Cache | None]:
        """Return what the language model takes, padded on the left, and a cache of its first positions if it has one.

        Arguments are those of `generate`. Positions are left to be counted from the mask.
        """
        tokens: list[Tensor] = [] if visual_tokens is None else list(visual_tokens)
        shared = None
        if image_of is not None and tokens:
            if can_cache and cache is None:
                shared = share_beginnings(self, input_ids, attention_mask, tokens, image_of)
            tokens = [tokens[number] for number in image_of]
        if can_cache and cache is not None:
            shared = cache.join(self, input_ids, attention_mask, tokens)
        fused, known = shared or (self.fuse(input_ids, tokens, attention_mask, left=True), None)
        fused.pop("position_ids", None)
        return fused, known

    def fuse(
        self,
        input_ids: Tensor,
        visual_tokens: Tensor | Sequence[Tensor] | None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        left: bool | None = None,
    ) -> dict[str, Tensor]:
        """Put visual tokens in the place of the image markers.

        `visual_tokens` are (T_i, H) for each image, or None without images; the rest is as in `forward`. `left` says
        whether padding goes to the left (default: the side it has in `attention_mask`).

        Returns:
            `inputs_embeds` (B, L', H), `attention_mask` and `position_ids` (B, L'), and `labels` if given.

        Raises:
            PallavaError: The number of markers is not the number of images.
        """
        input_ids, embed = input_ids.to(self.device), self.llm.get_input_embeddings()
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids)
        is_image = (input_ids == IMAGE_TOKEN_INDEX) & mask.bool()
        is_text = (input_ids != IMAGE_TOKEN_INDEX) & mask.bool()
        visual_tokens = [] if visual_tokens is None else list(visual_tokens)
        if (num_markers := int(is_image.sum())) != len(visual_tokens):
            raise PallavaError(
                f"text must have one <image> for each image, got {num_markers} image marker(s) and "
                f"{len(visual_tokens)} image(s)"
            )
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
            start = start + torch.cat([torch.arange(size, device=mask.device) for size in sizes])  # (sum of T_i,)
            embeds = embeds.index_put((row, start), torch.cat(visual_tokens).to(embeds.dtype))
        positions = torch.arange(total, device=input_ids.device) - offsets[:, None]
        real = (positions >= 0) & (positions < lengths[:, None])
        fused = {"inputs_embeds": embeds, "attention_mask": real.long(), "position_ids": positions.clamp(min=0)}
        if labels is not None:
            padded = torch.full((len(input_ids), total), IGNORE_INDEX, device=input_ids.device)
            fused["labels"] = padded.index_put((rows[is_text], starts[is_text]), labels.to(input_ids)[is_text])
        return fused

    @property
    def end_token_ids(self) -> list[int]:
        """Every id at which `generate` stops."""
        ids = self.generation_config.eos_token_id
        return [] if ids is None else ids if isinstance(ids, list) else [ids]

    def use_end_tokens(self, ids: Sequence[int]) -> None:
        """Make `generate` stop at these tokens, beside those of the language model."""
        self.generation_config.eos_token_id = list(dict.fromkeys([*ids, *self.end_token_ids]))
        if self.generation_config.pad_token_id is None and ids:
            self.generation_config.pad_token_id = ids[0]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | os.PathLike[str],
        *args: Any,
        base_llm: str | None = None,
        trust_remote_code: bool = False,
        load_in_4bit: bool = False,
        **kwargs: Any,
    ) -> "PALLaVAForConditionalGeneration":
        """Open a model folder: whole, or with an adapter beside a named base language model.

        Args:
            folder: Output of `save_pretrained` or ``pallava convert``, or its name on the Hugging Face hub.
            *args: Passed on to transformers.
            base_llm: Name or path of the base language model (default: the one that the folder names).
            trust_remote_code: Whether to import the module of a connector that does not come with pallava.
            load_in_4bit: Whether to quantize the language model to 4 bit; the base of an adapter that was trained on 4
                bit is quantized in any case.
            **kwargs: Passed on to transformers; `torch_dtype` is ``"auto"`` unless given.

        Raises:
            PallavaError: The folder is not a model folder, a weight is missing, unexpected or reshaped, or the base
                language model or the connector cannot be opened.
        """
        dtype = kwargs.pop("dtype", None)  # its name in newer transformers
        if dtype is not None or kwargs.get("torch_dtype") is None:
            kwargs["torch_dtype"] = dtype or "auto"
        path = find_folder(folder, kwargs)
        if trust_remote_code:
            import_connector(path)
        is_whole = not (path / ADAPTER_FOLDER).is_dir()
        if load_in_4bit or not is_whole:
            kwargs["config"] = kwargs.get("config") or PALLaVAConfig.from_pretrained(path)
        if load_in_4bit:
            check_not_in_4bit(path, kwargs["config"])
        if not is_whole:
            return open_beside_llm(super().from_pretrained, path, args, kwargs, base_llm, load_in_4bit)
        if load_in_4bit:
            kwargs["quantization_config"] = whole_in_4bit(kwargs["config"], kwargs["torch_dtype"])
        return open_whole(super().from_pretrained, path, args, kwargs)

    def save_pretrained(self, folder: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write one folder, in safetensors, with a model card; the adapter of a language model with LoRA is kept apart.

        Other arguments are those of transformers, such as `max_shard_size`.
        """
        state, output = self.state_dict(), self.get_output_embeddings()
        if output is not None and not is_adapted(self.llm):  # 5.x unties what a file has two of, whatever it says
            self.config.text_config.tie_word_embeddings = output.weight is self.get_input_embeddings().weight
        if is_adapted(self.llm):
            self.llm.save_pretrained(Path(folder) / ADAPTER_FOLDER)
            state = {key: value for key, value in state.items() if not key.startswith("llm.")}
        kwargs.setdefault("state_dict", names_to_write(self.visual_encoder, state))
        super().save_pretrained(folder, *args, **kwargs)
        if not (Path(folder) / CARD).exists():  # what somebody wrote stays
            write_model_card(folder)

    def get_input_embeddings(self) -> nn.Module:
        """Return those of the language model."""
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """Return those of the language model."""
        return self.llm.get_output_embeddings()

    def init_weights(self) -> None:
        """Keep all weights: the parts have initialized themselves, or were opened."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the language model's own weights, and nothing else."""
        if args or kwargs:  # newer transformers while it opens a folder, which knows the parts' ties
            super().tie_weights(*args, **kwargs)
        else:
            self.llm.tie_weights()

    @staticmethod
    def _fix_state_dict_key_on_load(key: str) -> Any:
        """Keep names: transformers would rename ``gamma``, the layer scale of timm's encoders."""
        return keep_name(key)

    def _init_weights(self, module: nn.Module) -> None:
        """Keep all weights: the parts have initialized themselves."""


def _flatten_images(
    pixel_values: Tensor | Sequence[Tensor], tiles_per_image: Tensor | Sequence[int] | None, *, needs_tiles: bool
) -> tuple[Tensor, list[int]]:
    """Join all images in one (sum of 1+N, 3, P, P), and count the rows of each."""
    if isinstance(pixel_values, Tensor) and pixel_values.dim() != 5:
        counts = [len(pixel_values)] if tiles_per_image is None else [int(count) for count in tiles_per_image]
    else:
        counts = [len(image) for image in pixel_values]
        pixel_values = torch.cat(list(pixel_values)) if counts else torch.empty(0, 3, 0, 0)
    if sum(counts) != len(pixel_values) or any(count < 1 + needs_tiles for count in counts):
        raise PallavaError(
            f"images must have an overview{' and at least one tile' * needs_tiles} each, and {len(pixel_values)} rows "
            f"in all, got {counts}"
        )
    return pixel_values, counts
