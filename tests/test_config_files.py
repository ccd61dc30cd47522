"""A config that Python cannot read is refused before anything starts."""

from pathlib import Path

import pytest

from pallava.cli import main


def test_a_config_that_is_not_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("model = dict(\nlr = 3")
    assert main(["train", str(tmp_path / "broken.py")]) == 2
    error = capsys.readouterr().err
    assert "broken.py" in error
    assert "line 1" in error
