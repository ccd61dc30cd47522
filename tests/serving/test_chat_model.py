"""Replies of a batch are those of each conversation alone."""

import threading
from typing import Any

import pytest
import torch
from PIL import Image

from pallava.errors import PallavaError
from pallava.serving.chat_model import ChatModel
from pallava.serving.replies import ChatRequest, Reply, TogetherError, UnavailableError

QUESTIONS = ("what is shown ?", "yes ?", "many nuclei present in all of this image ?", "describe the stain", "what ?")


@pytest.fixture
def chat(parts: Any) -> ChatModel:
    return ChatModel(*parts)


def picture(number: int) -> Image.Image:
    return Image.linear_gradient("L").resize((70 + 20 * number, 50)).convert("RGB").rotate(90 * number)


def message(text: str, num_images: int = 1) -> dict[str, Any]:
    return {"role": "user", "content": [*[{"type": "image"}] * num_images, {"type": "text", "text": text}]}


def requests_of(chat: ChatModel, **how: Any) -> list[ChatRequest]:
    """Five questions: with one image, with another, without, with two, and again with the first."""
    images = ([0], [1], [], [0, 2], [0])
    return [
        chat.request([message(text, len(own))], [chat.see(picture(number)) for number in own], **how)
        for text, own in zip(QUESTIONS, images, strict=True)
    ]


def test_a_batch_replies_as_each_request_alone(parts: Any, chat: ChatModel) -> None:
    together = chat.reply(requests_of(chat, max_new_tokens=12))
    alone = [
        ChatModel(*parts).reply([requests_of(ChatModel(*parts), max_new_tokens=12)[number]])[0]
        for number in range(len(QUESTIONS))
    ]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert [reply.ids for reply in together] == [reply.ids for reply in alone]
    assert len({reply.text for reply in together}) > 3
    for one, other in zip(together, alone, strict=True):
        assert one.num_prompt_tokens == other.num_prompt_tokens
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


def test_second_turns_of_a_batch_equal_those_without_a_cache(parts: Any, chat: ChatModel) -> None:
    first = requests_of(chat, max_new_tokens=7)
    replies = chat.reply(first)
    turns = [
        [message(text, len(request.pictures)), {"role": "assistant", "content": reply.text}, message(question, 0)]
        for text, request, reply, question in zip(QUESTIONS, first, replies, reversed(QUESTIONS), strict=True)
    ]
    both = []
    for model in (chat, ChatModel(*parts)):
        pictures = [[model.see(picture(number)) for number in own] for own in ([0], [1], [], [0, 2], [0])]
        both.append(model.reply([model.request(*each, max_new_tokens=9) for each in zip(turns, pictures, strict=True)]))
    assert [reply.text for reply in both[0]] == [reply.text for reply in both[1]]
    assert all(reply.num_cached_tokens > 10 for reply in both[0][:1])
    assert all(reply.num_cached_tokens == 0 for reply in both[1])


def test_what_others_asked_is_not_reported(chat: ChatModel) -> None:
    """Only a conversation that goes on has cached tokens, also where its last question is another than before."""

    def count(*turns: dict[str, Any]) -> int:
        return chat.reply([chat.request(turns, [chat.see(picture(0))], max_new_tokens=4)])[0].num_cached_tokens

    first = message("what is shown ?")
    assert [count(first), count(first), count(message("what is shown in it ?"))] == [0, 0, 0]
    answer = {"role": "assistant", "content": "few nuclei"}
    assert min(count(first, answer, message(text, 0)) for text in ("yes ?", "no ?", "many ?")) > 10


def test_each_request_has_its_own_end(chat: ChatModel) -> None:
    whole = chat.reply(requests_of(chat, max_new_tokens=12))
    first, second, third, *_ = requests_of(chat, max_new_tokens=12)
    first.max_new_tokens = 3
    words = whole[1].text.split(" ")
    second.stop = (" ".join(words[2:4]), "never said")
    third.is_cancelled = iter([False, True]).__next__
    replies = chat.reply([first, second, third])
    assert [reply.finish_reason for reply in replies] == ["length", "stop", "cancelled"]
    assert [len(reply.ids) for reply in replies][::2] == [3, 2]
    assert replies[1].text == " ".join(words[:2])
    assert whole[0].text.startswith(replies[0].text)


def test_a_stop_text_is_not_shown_before_it_is_whole(chat: ChatModel) -> None:
    request = requests_of(chat, max_new_tokens=12)[1]
    whole = chat.reply([request])[0].text
    request.stop, pieces = (whole[4:14],), list[str]()
    request.on_text = pieces.append
    reply = chat.reply([request])[0]
    assert reply.text == "".join(pieces) == whole[:4].strip()


def test_an_image_is_encoded_once_for_all(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = chat.model.encode_tiles
    monkeypatch.setattr(chat.model, "encode_tiles", lambda tiles: encoded.append(len(tiles)) or encode(tiles))
    chat.reply(requests_of(chat, max_new_tokens=2))
    assert len(encoded) == 1
    chat.reply(requests_of(chat, max_new_tokens=2))
    assert len(encoded) == 1


def test_many_images_are_encoded_in_several_passes(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = chat.reply(requests_of(chat, max_new_tokens=5))
    passes, encode = list[int](), chat.model.encode_images
    monkeypatch.setattr("pallava.serving.chat_model._ENCODED_AT_ONCE", 2)
    monkeypatch.setattr(chat.model, "encode_images", lambda tiles: passes.append(len(tiles)) or encode(tiles))
    other = ChatModel(chat.model, chat.processor)
    assert [reply.ids for reply in other.reply(requests_of(other, max_new_tokens=5))] == [each.ids for each in whole]
    assert passes == [2, 1]


@pytest.mark.parametrize("name", ["encode_images", "generate", "score_answers"])
def test_too_little_memory(chat: ChatModel, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Several requests may be tried one by one, if none of their words has been shown."""

    def fail(*args: Any, **how: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(chat.model, name, fail)
    monkeypatch.setattr("pallava.serving.chat_model.possible_answers", lambda question, text: [text, "no"])
    requests = requests_of(chat, max_new_tokens=12, stop=["a", "e", "i"])
    for some, kind in ((requests[:1], UnavailableError), (requests, TogetherError)):
        with pytest.raises(UnavailableError, match="memory") as found:
            chat.reply(some)
        assert found.type is (UnavailableError if name == "score_answers" else kind)


def test_what_is_kept_has_bounds(parts: Any) -> None:
    chat = ChatModel(*parts, num_pictures=2, num_positions=60)
    for number in range(5):
        request = chat.request([message("what ?")], [chat.see(picture(number))], max_new_tokens=2)
        chat.reply([request])
    assert len(chat._pictures) == 2
    assert sum(kept.cache.get_seq_length() for kept in chat._kept.values()) <= 60
    assert len(chat._kept) > 1


def test_a_conversation_without_room_is_refused(parts: Any, chat: ChatModel) -> None:
    most = parts[0].config.text_config.max_position_embeddings
    with pytest.raises(PallavaError, match=f"the model's {most}"):
        chat.request([message("what " * most)], [chat.see(picture(0))])
    request = chat.request([message("what " * 20)], [chat.see(picture(0))], max_new_tokens=10**9)
    assert 0 < request.max_new_tokens < most


def test_images_are_seen_from_many_threads(chat: ChatModel) -> None:
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(chat.see(picture(0)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.key for each in seen}) == 1
    assert len(chat._pictures) == 1


def test_probabilities_of_yes_and_no(parts: Any, chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of the answers as wholes, and add up to one."""
    model, found = parts[0], list[Any]()
    score = model.score_answers
    monkeypatch.setattr(model, "score_answers", lambda *args, **how: found.append((args, how)) or score(*args, **how))
    monkeypatch.setattr("pallava.serving.chat_model.possible_answers", lambda question, text: [text, "no", "yes"])
    reply = chat.reply([chat.request([message("yes ?")], [chat.see(picture(0))], stop=[" "])])[0]
    assert sum(reply.choices.values()) == pytest.approx(1)
    assert list(reply.choices) == [reply.text, "no", "yes"]
    assert reply.probability == reply.choices[reply.text]
    (args, how), *_ = found
    ((_, length),) = how["cache"]._rows
    assert length == reply.num_prompt_tokens - 1, "the question is not computed again"
    again = score(*args, visual_tokens=how["visual_tokens"])[0].softmax(0)
    assert list(reply.choices.values()) == pytest.approx(again.tolist(), abs=1e-5)


def test_the_probability_of_a_sentence_is_the_mean_of_its_tokens() -> None:
    logs = torch.tensor([0.5, 0.25, 0.125]).log().tolist()
    assert Reply("few", [1, 2, 3], logs).probability == pytest.approx(0.25)
