"""Cleaning by Ray at a size that counts: killed and resumed, by a cluster with a model, and with workers that die."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import torch

from pallava.data.clean.filters import Filter
from pallava.data.clean.images import ImageFilter
from pallava.data.clean.ray_engine import RayEngine
from pallava.data.clean.run import clean
from pallava.errors import PallavaError
from pallava.io.store import Store
from tests.tiny.clips import DESCRIPTION
from tests.tiny.records import item, pair, save_mixed_pairs

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
OUTPUTS = ("kept.jsonl", "dropped.jsonl", "pairs.json", "summary.json", "index.html")
NUM_ROWS = 10_000


def start(tree: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pallava", "data", "clean", str(out), "--source", f"pairs={tree}", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def read(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in OUTPUTS}


def stored(out: Path, copies: Path) -> list[tuple[str, str]]:
    """Read a copy of the store, which a run may have open."""
    copies.mkdir(exist_ok=True)
    for name in ("scores.sqlite", "scores.sqlite-wal"):
        if (out / name).exists():
            shutil.copy(out / name, copies / name)
    with closing(sqlite3.connect(copies / "scores.sqlite")) as database:
        found = database.execute("SELECT filter_key, item_key FROM scores").fetchall()
    shutil.rmtree(copies)
    return found


def kill_in_work(process: subprocess.Popen, out: Path, num_images: int) -> list[psutil.Process]:
    """Kill a run once it has stored findings on so many images; return the processes that it had started."""
    while process.poll() is None:
        time.sleep(0.3)
        if (out / "scores.sqlite").exists():
            keys = [key for key, _ in stored(out, out.with_suffix(".copies"))]
            if keys.count(ImageFilter.key) >= num_images:
                break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return children


def test_a_killed_run_is_resumed(tmp_path, monkeypatch) -> None:
    tree, out, local = save_mixed_pairs(tmp_path / "tree", NUM_ROWS), tmp_path / "ray", tmp_path / "local"
    assert clean([f"pairs={tree}"], local, num_workers=2)["num_records"] == NUM_ROWS
    children = kill_in_work(start(tree, out, "--engine", "ray", "--workers", "2"), out, NUM_ROWS // 3)
    before = stored(out, tmp_path / "copies")
    assert len(children) > 4
    assert psutil.wait_procs(children, timeout=180)[1] == []

    written: Counter[tuple[str, str]] = Counter()
    put = Store.put

    def count(store, namespace, values):
        written.update((namespace, key) for key in values)
        put(store, namespace, values)

    monkeypatch.setattr(Store, "put", count)
    clean([f"pairs={tree}"], out, engine="ray", num_workers=2)
    assert read(out) == read(local)
    assert NUM_ROWS // 3 < len(before) < len(before) + written.total()
    assert sorted([*before, *written.elements()]) == stored(local, tmp_path / "copies")  # nothing twice
    print(f"{len(before)} findings before the kill, {written.total()} after it")


def write_clip(folder: Path) -> str:
    """Write a CLIP of random weights where any process finds it, and return its name."""
    import open_clip

    folder.mkdir()
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**DESCRIPTION).state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": DESCRIPTION, "preprocess_cfg": {}}))
    return f"local-dir:{folder}"


def test_a_cluster_runs_a_model(tmp_path) -> None:
    """Once for the process that started Ray, and once for another that knows its address."""
    import ray

    tree = save_mixed_pairs(tmp_path / "tree", 700)
    settings = {"pathology": "clip", "model_name": write_clip(tmp_path / "clip")}
    clean([f"pairs={tree}"], tmp_path / "local", **settings)
    with ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20) as cluster:
        clean([f"pairs={tree}"], tmp_path / "own", engine="ray", **settings)
        assert ray.is_initialized()
        words = ["--pathology", "clip", "--model-name", settings["model_name"]]
        address = cluster.address_info["gcs_address"]
        process = start(tree, tmp_path / "address", *words, "--engine", "ray", "--ray-address", address)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert read(tmp_path / "own") == read(tmp_path / "address") == read(tmp_path / "local")


class Deadly(Filter):
    name = key = "deadly"
    share = 4

    def score(self, candidates):
        os._exit(1)


class Broken(Deadly):
    def score(self, candidates):
        raise PallavaError(f"cannot judge {candidates[0].text}")


@pytest.mark.parametrize(("each", "facts"), [(Deadly(), "'deadly'.*run the command again"), (Broken(), "some text")])
@pytest.mark.parametrize("loads_model", [False, True])
def test_workers_that_fail(each, facts, loads_model, capfd) -> None:
    each.loads_model, engine = loads_model, RayEngine(None, 1)
    try:
        with pytest.raises(PallavaError, match=facts):
            list(engine.iter_parts(each, [item(pair(1, text="some text"))]))
        assert "Traceback" not in "".join(capfd.readouterr())
    finally:
        engine.close()
