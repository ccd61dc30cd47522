"""What the small PLIP knows without further training: stain and nuclear density of held-out pictures, zero-shot."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pallava.demo.micrographs import DENSITIES, GLAND_COUNTS, STAIN_SHARES, Facts, Region
from pallava.demo.questions import view_caption
from pallava.demo.settings import PIXEL_MEAN, PIXEL_STD, TILE_SIZE
from pallava.evaluation.encoders.embeddings import EmbeddingCache
from pallava.evaluation.encoders.load import Encoder, from_open_clip, load_encoder
from pallava.evaluation.encoders.zero_shot import by_embedding, evaluate
from pallava.evaluation.examples import ClassSet, LabelledImages

_ATTRIBUTES = {"stain": tuple(STAIN_SHARES), "density": tuple(DENSITIES)}


def plip_accuracies(folder: Path, pictures: Sequence[tuple[Path, Facts]], seed: int) -> dict[str, Any]:
    """Classifies held-out pictures with the trained PLIP and with an untrained one.

    Args:
        folder: What `pallava pretrain` wrote.
        pictures: Paths, and what is on them.
        seed: Of the untrained weights.

    Returns:
        ``stain_accuracy``, ``density_accuracy``, the same of the untrained one, what guessing the most frequent class
        gives, and the number of pictures.
    """
    report: dict[str, Any] = {"num_pictures": len(pictures)}
    for suffix, encoder in (("", load_encoder(str(folder))), ("_untrained", _untrained(folder, seed))):
        for attribute in _ATTRIBUTES:
            result = _classify(encoder, attribute, pictures)
            report[f"{attribute}_accuracy{suffix}"] = round(result["metrics"]["accuracy"]["value"], 4)
            report[f"{attribute}_largest_class"] = round(result["largest_class"], 4)
    return report


def class_set(attribute: str) -> ClassSet:
    """Classes of an attribute, each as every caption of an overview that names it."""
    classes = []
    for label in _ATTRIBUTES[attribute]:
        others = _ATTRIBUTES["density" if attribute == "stain" else "stain"]
        pairs = [(label, other) if attribute == "stain" else (other, label) for other in others]
        classes.append((label, tuple(text for stain, density in pairs for text in _captions(stain, density))))
    return ClassSet(attribute, tuple(classes), ("{}",), "captions of the synthetic micrographs")


def _captions(stain: str, density: str) -> list[str]:
    facts = Facts(stain=stain, density=density, glands=0, necrosis=False, inflammation=False, mitosis=False)
    texts = []
    for glands, *others in itertools.product(GLAND_COUNTS, (True, False), (True, False)):
        kinds = [kind for kind, is_there in zip(("necrosis", "inflammation"), others, strict=True) if is_there]
        regions = [Region(kind, 0, 0, 1) for kind in (*["gland"] * glands, *kinds)]
        texts.append(view_caption(facts, regions, overview=True))
    return texts


def _classify(encoder: Encoder, attribute: str, pictures: Sequence[tuple[Path, Facts]]) -> dict[str, Any]:
    words = class_set(attribute)
    numbers = [words.labels.index(getattr(facts, attribute)) for _, facts in pictures]
    data = LabelledImages(words, [path for path, _ in pictures], numbers)
    with tempfile.TemporaryDirectory() as cache:
        return evaluate(by_embedding(encoder, EmbeddingCache(Path(cache), encoder)), data)


def _untrained(folder: Path, seed: int) -> Encoder:
    import open_clip
    from open_clip.transform import PreprocessCfg

    name = "open_clip"
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(seed)
    model = open_clip.create_model(name)
    preprocessing = PreprocessCfg(TILE_SIZE, mean=PIXEL_MEAN, std=PIXEL_STD, resize_mode="squash")
    return from_open_clip(model, open_clip.get_tokenizer(name), preprocessing, name="untrained")
