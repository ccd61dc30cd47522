"""The data commands as a user types them: exit codes, what they say, and no traceback."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.smoke


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [sys.executable, "-m", "pallava", "data", *arguments], cwd=cwd, capture_output=True, text=True
    )
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A PathVQA of four questions, whose test image is a training image."""
    for split, count in (("train", 3), ("test", 1)):
        folder = tmp_path / "pv" / "images" / split
        folder.mkdir(parents=True)
        rows = []
        for number in range(count):
            Image.effect_mandelbrot((90, 60), (-2 + number / 5, -1.2, 1, 1.2), 60).save(
                folder / f"{split}_{number:04d}.jpg"
            )
            rows.append(
                {
                    "answer_type": "other",
                    "img_id": f"{split}_{number:04d}",
                    "label": {"gland ": 1},
                    "question_id": number,
                    "question_type": "what",
                    "sent": f"What is {split} {number}?",
                }
            )
        (tmp_path / "pv" / "qas").mkdir(exist_ok=True)
        (tmp_path / "pv" / "qas" / f"{split}_vqa.pkl").write_bytes(pickle.dumps(rows))
    return tmp_path


def test_instruct_check_leak_one_after_the_other(root: Path) -> None:
    result = run(root, "instruct", "train.jsonl", "--source", "path-vqa=pv", "--weights", "path-vqa=2")
    assert result.returncode == 0, result.stderr
    assert "wrote 6 rows to train.jsonl" in result.stdout
    result = run(root, "check", "train.jsonl", "--image-folder", "pv", "--decode", "--workers", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 of 6 rows" in result.stdout
    result = run(root, "leak", "train.jsonl", "path-vqa=pv", "--train-images", "pv", "--workers", "1", "--turned")
    assert result.returncode == 0, result.stderr
    assert "an image                                   1   100.0%" in result.stdout
    report = json.loads((root / "leak.json").read_text())
    assert report["leaks"][0]["match"]["distance"] == 0
    assert (root / "leak.exclude.txt").read_text().splitlines() == [report["leaks"][0]["id"]]
    assert (root / "leak.image_hashes.sqlite").is_file()
    folders = ("--train-images", "pv", "--test-images", "pv")
    result = run(root, "leak", "train.jsonl", "train.jsonl", *folders, "--workers", "1", "--out", "same.json")
    assert json.loads((root / "same.json").read_text())["num_shared"]["both"] == 6
    splits = ("--train-split", "test", "--test-split", "train")
    result = run(root, "leak", "path-vqa=pv", "path-vqa=pv", *splits, "--workers", "1")
    assert "training: 1 rows, 1 images" in result.stdout
    assert "test:     3 rows, 3 images" in result.stdout


def test_a_table_of_questions_is_trained_on_and_compared(root: Path) -> None:
    names = sorted(path.name for path in (root / "pv" / "images" / "train").iterdir())
    rows = ["file,asked,said", *(f"images/train/{name},What is it?,a gland" for name in names), ",What?,nothing"]
    (root / "pv" / "mine.csv").write_text("\n".join(rows))
    columns = ("--columns", "image=file,question=asked,answer=said")
    result = run(root, "instruct", "mine.jsonl", "--source", "csv=pv/mine.csv", *columns)
    assert result.returncode == 0, result.stderr
    assert re.search("empty_name +1", result.stdout)
    written = [json.loads(line) for line in (root / "mine.jsonl").read_text().splitlines()]
    assert {row["image"] for row in written} == {f"images/train/{name}" for name in names}
    result = run(root, "leak", "mine.jsonl", "csv=pv/mine.csv", "--train-images", "pv", "--workers", "1", *columns)
    assert result.returncode == 0, result.stderr
    assert len((root / "leak.exclude.txt").read_text().splitlines()) == len(names)
    result = run(
        root, "instruct", "mine.jsonl", "--source", "csv=pv/mine.csv", "--columns", "image=file,caption=legend"
    )
    assert result.returncode == 2
    assert "'legend'" in result.stderr
    assert "file, asked, said" in result.stderr


def test_check_finds_what_is_wrong(root: Path) -> None:
    assert run(root, "instruct", "train.jsonl", "--source", "path-vqa=pv").returncode == 0
    (root / "pv" / "images" / "train" / "train_0001.jpg").unlink()
    result = run(root, "check", "train.jsonl", "--image-folder", "pv", "--workers", "1")
    assert result.returncode == 1
    assert "1 of 3 rows of train.jsonl are at fault" in result.stdout
    assert "train_0001.jpg': no such file" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("instruct", "out.jsonl", "--source", "vqa-rad=x"), "'vqa-rad'"),
        (("instruct", "out.jsonl", "--source", "path-vqa=nowhere"), "nowhere"),
        (("instruct", "out.jsonl", "--source", "path-vqa=pv", "--weights", "path-vqa=x"), "'path-vqa=x'"),
        (("check", "none.jsonl", "--image-folder", "pv"), "'none.jsonl'"),
        (("check", "pv/qas", "--image-folder", "pv"), "'pv/qas'"),
        (("leak", "none.jsonl", "path-vqa=pv"), "'none.jsonl'"),
        (("leak", "path-vqa=pv", "path-vqa=pv", "--distance", "20"), "0 to 10"),
    ],
)
def test_bad_arguments(root: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(root, *arguments)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert message in result.stderr
