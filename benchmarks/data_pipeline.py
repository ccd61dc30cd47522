#!/usr/bin/env python
"""How fast are the readers, the image filter and tools/dataformat.py, and how much memory do they take?

All data are synthetic and in a temporary folder (3 GB at full size). Each measurement is a process of its own, so
that its peak memory is its own. Seconds are those of the processor where one process works, and those of the clock for
the two ways of writing a training file, which run in turns. The published way is re-stated here: it opens each picture
with Pillow, appends to a list, and writes at the end.

Example:
  python benchmarks/data_pipeline.py            # 100,000 and 1,000,000 rows, 100,000 pictures: minutes
  python benchmarks/data_pipeline.py --small    # the same in seconds, for a test
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NUM_ROUNDS = 3
MAX_MEMORY_MB = 500
MAX_MEMORY_GROWTH_MB = 50  # from the smaller to the larger size
MAX_SLOW_DOWN = 1.3  # of a row, from the smaller to the larger size
MIN_SPEED_UP = 1.4

_MAX_PIXELS = 16_777_216
_BLOCK = 10_000
_TEXT = (
    "section of human colon with crowded irregular glands dense stroma necrosis and many lymphocytes stained by "
    "haematoxylin eosin showing invasive carcinoma at high magnification, nuclei are enlarged 'atypical' \"clear\""
)
_WORDS = _TEXT.split()
_QUILT_HEADER = (
    ",caption,image_path,subset,split,pathology,roi_text,noisy_text,corrected_text,med_umls_ids,magnification,height,"
    "width,not_histology,single_wsi\n"
)


def main() -> int:
    """Measure everything and print tables; return 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--small", action="store_true", help="hundredth of the size, for a test; its times mean nothing"
    )
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.child:
        name, *arguments = options.child
        print(json.dumps(_CHILDREN[name](*arguments)))
        return 0
    scale = 100 if options.small else 1
    with tempfile.TemporaryDirectory() as folder:
        sizes = [100_000 // scale, 1_000_000 // scale]
        is_read_well = compare_readers(Path(folder), sizes)
        measure_duplicates(sizes)
        measure_images(Path(folder), 800 // scale)
        is_fast = compare_dataformat(Path(folder), 100_000 // scale)
    return 0 if options.small or (is_read_well and is_fast) else 1


def compare_readers(folder: Path, sizes: list[int]) -> bool:
    """Read each set and count words, at each size."""
    results = {name: [_read_rows(folder, name, size) for size in sizes] for name in ("quilt-1m", "pubmedvision")}
    _print_rows("read and count words", results)
    is_linear = [_is_linear(name, each) for name, each in results.items()]  # a list, to print all
    print()
    return all(is_linear)


def measure_duplicates(sizes: list[int]) -> None:
    """Search for duplicates among hashes like those of images, a fifth of which repeat another or nearly so."""
    _print_rows("duplicates filter", {"hashes": [_child("duplicates", str(size)) for size in sizes]})
    print()


def _read_rows(folder: Path, name: str, size: int) -> dict[str, Any]:
    root = folder / f"{name}-{size}"
    _child("make", name, str(root), str(size))
    result = _child("read", name, str(root))
    assert result["num_rows"] == size, result
    for path in root.iterdir():
        path.unlink()
    return result


def _print_rows(title: str, results: dict[str, list[dict[str, Any]]]) -> None:
    print(f"{title:<22}{'rows':>10}{'CPU s':>9}{'rows/s':>10}{'time of a row':>15}{'peak MB':>9}")
    for name, (first, *others) in results.items():
        for each in (first, *others):
            size, seconds = each["num_rows"], each["seconds"]
            speed, slow_down = size / seconds, seconds / size * first["num_rows"] / first["seconds"]
            print(f"{name:<22}{size:>10,}{seconds:>9.1f}{speed:>10,.0f}{slow_down:>14.2f}x{each['peak_mb']:>9.0f}")


def _is_linear(name: str, results: list[dict[str, Any]]) -> bool:
    """Print whether a row takes as long at the last size as at the first, and memory stays flat."""
    per_row = [each["seconds"] / each["num_rows"] for each in results]
    peaks = [each["peak_mb"] for each in results]
    promises = {
        f"a row takes at most {MAX_SLOW_DOWN} times as long": per_row[-1] <= MAX_SLOW_DOWN * per_row[0],
        f"memory grows by at most {MAX_MEMORY_GROWTH_MB} MB": peaks[-1] - peaks[0] <= MAX_MEMORY_GROWTH_MB,
        f"memory below {MAX_MEMORY_MB} MB": max(peaks) < MAX_MEMORY_MB,
    }
    answers = [f"{promise}: {'yes' if is_kept else 'NO'}" for promise, is_kept in promises.items()]
    print(f"{name}: {'; '.join(answers)}")
    return all(promises.values())


def measure_images(folder: Path, num_images: int) -> None:
    """Run the image filter in one process: hash of the file, full decoding, background, perceptual hash."""
    root = folder / "checked"
    _child("make-images", str(root), str(num_images), "800", "600")
    result = _child("check", str(root))
    speed = num_images / result["seconds"]
    print(f"image filter: {num_images} pictures of 800 x 600: {speed:.0f} pictures a second and core\n")


def compare_dataformat(folder: Path, num_images: int) -> bool:
    """Write the same training rows in the published way and by the tool, in turns."""
    root = folder / "pictures"
    _child("make-images", str(root), str(num_images), "192", "144")
    pairs = root / "pairs.json"
    commands = {
        "published way": _command("published", str(pairs), str(root), str(folder / "published.jsonl")),
        "tools/dataformat.py": [
            *(sys.executable, str(ROOT / "tools" / "dataformat.py"), "--input", str(pairs)),
            *("--image-folder", str(root), "--output", str(folder / "ours.jsonl"), "--workers", "2"),
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(NUM_ROUNDS):
        for name, command in commands.items():
            seconds[name].append(_timed(command))
    counts = {path: sum(1 for _ in (folder / path).open("rb")) for path in ("published.jsonl", "ours.jsonl")}
    assert set(counts.values()) == {num_images}, counts
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{f'{num_images:,} pictures':<22}{'median s':>9}{'rows/s':>10}   each of {NUM_ROUNDS} rounds")
    for name, median in medians.items():
        rounds = ", ".join(f"{value:.1f}" for value in seconds[name])
        print(f"{name:<22}{median:>9.1f}{num_images / median:>10,.0f}   {rounds}")
    ratio = medians["published way"] / medians["tools/dataformat.py"]
    print(f"ratio of the medians: {ratio:.2f}, at least {MIN_SPEED_UP}: {'yes' if ratio >= MIN_SPEED_UP else 'NO'}")
    return ratio >= MIN_SPEED_UP


def _command(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--child", *arguments]


def _child(*arguments: str) -> dict[str, Any]:
    return json.loads(subprocess.run(_command(*arguments), check=True, capture_output=True, text=True).stdout)


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def _read(name: str, root: str) -> dict[str, Any]:
    from pallava.data.clean.filters import Candidate, WordsFilter
    from pallava.data.sources import open_source

    start = time.process_time()
    source, words, num_kept = open_source(name, root), WordsFilter(20), 0
    for record in source:
        item = Candidate(record, Path(root) / record.image)
        num_kept += words.decide(item, words.score([item])[0]).keep
    seconds = time.process_time() - start
    num_rows = source.tally.num_records
    return {"seconds": seconds, "num_rows": num_rows, "num_kept": num_kept, "peak_mb": _peak_mb()}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _make(name: str, root: str, num_rows: str) -> dict[str, Any]:
    Path(root).mkdir(parents=True)
    {"quilt-1m": _write_quilt, "pubmedvision": _write_pubmedvision}[name](Path(root), int(num_rows))
    return {}


def _write_quilt(root: Path, num_rows: int) -> None:
    draw = random.Random(0)
    with (root / "quilt_1M_lookup.csv").open("w", encoding="utf-8", newline="") as file:
        file.write(_QUILT_HEADER)
        writer = csv.writer(file)
        for number in range(num_rows):
            text = _sentence(draw, number)
            place = [number, text, f"{number // 2}_x.jpg", "quilt", "train"]
            literals = ["['Gastrointestinal', 'Head and Neck']", f"['{number} crypts']"]
            texts = [f"uhm {text}", text, "[[], ['C0007097', 'C0027651']]"]
            writer.writerow([*place, *literals, *texts, 2.0, 720, 1280, 0, 0])


def _write_pubmedvision(root: Path, num_rows: int) -> None:
    draw = random.Random(0)
    with (root / "PubMedVision_Alignment_VQA.json").open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            text = _sentence(draw, number)
            row = {
                "id": str(number),
                "image": [f"images/pmc_{number}_{part}.jpg" for part in range(1 + (number % 5 == 0))],
                "conversations": [
                    {"from": "human", "value": f"What does this picture show? {text[:80]}"},
                    {"from": "gpt", "value": f"{text} {text}"},
                ],
                "body_part": "Colon",
                "modality": "Microscopy Images",
            }
            file.write(("[" if number == 0 else ",") + json.dumps(row, ensure_ascii=False, indent=1))
        file.write("]")


def _sentence(draw: random.Random, number: int) -> str:
    return f"Case {number}:\n{' '.join(draw.choices(_WORDS, k=draw.randint(5, 60)))}"


def _make_images(root: str, num_images: str, width: str, height: str) -> dict[str, Any]:
    """Write a few different images many times, each to a file of its own, and a list of captions."""
    import io

    import numpy as np
    from PIL import Image

    folder, size = Path(root), (int(width), int(height))
    contents = []
    for seed in range(50):
        coarse = np.random.default_rng(seed).integers(60, 210, (24, 32, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        contents.append(out.getvalue())
    draw = random.Random(0)
    pairs = []
    for number in range(int(num_images)):
        name = f"{number // 1000:03d}/{number:06d}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents[number % len(contents)])
        pairs.append({"image": name, "caption": _sentence(draw, number)})
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    return {}


def _check(root: str) -> dict[str, Any]:
    from pallava.data.clean.filters import Candidate
    from pallava.data.clean.images import ImageFilter
    from pallava.data.sources.base import Pair

    names = [pair["image"] for pair in json.loads((Path(root) / "pairs.json").read_text(encoding="utf-8"))]
    items = [Candidate(Pair("pairs", name, name, ""), Path(root) / name) for name in names]
    image = ImageFilter(num_workers=1)
    image.score(items[:1])  # imports
    start = time.process_time()
    scores = image.score(items)
    seconds = time.process_time() - start
    assert all("perceptual_hash" in score for score in scores)
    return {"seconds": seconds}


def _duplicates(num_rows: str) -> dict[str, Any]:
    import numpy as np

    from pallava.data.clean.filters import Candidate
    from pallava.data.clean.images import DuplicateFilter
    from pallava.data.sources.base import Pair

    draw, count = np.random.default_rng(0), int(num_rows)
    chosen, path, num_kept, seconds = DuplicateFilter(), Path("a.jpg"), 0, 0.0
    chosen.begin()
    for first in range(0, count, _BLOCK):
        hashes = _hashes(draw, min(_BLOCK, count - first))
        start = time.process_time()
        for number, value in enumerate(hashes, first):
            shared = {"sha256": f"{number:064x}", "perceptual_hash": f"{value:016x}"}
            item = Candidate(Pair("pairs", str(number), f"{number}.jpg", f"Case {number}."), path, shared)
            num_kept += chosen.decide(item, {}).keep
        seconds += time.process_time() - start
    return {"seconds": seconds, "num_rows": count, "num_kept": num_kept, "peak_mb": _peak_mb()}


def _hashes(draw: Any, count: int) -> list[int]:
    """Draw hashes of images whose detail fades with its fineness: half of the bits are ones.

    A fifth are another one of these again, with a little noise as of JPEG.
    """
    import numpy as np

    fineness = 1 + np.add.outer(np.arange(8), np.arange(8)).ravel()
    spectra = draw.standard_normal((count, 64)) / fineness
    spectra[:, 0] = 100  # the mean brightness
    copies = draw.random(count) < 0.2
    spectra[copies] = spectra[draw.integers(count, size=copies.sum())]
    spectra[copies] *= 1 + 0.02 * draw.standard_normal((copies.sum(), 64))
    bits = spectra > np.median(spectra, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().tolist()


def _published(pairs: str, image_folder: str, output: str) -> dict[str, Any]:
    from PIL import Image

    prompts = ["Describe this picture.", "What is shown here?", "Summarize the content of this picture."]
    rows = []
    with open(pairs, encoding="utf-8") as file:  # noqa: PTH123 - as it was published, and so it is timed
        records = json.load(file)
    for number, record in enumerate(records):
        image = Image.open(os.path.join(image_folder, record["image"]))  # noqa: PTH118
        if image.size[0] * image.size[1] > _MAX_PIXELS:
            continue
        prompt = random.choice(prompts)
        question = f"<image>\n{prompt}" if random.random() < 0.5 else f"{prompt}\n<image>"
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": record["caption"]}]
        rows.append({"id": str(number), "image": record["image"], "conversations": talk})
    with open(output, "w", encoding="utf-8") as file:  # noqa: PTH123
        for row in rows:
            file.write(json.dumps(row) + "\n")
    return {}


_CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "read": _read,
    "make": _make,
    "make-images": _make_images,
    "check": _check,
    "duplicates": _duplicates,
    "published": _published,
}

if __name__ == "__main__":
    sys.exit(main())
