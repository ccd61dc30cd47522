"""CONTRIBUTING's connector and hook, in files of the user's outside the package, through every command."""

import json
import subprocess
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.smoke.test_training import assert_resumes, environment, read, train
from tests.test_contributing import BLOCKS
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with the connector, which one line of the config names."""
    folder = tmp_path_factory.mktemp("own_connector")
    for name in ("my_connector.py", "my_hook.py"):
        (folder / name).write_text(BLOCKS[name])
    data = save_data(folder, num_rows=8, num_without_image=2)
    path = write_config("pallava_instruction_tuning", save_parts(folder), data, folder / "own.py")
    config = Config.fromfile(path)
    connector = {"type": "my_connector.MyConnector", "width": 20}
    config.model.connector = config.train_dataloader.dataset.connector = connector
    exec(BLOCKS["in the config"], {"custom_hooks": config.custom_hooks})
    config.dump(path)
    train(path, folder / "run", "--seed", "1024", PYTHONPATH=module_path(folder))
    return folder


def module_path(folder: Path) -> str:
    return f"{environment()['PYTHONPATH']}:{folder}"


def pallava(folder: Path, *words: str, finds_module: bool = True) -> subprocess.CompletedProcess:
    variables = environment(PYTHONPATH=module_path(folder)) if finds_module else environment()
    return subprocess.run(
        ["pallava", *words], cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def test_it_resumes(run: Path) -> None:
    assert_resumes(run / "own.py", run / "run", run / "resumed", PYTHONPATH=module_path(run))


def test_it_trains_converts_and_opens_again(run: Path) -> None:
    start, end = read(run / "run", "start")[0], read(run / "run", "end")[0]
    assert start["connector"] != end["connector"]
    converted = pallava(run, "convert", "run", "model", "--config", "own.py")
    assert converted.returncode == 0, converted.stderr
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["connector_class"] == "my_connector.MyConnector"
    assert json.loads((run / "model" / "processor_config.json").read_text())["reads_tiles"] is False
    card = (run / "model" / "README.md").read_text()
    assert "MLP of width 20 over the overview's tokens" in card
    assert "cross-attention" not in card
    words = ["chat", "model", "--image", "images/0.png", "--question", "what is shown here ?", "--max-new-tokens", "3"]
    answered = pallava(run, *words, "--trust-remote-code")
    assert answered.returncode == 0, answered.stderr
    for extra, reason in ((), "--trust-remote-code"), (("--trust-remote-code",), "cannot be imported"):
        refused = pallava(run, *words, *extra, finds_module=not extra)
        assert refused.returncode == 2
        assert "my_connector" in refused.stderr
        assert reason in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_the_hook_logs(run: Path) -> None:
    (scalars,) = (run / "run").rglob("scalars.json")
    assert all(json.loads(line)["samples_per_second"] > 0 for line in scalars.read_text().splitlines())
