"""lmms-eval and VLMEvalKit themselves evaluate a model folder: installed beside ours, without what ours has already."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from tests.tiny.answering_model import write_model, write_questions
from tests.tiny.folders import answers

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
# It reads a module of filelock that 4.3 has no more.
LMMS_EVAL = """lmms-eval==0.7.3 filelock<4.3 evaluate pytz tenacity
    pytablewriter dataproperty mbstrdecoder pathvalidate tabledata tcolorpy typepy chardet"""
VLMEVALKIT = """ms-vlmeval==0.0.20 validators sty timeout-decorator Levenshtein rapidfuzz decord jieba rouge math-verify
    latex2sympy2-extended antlr4-python3-runtime==4.11.1 pylatexenc json-repair num2words qwen-vl-utils"""
TASK = """
task: local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["image"])]
"""


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, str]]:
    path = write_questions(tmp_path / "questions", 6)
    given = [json.loads(line) for line in path.open()]
    rows = [{**row, "image": str(path.parent / row["image"])} for row in given]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_model(tmp_path / "model")
    return rows


def install(packages: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, *packages.split()], check=True)


def write_entry_point(folder: Path) -> None:
    """As an installed pallava has it, wherever the tests' own comes from."""
    about = folder / "entry_of_pallava-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: entry-of-pallava\nVersion: 0\n")
    line = "pallava = pallava.adapters:lmms_eval_manifest"
    assert line.replace("= ", '= "') + '"' in (ROOT / "pyproject.toml").read_text()
    (about / "entry_points.txt").write_text(f"[lmms_eval.models]\n{line}\n")


def run(command: list[str], packages: Path, **variables: str) -> None:
    path = os.pathsep.join([str(packages), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **variables}
    done = subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def own_answers(folder: Path, rows: list[dict[str, str]], **options: Any) -> list[str]:
    model, processor = PALLaVAForConditionalGeneration.from_pretrained(folder), PALLaVAProcessor.from_pretrained(folder)
    inputs = [processor(row["question"], row["image"]) for row in rows]
    return [answers(model, processor, each, **options)[0] for each in inputs]


def test_lmms_eval(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    packages = tmp_path / "packages"
    install(LMMS_EVAL, packages)
    write_entry_point(packages)
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "local.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    (tmp_path / "task" / "utils.py").write_text(UTILS)
    words = f"lmms_eval --model pallava --model_args pretrained={tmp_path / 'model'} --tasks local --batch_size 4"
    more = f"--include_path {tmp_path / 'task'} --output_path {tmp_path / 'out'} --log_samples"
    run([*words.split(), *more.split()], packages)
    (path,) = (tmp_path / "out").rglob("*samples_local.jsonl")
    samples = sorted(map(json.loads, path.open()), key=lambda sample: sample["doc_id"])
    assert [each["filtered_resps"] for each in samples] == own_answers(tmp_path / "model", rows, max_new_tokens=4)


def test_vlmevalkit(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    install(VLMEVALKIT, tmp_path / "packages")
    lines = [["index", "image", "question", "answer"]]
    for number, row in enumerate(rows):
        image = base64.b64encode(Path(row["image"]).read_bytes()).decode()
        lines.append([str(number), image, row["question"], row["answer"]])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "local.tsv").write_text("\n".join("\t".join(line) for line in lines))
    words = f"pallava.adapters.vlmevalkit {tmp_path / 'model'} --data local --mode infer --work-dir {tmp_path / 'out'}"
    run(words.split(), tmp_path / "packages", LMUData=str(tmp_path / "data"), PRED_FORMAT="json")
    (path,) = (tmp_path / "out").rglob("pallava_local.json")
    predictions = {each["question"]: each["prediction"] for each in json.loads(path.read_text())}
    own = own_answers(tmp_path / "model", rows, max_new_tokens=256)
    assert predictions == {row["question"]: answer for row, answer in zip(rows, own, strict=True)}
