"""From raw trees to two steps of training, by the commands that a user types and those that they print."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.clean.test_image_check import save_huge_png
from tests.tiny.records import save_pairs, save_picture, save_pmc_oa, save_pubmedvision, save_quilt
from tests.tiny.training import save_parts, write_config

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).parents[2]


def call(words: list[str], cwd: Path = ROOT) -> str:
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_three_raw_trees_to_two_steps(tmp_path):
    trees = {
        "pubmedvision": save_pubmedvision(tmp_path / "here" / "pubmedvision"),
        "quilt-1m": save_quilt(tmp_path / "there" / "quilt"),
        "pmc-oa": save_pmc_oa(tmp_path / "there" / "deep down" / "oa"),
    }
    out = tmp_path / "clean"
    sources = [word for name, root in trees.items() for word in ("--source", f"{name}={root}")]
    printed = call(["pallava", "data", "clean", str(out), *sources])
    command = printed.splitlines()[-1].removeprefix("next: ")
    assert "wrote 15 rows of 15 records" in call(shlex.split(command))
    rows = list(map(json.loads, (out / "train.jsonl").read_text().splitlines()))
    assert {row["image"].split("/")[0] for row in rows} == {"here", "there"}

    data = {"rows": out / "train.jsonl", "images": tmp_path, "sample": tmp_path / rows[0]["image"]}
    data["cache"] = tmp_path / "cache"
    config = write_config("pallava_domain_alignment", save_parts(tmp_path), data, tmp_path / "tiny.py", num_steps=2)
    call(["xtuner", "train", str(config), "--work-dir", str(tmp_path / "run"), "--seed", "0"], cwd=tmp_path)
    probed = list(map(json.loads, (tmp_path / "run" / "probe_0.jsonl").read_text().splitlines()))
    assert [each["step"] for each in probed if each["kind"] == "step"] == [1, 2]
    assert (tmp_path / "run" / "iter_2.pth").exists()


def test_hostile_pictures_are_dropped_with_their_reasons(tmp_path):
    root = save_pairs(tmp_path / "root", 2)
    save_picture(tmp_path / "secret.png", 50)
    save_huge_png(root / "huge.png")
    (root / "zero.jpg").touch()
    whole = save_picture(root / "cut.jpg", 51, (400, 300)).read_bytes()
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    rows = json.loads((root / "pairs.json").read_text())
    names = ["huge.png", "zero.jpg", "cut.jpg", "none.png", "../secret.png", str(tmp_path / "secret.png")]
    rows += [{"image": name, "caption": rows[0]["caption"]} for name in names]
    (root / "pairs.json").write_text(json.dumps(rows))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    call(["pallava", "data", "clean", str(tmp_path / "out"), "--source", f"pairs={root}"])
    dropped = map(json.loads, (tmp_path / "out" / "dropped.jsonl").read_text().splitlines())
    assert {row["image"]: row["reason"] for row in dropped} == {
        "huge.png": "too_large",
        "zero.jpg": "unreadable",
        "cut.jpg": "truncated",
        "none.png": "missing",
    }
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["sources"]["pairs"]["unread"] == {"outside_folder": 2}
    assert summary["num_kept"] == 2
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "out")}
    assert after == before
