"""Zero-shot by embedding: the arithmetic, what is read from disk, and a model that does know its classes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from pallava.errors import PallavaError
from pallava.evaluation.answers.items import EvaluateOptions
from pallava.evaluation.answers.questions import read_labelled, read_pairs
from pallava.evaluation.class_sets import ClassSet
from pallava.evaluation.encoders import zero_shot
from pallava.evaluation.encoders.embeddings import EmbeddingCache
from pallava.evaluation.encoders.load import Encoder, load_encoder
from tests.tiny.clips import write_classes, write_open_clip

OPTIONS = EvaluateOptions()
COLOURS = {"red": (220, 30, 40), "green": (30, 200, 60), "blue": (20, 40, 230)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(str(write_open_clip(tmp_path_factory.mktemp("model") / "plip")))


def knowing(encoder: Encoder) -> Encoder:
    """One that sees the mean colour, and reads the colour's name wherever it stands in the sentence."""
    names = list(COLOURS)

    def text(texts: list[str]) -> torch.Tensor:
        return torch.stack([torch.eye(3)[next(n for n, name in enumerate(names) if name in text)] for text in texts])

    return dataclasses.replace(encoder, encode_image=lambda pixels: pixels.mean((2, 3)), encode_text=text)


def write_colours(root: Path, count: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(rng.normal(colour, 20, size=(20, 30, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_a_model_that_knows_the_classes_is_right(encoder: Encoder, tmp_path: Path):
    write_colours(tmp_path / "data")
    (tmp_path / "data" / "blue" / "0.broken.png").write_bytes(b"nothing")
    (tmp_path / "data" / "red" / "notes.txt").write_text("a note")
    data = read_labelled(tmp_path / "data", "", OPTIONS)
    cache = EmbeddingCache(tmp_path / "cache", encoder)
    result = zero_shot.evaluate(knowing(encoder), data, cache, num_resamples=50)
    assert result["num_images"] == 12
    assert {name: value["value"] for name, value in result["metrics"].items()} == dict.fromkeys(
        ["accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "auroc"], 1.0
    )
    assert result["per_class"]["red"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 4.0}
    assert result["confusion"]["labels"] == ["blue", "green", "red"]
    assert sum(result["left_out"].values()) == 2
    assert result["class_set"]["names"]["red"] == ["red"]


def test_the_direction_of_a_class_is_the_mean_of_its_sentences(encoder: Encoder, tmp_path: Path):
    words = ClassSet("mine", (("a", ("fat",)), ("b", ("mucus", "mucin"))), ("{}.", "an image of {}."))
    found = zero_shot.embed_classes(encoder, words, EmbeddingCache(tmp_path, encoder))
    with torch.inference_mode():
        texts = encoder.encode_text(["mucus.", "an image of mucus.", "mucin.", "an image of mucin."])
    expected = torch.nn.functional.normalize(torch.nn.functional.normalize(texts, dim=-1).mean(0), dim=-1)
    torch.testing.assert_close(found[1], expected)


def test_scores_order_as_probabilities_do_and_never_saturate():
    rng = np.random.default_rng(0)
    images = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(200, 6))), dim=-1)
    classes = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(3, 6))), dim=-1)
    true = rng.integers(3, size=200)
    predictions = zero_shot.predict(images, classes, true, ("a", "b", "c"), logit_scale=10.0)
    probabilities = (10.0 * images @ classes.T).softmax(-1).numpy()
    assert predictions.scores is not None
    np.testing.assert_allclose(1 / (1 + np.exp(-predictions.scores)), probabilities)
    assert np.array_equal(predictions.predicted, probabilities.argmax(1))
    result = zero_shot.score(predictions, num_resamples=5)
    assert result["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(true, probabilities, multi_class="ovr"))
    sure = zero_shot.predict(images, classes, true, ("a", "b", "c"), logit_scale=1e4)
    assert sure.scores is not None
    assert len(np.unique(sure.scores[:, 0])) == 200


def test_names_of_folders_and_of_public_sets(tmp_path: Path):
    write_classes(tmp_path / "crc", {"TUM": 1, "ADI": 2})
    data = read_labelled(tmp_path / "crc", "nct-crc-he", OPTIONS)
    assert data.class_set is not None
    assert data.class_set.name == "nct-crc-he"
    assert [item.reference for item in data.items] == ["ADI", "ADI", "TUM"]
    write_classes(tmp_path / "crc", {"tumour": 1})
    with pytest.raises(PallavaError, match="tumour.*nct-crc-he"):
        read_labelled(tmp_path / "crc", "nct-crc-he", OPTIONS)
    with pytest.raises(PallavaError, match="at least two classes"):
        read_labelled(write_classes(tmp_path / "one", {"a": 2}), "", OPTIONS)
    with pytest.raises(PallavaError, match="must have images"):
        read_labelled(tmp_path / "crc" / "TUM", "", OPTIONS)
    with pytest.raises(PallavaError, match="not a folder"):
        read_labelled(tmp_path / "none", "", OPTIONS)
    with pytest.raises(PallavaError, match="'crc' is not a data set"):
        read_labelled(tmp_path / "crc", "crc", OPTIONS)


def test_bach_as_it_lies_on_disk(tmp_path: Path):
    pytest.importorskip("pallava.data.sources")
    for folder, name in {"Normal": "n001", "Benign": "b001", "InSitu": "is001", "Invasive": "iv001"}.items():
        (tmp_path / "Photos" / folder).mkdir(parents=True)
        Image.new("RGB", (32, 24)).save(tmp_path / "Photos" / folder / f"{name}.tif")
    (tmp_path / "Photos" / "Normal" / "Thumbs.db").write_bytes(b"")
    data = read_labelled(tmp_path, "bach", OPTIONS)
    assert [item.reference for item in data.items] == ["Normal", "Benign", "InSitu", "Invasive"]
    assert all(Path(item.image).is_file() for item in data.items)
    assert sum(data.left_out.values()) == 1
    with pytest.raises(PallavaError, match="bach is a set of classes, but captions are needed"):
        read_pairs(tmp_path, "bach", OPTIONS)


def test_pairs_without_any_record_are_told(tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text('{"image": "a.png"}\n[1]\n')
    with pytest.raises(PallavaError, match="does not have any pair"):
        read_pairs(tmp_path / "pairs.jsonl", "", OPTIONS)
