"""The variants of the ablation: what each has in the place of a part, and the configs that train it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from pallava.config_files import find_config
from pallava.demo.pipeline import INSTRUCTION, WORDS
from pallava.io.files import write_json

_MODULE = "ablation_parts"


@dataclass(frozen=True)
class Variant:
    """A variant: changes of the demo's connector (`type` replaces it), and its encoder where it is not the demo's."""

    slug: str
    means: str
    connector: Mapping[str, Any] = field(default_factory=dict)
    encoder: str = "demo"  # or "shuffled", "imagenet"


VARIANTS = {
    "cross-attention": Variant("cross", "PA-LLaVA's connector: the overview's tokens read the tiles"),
    "without cross-attention": Variant(
        "without",
        "the same connector without it, as the published code in fact builds it",
        {"add_cross_attention": False},
    ),
    "overview alone, MLP": Variant(
        "mlp", "LLaVA's connector: an MLP over the overview's tokens", {"type": "pallava_mlp"}
    ),
    "tiles averaged": Variant(
        "averaged",
        "an MLP over each token of the overview beside the mean of all tile tokens",
        {"type": f"{_MODULE}.AveragedTiles"},
    ),
    "tiles passed on": Variant(
        "all",
        "an MLP over all tokens of overview and tiles, which the language model reads",
        {"type": f"{_MODULE}.AllTiles"},
    ),
    "encoder, shuffled captions": Variant(
        "shuffled", "the demo's encoder, trained on captions of other views", encoder="shuffled"
    ),
    "encoder, ImageNet": Variant(
        "imagenet",
        "EfficientNet-Lite0 with ImageNet's weights, up to its fifth stage, 4 x 4 tokens",
        encoder="imagenet",
    ),
}
"""Variants by name; the first one is what the others are compared with."""


def write_configs(variant: Variant, folder: Path) -> None:
    """Write the configs of both trainings, ``words.py`` and ``questions.py``, into a run's folder."""
    for name, stem in ((WORDS, "words"), (INSTRUCTION, "questions")):
        config = Config.fromfile(find_config(name))
        changes = dict(variant.connector)
        connector = {} if "type" in changes else config.model.connector.to_dict()
        config.model.connector = config.train_dataloader.dataset.connector = {**connector, **changes}
        if stem == "questions":
            config.model.pretrained_pth = "./demo/words"
            loader = config.train_dataloader  # of one process, where the demo has two of half the size
            loader.batch_size = loader.sampler.batch_size = 2 * loader.batch_size
        config.custom_imports.imports.append(_MODULE)
        config.dump(folder / f"{stem}.py")


def shuffle_captions(data: Path, target: Path, seed: int) -> None:
    """Write the views for an encoder whose captions are those of other views, beside a link to the pictures."""
    target.mkdir(parents=True, exist_ok=True)
    views = json.loads((data / "views.json").read_text())
    order = np.random.default_rng(seed).permutation(len(views))
    shuffled = [{**view, "caption": views[other]["caption"]} for view, other in zip(views, order, strict=True)]
    write_json(target / "views.json", shuffled, indent=1)
    (target / "views").unlink(missing_ok=True)
    (target / "views").symlink_to(data / "views", target_is_directory=True)
