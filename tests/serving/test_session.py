"""A conversation answers as one that is computed afresh at every turn, and computes only what is new."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor, ask, load
from pallava.serving.session import Session
from tests.tiny.answering_model import write_model

QUESTIONS = ("what is shown ?", "yes ?", "many nuclei present ?", "describe the stain")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[PALLaVAForConditionalGeneration, PALLaVAProcessor]:
    return load(write_model(tmp_path_factory.mktemp("model") / "model"), "cpu")


@pytest.fixture
def image() -> Image.Image:
    return Image.linear_gradient("L").resize((70, 50)).convert("RGB")


@pytest.fixture
def widths(parts: Any) -> Any:
    """Positions that each call of the language model computes."""
    found: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("inputs_embeds") if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        found.append(given.shape[1])

    hook = parts[0].llm.base_model.register_forward_pre_hook(note, with_kwargs=True)
    yield found
    hook.remove()


def check(parts: Any, session: Session, images: Any, history: list[tuple[str, str]], question: str, **more: Any) -> str:
    """The session's answer, which must be that of asking afresh."""
    expected = ask(*parts, images, question, history=history, max_new_tokens=12, **more)
    answer = session.ask(question, max_new_tokens=12, **more)
    assert answer == expected
    history.append((question, answer))
    return answer


def test_every_turn_equals_one_asked_afresh(parts: Any, image: Image.Image) -> None:
    session, history = Session(*parts, image), list[tuple[str, str]]()
    answers = [check(parts, session, image, history, question) for question in QUESTIONS]
    assert len(set(answers)) > 2, "a model that always says the same proves nothing"


def test_a_later_turn_computes_what_is_new(parts: Any, image: Image.Image, widths: list[int], monkeypatch: Any) -> None:
    encoded: list[Any] = []
    encode = parts[0].encode_tiles
    monkeypatch.setattr(parts[0], "encode_tiles", lambda tiles: encoded.append(tiles) or encode(tiles))
    session = Session(*parts, image)
    session.ask(QUESTIONS[0], max_new_tokens=4)
    before = session._num_positions(session._cached_ids)
    widths.clear()
    session.ask(QUESTIONS[1], max_new_tokens=4)
    assert len(encoded) == 1
    assert sum(widths) == session._num_positions(session._cached_ids) - before


def test_an_answer_that_is_read_back_otherwise(parts: Any, image: Image.Image, monkeypatch: Any) -> None:
    """The cache is cut to what the rendered conversation still begins with."""
    session, history, decode = Session(*parts, image), list[tuple[str, str]](), parts[1].batch_decode
    monkeypatch.setattr(parts[1], "batch_decode", lambda ids: [f"few {text}"[:-3] for text in decode(ids)])
    for question in QUESTIONS:
        check(parts, session, image, history, question)


def test_images_of_later_turns(parts: Any, image: Image.Image) -> None:
    other = Image.new("RGB", (40, 60), "pink")
    session = Session(*parts)
    first = session.ask(QUESTIONS[0], max_new_tokens=8)
    assert first == ask(*parts, None, QUESTIONS[0], max_new_tokens=8)
    session.show([image, other])
    second = session.ask(QUESTIONS[1], max_new_tokens=8)
    fresh = Session(*parts)
    fresh.ask(QUESTIONS[0], max_new_tokens=8)
    fresh._cached_ids = []  # all is computed again
    fresh.show([image, other])
    assert fresh.ask(QUESTIONS[1], max_new_tokens=8) == second
    fresh.show(image)
    session.show(image)
    fresh._cached_ids = []
    assert fresh.ask(QUESTIONS[2], max_new_tokens=8) == session.ask(QUESTIONS[2], max_new_tokens=8)


def test_options_that_a_cache_does_not_allow(parts: Any, image: Image.Image) -> None:
    session, history = Session(*parts, image), list[tuple[str, str]]()
    check(parts, session, image, history, QUESTIONS[0])
    check(parts, session, image, history, QUESTIONS[1], num_beams=2)
    check(parts, session, image, history, QUESTIONS[2], repetition_penalty=1.5)
    check(parts, session, image, history, QUESTIONS[3])


def test_a_question_that_fails_is_not_part_of_the_conversation(parts: Any, image: Image.Image) -> None:
    session, history = Session(*parts, image), list[tuple[str, str]]()
    check(parts, session, image, history, QUESTIONS[0])

    def fail(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == 2:
            raise RuntimeError("in between")
        return scores

    with pytest.raises(RuntimeError, match="in between"):
        session.ask(QUESTIONS[1], logits_processor=[fail], max_new_tokens=12)
    with pytest.raises(PallavaError, match="nowhere.png"):
        session.show(Path("nowhere.png"))
    check(parts, session, image, history, QUESTIONS[2])


def test_a_streamer_gets_the_new_tokens(parts: Any, image: Image.Image) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, ids: torch.Tensor) -> None:
            self.ids += ids.flatten().tolist()

        def end(self) -> None:
            pass

    session = Session(*parts, image)
    session.ask(QUESTIONS[0], max_new_tokens=6)
    streamer = Streamer()
    answer = session.ask(QUESTIONS[1], max_new_tokens=6, streamer=streamer)
    assert parts[1].batch_decode(torch.tensor([streamer.ids])) == [answer]
