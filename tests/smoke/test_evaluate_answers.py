"""`pallava evaluate` of a whole PA-LLaVA as a user types it: every task, killed, and in two processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pallava.cli import main
from pallava.evaluation.predictions import read_predictions
from tests.evaluation.test_tasks import save_pathvqa, save_pmc_vqa, write_lines
from tests.evaluation.tiny import write_classes
from tests.evaluation.tiny_model import write_model, write_questions

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).parents[2]
COMMAND = [
    "evaluate",
    "model",
    "custom",
    "--data",
    "data/questions.jsonl",
    "--max-new-tokens",
    "24",
    "--batch-size",
    "4",
]
NUM_QUESTIONS = 60


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_model(folder / "model")
    write_questions(folder / "data", NUM_QUESTIONS)
    return folder


@pytest.fixture(autouse=True)
def inside(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


@pytest.fixture(scope="module")
def whole(work: Path) -> dict[str, bytes]:
    """The results of a run that nobody disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        assert main([*COMMAND, "--out", "whole"]) == 0
    return results(work / "whole")


def results(out: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert set(files) == {"results.json", "index.html", "predictions.jsonl", "predictions_shuffled.jsonl"}
    return files


def start(out: str, **environment: str) -> subprocess.Popen:
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pallava", *COMMAND, "--out", out]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **paths, **environment}, **pipes)


def num_bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("answers/process_*.jsonl"))


def check_kills(work: Path, whole: dict[str, bytes], num_kills: int) -> None:
    """Kills a run when so much of the answers is there, again and again, and lets the last one end."""
    out = work / f"killed-{num_kills}"
    draw, size = random.Random(num_kills), num_bytes(work / "whole")
    for moment in sorted(draw.uniform(0.02, 0.9) for _ in range(num_kills)):
        process = start(out.name)
        while process.poll() is None and num_bytes(out) < moment * size:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was at the end before it could be killed"
    assert main([*COMMAND, "--out", out.name]) == 0
    assert results(out) == whole
    asked = [json.loads(line)["asked"] for line in (out / "answers" / "process_0.jsonl").read_text().splitlines()]
    assert len(asked) == len(set(asked)) == 2 * NUM_QUESTIONS, "a question was asked twice"


def test_killed_and_resumed(work: Path, whole: dict[str, bytes]):
    check_kills(work, whole, 1)


@pytest.mark.slow
def test_killed_five_times_and_resumed(work: Path, whole: dict[str, bytes]):
    check_kills(work, whole, 5)


def test_two_processes_give_what_one_gives(work: Path, whole: dict[str, bytes]):
    process = start("two", NPROC_PER_NODE="2")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert results(work / "two") == whole
    assert printed.count("right answers in each group") == 1
    assert printed.rstrip().endswith("two/index.html")
    sizes = [path.stat().st_size for path in sorted((work / "two" / "answers").glob("process_*.jsonl"))]
    assert len(sizes) == 2
    assert min(sizes) > 0, "one process did all the work"


@pytest.mark.slow
def test_a_mistake_in_two_processes_is_one_sentence(work: Path, whole: dict[str, bytes]):
    process = start("whole", NPROC_PER_NODE="2")
    process.communicate(timeout=300)
    settings = work / "whole" / "answers" / "settings.json"
    before = settings.read_text()
    settings.write_text(before.replace("24", "25"))
    process = start("whole", NPROC_PER_NODE="2")
    _, errors = process.communicate(timeout=300)
    settings.write_text(before)
    assert process.returncode == 2
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors


def test_questions_with_everything(work: Path, capsys: pytest.CaptureFixture[str]):
    pairs = [{"from": "human", "value": "<image>\nq0?"}, {"from": "gpt", "value": "yes"}]
    write_lines(work / "train.jsonl", [{"id": "0", "image": "x.png", "conversations": pairs}])
    (work / "leak.exclude.txt").write_text("q3\nq4\n")
    options = ["--training", "train.jsonl", "--exclude", "leak.exclude.txt", "--limit", "6", "--consistency"]
    assert main([*COMMAND, *options, "--out", "full"]) == 0
    printed = capsys.readouterr().out
    for words in ("exact_match_open", "shuffled", "training", "group 1", "stain shifted", "same answer"):
        assert words in printed
    result = json.loads((work / "full" / "results.json").read_text())
    (scored,) = result["data"].values()
    assert [each.item.id for each in read_predictions(work / "full")] == ["q0", "q1", "q2", "q5", "q6", "q7"]
    assert result["settings"]["num_excluded"] == 2
    assert list(scored["groups"]) == ["group 0", "group 1", "group 2"]
    assert len(scored["consistency"]["same"]) == 9
    page = (work / "full" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "consistency" in page


def test_without_shuffled_images(work: Path):
    assert main([*COMMAND, "--without-shuffled", "--limit", "4", "--out", "plain"]) == 0
    assert not (work / "plain" / "predictions_shuffled.jsonl").exists()
    assert "shuffled" not in (work / "plain" / "results.json").read_text()


def test_public_questions(work: Path, capsys: pytest.CaptureFixture[str]):
    root = save_pathvqa(work / "pv")
    write_classes(root / "images", {"test": 1})
    (root / "images" / "test" / "0.png").rename(root / "images" / "test" / "test_0000.jpg")
    assert main(["evaluate", "model", "pathvqa", "--data", "pv"]) == 0
    assert "pv: 1 x empty_answer" in capsys.readouterr().out
    assert len(read_predictions(work / "evaluation" / "pathvqa")) == 3
    save_pmc_vqa(work / "pmc")
    assert main(["evaluate", "model", "pmc-vqa", "--data", "pmc"]) == 2
    assert "none of the 1 images can be opened" in capsys.readouterr().err


def test_captions(work: Path):
    rows = [{"image": f"{number}.png", "caption": f"few nuclei {number}"} for number in range(3)]
    write_lines(work / "data" / "captions.jsonl", rows)
    (work / "data" / "broken.png").write_bytes(b"nothing")
    write_lines(work / "data" / "captions.jsonl", [*rows, {"image": "broken.png", "caption": "a gland"}])
    assert main(["evaluate", "model", "caption", "--data", "data/captions.jsonl", "--max-new-tokens", "8"]) == 0
    (result,) = json.loads((work / "evaluation" / "caption" / "results.json").read_text())["data"].values()
    assert result["num_questions"] == 4
    assert "shuffled images" in result["controls"]
    assert list(result["problems"].values()) == [1]
    assert "reference" in (work / "evaluation" / "caption" / "index.html").read_text()


def test_classes_by_generation(work: Path, capsys: pytest.CaptureFixture[str]):
    write_classes(work / "tissue", {"gland": 3, "necrosis": 4})
    (work / "tissue" / "gland" / "broken.png").write_bytes(b"nothing")
    assert main(["evaluate", "model", "zero-shot", "--data", "tissue", "--consistency", "--max-new-tokens", "8"]) == 0
    printed = capsys.readouterr().out
    assert "tissue: 1 x cannot open image" in printed
    assert "shuffled images" in printed
    result = json.loads((work / "evaluation" / "zero-shot" / "results.json").read_text())["data"]["tissue"]
    counts = result["confusion"]["counts"]
    assert (result["num_images"], sum(map(sum, counts))) == (7, 7)
    assert result["num_without_class"] == sum(row[-1] for row in counts)
    page = (work / "evaluation" / "zero-shot" / "index.html").read_text()
    assert "Confusion matrix" in page
    assert "Samples" in page
    assert (work / "evaluation" / "zero-shot" / "confusion_tissue.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["custom", "--data", "none.jsonl"], "cannot read 'none.jsonl'"),
        (["pathvqa", "--data", "nowhere"], "nowhere"),
        (["custom", "--data", "data/questions.jsonl", "--exclude", "none.txt"], "cannot read the ids to exclude"),
        (["zero-shot", "--data", "tissue", "--template", "a {}"], "--template, --model-name and --pretrained are for"),
        (["custom", "--data", "data/questions.jsonl", "--device", "nowhere", "--out", "x"], "no device 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]):
    write_classes(Path("tissue"), {"gland": 1, "necrosis": 1})
    assert main(["evaluate", "model", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last
