"""One evaluation: what is imported with consent alone, and what is refused before a model is opened."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pallava.errors import PallavaError
from pallava.evaluation.answers.store import Processes
from pallava.evaluation.encoders.look import look
from pallava.evaluation.run import evaluate
from pallava.model.connectors import CONNECTORS
from tests.tiny.answering_model import write_model, write_questions


def test_a_connector_of_ones_own_is_imported_with_consent_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny.my_connector import MyConnector, MyConnectorConfig

    connector = MyConnector(MyConnectorConfig(width=8, visual_hidden_size=24, llm_hidden_size=32))
    model = write_model(tmp_path / "model", connector=connector)
    data = write_questions(tmp_path / "data", 2)
    monkeypatch.delitem(CONNECTORS, "my_mlp")
    monkeypatch.delitem(sys.modules, "tests.tiny.my_connector")
    with pytest.raises(PallavaError, match=r"tests\.tiny\.my_connector.*--trust-remote-code"):
        evaluate(model, "custom", data, max_new_tokens=2)
    with pytest.raises(PallavaError, match=r"tests\.tiny\.my_connector.*--trust-remote-code"):
        look(model, tmp_path / "data" / "0.png", tmp_path / "look.png")
    assert "tests.tiny.my_connector" not in sys.modules
    report = evaluate(model, "custom", data, max_new_tokens=2, device="cpu", trust_remote_code=True)
    assert report["data"]["questions"]["scores"]
    monkeypatch.delitem(CONNECTORS, "my_mlp")
    monkeypatch.delitem(sys.modules, "tests.tiny.my_connector")
    with pytest.raises(PallavaError, match="cross-attention"):  # imported, but without tiles to show
        look(model, tmp_path / "data" / "0.png", tmp_path / "look.png", trust_remote_code=True)


TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}


def test_a_process_group_of_the_callers_own_stays(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with Processes.join(TWO) as processes:
            assert (processes.rank, processes.count) == (0, 2)
        assert dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_a_process_group_of_pallavas_own_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start: Any = dist.init_process_group
    where = f"file://{tmp_path / 'store'}"
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **_: start(backend, init_method=where, rank=0, world_size=1)
    )
    with Processes.join(TWO):
        assert dist.is_initialized()
    assert not dist.is_initialized()


@pytest.mark.parametrize("option", ["", "exclude", "training"])
def test_what_one_process_cannot_read_fails_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    sent = []

    class Second(Processes):
        """The second of two, whose messages are kept."""

        def gather(self, value):
            sent.append(value)
            return ["", value]

    @contextmanager
    def join() -> Iterator[Processes]:
        yield Second(1, 2, 1)

    monkeypatch.setattr(Processes, "join", join)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "pallava"}')
    data, missing = write_questions(tmp_path / "data", 2), tmp_path / "missing.txt"
    with pytest.raises(PallavaError, match=r"missing\.txt"):
        evaluate(tmp_path / "model", "custom", data if option else missing, **({option: missing} if option else {}))
    assert len(sent) == 1
    assert "missing.txt" in sent[0]


@pytest.mark.parametrize(
    ("task", "data", "options", "reason"),
    [
        ("custom", ["q.jsonl"], {"columns": "rubbish"}, "KEY=COLUMN.*rubbish"),
        ("custom", ["q.jsonl"], {"columns": "image=a,question=b,answer=c"}, r"--columns.*csv=FILE.*q\.jsonl"),
        ("caption", ["quilt-1m=Q"], {"columns": {"image": "a", "caption": "b"}}, "--columns.*csv=FILE.*quilt-1m=Q"),
        ("custom", ["q.jsonl"], {"split": "train"}, r"--split train.*q\.jsonl"),
        ("custom", ["mine=q.jsonl"], {"split": "train"}, r"--split train.*mine=q\.jsonl"),
        ("zero-shot", ["classes"], {"split": "train"}, "--split train.*classes"),
        (
            "custom",
            ["csv=mine.csv", "q.jsonl"],
            {"columns": "image=a,question=b,answer=c"},
            r"mine\.csv",
        ),  # read, not refused
        ("pathvqa", ["PathVQA"], {"split": "train"}, "PathVQA"),
        ("custom", ["path-vqa=PathVQA", "q.jsonl"], {"split": "train"}, "PathVQA"),
        ("custom", ["q.jsonl"], {"seed": -1}, "--seed must be at least 0, got -1"),
        ("custom", ["q.jsonl"], {"limit": 0}, "--limit must be at least 1, got 0"),
    ],
)
def test_columns_and_splits_that_nothing_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, data: list[str], options: dict, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model", "config.json").write_text('{"model_type": "pallava"}')
    with pytest.raises(PallavaError, match=reason):
        evaluate("model", task, data, **options)
