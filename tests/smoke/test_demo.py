"""The whole demo at a small fraction of its size: every step runs, nothing is learnt."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pallava.demo.stages import computes_in_bf16
from pallava.evaluation.answers.items import read_predictions
from tests.tiny.endpoint import Act, stub_endpoint

CONFIG = "pallava_instruction_tuning.py"

pytestmark = pytest.mark.smoke

KEYS = {
    "closed_accuracy",
    "closed_accuracy_shuffled",
    "closed_accuracy_majority",
    "open_exact_match",
    "attribute_accuracy",
    "fine_detail_accuracy",
    "num_questions",
    "pointing",
    "seconds",
}
PLIP_KEYS = {"num_pictures"} | {
    f"{attribute}_{key}"
    for attribute in ("stain", "density")
    for key in ("accuracy", "accuracy_untrained", "largest_class")
}


def demo(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pallava", "demo", "--scale", "0.001"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def run(folder: Path, *words: str) -> str:
    """Run a command of ours; return its output."""
    done = subprocess.run([sys.executable, "-m", "pallava", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def every_further_command(folder: Path) -> None:
    """Consistency, captions, a judge; in float32 a folder that keeps its adapter answers as the merged one does."""
    questions = ("custom", "--data", "demo/data/questions.jsonl", "--image-folder", "demo/data/images")
    questions += ("--limit", "6", "--max-new-tokens", "8")
    told = run(folder, "evaluate", "demo/model", *questions, "--consistency", "--out", "again")
    assert "consistency" in told
    captions = ("--data", "demo/data/captions.json", "--image-folder", "demo/data/images", "--limit", "3")
    run(folder, "evaluate", "demo/model", "caption", *captions, "--max-new-tokens", "4", "--out", "captions")
    with stub_endpoint(lambda text, before: Act("Score: 7")) as server:
        run(folder, "judge", "captions", "--url", server.url, "--model", "judge", "--out", "judged")
    judged = [json.loads(line) for line in (folder / "judged" / "judgements.jsonl").read_text().splitlines()]
    assert [each["grade"] for each in judged if each["verdict"] != "empty"] == [7] * server.answered.total()
    assert len(judged) == 3
    answers = []
    for name, options in (("apart", ()), ("merged", ("--merge",))):
        run(folder, "convert", "demo/stage2", name, "--dtype", "float32", *options)
        run(folder, "evaluate", name, *questions, "--without-shuffled", "--out", f"of_{name}")
        answers.append([each.text for each in read_predictions(folder / f"of_{name}")])
    assert (folder / "apart" / "adapter").is_dir()
    assert not (folder / "merged" / "adapter").exists()
    assert answers[0] == answers[1]


STEPS = ["fetch", "draw", "plip", "plip_report", "dataformat", "words", "stage1", "stage2", "convert", "questions"]
STEPS += ["pointing"]


def skipped(output: str) -> list[str]:
    """Names of the steps that a run skipped."""
    return re.findall(r"\[\d+/11\] (\w+): nothing has changed, skipped", output)


def test_every_step_runs_once(tmp_path):
    first = demo(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.findall(r"\[\d+/11\] (\w+): done in", first.stdout) == STEPS
    assert skipped(first.stdout) == []
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert set(report) == KEYS
    assert len(report["attribute_accuracy"]) == 6
    plip = json.loads((tmp_path / "demo" / "plip_report.json").read_text())
    assert set(plip) == PLIP_KEYS
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("<svg") == 4
    assert "not for diagnosis" in page
    assert 'src="data:image/png' in page
    assert (tmp_path / "demo" / "model" / "model.safetensors").is_file()
    card = (tmp_path / "demo" / "model" / "README.md").read_text()
    assert "| exact_match_closed |" in card
    assert "instruction_tuning.jsonl" in card
    half = "torch_dtype='bfloat16'"
    assert (half in (tmp_path / "demo" / "stage2" / CONFIG).read_text()) is computes_in_bf16()

    again = demo(tmp_path)
    assert again.returncode == 0, again.stderr
    assert skipped(again.stdout) == STEPS


@pytest.mark.slow
def test_every_further_command_works_on_the_demo(tmp_path):
    """Each also runs on tiny models in the tests of its own; here one after the other, as the README has them."""
    done = demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    every_further_command(tmp_path)


@pytest.mark.slow
def test_what_the_whole_demo_learns(tmp_path):
    """The demo at its full size, as `make demo` runs it: some 25 minutes on two cores that have nothing else to do."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "pallava", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["num_questions"] >= 600
    assert report["closed_accuracy"] >= 0.85
    assert report["closed_accuracy_shuffled"] <= 0.6
    assert report["open_exact_match"] >= 0.9
    coarse = {name: share for name, share in report["attribute_accuracy"].items() if name != "mitosis"}
    assert len(coarse) == 5
    assert min(coarse.values()) >= 0.65
    assert report["fine_detail_accuracy"]["with_tiles"] >= 0.85
    assert report["fine_detail_accuracy"]["tiles_replaced_by_overview"] <= 0.6
    plip = json.loads((tmp_path / "demo" / "plip_report.json").read_text())
    assert plip["stain_accuracy"] >= 0.9
    assert plip["density_accuracy"] >= 0.75
    for attribute in ("stain", "density"):  # what always says the largest class knows nothing either
        assert plip[f"{attribute}_accuracy_untrained"] <= plip[f"{attribute}_largest_class"] + 0.05


def test_a_wrong_scale_is_told_in_a_sentence(tmp_path):
    command = [sys.executable, "-m", "pallava", "demo", "--scale", "3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the demo's scale must be above 0")
