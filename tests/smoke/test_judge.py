"""`pallava judge` as a user types it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pallava.cli import main
from pallava.evaluation.answers.items import Answer, Item
from tests.tiny.answering_model import write_model, write_questions
from tests.tiny.endpoint import Act, StubEndpoint, stub_endpoint

pytestmark = pytest.mark.smoke
CAPTIONS = [f"gland number {n} with {n % 3} mitoses" for n in range(12)]
QUESTION = Answer(Item("q", "", "Is it fat?", "no", "closed"), "no")


def write(folder: Path, answered: list[Answer]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(each.as_record()) + "\n" for each in answered))
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead_proxies: None) -> Path:
    monkeypatch.setenv("PALLAVA_ENDPOINT_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    items = [Item(str(n), f"{n}.png", "Describe it.", text, "caption") for n, text in enumerate(CAPTIONS)]
    write(tmp_path / "captions", [Answer(item, f"a gland, number {item.id}") for item in items])
    write(tmp_path / "questions", [QUESTION])
    return tmp_path


def command(server: StubEndpoint) -> list[str]:
    return [sys.executable, "-m", "pallava", "judge", "captions", "--url", server.url, "--model", "judge"]


def test_a_killed_run_goes_on_and_asks_nothing_twice(work: Path) -> None:
    running: list[subprocess.Popen] = []

    def script(text: str, before: int) -> Act:
        if running and sum(server.prompts.values()) == 6:
            os.kill(running.pop().pid, signal.SIGKILL)  # five are answered, and the sixth is under way
            return Act(hang_up=True)
        return Act("I cannot tell" if "number 3" in text.rsplit("\n", 1)[1] else "7/10")

    with stub_endpoint(script) as server:
        running.append(subprocess.Popen([*command(server), "--concurrency", "1"], stderr=subprocess.DEVNULL))
        assert running[0].wait(timeout=120) == -signal.SIGKILL if running else True
        assert server.answered.total() == 5
        assert not (work / "captions" / "judge" / "results.json").exists()
        done = subprocess.run(command(server), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert server.answered.total() == len(CAPTIONS)
        assert max(server.answered.values()) == 1
        assert server.keys == {"Bearer secret"}
    result = json.loads((work / "captions" / "judge" / "results.json").read_text())
    similarity = result["similarity"]
    assert similarity["judge"]["prompt_versions"] == {"caption": 1, "answer": 1}
    assert (similarity["num_unreadable"], similarity["grades"]["7"]) == (1, 11)
    assert similarity["scores"]["similarity"]["value"] == 7
    words = result["words"]
    assert words["scores"]["rouge_l"]["value"] > words["controls"]["another reference"]["rouge_l"]["value"]
    assert "7.00 [7.00, 7.00]" in done.stdout
    assert "rouge_l" in done.stdout
    judgements = [json.loads(line) for line in (work / "captions" / "judge" / "judgements.jsonl").open()]
    assert [each["id"] for each in judgements] == [str(n) for n in range(12)]
    assert judgements[3] == {"id": "3", "grade": None, "verdict": "unreadable", "reply": "I cannot tell"}


def test_what_evaluate_wrote_is_judged(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(work / "model")
    rows = map(json.loads, write_questions(work / "images", 5).open())
    lines = [json.dumps({"image": row["image"], "caption": row["question"]}) for row in rows]
    (work / "images" / "pairs.jsonl").write_text("\n".join(lines))
    words = ["model", "caption", "--data", "images/pairs.jsonl", "--max-new-tokens", "8", "--out", "evaluation"]
    assert main(["evaluate", *words]) == 0
    with stub_endpoint(lambda text, before: Act("3")) as server:
        assert main(["judge", "evaluation", "--url", server.url, "--model", "judge"]) == 0
    result = json.loads((work / "evaluation" / "judge" / "results.json").read_text())
    evaluated = json.loads((work / "evaluation" / "results.json").read_text())
    (own,) = evaluated["data"].values()
    assert result["similarity"]["num_questions"] == own["num_questions"] == 5
    assert result["words"]["scores"] == own["scores"]
    assert "judged by judge" in capsys.readouterr().out


def test_by_words_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "captions/predictions.jsonl", "--out", "words"]) == 0
    shown = capsys.readouterr().out
    assert "words of 12 captions, 0 of them empty" in shown
    assert "similarity" not in shown
    assert [path.name for path in (work / "words").iterdir()] == ["results.json"]
    assert json.loads((work / "words" / "results.json").read_text())["similarity"] is None


def test_shuffled_images_are_judged_as_a_control(work: Path) -> None:
    shuffled = work / "captions" / "predictions_shuffled.jsonl"
    shuffled.write_bytes(shuffled.with_name("predictions.jsonl").read_bytes())
    with stub_endpoint(lambda text, before: Act("3")) as server:
        how = ["--url", server.url, "--model", "judge"]
        assert main(["judge", "captions/predictions_shuffled.jsonl", *how]) == 0
        assert [path.name for path in (work / "captions").iterdir() if path.is_dir()] == ["judge_predictions_shuffled"]
        assert main(["judge", "captions/predictions.jsonl", *how]) == 0
    names = sorted(path.name for path in (work / "captions").iterdir() if path.is_dir())
    assert names == ["judge", "judge_predictions_shuffled"]


def test_answers_to_questions(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stub_endpoint(lambda text, before: Act("10")) as server:
        assert main(["judge", "questions", "--url", server.url, "--model", "judge"]) == 0
    assert "10.00 [10.00, 10.00]" in capsys.readouterr().out
    result = json.loads((work / "questions" / "judge" / "results.json").read_text())
    assert (result["words"], result["counts"]) == (None, {"closed": 1})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "cannot read 'nowhere'"),
        (["questions"], "must have captions to be compared by words"),
        (["captions", "--url", "http://127.0.0.1:9/v1"], "needs both --url and --model"),
        (["captions", "--model", "judge"], "needs both --url and --model"),
        (["captions", "--url", "localhost", "--model", "judge"], "'localhost'"),
        (["captions", "--url", "http://127.0.0.1:9/v1", "--model", "judge"], "is the server running"),
        (
            ["captions", "--url", "http://127.0.0.1:9/v1", "--model", "j", "--out", "captions/predictions.jsonl"],
            "captions/predictions.jsonl",
        ),
        (["captions", "--url", "http://127.0.0.1:9/v1", "--model", "judge", "--concurrency", "0"], "concurrency"),
    ],
)
def test_mistakes_are_one_sentence(
    work: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    assert main(["judge", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last
