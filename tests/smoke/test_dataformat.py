"""tools/dataformat.py as a user types it, from another directory and without pallava being installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOL = Path(__file__).parents[2] / "tools" / "dataformat.py"

pytestmark = pytest.mark.smoke


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    records = [
        {"image": "a.png", "caption": "Glands."},
        {"image": "none.png", "caption": "Glands."},
        {"image": "../a.png", "caption": "Glands."},
        {"image": "a.png"},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path


ARGUMENTS = ("--input", "pairs.jsonl", "--image-folder", "images", "--output", "train.jsonl")


def test_without_arguments_usage_with_an_example(tmp_path: Path):
    result = run(tmp_path)
    assert result.returncode == 2
    assert "usage: dataformat.py" in result.stderr
    assert "python tools/dataformat.py --input pairs.json" in result.stderr


def test_writes_counts_and_reports(pairs: Path):
    (pairs / "prompts.txt").write_text("What is it?\n")
    options = ("--seed", "7", "--workers", "2", "--id-prefix", "p", "--prompts", "prompts.txt")
    result = run(pairs, *ARGUMENTS, *options, "--report", "report.json", "--left-out", "left_out.jsonl")
    assert result.returncode == 0, result.stderr
    row = json.loads((pairs / "train.jsonl").read_text())
    assert row["id"] == "p00000000"
    assert row["conversations"][0]["value"].replace("<image>", "").strip() == "What is it?"
    assert "wrote 1 rows of 4 records" in result.stdout
    assert "outside_folder         1" in result.stdout
    assert "outside_folder: line 3: '../a.png' leaves the image folder" in result.stderr
    assert "malformed: line 4: the record lacks 'caption'" in result.stderr
    report = json.loads((pairs / "report.json").read_text())
    assert report["left_out"]["missing"] == 1
    rows = map(json.loads, (pairs / "left_out.jsonl").read_text().splitlines())
    assert [(row["reason"], row["position"]) for row in rows] == [
        ("missing", "line 2"),
        ("outside_folder", "line 3"),
        ("malformed", "line 4"),
    ]


def test_our_own_prompts_are_the_default(pairs: Path):
    from pallava.prompts import CAPTION_PROMPTS

    assert len(set(CAPTION_PROMPTS)) >= 20
    assert run(pairs, *ARGUMENTS).returncode == 0
    question = json.loads((pairs / "train.jsonl").read_text())["conversations"][0]["value"]
    assert question.replace("<image>", "").strip() in CAPTION_PROMPTS


def test_bad_json_ends_with_code_2_and_its_position(pairs: Path):
    (pairs / "train.jsonl").write_text("old")
    (pairs / "pairs.jsonl").write_text('{"image": "a.png", "caption": "x"}\n{"image": \n')
    result = run(pairs, *ARGUMENTS)
    assert result.returncode == 2
    assert "error: 'pairs.jsonl', line 2, column 11: not JSON" in result.stderr
    assert "Traceback" not in result.stderr
    assert (pairs / "train.jsonl").read_text() == "old"


def test_starts_without_the_deep_learning_stack(pairs: Path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(TOOL)!r}, *{list(ARGUMENTS)!r}]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'xtuner'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=pairs, capture_output=True, text=True)
    assert result.stdout.endswith("[]\n"), result.stderr
