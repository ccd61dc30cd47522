"""The config beside a checkpoint: found and read, and never run."""

from pathlib import Path

import pytest
from mmengine.config import Config

from pallava.errors import PallavaError
from pallava.model.run_config import find_config
from tests.tiny import training as tiny

SOUND = "model = dict(type='PALLaVAModel', llm=dict(type='load_llm'))\ntrain_dataloader = dict(dataset=dict())\n"


def test_a_dumped_config_is_read_as_it_would_run(tmp_path: Path) -> None:
    parts, data = tiny.save_parts(tmp_path / "parts"), tiny.save_data(tmp_path / "data", num_rows=1)
    (tmp_path / "run").mkdir()
    path = tiny.write_config("pallava_instruction_tuning", parts, data, tmp_path / "run" / "config.py")
    found = find_config(tmp_path / "run" / "iter_8.pth")
    assert found is not None
    assert found.to_dict() == Config.fromfile(path).to_dict()


@pytest.mark.parametrize(
    "program",
    [
        "open({proof!r}, 'w')\n" + SOUND,
        SOUND + "work_dir = open({proof!r}, 'w')\n",
        SOUND + "x = [open({proof!r}, 'w') for _ in (1,)]\n",
        SOUND + "import os\nos.mkdir({proof!r})\n",
        SOUND + "_base_ = './other.py'\nx = __import__('os').mkdir({proof!r})\n",
    ],
)
def test_a_program_is_not_run(program: str, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    (tmp_path / "config.py").write_text(program.format(proof=str(proof)))
    assert find_config(tmp_path / "iter_8.pth") is None
    assert not proof.exists()


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("model = dict(type='os.mkdir', path={proof!r})", "names os.mkdir"),
        ("model = dict(type='PALLaVAModel', llm=dict(type='os.mkdir', path={proof!r}))", "names os.mkdir"),
        ("model = dict(type='PALLaVAModel', x=[dict(type='pallava.cli.main')])", "names pallava.cli.main"),
        ("model = dict(type='PALLaVAModel', x=dict(type='pallava.model.loading.os.mkdir'))", "loading.os.mkdir"),
        ("model = dict(type='load_llm', trust_remote_code=True)", "trust_remote_code"),
        ("model = dict(type=['load_llm'])", "not one of our parts"),
    ],
)
def test_a_config_beside_weights_names_only_our_parts(part: str, reason: str, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    text = f"{part}\ntrain_dataloader = dict(dataset=dict())\n".format(proof=str(proof))
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(PallavaError, match=reason):
        find_config(tmp_path / "iter_8.pth")
    assert not proof.exists()


def test_one_of_several(tmp_path: Path) -> None:
    (tmp_path / "zero_to_fp32.py").write_text("import torch\n")  # DeepSpeed leaves it beside its checkpoints
    (tmp_path / "a.py").write_text(SOUND)
    assert find_config(tmp_path / "iter_8.pth") is not None
    (tmp_path / "b.py").write_text(SOUND)
    with pytest.raises(PallavaError, match=r"several configs \(a.py, b.py\)"):
        find_config(tmp_path / "iter_8.pth")
