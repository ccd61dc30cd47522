"""As much of two harnesses as their documents promise to a model; the slow test takes the real ones."""

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest


@dataclass
class Instance:
    """lmms-eval's request; of a chat model, `args` are context, doc_to_messages, options, document, task, split."""

    args: tuple[Any, ...]


class CacheHook:
    def add_partial(self, kind: str, request: Any, answer: str) -> None:
        pass


class Lmms:
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size, self.cache_hook, self.task_dict = 0, 1, CacheHook(), {}

    @property
    def rank(self) -> int:
        return self._rank


@dataclass
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class BaseModel:
    """VLMEvalKit's model: `generate` checks the parts of a message and gives them to `generate_inner`."""

    allowed_types = ["text", "image", "video"]

    def __init__(self) -> None:
        self.dump_image_func = None

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)  # type: ignore[attr-defined]


@dataclass
class Run:
    """VLMEvalKit's run.py."""

    words: list[str] = field(default_factory=list)

    def main(self) -> None:
        self.words = sys.argv[1:]


def put(monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> None:
    """Makes modules importable; ``__`` stands for the dot in their names."""
    for name, content in modules.items():
        module = ModuleType(name.replace("__", "."))
        module.__path__ = []
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def put_lmms_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, lmms_eval={}, lmms_eval__api={}, lmms_eval__models={})
    put(monkeypatch, lmms_eval__api__instance={"Instance": Instance}, lmms_eval__api__model={"lmms": Lmms})
    put(monkeypatch, lmms_eval__models__registry_v2={"ModelManifest": ModelManifest})
    monkeypatch.delitem(sys.modules, "pallava.adapters.lmms_eval", raising=False)


def put_vlmevalkit(monkeypatch: pytest.MonkeyPatch, run: Run, models: dict[str, Any], *, is_clone: bool) -> None:
    put(monkeypatch, vlmeval={}, vlmeval__vlm={}, vlmeval__vlm__base={"BaseModel": BaseModel})
    put(monkeypatch, vlmeval__config={"supported_VLM": models})
    put(monkeypatch, **{"run" if is_clone else "vlmeval__run": {"main": run.main}})
    monkeypatch.delitem(sys.modules, "pallava.adapters.vlmevalkit", raising=False)
