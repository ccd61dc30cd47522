"""Answers do not depend on who else is in the batch, nor on how often the work was stopped."""

import itertools
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pallava.errors import PallavaError
from pallava.evaluation.answers.generation import Answerer, Prepared, ask_all, plan_batches
from pallava.evaluation.answers.items import Item
from pallava.evaluation.answers.store import AnswerStore, Said, folder_hash
from pallava.evaluation.tasks import read_custom
from pallava.evaluation.views import View
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from tests.tiny.answering_model import write_model, write_questions

SETTINGS = {"task": "custom", "max_new_tokens": 12}


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    folder = write_model(tmp_path_factory.mktemp("model") / "model")
    model = PALLaVAForConditionalGeneration.from_pretrained(folder).eval()
    return Answerer(model, PALLaVAProcessor.from_pretrained(folder), max_new_tokens=12)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return read_custom(write_questions(tmp_path_factory.mktemp("data"), 48)).items


def ask(answerer: Answerer, items: Sequence[Item], out: Path, **options) -> list[str]:
    store = AnswerStore(out, SETTINGS)
    try:
        return [each.answer for each in ask_all(answerer, items, store, **options)[0]]
    finally:
        store.close()


class Interrupting(Answerer):
    """Stops in the middle of its work."""

    def answer(self, batch: Prepared) -> list[str]:
        left.append(len(batch.asked))
        if len(left) > STOP_AFTER:
            raise KeyboardInterrupt
        return super().answer(batch)


left: list[int] = []
STOP_AFTER = 2


def test_a_batch_of_16_answers_as_each_alone(answerer: Answerer, items: list[Item], tmp_path: Path):
    assert answerer.model.dtype == torch.float32
    together = ask(answerer, items, tmp_path / "together", batch_size=16)
    alone = ask(answerer, items, tmp_path / "alone", batch_size=1)
    assert together == alone
    assert len(set(together)) > 30, "a model that always says the same proves nothing"


def test_the_batch_is_what_the_models_own_generate_says(answerer: Answerer, items: list[Item]):
    item = items[0]
    inputs = answerer.processor(item.question, item.image)
    ids = answerer.model.generate(**inputs, max_new_tokens=12)
    assert answerer.answer(answerer.prepare([item], View())) == answerer.processor.batch_decode(ids)


def test_an_image_is_encoded_once_a_batch(answerer: Answerer, items: list[Item]):
    batch = answerer.prepare(items[:16], View())
    assert len(batch.tiles) == len({item.image for item in items[:16]}) == 5
    assert len(batch.image_of) == 16


def test_a_question_without_an_image(answerer: Answerer, items: list[Item], tmp_path: Path):
    without = [replace(item, id=f"{item.id}-text", image="") for item in items[:4]]
    mixed = ask(answerer, [*items[:4], *without], tmp_path / "mixed")
    assert mixed[4:] == ask(answerer, without, tmp_path / "alone", batch_size=1)
    assert mixed[:4] != mixed[4:]


def test_batches_hold_questions_of_like_length(items: list[Item]):
    batches = plan_batches(items, 16)
    lengths = [[len(item.question) // 16 for item in batch] for batch in batches]
    assert [len(batch) for batch in batches] == [16, 16, 16]
    assert all(min(longer) >= max(shorter) for longer, shorter in itertools.pairwise(lengths))
    assert sorted(item.id for batch in batches for item in batch) == sorted(item.id for item in items)


def test_interrupted_work_goes_on_without_asking_twice(answerer: Answerer, items: list[Item], tmp_path: Path):
    whole = ask(answerer, items, tmp_path / "whole", batch_size=4)
    stopping = Interrupting(answerer.model, answerer.processor, 12)
    left.clear()
    with pytest.raises(KeyboardInterrupt):
        ask(stopping, items, tmp_path / "out", batch_size=4)
    path = tmp_path / "out" / "answers" / "process_0.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # the last line is torn
    assert ask(answerer, items, tmp_path / "out", batch_size=4) == whole
    asked = [json.loads(line)["asked"] for line in path.read_text().splitlines()]
    assert len(asked) == len(set(asked)) == len(items)


def test_lines_that_are_no_answer_are_passed_over(tmp_path: Path):
    store = AnswerStore(tmp_path, SETTINGS)
    said = [Said(f"{number:032}", "an \u2028answer\n\ud800", "") for number in range(3)]
    store.append(said)
    store.close()
    draw, path = random.Random(0), tmp_path / "answers" / "process_0.jsonl"
    whole = path.read_bytes()
    for _ in range(40):
        cut = draw.randrange(len(whole) + 1)
        path.write_bytes(whole[:cut])
        store = AnswerStore(tmp_path, SETTINGS)
        assert len(store.read()) == whole[:cut].count(b"\n")
        store.append(said[:1])
        store.close()
        assert path.read_bytes().splitlines()[-1] == whole.splitlines()[0]
    path.write_bytes(b'{"asked": 1}\nnull\n[]\n\xff\n' + whole)
    store = AnswerStore(tmp_path, SETTINGS)
    assert len(store.read()) == 3
    store.close()


def test_answers_of_other_settings_do_not_mix(tmp_path: Path):
    AnswerStore(tmp_path, {**SETTINGS, "max_new_tokens": 11}).close()  # which came to nothing
    store = AnswerStore(tmp_path, SETTINGS)
    store.append([Said("0", "yes")])
    store.close()
    with pytest.raises(PallavaError, match=r"max_new_tokens \(12 there, 13 now\): give another --out, or remove"):
        AnswerStore(tmp_path, {**SETTINGS, "max_new_tokens": 13})


def test_answers_whose_settings_are_lost_do_not_mix(tmp_path: Path):
    store = AnswerStore(tmp_path, SETTINGS)
    store.append([Said("0", "yes")])
    store.close()
    settings = tmp_path / "answers" / "settings.json"
    settings.write_text("{")
    with pytest.raises(PallavaError, match="settings.json, which says of what model, is missing or broken"):
        AnswerStore(tmp_path, SETTINGS)
    settings.unlink()
    with pytest.raises(PallavaError, match="settings.json, which says of what model, is missing or broken"):
        AnswerStore(tmp_path, {**SETTINGS, "max_new_tokens": 13})
    assert not settings.exists()


def test_one_at_a_time(tmp_path: Path):
    store = AnswerStore(tmp_path, SETTINGS)
    with pytest.raises(PallavaError, match="another evaluation is writing"):
        AnswerStore(tmp_path, SETTINGS)
    store.close()


def test_another_question_of_the_same_id_is_asked(answerer: Answerer, items: list[Item], tmp_path: Path):
    first = ask(answerer, items[:2], tmp_path)
    changed = [replace(items[0], question=items[5].question), items[1]]
    again = ask(answerer, changed, tmp_path)
    assert again[1] == first[1]
    assert again[0] == ask(answerer, changed, tmp_path / "fresh")[0] != first[0]


def test_an_image_that_cannot_be_opened_costs_its_questions_only(answerer: Answerer, items: list[Item], tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    broken = replace(items[0], image=str(tmp_path / "broken.png"))
    store = AnswerStore(tmp_path / "out", SETTINGS)
    answered, problems = ask_all(answerer, [broken, *items[1:6]], store)
    assert answered[0].answer == ""
    assert list(problems) == [broken.image]
    assert [each.answer for each in answered[1:]] == ask(answerer, items[1:6], tmp_path / "other")
    with pytest.raises(PallavaError, match="none of the 1 images can be opened; the first: cannot open image"):
        ask_all(answerer, [broken], store)
    store.close()


def test_an_image_that_has_come_back_is_asked_about(answerer: Answerer, items: list[Item], tmp_path: Path):
    image = tmp_path / "image.png"
    item = replace(items[0], image=str(image))
    (problem, *_), _ = answer_alone(answerer, [item, *items[1:3]], tmp_path / "out", rank=1)
    assert problem == ""
    shutil.copy(items[0].image, image)
    (mended, *others), problems = answer_alone(answerer, [item, *items[1:3]], tmp_path / "out")
    assert [mended, *others] == ask(answerer, items[:3], tmp_path / "other")
    assert problems == {}
    image.unlink()
    (kept, *_), problems = answer_alone(answerer, [item, *items[1:3]], tmp_path / "out")
    assert (kept, problems) == (mended, {}), "what was answered is not asked again"
    asked = [json.loads(line) for path in (tmp_path / "out").glob("answers/*.jsonl") for line in path.open()]
    assert len(asked) == 4


def answer_alone(answerer: Answerer, items: list[Item], out: Path, rank: int = 0) -> tuple[list[str], dict[str, str]]:
    """As a process of that number, whose file goes behind those of smaller ones."""
    AnswerStore(out, SETTINGS).close()
    store = AnswerStore(out, SETTINGS, rank)
    answered, problems = ask_all(answerer, items, store)
    store.close()
    return [each.answer for each in answered], problems


def test_a_model_folder_is_known_by_what_decides_its_answers(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        for file in ("model.safetensors", "config.json", "tokenizer.json", "adapter/adapter_config.json"):
            (tmp_path / name / file).write_bytes(b"12")
    (tmp_path / "b" / "README.md").write_text("scores of the model")
    for file in ("results.json", "predictions.jsonl", "answers/settings.json", "evaluation/pathvqa/results.json"):
        (tmp_path / "b" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / file).write_text("{}")
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b")
    for file in ("model.safetensors", "config.json", "tokenizer.json", "adapter/adapter_config.json"):
        (tmp_path / "b" / file).write_bytes(b"13")
        assert folder_hash(tmp_path / "a") != folder_hash(tmp_path / "b"), file
        (tmp_path / "b" / file).write_bytes(b"12")
    (tmp_path / "b" / "chat_template.jinja").write_text("new")
    assert folder_hash(tmp_path / "a") != folder_hash(tmp_path / "b")
