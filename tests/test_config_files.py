"""Options that would change nothing, and configs that are no Python, are refused before anything starts."""

from pathlib import Path

import pytest

from pallava.cli import main
from pallava.config_files import check_overrides, configs_dir
from pallava.errors import PallavaError

CONFIG = configs_dir() / "pallava_domain_alignment.py"


@pytest.mark.parametrize("option", ["lr=1e-5", "max_epochs=1", "tokenizer.padding_side=left"])
def test_a_setting_that_the_config_has_read(option: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", str(CONFIG), "--cfg-options", option]) == 2
    assert f"--cfg-options {option.split('=')[0]}=... would change nothing" in capsys.readouterr().err


def test_what_the_trainer_reads_may_be_set() -> None:
    for config in (CONFIG, configs_dir() / "demo" / CONFIG.name):  # which sets parts of what it builds on
        check_overrides(config, ["optim_wrapper.optimizer.lr=1e-5", "model.llm.torch_dtype=bfloat16", "work_dir=x"])


def test_a_config_that_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("model = dict(\nlr = 3")
    with pytest.raises(PallavaError, match="broken.py is no config that Python can read: .*line 1"):
        check_overrides(tmp_path / "broken.py", [])
