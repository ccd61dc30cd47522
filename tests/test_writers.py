"""Every command that writes, on a disk that is full at the last moment: what was there stays, nothing is left over."""

import errno
import json
import os
import zipfile
from pathlib import Path

import pytest

from pallava.cli import main
from tests.tiny.answering_model import write_model, write_questions
from tests.tiny.clips import write_classes, write_open_clip
from tests.tiny.records import save_pairs
from tests.tiny.training import save_data

# Commands by what they write, run in a folder with the material of `work`.
AGAIN = {  # the same command writes over what it wrote before
    "cleaned data": "data clean clean --source pairs=pairs --pathology none --workers 1",
    "instructions": "data instruct instruct.jsonl --source csv=table.csv --columns image=file,question=q,answer=a",
    "a leak report": "data leak rows.jsonl rows.jsonl --train-images images --test-images images --out leak.json",
    "answers and their report": "evaluate model custom --data questions.jsonl --without-shuffled --out answers",
    "a model card": "card model --scores answers/results.json",
    "zero-shot results": "evaluate clip zero-shot --data classes --out zero_shot",
    "a judgement": "judge captions --out captions",
    "a picture": "look model --image 0.png --out look.png",
}
ONCE = {  # a folder or file that may not be there before
    "an unpacked archive": "data unpack archive.zip unpacked",
    "prepared data": "data prepare rows.jsonl prepared --tokenizer model_parts/llm --prompt-template qwen_chat",
    "a converted CLIP": "encoder convert clip converted --to huggingface",
    "a copied config": "config copy pallava_domain_alignment copied.py",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writers")
    write_model(folder / "model")
    write_open_clip(folder / "clip")
    write_classes(folder / "classes", {"fat": 2, "gland": 2})
    write_questions(folder, count=3)
    save_data(folder, num_rows=2)
    save_pairs(folder / "pairs", num_rows=2)
    (folder / "table.csv").write_text("file,q,a\n0.png,Is it there?,yes\n")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("inside/file", "content")
    answer = {"id": "1", "image": "0.png", "kind": "caption", "question": "?", "reference": "a gland"}
    line = json.dumps({**answer, "answer": "gland", "choices": [], "group": "", "problem": ""})
    (folder / "captions").mkdir()
    (folder / "captions" / "predictions.jsonl").write_text(line + "\n")
    return folder


@pytest.fixture(autouse=True)
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setenv("PALLAVA_CACHE", str(work / "cache"))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but stores, which keep what was computed before the failure."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".sqlite" not in path.name)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every file fail when it is written out to the disk."""
    failed: list[int] = []

    def fsync(descriptor: int) -> None:
        failed.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    return failed


@pytest.mark.parametrize("name", [*AGAIN, *ONCE])
def test_a_full_disk(name: str, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    words = {**AGAIN, **ONCE}[name].split()
    if name in AGAIN:
        assert main(words) == 0, capsys.readouterr().err
    before = contents(work)
    with monkeypatch.context() as patch:
        failed = fill_the_disk(patch)
        assert main(words) == 2
    assert failed
    assert "No space left on device" in capsys.readouterr().err
    assert contents(work) == before
    assert not [path for path in work.rglob("*") if path.suffix in (".unfinished", ".old")]
    assert main(words) == 0  # and the same command writes it once there is room
    assert contents(work).keys() >= before.keys()
