"""A child's output, exit code and end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pallava.io.processes import run_child

WAITS = """
import os, pathlib, sys, time
from pallava.io.processes import end_with_parent
end_with_parent()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_lines_and_exit_code(end: str, code: int) -> None:
    lines: list[str] = []
    program = f"import sys; print('one'); print('two', file=sys.stderr); sys.stdout.flush(); {end}"
    assert run_child([sys.executable, "-c", program], lines.append) == code
    assert lines == ["one\n", "two\n"]


def test_environment_and_log(tmp_path: Path) -> None:
    lines: list[str] = []
    program = "import os; print(os.environ['COLOUR'])"
    environment = {**os.environ, "COLOUR": "blue"}
    assert run_child([sys.executable, "-c", program], lines.append, environment, log=tmp_path / "log") == 0
    assert lines == ["blue\n"]
    assert (tmp_path / "log").read_text() == "blue\n"


@pytest.mark.parametrize("system", ["posix", "windows"])
def test_an_error_while_reading_ends_the_child(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "windows":
        monkeypatch.delattr("os.killpg")

    def fail(line: str) -> None:
        raise ValueError(line)

    program = "import os, time; print(os.getpid()); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^\d+") as raised:
        run_child([sys.executable, "-c", program], fail)
    assert time.monotonic() - began < 50
    assert not is_alive(int(str(raised.value)))


@pytest.mark.parametrize("signal", [9, 15])
def test_the_child_ends_with_its_parent(signal: int, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = [sys.executable, "-c", WAITS, str(note)]
    program = f"from pallava.io.processes import run_child; raise SystemExit(run_child({child!r}, print))"
    parent = subprocess.Popen([sys.executable, "-c", program])
    wait_until(lambda: note.is_file() and note.read_text())
    parent.send_signal(signal)
    assert parent.wait(20) == (-9 if signal == 9 else 143)
    wait_until(lambda: not is_alive(int(note.read_text())))


def test_alone_a_process_does_not_watch_its_stdin() -> None:
    program = "import time; from pallava.io.processes import end_with_parent; end_with_parent(); time.sleep(0.3)"
    assert subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL).returncode == 0
