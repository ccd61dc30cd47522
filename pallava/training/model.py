"""The model as xtuner trains it: its frozen parts, its saved weights, the weights that it starts from."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn
from xtuner.registry import BUILDER

from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration
from pallava.model.connectors import (
    ConnectorConfig,
    build_connector,
    check_reopenable,
    find_connector,
    own_checkpoint_keys,
)
from pallava.model.convert import check_out, convert_run, training_config
from pallava.model.loading import add_lora, check_reopenable_part, loading_errors
from pallava.model.weights import load_strictly, read_weights, shorten
from pallava.prompts import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pallava.tiling import normalize
from pallava.training.features import FeatureWriter, complete_tokens
from pallava.training.recompute import Choice, choice_of, count_positions, recompute

Part = dict[str, Any]
"""A part of the model as a config names it: ``dict(type=..., ...)``."""


def connector_settings(part: Mapping[str, Any] | None) -> ConnectorConfig:
    """Return the configuration of `model.connector` (None: the published one) before its widths are known.

    Raises:
        PallavaError: The part's connector does not exist.
    """
    sizes = _connector_arguments(part)
    found = find_connector(sizes.pop("kind", "pallava_connector"))
    if not hasattr(found, "config_class"):
        return ConnectorConfig()  # a function of the user's shows its connector only when it is called
    sizes.pop("num_attention_heads", None)  # which must fit the encoder's width
    return found.config_class(**sizes)


def _connector_arguments(part: Mapping[str, Any] | None) -> Part:
    """Return the arguments of `build_connector`: a part's type may be that function, or a kind of connector."""
    arguments = dict(part or {})
    kind = arguments.pop("type", build_connector)
    is_function = kind is build_connector or str(kind).rpartition(".")[2] == build_connector.__name__
    return arguments if is_function else {"kind": kind, **arguments}


@MODELS.register_module()
@BUILDER.register_module()
class PALLaVAModel(BaseModel):
    """PA-LLaVA under xtuner's trainer.

    Args:
        llm: The causal language model.
        visual_encoder: The vision model.
        connector: The connector; its type is one that `build_connector` knows as `kind`, and widths are filled in
            (default: the published sizes).
        freeze_llm: Whether the language model's own weights stay as they are; LoRA still learns.
        freeze_visual_encoder: Whether the encoder stays as it is.
        llm_lora: peft's `LoraConfig`; without `target_modules` every linear layer but the output's.
        pretrained_pth: Weights to start from: a checkpoint of ours or a published one, a file or a folder. One of a
            connector alone leaves LoRA new.
        activation_checkpointing: What computes its activations anew in the backward pass, which saves memory and takes
            time: "none", "connector", "llm", "all" (both), a number n (every n-th layer of the language model, and the
            connector), or "auto": the least that fits the card, which `TrainLoop` finds when it starts ("all" before).
        use_activation_checkpointing: True is "all", False is "none", in the place of the former; old configs have it.
        vision_feature_layer: Index of the encoder's hidden states that the connector reads; -2 is the last but one.
        objective: What the loss asks for: "answers" of the language model, or "words" (`word_loss`), which teaches a
            new connector alone: of the language model only the word embeddings are used.

    Raises:
        PallavaError: A part cannot be opened, the weights to start from do not fit, or the objective does not fit what
            is trained.
    """

    def __init__(
        self,
        llm: Part | nn.Module,
        visual_encoder: Part | nn.Module,
        connector: Part | nn.Module | None = None,
        freeze_llm: bool = True,
        freeze_visual_encoder: bool = True,
        llm_lora: Part | None = None,
        pretrained_pth: str | None = None,
        use_activation_checkpointing: bool | None = None,
        vision_feature_layer: int = -2,
        activation_checkpointing: Choice = "all",
        objective: Literal["answers", "words"] = "answers",
    ) -> None:
        super().__init__()
        if objective not in ("answers", "words"):
            raise PallavaError(f'model.objective must be "answers" or "words", got {objective!r:.100}')
        if objective == "words" and not (freeze_llm and llm_lora is None):
            raise PallavaError(
                'model.objective "words" does not run the language model: set model.llm_lora=None and '
                "model.freeze_llm=True"
            )
        self.objective = objective
        self.freeze_llm, self.freeze_visual_encoder = freeze_llm, freeze_visual_encoder
        self.features: FeatureWriter | None = None  # while `connected_features` fills a cache
        self.llm = _build_llm(llm)
        self.visual_encoder = build(visual_encoder)
        widths = (self.visual_encoder.config.hidden_size, self.llm.config.hidden_size)
        self.connector: Any = connector
        if not isinstance(connector, nn.Module):
            self.connector = build_connector(*widths, **_connector_arguments(connector))
        check_reopenable(self.connector)
        self.llm.requires_grad_(not freeze_llm)
        self.visual_encoder.requires_grad_(not freeze_visual_encoder)
        if llm_lora is not None:
            self.llm = add_lora(self.llm, build(llm_lora))
        # The same modules as one network, kept out of the module tree: no parameter has two names.
        self.__dict__["network"] = PALLaVAForConditionalGeneration.from_parts(
            self.llm, self.visual_encoder, self.connector, vision_feature_layer=vision_feature_layer
        )
        if getattr(self.llm.config, "attn_logit_softcapping", None):  # sdpa would leave it out
            print_log(f"attention, whose scores have a cap: {self.llm.config._attn_implementation}", "current")
        for name, parameter in self.named_parameters():  # the optimizer gets parameters without names
            parameter.lr_group = name.split(".")[0]  # type: ignore[attr-defined]
        choices = {"activation_checkpointing": activation_checkpointing}
        self.recompute(choice_of({**choices, "use_activation_checkpointing": use_activation_checkpointing}))
        if pretrained_pth is not None:
            self.load_pretrained(pretrained_pth)
        self.train()

    def forward(
        self, data: dict[str, Tensor], data_samples: object = None, mode: str = "loss"
    ) -> dict[str, Tensor] | list[dict[str, Tensor]] | Any:
        """Run one batch of `pallava.training.dataset.collate`; `data_samples`, which mmengine passes, are ignored.

        The mode is ``"loss"``, ``"predict"`` (logits of each sample) or ``"tensor"`` (the whole output).
        """
        has_images = len(data["tiles_per_image"]) > 0
        inputs = {k: v for k, v in data.items() if has_images or k not in ("pixel_values", "tiles_per_image")}
        normalization = inputs.pop("normalization", None)
        if normalization is not None and has_images and inputs["pixel_values"].dtype == torch.uint8:
            inputs["pixel_values"] = normalize(inputs["pixel_values"], normalization)
        if mode == "loss":
            self._recompute_long(inputs)
            nothing = None if has_images else self._nothing_from_images(data["pixel_values"])
            inputs, shares = self._with_features(inputs)
            loss = self._word_loss(inputs) if self.objective == "words" else self.network.compute_loss(**inputs)
            return {"loss": loss if nothing is None else loss + nothing, **shares}
        output = self.network(**inputs)
        return [{"logits": logits} for logits in output.logits] if mode == "predict" else output

    def _with_features(self, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Put visual tokens in the place of a batch's images, and return the share of them that was cached, too."""
        if "feature_names" not in data:
            return data, {}
        tokens, names = complete_tokens(self.network, data, self.features), data["feature_names"]
        visual_tokens = self.network.connect(tokens, data["tiles_per_image"].tolist())
        rest = {key: data[key] for key in ("input_ids", "labels", "attention_mask")}
        share = torch.tensor(names.count(None) / len(names))  # mmengine logs it beside the loss
        return {**rest, "visual_tokens": visual_tokens}, {"cached_share": share}

    def _word_loss(self, inputs: Mapping[str, Any]) -> Tensor | float:
        num_images = (inputs["input_ids"] == IMAGE_TOKEN_INDEX).sum(1)  # of each row
        if not num_images.any():
            return 0.0
        visual_tokens = inputs.get("visual_tokens")
        if visual_tokens is None:
            visual_tokens = self.network.encode_images(inputs["pixel_values"], inputs["tiles_per_image"])
        labels = inputs["labels"].repeat_interleave(num_images, 0)  # each image of a row has the row's text
        return word_loss(visual_tokens, labels, self.llm.get_input_embeddings().weight)

    def _nothing_from_images(self, pixel_values: Tensor) -> Tensor:
        """Return zero, with gradients of zero for the connector: ranks wait for each other's gradients.

        They come from a black image ahead of the text, hence in the order of a batch with images: DeepSpeed adds up the
        gradients of the ranks by the order in which they are ready.
        """
        black = torch.zeros(2, *pixel_values.shape[1:], device=self.network.device)  # overview and a tile
        return 0.0 * sum(tokens.sum() for tokens in self.network.encode_images(black, [2]))

    def train(self, mode: bool = True) -> "PALLaVAModel":
        """Set training mode; frozen parts stay in evaluation mode, but recompute activations."""
        super().train(mode)
        if self.freeze_visual_encoder:
            self.visual_encoder.eval()
        if not any(p.requires_grad for p in self.llm.parameters()):
            self.llm.eval()
            for module in self.llm.modules():  # the stack of layers, which drops nothing itself
                if getattr(module, "gradient_checkpointing", False):
                    module.training = mode
        return self

    def init_weights(self) -> None:
        """Do nothing: the parts have their weights, and mmengine would draw them anew."""

    def recompute(self, choice: Choice, above: int = 0) -> None:
        """Set what computes its activations anew in the backward pass, in batches of more than so many positions."""
        self.activation_checkpointing, self._recomputed, self._recompute_above = choice, choice, above
        recompute(self, choice)

    def _recompute_long(self, data: Mapping[str, Tensor]) -> None:
        """Recompute in a long batch alone, where `recompute` says from which length on."""
        if not (self._recompute_above and self.training):
            return
        positions = count_positions(data, self.network.config.num_visual_tokens)
        wanted: Choice = self.activation_checkpointing if positions > self._recompute_above else "none"
        if wanted != self._recomputed:
            self._recomputed = wanted
            recompute(self, wanted)
            self.train()

    def state_dict(self, *args: Any, **kwargs: Any) -> "OrderedDict[str, Tensor]":  # type: ignore[override]
        """Return the trained weights alone."""
        prefix = kwargs.get("prefix", "")
        trained = {prefix + name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = super().state_dict(*args, **kwargs)
        return OrderedDict((key, value) for key, value in state.items() if key in trained)

    def load_pretrained(self, source: str) -> None:
        """Load trained weights strictly, whose keys and shapes must be those of this model, or of its connector alone.

        Raises:
            PallavaError: The file cannot be read safely, or its keys and shapes are not those of this model.
        """
        state = own_checkpoint_keys(read_weights(source), self.connector.config, source)
        prefix = "connector." if state and all(key.startswith("connector.") for key in state) else ""
        expected = {key: value for key, value in self.state_dict().items() if key.startswith(prefix)}
        load_strictly(self, state, source=source, expected=expected)
        print_log(f"Loaded {'the connector alone' if prefix else 'pretrained weights'} from {source}", "current")

    def to_hf(
        self,
        cfg: Any,
        save_dir: str,
        fp32: bool = False,
        save_pretrained_kwargs: Mapping[str, Any] | None = None,
        save_format: str = "xtuner",
        **kwargs: Any,
    ) -> None:
        """Write the model folder for ``xtuner convert pth_to_hf``, in float16 unless `fp32`.

        The frozen parts, here on the meta device, are opened again as `cfg` names them. The format ``"xtuner"`` keeps
        LoRA as an adapter, ``"huggingface"`` merges it; of `save_pretrained_kwargs` only `max_shard_size` counts.

        Raises:
            PallavaError: The format is unknown, the checkpoint lacks a trained weight, or the folder is not a model.
        """
        if save_format not in ("xtuner", "huggingface"):
            raise PallavaError(f"--save-format must be xtuner or huggingface (LoRA merged), got {save_format}")
        check_out(save_dir, overwrite=True)  # xtuner's command has made it if it was not there
        sizes = {k: v for k, v in (save_pretrained_kwargs or {}).items() if k == "max_shard_size"}
        state = self.state_dict()
        if missing := sorted(key for key, value in state.items() if value.is_meta):
            raise PallavaError(f"the checkpoint lacks {len(missing)} trained weights: {shorten(missing)}")
        convert_run(
            training_config(cfg.to_dict(), cfg.filename),
            state,
            save_dir,
            merge=save_format == "huggingface",
            dtype=torch.float32 if fp32 else torch.float16,
            source="the checkpoint",
            trust_remote_code=True,  # the user named the config, and it has been executed
            **sizes,
        )


def word_loss(visual_tokens: Tensor | Sequence[Tensor], labels: Tensor, embeddings: Tensor) -> Tensor:
    """Return how badly visual tokens name the words of their texts, without running the language model.

    An image's mean visual token is compared with the embedding of each word that is taught in the batch. These scores,
    added to the log of the words' shares of the batch, are to give the shares of the words in the image's own text, by
    cross-entropy. So a word that all texts have teaches nothing, and what tells one image from another is learnt at
    once. Captions serve as labels, token by token, in https://arxiv.org/abs/2411.03313, too, which trains an encoder.
    The order of words is lost: a fact without a word of its own ("necrosis yes, mitosis no") is not taught.

    Args:
        visual_tokens: (I, T, H), or a list of (T_i, H).
        labels: (I, L), token ids of the taught text, -100 elsewhere.
        embeddings: (V, H), of the language model's vocabulary.
    """
    taught = labels != IGNORE_INDEX
    words, index = labels[taught].unique(return_inverse=True)  # (W,), (taught labels,)
    counts = torch.zeros(len(labels), len(words), device=labels.device)
    counts.index_put_((taught.nonzero()[:, 0], index), counts.new_ones(()), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)  # (I, W)
    means = torch.stack([tokens.mean(0) for tokens in visual_tokens])
    scores = (means @ embeddings[words].to(means.dtype).T).float() + shares.mean(0).log()
    return nn.functional.cross_entropy(scores, shares)


def unwrap(model: Any) -> Any:
    """Return the model that the wrappers of mmengine or DeepSpeed are around."""
    while hasattr(model, "module"):
        model = model.module
    return model


def build(part: Any) -> Any:
    """Build a part from its config; return one that is built already itself."""
    return BUILDER.build(part) if isinstance(part, (Mapping, str)) else part  # the builder refuses a text


def _build_llm(part: Part | nn.Module) -> Any:
    name = part.get("pretrained_model_name_or_path", "model.llm") if isinstance(part, dict) else "model.llm"
    with loading_errors(name):  # a config may name another loader than ours
        llm = build(part)
    check_reopenable_part(llm, "language model")
    llm.config.use_cache = False
    return llm
