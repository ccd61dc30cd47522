"""`pip install` where nobody trains, as on macOS and Windows: all but training works, and answers the same.

The environment is one of Linux, but its packages are those that other systems get. It is asked under the transformers
that training pins, and under the newest, as in vLLM's environment.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.model.test_published import CHECKPOINT
from tests.smoke.test_newest_transformers import install_newest
from tests.tiny import golden
from tests.tiny.answering_model import write_model, write_questions
from tests.tiny.offline import HERE
from tests.tiny.server import data_url
from tests.tiny.training import save_data, save_parts, save_tokenizer, write_config
from tests.tiny.use_only import FOR_TRAINING, make_environment

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]
QUESTION = "what is shown here ?"
FIND = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
IMPORT_ALL = """
import pkgutil, pallava
others = tuple(f"pallava.{name}" for name in ("training", "pretraining", "adapters", "configs"))
names = [each.name for each in pkgutil.walk_packages(pallava.__path__, "pallava.", lambda name: None)]
names = [name for name in names if not name.startswith(others) and not name.endswith("__main__")]
for name in names:
    __import__(name)
print(len(names))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("use_only"), "serve")


@pytest.fixture(scope="module", params=["pinned", "newest"])
def run(request: pytest.FixtureRequest, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a Python there, with words behind it, and returns what has ended."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if request.param == "newest":
        install_newest(packages := tmp_path_factory.mktemp("newest") / "packages")
        variables["PYTHONPATH"] = str(packages)

    def run(*words: object, cwd: Path | None = None) -> Any:
        command = [str(python), *map(str, words)]
        return subprocess.run(
            command, env=variables, cwd=cwd or python.parent, capture_output=True, text=True, check=False
        )

    version = run("-c", "import transformers; print(transformers.__version__)").stdout
    assert version.startswith("4.48." if request.param == "pinned" else "5.")
    return run


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_model(folder / "model")
    write_questions(folder / "data", 12)
    return folder


def here(*words: object, cwd: Path) -> Any:
    command, variables = [sys.executable, *map(str, words)], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_what_only_training_needs_is_not_there(run: Run) -> None:
    assert run("-c", FIND, *FOR_TRAINING, "pallava").stdout == "['pallava']\n"
    done = run("-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


def test_chat(run: Run, work: Path, tmp_path: Path) -> None:
    words = ["-m", "pallava", "chat", work / "model", "--image", work / "data" / "0.png", "--json"]
    words += ["--question", QUESTION, "--question", "nuclei ?", "--max-new-tokens", 8]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    expected, found = (
        [json.loads(line) for line in each.stdout.splitlines()] for each in (here(*words, cwd=tmp_path), done)
    )
    assert [each["question"] for each in found] == [QUESTION, "nuclei ?"]
    assert [each.pop("probability") for each in found] == pytest.approx(
        [each.pop("probability") for each in expected], rel=1e-3
    )
    assert found == expected


def test_evaluate(run: Run, work: Path, tmp_path: Path) -> None:
    words = ["-m", "pallava", "evaluate", work / "model", "custom", "--data", work / "data" / "questions.jsonl"]
    words += ["--max-new-tokens", 8, "--out"]
    done = run(*words, "there", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    here(*words, "here", cwd=tmp_path)
    there, own = (tmp_path / name / "predictions.jsonl" for name in ("there", "here"))
    assert there.read_bytes() == own.read_bytes()
    assert len({json.loads(line)["answer"] for line in own.read_text().splitlines()}) > 3
    results = [json.loads((tmp_path / name / "results.json").read_text())["data"] for name in ("there", "here")]
    assert results[0]["questions"]["scores"] == results[1]["questions"]["scores"]


def test_serve(run: Run, work: Path, tmp_path: Path) -> None:
    words = [HERE / "ask_server.py", data_url()]
    serve = ["-m", "pallava", "serve", work / "model", "--port", 0]
    there = run(*words, run("-c", "import sys; print(sys.executable)").stdout.strip(), *serve, cwd=tmp_path)
    assert there.returncode == 0, there.stderr[-2000:]
    texts = []
    for done in (there, here(*words, sys.executable, *serve, cwd=tmp_path)):
        answers = json.loads(done.stdout)
        assert "<html" in answers["page"]
        texts.append(json.loads(answers["completion"])["choices"][0]["message"]["content"])
    assert texts[0] == texts[1]


def test_data_and_published_weights(run: Run, tmp_path: Path) -> None:
    rows = save_data(tmp_path / "rows")
    done = run("-m", "pallava", "data", "check", rows["rows"], "--image-folder", rows["images"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    golden.llm().save_pretrained(tmp_path / "llm")
    save_tokenizer(tmp_path / "llm")
    plip = golden.published_plip_folder(tmp_path / "plip")
    words = ["--llm", tmp_path / "llm", "--visual-encoder", plip, "--connector-heads", 4, "--merge"]
    words += ["--prompt-template", "qwen_chat"]
    done = run("-m", "pallava", "convert", f"{CHECKPOINT}.tar.gz", tmp_path / "there", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    here("-m", "pallava", "convert", f"{CHECKPOINT}.tar.gz", tmp_path / "here", *words, cwd=tmp_path)
    assert_same_weights(tmp_path / "there", tmp_path / "here")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a training in this environment."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(
        "pallava_instruction_tuning", save_parts(folder / "parts"), save_data(folder), folder / "tiny.py", num_steps=2
    )
    here("-m", "pallava", "train", config, "--work-dir", "run", "--seed", 1024, cwd=folder)
    return folder


def test_a_checkpoint_of_xtuner_is_converted(run: Run, trained: Path, tmp_path: Path) -> None:
    words = ["-m", "pallava", "convert", trained / "run"]
    done = run(*words, tmp_path / "there", cwd=trained)
    assert done.returncode == 0, done.stderr[-2000:]
    here(*words, tmp_path / "here", cwd=trained)
    assert_same_weights(tmp_path / "there", tmp_path / "here")


def assert_same_weights(*folders: Path) -> None:
    there, own = (load_file(folder / "model.safetensors") for folder in folders)
    assert there.keys() == own.keys()
    assert all((there[name] == own[name]).all() for name in own)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "pallava_domain_alignment"],
        ["doctor", "pallava_domain_alignment"],
        ["demo"],
        ["convert", "run", "out", "--config", "tiny.py"],
        ["pretrain", "pairs.json", "out", "--image-folder", "."],
    ],
    ids=lambda words: words[0],
)
def test_a_training_says_what_it_needs(run: Run, trained: Path, command: list[str]) -> None:
    done = run("-m", "pallava", *command, cwd=trained)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "install" in done.stderr
    assert "Traceback" not in done.stderr
