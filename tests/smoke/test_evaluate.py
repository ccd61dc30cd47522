"""`pallava evaluate` as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pallava.cli import main
from tests.tiny.clips import write_classes, write_open_clip

pytestmark = pytest.mark.smoke


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALLAVA_CACHE", str(tmp_path / "cache"))
    write_open_clip(tmp_path / "plip")
    write_classes(tmp_path / "tissue", {"fat": 3, "blood_vessel": 4})
    return tmp_path


def test_zero_shot_from_a_shell(work: Path):
    (work / "tissue" / "fat" / "broken.png").write_bytes(b"nothing")
    command = [sys.executable, "-m", "pallava", "evaluate", "plip", "zero-shot", "--data", "tissue", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "blood_vessel" in done.stdout
    assert "tissue: left out 1 x cannot open image: not a picture of a known format" in done.stdout
    result = json.loads((work / "out" / "results.json").read_text())
    assert result["data"]["tissue"]["num_images"] == 7
    page = (work / "out" / "index.html").read_text()
    assert "<svg" in page
    assert "balanced accuracy" in page
    assert (work / "out" / "confusion_tissue.svg").read_text().startswith("<svg")


def test_another_template_and_two_sets_at_once(work: Path, capsys: pytest.CaptureFixture[str]):
    write_classes(work / "CRC-VAL-HE-7K", {"ADI": 2, "TUM": 2, "STR": 1})
    data = ["--data", "tissue", "--data", "nct-crc-he=CRC-VAL-HE-7K", "--template", "is it {}?"]
    assert main(["evaluate", "plip", "zero-shot", *data, "--out", "out"]) == 0
    result = json.loads((work / "out" / "results.json").read_text())["data"]
    assert result["nct-crc-he"]["class_set"]["templates"] == ["is it {}?"]
    assert len(result["nct-crc-he"]["confusion"]["labels"]) == 9
    assert "nct-crc-he: classes" in capsys.readouterr().out


def test_retrieval(work: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"image": f"fat/{n}.png", "captions": [f"fat {n}", f"adipose tissue {n}"]} for n in range(3)]
    (work / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--data", "pairs.jsonl", "--image-folder", "tissue", "--out", "out", "--cache", "elsewhere"]
    assert main(["evaluate", "plip", "retrieval", *options]) == 0
    assert list((work / "elsewhere").rglob("*.npy"))
    assert not (work / "cache").exists()
    result = json.loads((work / "out" / "results.json").read_text())["data"]["pairs"]
    assert (result["num_images"], result["num_captions"]) == (3, 6)
    assert result["image_to_text"]["recall_at_5"]["value"] == 1.0
    assert "image to text @50" in capsys.readouterr().out
    assert "by chance" in (work / "out" / "index.html").read_text()


def test_another_evaluation_is_not_replaced(work: Path, capsys: pytest.CaptureFixture[str]):
    (work / "pairs.jsonl").write_text(
        '{"image": "fat/0.png", "caption": "fat"}\n{"image": "fat/1.png", "caption": "more"}'
    )
    retrieval = ["plip", "retrieval", "--data", "pairs.jsonl", "--image-folder", "tissue"]
    zero_shot = ["plip", "zero-shot", "--data", "tissue"]
    for task in (retrieval, zero_shot, retrieval):  # each in a folder of its own, and again
        assert main(["evaluate", *task]) == 0
    before = (work / "evaluation" / "retrieval" / "results.json").read_bytes()
    assert main(["evaluate", *zero_shot, "--out", "evaluation/retrieval"]) == 2
    assert "has the results of the task retrieval of 'plip'" in capsys.readouterr().err
    assert (work / "evaluation" / "retrieval" / "results.json").read_bytes() == before
    (work / "evaluation" / "zero-shot" / "results.json").write_text("{")
    assert main(["evaluate", *zero_shot]) == 2
    assert "is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["pallava", "retrieval", "--data", "pairs.jsonl"],
            "is a whole PA-LLaVA; its tasks are pathvqa",
        ),
        (
            ["plip", "custom", "--data", "questions.jsonl"],
            "an encoder; its tasks are zero-shot, retrieval",
        ),
        (["nowhere", "custom", "--data", "questions.jsonl"], "the model folder 'nowhere' does not exist"),
        (["plip", "zero-shot", "--data", "tissue", "--limit", "3"], "--limit does not go with"),
        (["nowhere", "zero-shot", "--data", "tissue"], "nor an open_clip model name"),
        (["plip", "zero-shot", "--data", "none"], "'none' is not a folder"),
        (["plip", "zero-shot", "--data", "tissue", "--data", "./tissue"], "two data sets"),
        (["plip", "zero-shot", "--data", "tissue", "--template", "fat"], "must have {}"),
        (["plip", "retrieval", "--data", "none.jsonl"], "cannot read 'none.jsonl'"),
        (["plip", "zero-shot", "--data", "tissue", "--device", "nowhere"], "device 'nowhere'"),
        (["plip", "zero-shot", "--data", "tissue", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_sentence(work: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]):
    (work / "pallava").mkdir()
    (work / "pallava" / "config.json").write_text('{"model_type": "pallava"}')
    assert main(["evaluate", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last
    assert not (work / "evaluation").exists()
