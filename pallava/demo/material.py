"""The demo's pictures and texts on disk: drawn, cut and written here, read by the later steps.

``images/`` holds every picture; ``train.json`` and ``test.json`` say what is on them; ``views.json`` is what PLIP
learns from, with its pictures in ``views/``; ``captions.json`` is what `tools/dataformat.py` reads;
``instruction_tuning.jsonl`` is stage 2's; ``questions.jsonl`` is held out, in the form of `pallava evaluate`.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pallava.demo.fetch import fetch_ihc_picture, fetch_slide
from pallava.demo.micrographs import Facts, Micrograph, Region, draw, random_facts
from pallava.demo.questions import CAPTION_PROMPTS, TestQuestion, caption, held_out_questions, training_turns
from pallava.demo.real import crops, measured_caption
from pallava.demo.settings import TILE_SIZE, DemoSettings
from pallava.demo.views import Picture, views

_TRAIN, _TEST, _REAL, _QUESTIONS, _VIEWS = range(5)  # streams of random numbers that never meet

Progress = Callable[[str], None]


def write_material(folder: Path, settings: DemoSettings, progress: Progress = lambda text: None) -> None:
    """Draws the synthetic micrographs, cuts the real pictures, and writes every text about them."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    train = _draw_set(folder, "train", settings.train_pictures, [settings.seed, _TRAIN], progress)
    test = _draw_set(folder, "test", settings.test_pictures, [settings.seed, _TEST], progress)
    real = _cut_real(folder, settings)
    rng = np.random.default_rng([settings.seed, _QUESTIONS])
    drawn = _cycle(train, settings.alignment_rows - len(real))
    pairs = [{"image": record["name"], "caption": caption(_facts(record))} for record in drawn]
    pairs += [{"image": record["name"], "caption": record["caption"]} for record in real]
    _write_json(folder / "train.json", train + real)
    _write_json(folder / "test.json", test)
    _write_text(folder / "prompts.txt", "\n".join(CAPTION_PROMPTS) + "\n")
    _write_json(folder / "captions.json", [pairs[i] for i in rng.permutation(len(pairs))])
    rows = (
        _conversation(number, record, training_turns(_facts(record), rng, settings.turns))
        for number, record in enumerate(_cycle(train, settings.instruction_rows))
    )
    _write_text(folder / "instruction_tuning.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(folder / "images" / test[0]["name"], folder / "sample.png")  # what the trainings chat about
    questions = held_out_questions(
        [_facts(record) for record in test],
        rng,
        closed_per_kind=settings.closed_per_kind,
        open_per_kind=settings.open_per_kind,
    )
    _write_views(folder, settings, progress)
    _write_questions(folder / "questions.jsonl", questions, test)


def read_pictures(folder: Path, name: str) -> list[Picture]:
    """The pictures of ``train.json`` or ``test.json``, opened."""
    pictures = []
    for record in json.loads((folder / f"{name}.json").read_text()):
        with Image.open(folder / "images" / record["name"]) as image:
            pixels = image.convert("RGB")
        facts = _facts(record) if "facts" in record else None
        regions = tuple(Region(**region) for region in record["regions"])
        pictures.append(Picture(pixels, facts, regions, record["columns"], record.get("stain", "")))
    return pictures


def picture_paths(folder: Path, name: str) -> list[Path]:
    """Where the pictures of ``train.json`` or ``test.json`` lie, in its order."""
    records = json.loads((folder / f"{name}.json").read_text())
    return [folder / "images" / record["name"] for record in records]


def _draw_set(folder: Path, name: str, count: int, stream: list[int], progress: Progress) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number in range(count):
        rng = np.random.default_rng([*stream, number])
        micrograph = draw(random_facts(rng), rng)
        file_name = f"{name}-{number:05d}.png"
        Image.fromarray(micrograph.pixels).save(folder / "images" / file_name, compress_level=1)
        records.append(_record(file_name, micrograph))
        if number % 200 == 199:
            progress(f"{name}: {number + 1} of {count} synthetic micrographs")
    return records


def _record(name: str, micrograph: Micrograph) -> dict[str, Any]:
    return {
        "name": name,
        "facts": dataclasses.asdict(micrograph.facts),
        "regions": [dataclasses.asdict(region) for region in micrograph.regions],
        "columns": micrograph.grid[0],
    }


def _write_views(folder: Path, settings: DemoSettings, progress: Progress) -> None:
    """Pairs of a view and its caption, all of one size."""
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
    _write_json(folder / "views.json", pairs)


def _cut_real(folder: Path, settings: DemoSettings) -> list[dict[str, Any]]:
    """Pieces of the slide and of the IHC picture, for training alone."""
    records: list[dict[str, Any]] = []
    for stain, source in (("H&E", fetch_slide()), ("IHC", fetch_ihc_picture())):
        rng = np.random.default_rng([settings.seed, _REAL])
        with Image.open(source) as image:
            whole = image.convert("RGB")
        for number, piece in enumerate(crops(whole, settings.real_pictures, rng)):
            name = f"real-{source.stem}-{number:03d}.png"
            piece.save(folder / "images" / name, compress_level=1)
            records.append(
                {
                    "name": name,
                    "stain": stain,
                    "regions": [],
                    "columns": 3 if piece.width > piece.height else 2,
                    "caption": f"Real picture: {measured_caption(stain, np.asarray(piece))}.",
                }
            )
    return records


def _write_questions(path: Path, questions: Iterable[TestQuestion], pictures: list[dict[str, Any]]) -> None:
    rows = [
        {
            "id": f"{number:04d}",
            "image": pictures[question.picture]["name"],
            "question": question.question,
            "answer": question.answer,
            "kind": "closed" if question.closed else "open",
            "group": question.attribute,
        }
        for number, question in enumerate(questions)
    ]
    _write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _conversation(number: int, record: dict[str, Any], turns: Iterable[tuple[str, str]]) -> dict[str, Any]:
    messages: list[dict[str, str]] = []
    for question, answer in turns:
        marker = "" if messages else "<image>\n"
        messages += [{"from": "human", "value": marker + question}, {"from": "gpt", "value": answer}]
    return {"id": f"demo-{number:06d}", "image": record["name"], "conversations": messages}


def _facts(record: dict[str, Any]) -> Facts:
    return Facts(**record["facts"])


def _cycle(records: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [records[number % len(records)] for number in range(count)]


def _write_json(path: Path, value: object) -> None:
    _write_text(path, json.dumps(value, indent=1))


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
