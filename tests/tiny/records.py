"""Small pictures, a source in memory, and raw trees of public sets."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pallava.data.clean.filters import Candidate
from pallava.data.sources.base import Pair, Record, Source, Tally

LONG = (
    "haematoxylin and eosin stain of a human biopsy shows irregular glands with crowded nuclei and a dense stroma "
    "with many lymphocytes"
)


def save_picture(path: Path, seed: int, size: tuple[int, int] = (96, 80)) -> Path:
    """Write a picture with tissue everywhere; those of different seeds look different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(60, 210, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def caption(number: int) -> str:
    """A caption of more than 20 words that no other number has."""
    return f"{LONG} in case number {number}"


def pair(number: int, *, source: str = "memory", image: str | None = None, text: str | None = None, **metadata) -> Pair:
    return Pair(source, str(number), image or f"{number}.png", caption(number) if text is None else text, metadata)


def item(record: Record, root: Path = Path("/nowhere")) -> Candidate:
    return Candidate(record, root / record.image)


class MemorySource(Source):
    """Records from a list."""

    name = "memory"
    kind = "captions"

    def __init__(self, root: Path, records: Sequence[Record]) -> None:
        self.root, self.records, self.tally = root, records, Tally()
        self.num_bytes, self.num_bytes_read = len(records), 0

    def __iter__(self) -> Iterator[Record]:
        self.tally = Tally()
        for record in self.records:
            self.tally.num_records += 1
            self.num_bytes_read = self.tally.num_records
            yield record


def save_pairs(root: Path, num_rows: int = 6, first_seed: int = 0) -> Path:
    """A tree of the generic kind."""
    rows = [{"image": f"{number}.png", "caption": caption(first_seed + number)} for number in range(num_rows)]
    for number in range(num_rows):
        save_picture(root / f"{number}.png", first_seed + number)
    (root / "pairs.json").write_text(json.dumps(rows))
    return root


def save_mixed_pairs(root: Path, num_rows: int, size: tuple[int, int] = (64, 64)) -> Path:
    """A tree of the generic kind in which eight of twenty rows, by turns, are to be dropped for six reasons."""
    rows = []
    root.mkdir(parents=True)
    for number in range(num_rows):
        path, kind, text = root / f"{number}.png", number % 20, caption(number)
        if kind == 3:
            path.write_bytes((root / f"{number - 1}.png").read_bytes())
        elif kind in (4, 14):
            Image.new("RGB", size, "white").save(path)
        elif kind != 5:
            save_picture(path, number, size)
        if kind == 6:
            path.write_bytes(path.read_bytes()[:-900])
        text = {7: "Glands.", 17: "A duct.", 8: f"{text} of a mouse"}.get(kind, text)
        rows.append({"image": path.name, "caption": text})
    (root / "pairs.json").write_text(json.dumps(rows))
    return root


def save_pubmedvision(root: Path, num_rows: int = 6, first_seed: int = 100) -> Path:
    """A tree of PubMedVision-Alignment whose last row is radiology."""
    rows = []
    for number in range(num_rows):
        name = f"images/pmc_{number}_0.jpg"
        save_picture(root / name, first_seed + number)
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": caption(first_seed + number)}]
        modality = "Computed Tomography" if number == num_rows - 1 else "Microscopy Images"
        rows.append({"id": str(number), "image": [name], "conversations": turns, "modality": modality})
    (root / "PubMedVision_Alignment_VQA.json").write_text(json.dumps(rows))
    return root


def save_quilt(root: Path, num_rows: int = 6, first_seed: int = 200) -> Path:
    """A tree of Quilt-1M whose last row is no histology."""
    columns = "caption image_path subset split pathology roi_text noisy_text corrected_text med_umls_ids magnification"
    columns = ["", *columns.split(), "height", "width", "not_histology", "single_wsi"]
    root.mkdir(parents=True, exist_ok=True)
    with (root / "quilt_1M_lookup.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for number in range(num_rows):
            name = f"{number}.jpg"
            save_picture(root / "quilt_1m" / name, first_seed + number)
            row = {"": number, "caption": caption(first_seed + number), "image_path": name, "subset": "quilt"}
            row |= {"split": "train", "pathology": "['Pulmonary']", "roi_text": "[]", "med_umls_ids": "[]"}
            writer.writerow({**row, "not_histology": int(number == num_rows - 1), "single_wsi": 0})
    return root


def save_pmc_oa(root: Path, num_rows: int = 6, first_seed: int = 300) -> Path:
    """A tree of PMC-OA whose last caption is short."""
    folder = root / "caption_T060_filtered_top4_sep_v0_subfigures"
    rows = []
    for number in range(num_rows):
        save_picture(folder / f"PMC1_{number}.jpg", first_seed + number)
        text = "A gland." if number == num_rows - 1 else caption(first_seed + number)
        rows.append({"image": f"PMC1_{number}.jpg", "caption": text})
    (root / "pmc_oa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
