"""The demo's pictures and texts on disk: drawn, cut and written here, read by the later steps.

``images/`` has every picture; ``train.json`` and ``test.json`` describe them; ``views.json`` with the pictures in
``views/`` is for PLIP: small whole pictures, and parts at full size; ``captions.json`` is for `tools/dataformat.py`,
``instruction_tuning.jsonl`` for stage 2; ``questions.jsonl`` is held out, in the form of `pallava evaluate`. The
captions of the two real pictures name what can be measured on them, and nothing else. P is the side of a view.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from pallava.demo import TILE_SIZE, DemoSettings, Progress
from pallava.demo.fetch import IHC_PICTURE, SLIDE, fetch_file
from pallava.demo.micrographs import Facts, Region, draw, random_facts
from pallava.demo.questions import CAPTION_PROMPTS, caption, held_out_questions, training_turns, view_caption
from pallava.images import open_image
from pallava.io.files import write_json, write_text

_TRAIN, _TEST, _REAL, _QUESTIONS, _VIEWS = range(5)  # streams of random numbers that never meet

_SHADES = {"pink": (215, 150, 185), "purple": (150, 95, 150), "blue": (150, 165, 200), "brown": (150, 115, 100)}


@dataclass(frozen=True)
class Picture:
    """A picture with its content, drawn for a canvas of `columns` tiles across."""

    image: Image.Image
    facts: Facts | None  # None of a real picture, of which all but the stain is measured
    regions: tuple[Region, ...]
    columns: int
    stain: str = ""  # of a real picture
    path: Path = Path()


def write_material(folder: Path, settings: DemoSettings, progress: Progress = lambda text: None) -> None:
    """Draw the synthetic micrographs, cut the real pictures, and write every text about them."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    train = _draw_set(folder, "train", settings.train_pictures, [settings.seed, _TRAIN], progress)
    test = _draw_set(folder, "test", settings.test_pictures, [settings.seed, _TEST], progress)
    real = _cut_real(folder, settings)
    rng = np.random.default_rng([settings.seed, _QUESTIONS])
    drawn = islice(cycle(train), settings.alignment_rows - len(real))
    pairs = [{"image": record["name"], "caption": caption(Facts(**record["facts"]))} for record in drawn]
    pairs += [{"image": record["name"], "caption": record["caption"]} for record in real]
    write_json(folder / "train.json", train + real, indent=1)
    write_json(folder / "test.json", test, indent=1)
    write_text(folder / "prompts.txt", "\n".join(CAPTION_PROMPTS) + "\n")
    write_json(folder / "captions.json", [pairs[i] for i in rng.permutation(len(pairs))], indent=1)
    rows = (
        _conversation(number, record, training_turns(Facts(**record["facts"]), rng, settings.turns))
        for number, record in enumerate(islice(cycle(train), settings.instruction_rows))
    )
    _write_lines(folder / "instruction_tuning.jsonl", rows)
    shutil.copy(folder / "images" / test[0]["name"], folder / "sample.png")  # what the trainings chat about
    sizes = {"closed_per_kind": settings.closed_per_kind, "open_per_kind": settings.open_per_kind}
    questions = held_out_questions({record["name"]: Facts(**record["facts"]) for record in test}, rng, **sizes)
    _write_views(folder, settings, progress)
    _write_lines(folder / "questions.jsonl", questions)


def read_pictures(folder: Path, name: str) -> list[Picture]:
    """Open the pictures of ``train.json`` or ``test.json``."""
    pictures = []
    for record in json.loads((folder / f"{name}.json").read_text(encoding="utf-8")):
        path = folder / "images" / record["name"]
        facts = Facts(**record["facts"]) if "facts" in record else None
        regions = tuple(Region(**region) for region in record["regions"])
        pictures.append(Picture(open_image(path), facts, regions, record["columns"], record.get("stain", ""), path))
    return pictures


def views(pictures: Sequence[Picture], size: int, rng: Generator) -> Iterator[tuple[np.ndarray, str]]:
    """Yield endless views, flipped at random: a third of them on figures alone, a third of the others overviews.

    A view is (P, P, 3) of uint8, P being the size, and a caption. A figure beside everything else on a part is too
    little to learn from.
    """
    for picture in cycle(pictures):
        on_figures = rng.integers(3) == 0
        is_overview = not on_figures and rng.integers(3) == 0
        view, regions = (_pixels(picture.image, size), picture.regions) if is_overview else _part(picture, size, rng)
        rows, columns = rng.integers(2, size=2) * 2 - 1
        if picture.facts:
            text = view_caption(picture.facts, regions, overview=is_overview, on_figures=on_figures)
        else:
            text = measured_caption(picture.stain, view)
        yield view[::rows, ::columns], text


def crops(image: Image.Image, count: int, rng: Generator) -> Iterator[Image.Image]:
    """Cut pieces of 160 to 400 pixels a side out of a picture, in shapes of the tiling.

    Pieces of bare glass are left out, so that there may be fewer than `count`.
    """
    for _ in range(count):
        columns, rows = ((2, 2), (3, 2), (2, 3))[rng.integers(3)]
        unit = int(rng.integers(80, 134))
        width, height = columns * unit, rows * unit
        left, top = (int(rng.integers(max(room, 1))) for room in (image.width - width, image.height - height))
        piece = image.crop((left, top, left + width, top + height))
        if is_tissue(np.asarray(piece)).mean() >= 0.15:
            yield piece


def measured_caption(stain: str, pixels: NDArray[np.uint8]) -> str:
    """Describe a picture (R, C, 3) by its stain, the share of tissue and the tissue's mean colour."""
    tissue = is_tissue(pixels)
    text = f"{stain} stain, tissue fills {int(round(float(tissue.mean()), 1) * 100)} percent"
    if not tissue.any():
        return text
    colour = pixels[tissue].mean(0)
    nearest = min(_SHADES, key=lambda name: float(np.square(np.asarray(_SHADES[name]) - colour).sum()))
    return f"{text}, its colour is {nearest}"


def is_tissue(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return whether each pixel is coloured or dark, not bare glass: (R, C)."""
    return (np.ptp(pixels, axis=2) > 22) | (pixels.mean(2) < 190)


def _draw_set(folder: Path, name: str, count: int, stream: list[int], progress: Progress) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number in range(count):
        rng = np.random.default_rng([*stream, number])
        micrograph = draw(random_facts(rng), rng)
        file_name = f"{name}-{number:05d}.png"
        Image.fromarray(micrograph.pixels).save(folder / "images" / file_name, compress_level=1)
        facts, regions = asdict(micrograph.facts), [vars(region) for region in micrograph.regions]
        records.append({"name": file_name, "facts": facts, "regions": regions, "columns": micrograph.grid[0]})
        if number % 200 == 199:
            progress(f"{name}: {number + 1} of {count} synthetic micrographs")
    return records


def _write_views(folder: Path, settings: DemoSettings, progress: Progress) -> None:
    (folder / "views").mkdir(exist_ok=True)
    rng = np.random.default_rng([settings.seed, _VIEWS])
    pictures = read_pictures(folder, "train")
    shuffled = [pictures[number] for number in rng.permutation(len(pictures))]
    pairs: list[dict[str, str]] = []
    for view, text in islice(views(shuffled, TILE_SIZE, rng), settings.plip_views):
        pairs.append({"image": f"{len(pairs):06d}.png", "caption": text})
        Image.fromarray(view).save(folder / "views" / pairs[-1]["image"], compress_level=1)
        if len(pairs) % 1000 == 0:
            progress(f"{len(pairs)} of {settings.plip_views} views for the encoder")
    write_json(folder / "views.json", pairs, indent=1)


def _cut_real(folder: Path, settings: DemoSettings) -> list[dict[str, Any]]:
    """Cut pieces of the slide and of the IHC picture, for training alone."""
    records: list[dict[str, Any]] = []
    for stain, source in (("H&E", fetch_file(SLIDE)), ("IHC", fetch_file(IHC_PICTURE))):
        rng = np.random.default_rng([settings.seed, _REAL])
        for number, piece in enumerate(crops(open_image(source), settings.real_pictures, rng)):
            name = f"real-{source.stem}-{number:03d}.png"
            piece.save(folder / "images" / name, compress_level=1)
            text = f"Real picture: {measured_caption(stain, np.asarray(piece))}."
            columns = 3 if piece.width > piece.height else 2
            records.append({"name": name, "stain": stain, "regions": [], "columns": columns, "caption": text})
    return records


def _conversation(number: int, record: dict[str, Any], turns: Iterable[tuple[str, str]]) -> dict[str, Any]:
    messages: list[dict[str, str]] = []
    for question, answer in turns:
        marker = "" if messages else "<image>\n"
        messages += [{"from": "human", "value": marker + question}, {"from": "gpt", "value": answer}]
    return {"id": f"demo-{number:06d}", "image": record["name"], "conversations": messages}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _part(picture: Picture, size: int, rng: Generator) -> tuple[np.ndarray, list[Region]]:
    """Cut a square of the size of a tile, around a figure in two of three cases."""
    side = picture.image.width / picture.columns
    limits = picture.image.width - side, picture.image.height - side
    figures = [region for region in picture.regions if region.kind == "figure"]
    left, top = (rng.uniform(0, max(limit, 0)) for limit in limits)
    if figures and rng.integers(3):
        figure = figures[rng.integers(len(figures))]
        reach = side / 2 - figure.radius
        left, top = (
            float(np.clip(centre + rng.uniform(-reach, reach) - side / 2, 0, max(limit, 0)))
            for centre, limit in zip((figure.x, figure.y), limits, strict=True)
        )
    inside = [r for r in picture.regions if 0 <= r.x - left < side and 0 <= r.y - top < side]
    box = (left, top, left + side, top + side)
    return _pixels(picture.image, size, box), inside


def _pixels(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
