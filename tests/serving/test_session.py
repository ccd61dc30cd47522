"""A conversation answers as one that is computed afresh at every turn, and computes only what is new."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pallava.errors import PallavaError
from pallava.model import ask
from pallava.serving.session import Session

QUESTIONS = ("what is shown ?", "yes ?", "many nuclei present ?", "describe the stain")


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
    first = session.reply(QUESTIONS[0], max_new_tokens=4)
    assert first.num_cached_tokens == 0
    assert sum(widths) == first.num_prompt_tokens + len(first.ids) - 1
    widths.clear()
    second = session.reply(QUESTIONS[1], max_new_tokens=4)
    assert len(encoded) == 1
    assert second.num_cached_tokens == first.num_prompt_tokens + len(first.ids) - 1
    assert sum(widths) == second.num_prompt_tokens - second.num_cached_tokens + len(second.ids) - 1


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
    second = session.reply(QUESTIONS[1], max_new_tokens=8)
    assert second.num_cached_tokens > 0
    session.show(image)
    third = session.ask(QUESTIONS[2], max_new_tokens=8)
    afresh = parts[1].apply_chat_template(session.messages[:-1], tokenize=True)
    pixels = parts[1]("", [image, other, image])
    ids = parts[0].generate(
        afresh, pixel_values=pixels["pixel_values"], tiles_per_image=pixels["tiles_per_image"], max_new_tokens=8
    )
    assert parts[1].batch_decode(ids[:, afresh.shape[1] :]) == [third]


def test_options(parts: Any, image: Image.Image) -> None:
    session, history = Session(*parts, image), list[tuple[str, str]]()
    check(parts, session, image, history, QUESTIONS[0])
    check(parts, session, image, history, QUESTIONS[1], repetition_penalty=1.5)
    check(parts, session, image, history, QUESTIONS[2], min_new_tokens=9)
    with pytest.raises(PallavaError, match="num_beams=1"):
        session.ask(QUESTIONS[3], num_beams=2)


def test_a_question_that_fails_is_not_part_of_the_conversation(parts: Any, image: Image.Image) -> None:
    session, history = Session(*parts, image), list[tuple[str, str]]()
    check(parts, session, image, history, QUESTIONS[0])

    def fail(text: str) -> None:
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        session.ask(QUESTIONS[1], on_text=fail, max_new_tokens=12)
    with pytest.raises(PallavaError, match="nowhere.png"):
        session.show(Path("nowhere.png"))
    check(parts, session, image, history, QUESTIONS[2])


def test_a_cleared_session_is_a_new_one(parts: Any, image: Image.Image) -> None:
    session = Session(*parts, image)
    session.ask(QUESTIONS[0], max_new_tokens=6)
    session.clear()
    assert session.ask(QUESTIONS[1], max_new_tokens=6) == ask(*parts, None, QUESTIONS[1], max_new_tokens=6)
    assert len(session.messages) == 2


def test_pieces_make_the_answer(parts: Any, image: Image.Image) -> None:
    session = Session(*parts, image)
    for question in QUESTIONS:
        pieces: list[str] = []
        reply = session.reply(question, max_new_tokens=9, on_text=pieces.append)
        assert "".join(pieces) == reply.text
        assert len(pieces) > 1
        assert all(pieces)


def test_a_stopped_answer_stays_in_the_conversation(parts: Any, image: Image.Image) -> None:
    session, history, pieces = Session(*parts, image), list[tuple[str, str]](), list[str]()
    whole = ask(*parts, image, QUESTIONS[0], max_new_tokens=12)
    reply = session.reply(QUESTIONS[0], max_new_tokens=12, on_text=pieces.append, is_cancelled=lambda: len(pieces) == 2)
    assert (reply.finish_reason, len(pieces)) == ("cancelled", 2)
    assert whole.startswith(reply.text)
    assert reply.text != whole
    history.append((QUESTIONS[0], reply.text))
    check(parts, session, image, history, QUESTIONS[1])


def test_probabilities_are_those_of_the_forward_pass(parts: Any, image: Image.Image) -> None:
    model, processor = parts
    reply = Session(*parts, image).reply(QUESTIONS[0], max_new_tokens=5)
    inputs = processor(QUESTIONS[0], image)
    answer = torch.tensor([reply.ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        scores = model(**inputs).logits[0, -len(reply.ids) - 1 : -1].log_softmax(-1)
    found = scores.gather(1, answer.T)[:, 0]
    assert torch.allclose(torch.tensor(reply.log_probabilities), found, atol=1e-5)
    assert reply.probability == pytest.approx(float(found.mean().exp()), rel=1e-4)
