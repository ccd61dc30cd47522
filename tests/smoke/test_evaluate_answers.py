"""`pallava evaluate` of a whole PA-LLaVA as a user types it: every task, killed, and in two processes."""

import json
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

import pallava
from pallava.cli import main
from pallava.evaluation.answers.generation import Answerer
from pallava.evaluation.answers.items import read_predictions
from pallava.evaluation.run import hash_model
from pallava.io.store import Store
from tests.evaluation.test_tasks import save_pathvqa, save_pmc_vqa, write_lines
from tests.tiny import folders as tiny_folders
from tests.tiny.answering_model import write_model, write_questions
from tests.tiny.clips import write_classes

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


def start(out: str, *options: str, **environment: str) -> subprocess.Popen:
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pallava", *COMMAND, "--out", out, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **paths, **environment}, **pipes)


def num_answers(out: Path) -> int:
    """Count the stored answers in a copy of the files, whose originals belong to a running process."""
    with tempfile.TemporaryDirectory() as copy:
        for path in out.glob("answers/process_*"):
            with suppress(FileNotFoundError):
                shutil.copy(path, copy)
        count = 0
        for path in Path(copy).glob("*.sqlite"):
            with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as database:
                count += database.execute("SELECT count(*) FROM scores WHERE filter_key = 'answers'").fetchone()[0]
        return count


def check_kills(work: Path, whole: dict[str, bytes], num_kills: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a run when so many answers are stored, again and again, and let the last one end."""
    out = work / f"killed-{num_kills}"
    draw = random.Random(num_kills)
    for moment in sorted(draw.uniform(0.02, 0.9) for _ in range(num_kills)):
        process = start(out.name)
        while process.poll() is None and num_answers(out) < moment * 2 * NUM_QUESTIONS:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was at the end before it could be killed"
    stored, batches = num_answers(out), []
    answer = Answerer.answer
    monkeypatch.setattr(Answerer, "answer", lambda self, batch: batches.append(batch) or answer(self, batch))
    assert main([*COMMAND, "--out", out.name]) == 0
    assert results(out) == whole
    assert stored + sum(len(batch.items) for batch in batches) == 2 * NUM_QUESTIONS, "a question was asked twice"
    assert num_answers(out) == 2 * NUM_QUESTIONS


def test_killed_and_resumed(work: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    check_kills(work, whole, 1, monkeypatch)


@pytest.mark.slow
def test_killed_five_times_and_resumed(work: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    check_kills(work, whole, 5, monkeypatch)


def test_two_processes_give_what_one_gives(work: Path, whole: dict[str, bytes]):
    process = start("two", NPROC_PER_NODE="2")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert results(work / "two") == whole
    assert printed.count("right answers in each group") == 1
    assert printed.rstrip().endswith("two/index.html")
    counts = []
    for path in sorted((work / "two" / "answers").glob("process_*.sqlite")):
        with Store(path) as store:
            counts.append(len(store.get_all("answers")))
    assert len(counts) == 2
    assert sum(counts) == 2 * NUM_QUESTIONS
    assert min(counts) > 0, "one process did all the work"


def test_python_gives_the_numbers_of_the_command(work: Path, whole: dict[str, bytes]):
    """As a program of its own, since the names of the package are imported when they are used."""
    code = (
        "import json, pallava; "
        "found = pallava.evaluate('model', 'custom', 'data/questions.jsonl', max_new_tokens=24, batch_size=4); "
        "print(json.dumps(found))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(whole["results.json"])
    assert not (work / "evaluation" / "custom").exists()


def test_a_task_of_ones_own(work: Path):
    from pallava.evaluation.tasks import TASKS

    task = replace(TASKS["custom"], name="brief", max_new_tokens=2, prompt=lambda item, questions: "Is it fat?")
    pallava.register_task(task)
    try:
        result = pallava.evaluate("model", "brief", "data/questions.jsonl", "brief", limit=4, without_shuffled=True)
    finally:
        del TASKS["brief"]
    assert result["settings"]["max_new_tokens"] == 2
    assert {each.item.question for each in read_predictions(work / "brief")} == {"Is it fat?"}
    with pytest.raises(pallava.PallavaError, match="'brief' is not a task; choose pathvqa"):
        pallava.evaluate("model", "brief", "data/questions.jsonl")


@pytest.mark.slow
def test_a_mistake_in_two_processes_is_one_sentence(work: Path, whole: dict[str, bytes]):
    process = start("whole", NPROC_PER_NODE="2")
    process.communicate(timeout=300)
    process = start("whole", "--max-new-tokens", "25", NPROC_PER_NODE="2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors


def test_an_adapter_beside_a_base_that_moved(work: Path, capsys: pytest.CaptureFixture[str]):
    parts = tiny_folders.save_parts(work / "parts")
    model = tiny_folders.build(parts, tiny_folders.open_llm(parts, has_lora=True))
    tiny_folders.save(parts, model, work / "adapted")
    Path(parts["llm"]).rename(work / "moved")
    command = ["evaluate", "adapted", "custom", "--data", "data/questions.jsonl", "--limit", "3", "--out", "beside"]
    assert main([*command, "--max-new-tokens", "4"]) == 2
    assert str(parts["llm"]) in capsys.readouterr().err
    assert main([*command, "--max-new-tokens", "4", "--base-llm", "moved"]) == 0
    settings = json.loads((work / "beside" / "results.json").read_text())["settings"]
    assert settings["base_llm"] == hash_model("moved") != settings["model"]


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
    assert "no image of 1 can be opened" in capsys.readouterr().err


def test_captions(work: Path):
    rows = [{"image": f"{number}.png", "caption": f"few nuclei {number}"} for number in range(3)]
    write_lines(work / "data" / "captions.jsonl", rows)
    (work / "data" / "broken.png").write_bytes(b"nothing")
    write_lines(work / "data" / "captions.jsonl", [*rows, {"image": "broken.png", "caption": "a gland"}])
    assert main(["evaluate", "model", "caption", "--data", "data/captions.jsonl", "--max-new-tokens", "8"]) == 0
    (result,) = json.loads((work / "evaluation" / "caption" / "results.json").read_text())["data"].values()
    assert result["num_questions"] == 4
    assert "shuffled images" in result["controls"]
    for score in result["controls"]["shuffled images"].values():
        assert score["definition"].endswith("when it was shown other images")
    assert list(result["problems"].values()) == [1]
    assert "reference" in (work / "evaluation" / "caption" / "index.html").read_text()


def test_classes_by_generation(work: Path, capsys: pytest.CaptureFixture[str]):
    write_classes(work / "tissue", {"gland": 3, "necrosis": 4})
    (work / "tissue" / "gland" / "broken.png").write_bytes(b"nothing")
    question = "Which of these does this pathology image show: gland or necrosis?"
    pairs = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": "gland"}]
    write_lines(work / "classes.jsonl", [{"id": "0", "image": "x.png", "conversations": pairs}])
    options = ["--training", "classes.jsonl", "--consistency", "--max-new-tokens", "8"]
    assert main(["evaluate", "model", "zero-shot", "--data", "tissue", *options]) == 0
    printed = capsys.readouterr().out
    assert "tissue: 1 x cannot open image" in printed
    left_out = "questions left out whose image cannot be opened: 1"
    for words in ("majority answer", "training answer", "shuffled images", "no class", left_out):
        assert words in printed
    result = json.loads((work / "evaluation" / "zero-shot" / "results.json").read_text())["data"]["tissue"]
    counts = result["confusion"]["counts"]
    assert (result["num_images"], sum(map(sum, counts))) == (7, 7)
    assert result["num_without_class"] == sum(row[-1] for row in counts)
    assert list(result["controls"]) == ["majority answer", "training answer", "shuffled images"]
    values = [{name: each["value"] for name, each in scores.items()} for scores in result["controls"].values()]
    assert (values[0]["accuracy"], values[1]["accuracy"]) == (4 / 7, 3 / 7)
    assert all(each.keys() == result["metrics"].keys() for each in values)
    page = (work / "evaluation" / "zero-shot" / "index.html").read_text()
    definition = result["metrics"]["macro_f1"]["definition"]
    for words in ("Confusion matrix", "Samples", "majority answer", "no class", definition):
        assert words in page
    assert (work / "evaluation" / "zero-shot" / "confusion_tissue.svg").exists()


def test_training_material_without_the_question_of_classes(work: Path, capsys: pytest.CaptureFixture[str]):
    write_classes(work / "two", {"gland": 1, "necrosis": 1})
    pairs = [{"from": "human", "value": "<image>\nq0?"}, {"from": "gpt", "value": "yes"}]
    write_lines(work / "other.jsonl", [{"id": "0", "image": "x.png", "conversations": pairs}])
    options = ["--training", "other.jsonl", "--max-new-tokens", "2", "--out", "not-trained"]
    assert main(["evaluate", "model", "zero-shot", "--data", "two", *options]) == 0
    printed = capsys.readouterr().out
    assert "two: 1 x question that the training material does not ask" in printed
    assert "training answer" not in printed


def test_each_data_set_is_marked_by_its_own_classes(work: Path, monkeypatch: pytest.MonkeyPatch):
    write_classes(work / "organs", {"liver": 2, "skin": 2})
    write_classes(work / "crc", {"ADI": 1, "MUC": 1})
    monkeypatch.setattr(
        "pallava.evaluation.answers.generation.Answerer.answer", lambda self, batch: ["fat"] * len(batch.items)
    )
    data = ["--data", "organs", "--data", "nct-crc-he=crc"]
    assert main(["evaluate", "model", "zero-shot", *data, "--without-shuffled", "--out", "sets"]) == 0
    page = (work / "sets" / "index.html").read_text()
    assert page.count("✓ fat") == 1  # adipose tissue, which only the second set calls fat
    assert page.count("✗ fat") == 5
    ids = [each.item.id for each in read_predictions(work / "sets")]
    assert ids[3:] == ["organs/skin/1.png", "nct-crc-he/ADI/0.png", "nct-crc-he/MUC/0.png"]


def test_what_the_leak_audit_lists_is_not_asked(work: Path, capsys: pytest.CaptureFixture[str]):
    root = work / "leaky"
    (root / "qas").mkdir(parents=True)
    write_classes(root, {"images/test": 3})
    for number in range(3):
        (root / "images" / "test" / f"{number}.png").rename(root / "images" / "test" / f"test_000{number}.png")
    questions = [(30, 0, "Is it one?"), (31, 1, "Is it two?"), (31, 1, "Is it three?"), (32, 2, "Is it four?")]
    rows = [
        {"answer_type": "yes/no", "img_id": f"test_000{image}.png", "label": {"yes": 1}, "question_id": n, "sent": text}
        for n, image, text in questions
    ]
    (root / "qas" / "test_vqa.pkl").write_bytes(pickle.dumps(rows))
    pairs = [{"from": "human", "value": "<image>\nA caption?"}, {"from": "gpt", "value": "yes"}]
    row = {"id": "0", "image": "images/test/test_0001.png", "conversations": pairs}
    write_lines(work / "leaky.jsonl", [row])
    audit = ["data", "leak", "leaky.jsonl", "path-vqa=leaky", "--train-images", "leaky", "--workers", "1"]
    assert main(audit) == 0
    assert (work / "leak.exclude.txt").read_text().split() == ["31", "31~2"]
    command = ["evaluate", "model", "pathvqa", "--data", "leaky", "--exclude", "leak.exclude.txt", "--out", "clean"]
    assert main(command) == 0
    assert [each.item.id for each in read_predictions(work / "clean")] == ["30", "32"]
    assert json.loads((work / "clean" / "results.json").read_text())["settings"]["num_excluded"] == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["custom", "--data", "none.jsonl"], "cannot read 'none.jsonl'"),
        (["pathvqa", "--data", "nowhere"], "nowhere"),
        (["custom", "--data", "data/questions.jsonl", "--exclude", "none.txt"], "none.txt"),
        (["zero-shot", "--data", "tissue", "--template", "a {}"], "--template does not go with"),
        (["custom", "--data", "data/questions.jsonl", "--device", "nowhere", "--out", "x"], "device 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]):
    write_classes(Path("tissue"), {"gland": 1, "necrosis": 1})
    assert main(["evaluate", "model", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last


def test_confidence_by_one_process_and_two(work: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*COMMAND, "--confidence", "--out", "sure"]) == 0
    assert "thresholds fitted on 3 images, and what they do on the other 2" in capsys.readouterr().out
    process = start("sure-two", "--confidence", NPROC_PER_NODE="2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    for name in ("results.json", "predictions.jsonl", "predictions_shuffled.jsonl", "confidence_questions.svg"):
        assert (work / "sure" / name).read_bytes() == (work / "sure-two" / name).read_bytes(), name
    answers = read_predictions(work / "sure")
    assert all(each.probability is not None for each in answers)
    assert all(each.probability is None for each in read_predictions(work / "sure" / "predictions_shuffled.jsonl"))
    (result,) = json.loads((work / "sure" / "results.json").read_text())["data"].values()
    assert [each["count"] for each in result["confidence"]["kinds"].values()] == [60, 40, 20]


def test_answers_with_and_without_a_probability_do_not_mix(
    work: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
):
    assert "confidence" not in json.loads(whole["results.json"])["settings"]
    assert main([*COMMAND, "--confidence", "--out", "whole"]) == 2
    assert "confidence (None there, True now)" in capsys.readouterr().err
    assert main([*COMMAND, "--confidence", "--limit", "4", "--without-shuffled", "--out", "weighed"]) == 0
    assert main([*COMMAND, "--limit", "4", "--without-shuffled", "--out", "weighed"]) == 2
    assert "confidence (True there, None now)" in capsys.readouterr().err
    assert main([*COMMAND, "--confidence", "--limit", "6", "--without-shuffled", "--out", "weighed"]) == 0
    assert all(each.probability is not None for each in read_predictions(work / "weighed"))


def test_confidence_of_classes_and_not_of_captions(work: Path, capsys: pytest.CaptureFixture[str]):
    write_classes(work / "sure-classes", {"gland": 2, "necrosis": 2})
    options = ["--max-new-tokens", "4", "--without-shuffled", "--confidence", "--out", "sure-classes-out"]
    assert main(["evaluate", "model", "zero-shot", "--data", "sure-classes", *options]) == 0
    assert "sure-classes: confidence" in capsys.readouterr().out
    page = (work / "sure-classes-out" / "index.html").read_text()
    assert page.count("<svg") == 2
    with pytest.raises(SystemExit):
        main(["evaluate", "model", "caption", "--data", "data/questions.jsonl", "--confidence"])
    with pytest.raises(pallava.PallavaError, match="--confidence does not go with the task caption"):
        pallava.evaluate("model", "caption", "data/questions.jsonl", confidence=True)
