"""The engine `ray` against the local one, and what it does apart from Ray."""

import importlib.util
import json
import os
import pickle
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pyarrow
import pytest

from pallava.cli import main
from pallava.data.clean.engine import BATCH, Engine
from pallava.data.clean.filters import Candidate, Filter
from pallava.data.clean.images import ImageFilter
from pallava.data.clean.pipeline import Pipeline
from pallava.data.clean.ray_engine import RayEngine, _cut, _Judge
from pallava.data.clean.run import clean
from pallava.errors import PallavaError
from pallava.io.store import Store
from tests.tiny.records import MemorySource, item, pair, save_mixed_pairs, save_pairs

OUTPUTS = ("kept.jsonl", "dropped.jsonl", "pairs.json", "summary.json", "index.html")


class Company(Filter):
    """Finds with how many others each text is judged; an empty text is the user's error."""

    name = key = "company"
    share = 4
    loads_model = True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def use_cores(self, count: int) -> None:
        self.num_cores = count

    def score(self, candidates):
        self.asked += [each.text for each in candidates]
        if "" in self.asked:
            raise PallavaError("no text")
        return [{"others": len(candidates) - 1, "cores": self.num_cores} for _ in candidates]

    def decide(self, candidate, findings):
        raise NotImplementedError


def candidates(*numbers: int) -> list[Candidate]:
    return [replace(item(pair(number)), number=number) for number in numbers]


def test_equal_outputs(tmp_path) -> None:
    source = f"pairs={save_mixed_pairs(tmp_path / 'tree', 40)}"
    for engine in ("local", "ray"):
        clean([source], tmp_path / engine, engine=engine, num_workers=1)
    local, ray = ({name: (tmp_path / engine / name).read_bytes() for name in OUTPUTS} for engine in ("local", "ray"))
    assert ray == local
    reasons = {json.loads(line)["reason"] for line in local["dropped.jsonl"].splitlines()}
    assert reasons == {"few_words", "non_human", "missing", "truncated", "nearly_empty", "exact duplicate"}
    with Store(tmp_path / "local" / "scores.sqlite") as one, Store(tmp_path / "ray" / "scores.sqlite") as other:
        for key in (ImageFilter.key, "species-rules-2"):
            assert other.get_all(key) == one.get_all(key) != {}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_share_stays_in_its_batch_and_whole_shares_can_be_left_out() -> None:
    every = candidates(*(number for number in range(3 * BATCH) if number % 10))
    shares = [[each.number for each in _read(share)] for share in _cut(every, 32)]
    assert [number for share in shares for number in share] == [each.number for each in every]
    assert all(len(share) <= 32 and share[0] // BATCH == share[-1] // BATCH for share in shares)
    starts = [share["start"] for share in _cut(every, 32)]
    assert starts == [sum(map(len, shares[:index])) for index in range(len(shares))]
    left = [each for each in every if each.number not in (*shares[1], *shares[9])]
    again = [[each.number for each in _read(share)] for share in _cut(left, 32)]
    assert again == [share for index, share in enumerate(shares) if index not in (1, 9)]


def _read(share: dict) -> list[Candidate]:
    return pickle.loads(share["candidates"])


def test_a_worker_returns_findings_or_the_error_of_a_user() -> None:
    worker = _Judge(Company(), 3)
    shares = pyarrow.Table.from_pylist(list(_cut(candidates(0, 1, 2, 3, 4, 5), 4)))
    rows = worker(shares).to_pylist()
    assert [(row["start"], json.loads(row["result"])) for row in rows] == [
        (0, [{"others": 3, "cores": 3}] * 4),
        (4, [{"others": 1, "cores": 3}] * 2),
    ]
    empty = pyarrow.Table.from_pylist(list(_cut([item(pair(1, text=""))], 4)))
    assert json.loads(worker(empty)["result"][0].as_py()) == "no text"


@pytest.mark.parametrize(
    ("nodes", "places"),
    [
        ([{"CPU": 2.0}], (2, 1, 0)),
        ([{"CPU": 4.0}, {"CPU": 8.0}], (12, 1, 0)),
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 4.0}], (4, 2, 1)),
        ([{"CPU": 96.0, "GPU": 8.0}, {"GPU": 1.0, "CPU": 64.0}], (9, 8, 1)),
    ],
)
def test_a_model_for_each_gpu_or_else_for_each_core(nodes, places) -> None:
    engine = RayEngine(None, 2)
    engine._ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": each} for each in nodes])
    assert engine._places() == places


def test_a_window_judges_nothing_twice_and_stores_the_same(tmp_path) -> None:
    records = [pair(number, text=f"text {number % 700}") for number in range(3 * BATCH)]
    engine, found, asked = Engine(), [], []
    for window in (BATCH, 2 * BATCH):
        engine.window, judge = window, Company()
        judge.use_cores(1)
        with Store(tmp_path / f"{window}.sqlite") as store:
            pipeline = Pipeline({"memory": MemorySource(tmp_path, records)}, [judge], store, engine=engine)
            judge.decide = lambda *_: SimpleNamespace(keep=True, score=None)
            pipeline.judge()
            found.append(store.get_all("company").keys())
        asked.append(judge.asked)
    assert asked[0] == asked[1] == [f"text {number}" for number in range(700)]
    assert found[0] == found[1]


def test_without_ray(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = ["data", "clean", str(tmp_path / "out"), "--source", f"pairs={save_pairs(tmp_path / 'tree', 1)}"]
    assert main([*command, "--engine", "ray"]) == 2
    assert "ray[data]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(command) == 0


def pretend_ray(monkeypatch, node: ModuleType | None, init: Callable[..., object]) -> ModuleType:
    ray = ModuleType("ray")
    ray.is_initialized, ray.exceptions = lambda: False, SimpleNamespace(RayError=RuntimeError)
    ray.init, ray.data = init, ModuleType("data")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin="ray"))
    modules = {"ray": ray, "ray.data": ray.data, "ray._private": ModuleType("_private"), "ray._private.node": node}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return ray


@pytest.fixture
def node() -> ModuleType:
    """Ray's module with the class that starts its processes."""

    class Node:
        def start_api_server(self, *args) -> None:
            raise AssertionError

    module = ModuleType("node")
    module.Node = Node
    return module


def test_a_ray_starts_without_its_dashboard(node, monkeypatch) -> None:
    started, server = [], node.Node.start_api_server
    ray = pretend_ray(monkeypatch, node, lambda **options: started.append(node.Node().start_api_server("a", "b")))
    assert RayEngine(None, 1)._ray is ray
    assert started == [None]
    assert node.Node.start_api_server is server


def test_a_ray_that_keeps_its_dashboard_elsewhere_is_refused(monkeypatch) -> None:
    started = []
    pretend_ray(monkeypatch, None, lambda **options: started.append(options))
    with pytest.raises(PallavaError, match=r"ray._private.node.*--engine local"):
        RayEngine(None, 1)._ray  # noqa: B018
    assert not started


def test_a_ray_whose_processes_do_not_come_up_in_time(node, monkeypatch) -> None:
    def time_out(**options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen.")  # as Ray does

    pretend_ray(monkeypatch, node, time_out)
    with pytest.raises(PallavaError, match=r"cannot start Ray: The current node timed out.*--engine local"):
        RayEngine(None, 1)._ray  # noqa: B018


def test_an_address_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    for wrong in (address, "nonsense", "127.0.0.1:http"):
        with pytest.raises(PallavaError, match=wrong):
            RayEngine(wrong, 1)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [({"engine": "spark"}, "'spark'.*local, ray"), ({"ray_address": "auto"}, "--ray-address auto.*--engine ray")],
)
def test_settings_that_do_not_go_together(settings, facts, tmp_path) -> None:
    with pytest.raises(PallavaError, match=facts):
        clean([f"pairs={save_pairs(tmp_path, 1)}"], tmp_path / "out", **settings)
