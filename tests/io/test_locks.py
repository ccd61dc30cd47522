"""A lock on a file."""

import errno
import fcntl
import subprocess
import sys

import pytest

from pallava.errors import PallavaError
from pallava.io.processes import hold_lock

HOLD = "from pallava.io.processes import hold_lock\nwith hold_lock({!r}, ''):\n    print('held', flush=True); input()"


def test_another_process_is_kept_off_until_it_ends(tmp_path):
    command = [sys.executable, "-c", HOLD.format(str(tmp_path / "lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PallavaError, match="in use"), hold_lock(tmp_path / "lock", "in use"):
            pytest.fail("held")
        holder.kill()
    with hold_lock(tmp_path / "lock", "in use"):
        pass


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_keeps_nobody_off(tmp_path, monkeypatch, code):
    def flock(descriptor, operation):
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with hold_lock(tmp_path / "lock", "in use"):
            pass


def test_other_errors_are_raised(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), hold_lock(tmp_path / "file" / "lock", "in use"):
        pytest.fail("held")
