"""Several processes, one of which fails: it has the last word, and its exit code counts."""

import subprocess
import sys
from pathlib import Path

import pytest

FAILS = """
import os, signal, sys
if os.environ["RANK"] == "1":
    {how}
"""


@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        ("sys.stderr.write('error: no such file\\n'); sys.exit(3)", 3, "error: no such file"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "error: process 1 was ended by signal 9"),
        ("pass", 0, None),
    ],
)
def test_a_process_that_fails(how: str, code: int, last: str | None, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FAILS.format(how=how))
    words = ["--nnodes=1", "--nproc_per_node=2", "--master_addr=127.0.0.1", "--master_port=0", str(script)]
    done = subprocess.run(
        [sys.executable, "-m", "pallava.io.torchrun", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert (done.stderr.strip().splitlines() or [None])[-1] == last
