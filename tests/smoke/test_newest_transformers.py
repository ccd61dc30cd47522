"""A model folder opens, and answers the same, under the newest transformers of the package index.

The second environment shares all but what the newest transformers needs newer; it stands in front of the first.
"""

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from pallava.model import ask as ask_model
from pallava.model import load
from pallava.model.weights import read_json, read_weights
from tests.smoke import part_answers
from tests.smoke.folder_answers import ask, describe
from tests.tiny import folders as tiny_folders
from tests.tiny.answering_model import write_model, write_questions

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).parents[2]
OLD_PARTS = ("clip", "siglip", "llama")  # that every stack knows


def install_newest(target: Path, *others: str) -> None:
    """Installs the newest transformers, others, and whatever they need newer than what is here, and nothing else."""
    wanted = ["transformers", *others]
    while wanted:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-compile",
            "--target",
            str(target),
            *wanted,
        ]
        done = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"pip got no {' '.join(wanted)} from the package index, which this test needs:\n{done.stderr}")
        wanted = [need for need in needs(target) if not is_there(need, target)]


def needs(target: Path) -> list[str]:
    found = [line for each in metadata.distributions(path=[str(target)]) for line in each.requires or ()]
    return [line for line in found if (marker := Requirement(line).marker) is None or marker.evaluate({"extra": ""})]


def is_there(need: str, target: Path) -> bool:
    requirement = Requirement(need)
    here = {each.name.lower().replace("_", "-"): each.version for each in metadata.distributions()}
    here |= {each.name.lower().replace("_", "-"): each.version for each in metadata.distributions(path=[str(target)])}
    version = here.get(requirement.name.lower().replace("_", "-"))
    return version is not None and requirement.specifier.contains(version, prereleases=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_folders.save_kinds(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def newest(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the folders say there, by path, and what that transformers is like."""
    target = tmp_path_factory.mktemp("newest")
    install_newest(target / "packages")
    part_answers.write(target / "ours", OLD_PARTS)
    words = [target / "answers.pt", target / "theirs", target / "ours", ",".join(OLD_PARTS), *folders.values()]
    done = run_beside(target / "packages", "tests.smoke.folder_answers", *words)
    assert "deprecated" not in done.stderr.replace("is_gradient_checkpointing` is deprecated", "")  # peft's own
    return {**torch.load(target / "answers.pt"), "ours": target / "ours", "theirs": target / "theirs"}


def run_beside(packages: Path, module: str, *words: object, python: object = sys.executable) -> Any:
    """Runs a module of the tests with packages in front of those of this environment."""
    path = os.pathsep.join([str(packages), str(ROOT)])
    command = [str(python), "-m", module, *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.parametrize("kind", tiny_folders.KINDS)
def test_answers_are_the_same(folders: dict[str, Path], newest: dict[str, Any], kind: str) -> None:
    here, there = ask(folders[kind]), newest[str(folders[kind])]
    torch.testing.assert_close(there.pop("logits"), here.pop("logits"), atol=1e-4, rtol=0)
    assert torch.equal(there.pop("ids"), here.pop("ids"))
    assert torch.equal(there.pop("pixels"), here.pop("pixels"))
    assert there == here
    assert here["pipeline"] == here["streamed"] == here["answers"][0]


@pytest.mark.parametrize("writer", ["ours", "theirs"])
def test_parts_are_read_whoever_wrote_them(newest: dict[str, Any], writer: str) -> None:
    here, there = part_answers.read(newest[writer]), newest[f"parts {writer}"]
    assert here.keys() == there.keys() == {*OLD_PARTS}
    for name, found in here.items():
        torch.testing.assert_close(found, there[name], atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    if writer == "theirs":  # what the tests above are about
        keys, config = read_weights(newest[writer] / "clip"), read_json(newest[writer] / "llama" / "config.json")
        assert not any(key.startswith("vision_model.") for key in keys), "drop name_tower"
        assert "rope_theta" not in config, "drop read_rope"


def test_every_work_around_is_still_needed(newest: dict[str, Any]) -> None:
    """Where one fails: the pin has moved, or transformers has changed back; drop it from `transformers_versions`."""
    here, there = describe(), newest["about"]
    assert here.pop("version").startswith("4.48.")
    assert there.pop("version").startswith("5.")
    assert here == {"tower inside": True, "open settings": False, "needs class names": True, "caps by sdpa": True}
    assert there == {"tower inside": False, "open settings": True, "needs class names": False, "caps by sdpa": False}


SERVE = "import pallava.model; from transformers.cli.transformers import app; app()"  # as docs/python.md has it
QUESTION = "what is shown here ?"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of `transformers serve` for a folder, in the newest transformers."""
    install_newest(tmp_path / "packages", "fastapi", "uvicorn", "openai", "rich")
    write_model(tmp_path / "model")
    path = os.pathsep.join([str(tmp_path / "packages"), str(ROOT)])
    command = [sys.executable, "-c", SERVE, "serve", str(tmp_path / "model"), "--port", "0", "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log)
    try:
        for _ in range(120):
            time.sleep(1)
            said = (tmp_path / "log").read_text()
            if (found := re.search(r"running on (http://\S+)", said)) or running.poll() is not None:
                break
        assert found, said[-2000:]
        yield f"{found[1]}/v1/chat/completions"
    finally:
        running.kill()
        running.wait()


def complete(url: str, model: str, image: str, **options: Any) -> str:
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": QUESTION}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, **options}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = answer.read().decode()
    if not options.get("stream"):
        return json.loads(text)["choices"][0]["message"]["content"]
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.mark.slow
def test_transformers_serve_answers_as_we_do(server: str, tmp_path: Path) -> None:
    assert f'"{SERVE}" serve' in (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    images = sorted(write_questions(tmp_path / "questions", 1).parent.glob("*.png"))
    model, processor = load(tmp_path / "model", "cpu")
    expected = [ask_model(model, processor, image, QUESTION, max_new_tokens=8) for image in images]
    assert len(set(expected)) > 1
    for image, answer in zip(images, expected, strict=True):
        url = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
        for given in (str(image), url):
            for options in ({}, {"stream": True}):
                assert complete(server, str(tmp_path / "model"), given, **options).strip() == answer
