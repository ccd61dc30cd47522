"""The CLIP-style judge, with a small model that is trained here from pictures that are not used again."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pytest
import skimage
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from pallava.cli import main
from pallava.data.clean import judges
from pallava.data.clean.filters import Candidate, Filter
from pallava.data.clean.judges import PathologyClip
from pallava.data.sources.base import Pair
from pallava.demo.fetch import SLIDE, fetch_file
from pallava.demo.material import is_tissue
from pallava.demo.micrographs import draw, random_facts
from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.judging.prompts import OTHER_CAPTIONS, PATHOLOGY_CAPTIONS
from tests.tiny.records import save_pairs

PICTURES = Path(skimage.__file__).parent / "data"  # those that its wheel carries
CAPTIONS = [*PATHOLOGY_CAPTIONS, *OTHER_CAPTIONS]
HE, IHC = 0, 2  # captions of the drawn micrographs and of the IHC picture
TRAINED = {
    "chelsea.png": "a photograph of an animal",
    "camera.png": "a photograph of a person",
    "motorcycle_left.png": "a photograph of objects",
    "coins.png": "a photograph of objects",
    "clock_motion.png": "a photograph of objects",
    "rocket.jpg": "a photograph of a landscape or a surface",
    "brick.png": "a photograph of a landscape or a surface",
    "gravel.png": "a photograph of a landscape or a surface",
    "hubble_deep_field.jpg": "a photograph of a landscape or a surface",
    "text.png": "a page of text",
    "color.png": "a diagram or a drawing",
    "phantom.png": "a diagram or a drawing",
    "horse.png": "a diagram or a drawing",
}
HELD_OUT = ("retina.jpg", "coffee.png", "astronaut.png", "page.png", "moon.png", "grass.png", "microaneurysms.png")
NAME, SIDE, STEPS, BATCH = "tiny-judge", 32, 200, 24
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 3, "width": 96, "head_width": 32, "patch_size": 8, "image_size": SIDE},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def crops(image: Image.Image, count: int, rng: np.random.Generator, *, of_tissue: bool = False) -> list[Image.Image]:
    """Squares of 96 to 320 pixels, those of bare glass left out where tissue is wanted; all scaled to 96."""
    largest = min(*image.size, 320)
    pieces: list[Image.Image] = []
    while len(pieces) < count:
        side = int(rng.integers(min(96, largest), largest + 1))
        left, upper = (int(rng.integers(length - side + 1)) for length in image.size)
        piece = image.crop((left, upper, left + side, upper + side))
        piece = piece.resize((96, 96), Image.Resampling.BICUBIC)
        if not of_tissue or is_tissue(np.asarray(piece)).mean() >= 0.15:
            pieces.append(piece)
    return pieces


def drawn(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """A piece of each of so many synthetic micrographs, of several stains."""
    micrographs = (draw(random_facts(rng), rng) for _ in range(count))
    return [piece for each in micrographs for piece in crops(Image.fromarray(each.pixels), 1, rng)]


def pixels(pieces: Sequence[Image.Image]) -> Tensor:
    """(B, 3, SIDE, SIDE), from 0 to 1."""
    small = [np.asarray(piece.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) / 255 for piece in pieces]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)


def train(folder: Path, seed: int) -> Path:
    """Trains by cross entropy over all captions; half of a batch is pathology."""
    rng = np.random.default_rng(seed)
    ihc = crops(open_image(PICTURES / "ihc.png"), 150, rng, of_tissue=True)
    groups = {HE: pixels(drawn(150, rng)), IHC: pixels(ihc)}
    others: dict[int, list[Tensor]] = {}
    for name, caption in TRAINED.items():
        others.setdefault(CAPTIONS.index(caption), []).append(pixels(crops(open_image(PICTURES / name), 25, rng)))
    other_groups = {caption: torch.cat(parts) for caption, parts in others.items()}
    (folder / f"{NAME}.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(seed)
    network, tokens = open_clip.create_model(NAME), open_clip.get_tokenizer(NAME)(CAPTIONS)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.visual.image_mean, network.visual.image_std))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    for _ in range(STEPS):
        labels, batch = [], []
        for index in range(BATCH):
            kinds = groups if index % 2 else other_groups
            label = list(kinds)[rng.integers(len(kinds))]
            image = kinds[label][rng.integers(len(kinds[label]))]
            image = torch.rot90(image, int(rng.integers(4)), (1, 2))
            batch.append((image * rng.uniform(0.85, 1.15) + rng.uniform(-0.06, 0.06)).float())
            labels.append(label)
        images = network.encode_image((torch.stack(batch) - mean) / std, normalize=True)
        texts = network.encode_text(tokens, normalize=True)
        loss = cross_entropy(network.logit_scale.exp() * images @ texts.T, torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.save(network.state_dict(), folder / "judge.pt")
    return folder / "judge.pt"


def items(pieces: Sequence[Image.Image], folder: Path) -> list[Candidate]:
    folder.mkdir(exist_ok=True)
    for number, piece in enumerate(pieces):
        piece.save(folder / f"{number}.png")
    return [
        Candidate(Pair("pairs", str(number), f"{number}.png", "text"), folder / f"{number}.png")
        for number in range(len(pieces))
    ]


@dataclass
class Trained:
    folder: Path
    weights: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("judge")
    return Trained(folder, train(folder, seed=1))


def test_drops_other_pictures_and_keeps_pathology(trained: Trained) -> None:
    """All pictures are new ones: of pathology the H&E slide, where IHC and drawings were trained on."""
    rng = np.random.default_rng(7)
    judge = PathologyClip(NAME, trained.weights)
    tissue = crops(open_image(fetch_file(SLIDE)), 100, rng, of_tissue=True)
    others = [piece for name in HELD_OUT for piece in crops(open_image(PICTURES / name), 15, rng)]
    kept = [
        [judge.decide(item, score).keep for item, score in zip(cut, judge.score(cut), strict=True)]
        for cut in (items(tissue, trained.folder / "tissue"), items(others, trained.folder / "others"))
    ]
    print(f"{1 - np.mean(kept[1]):.1%} of other pictures dropped, {1 - np.mean(kept[0]):.1%} of pathology lost")
    assert np.mean(kept[1]) <= 0.2
    assert np.mean(kept[0]) >= 0.9


def test_scores_do_not_depend_on_the_batch_and_the_threshold_judges_nothing(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = items(crops(open_image(PICTURES / "ihc.png"), 5, np.random.default_rng(1)), trained.folder / "batch")
    whole = PathologyClip(NAME, trained.weights).score(some)
    monkeypatch.setattr(judges, "_BATCH_SIZE", 2)
    parts = PathologyClip(NAME, trained.weights).score(some)
    assert [a["pathology"] for a in whole] == pytest.approx([b["pathology"] for b in parts], abs=1e-4)
    assert all(0 <= score["pathology"] <= 1 for score in whole)
    low, high = (PathologyClip(NAME, trained.weights, threshold=value) for value in (0.2, 0.9))
    assert low.key == high.key
    assert low.decide(some[0], {"pathology": 0.5}).keep
    verdict = high.decide(some[0], {"pathology": 0.5})
    assert (verdict.keep, verdict.reason, verdict.score) == (False, "not_pathology", 0.5)


@pytest.mark.parametrize(("threshold", "num_kept"), [("0", 3), ("1", 0)])
def test_the_command_takes_it(trained: Trained, tmp_path: Path, threshold: str, num_kept: int) -> None:
    tree = save_pairs(tmp_path / "tree", 3)
    words = ["--pathology", "clip", "--model-name", NAME, "--pretrained", str(trained.weights), "--workers", "1"]
    out, source = tmp_path / "out", f"pairs={tree}"
    assert main(["data", "clean", str(out), "--source", source, *words, "--clip-threshold", threshold]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_kept"] == num_kept
    assert summary["settings"]["pretrained"] == str(trained.weights)
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [each["reason"] for each in dropped] == ["not_pathology"] * (3 - num_kept)
    assert all(0 < each["score"] < 1 for each in dropped)


def test_an_image_that_cannot_be_opened_is_dropped_and_loses_no_other(trained: Trained) -> None:
    some = items([Image.new("RGB", (50, 50))] * 3, trained.folder / "broken")
    some[1].path.write_bytes(b"no picture")
    judge = PathologyClip(NAME, trained.weights)
    scores = judge.score(some)
    assert [score["pathology"] is None for score in scores] == [False, True, False]
    assert judge.decide(some[1], scores[1]).reason == "unreadable_image"


def test_is_a_filter_and_its_key_names_the_weights_themselves(trained: Trained, tmp_path: Path) -> None:
    judge = PathologyClip(NAME, trained.weights)
    assert isinstance(judge, Filter)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(trained.weights.read_bytes())
    assert PathologyClip(NAME, copy).key == judge.key
    copy.write_bytes(b"other weights")
    assert PathologyClip(NAME, copy).key != judge.key
    assert PathologyClip("ViT-B-16", "openai").key != PathologyClip("ViT-B-32", "openai").key


class Hostile:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("touched"),))


def test_a_checkpoint_runs_no_code(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pt").write_bytes(pickle.dumps({"state_dict": Hostile()}))
    torch.save({"state_dict": Hostile()}, "evil2.pt")
    some = items([Image.new("RGB", (50, 50))], tmp_path / "i")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(PallavaError, match="cannot load.*evil"):
            PathologyClip(NAME, name).score(some)
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ViT-B-16",), "ViT-B-16.*weights"),
        (("ViT-B-16", "no-such-tag"), "cannot load.*'ViT-B-16'.*'no-such-tag'"),
        (("no-such-model", "openai"), "cannot load.*'no-such-model'"),
    ],
)
def test_what_cannot_be_loaded_is_told(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(PallavaError, match=message):
        PathologyClip(*arguments).score(items([Image.new("RGB", (50, 50))], tmp_path / "i"))


def test_a_threshold_is_a_share() -> None:
    with pytest.raises(PallavaError, match="50"):
        PathologyClip("ViT-B-16", "openai", threshold=50)
