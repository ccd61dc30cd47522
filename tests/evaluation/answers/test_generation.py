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
from pallava.evaluation.answers.generation import Answerer, Batch, ask_all, plan_batches
from pallava.evaluation.answers.items import Item
from pallava.evaluation.answers.questions import read_custom
from pallava.evaluation.answers.store import AnswerStore, Processes
from pallava.evaluation.run import hash_model
from pallava.io.store import Store
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from tests.tiny.answering_model import write_model, write_questions
from tests.tiny.folders import answers

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
    with AnswerStore(out, SETTINGS) as store:
        return [each.text for each in ask_all(answerer, items, store, **options)[0]]


class Counting(Answerer):
    """Counts the questions of each batch, and stops in the middle of its work if it is told to."""

    def answer(self, batch: Batch) -> list[str]:
        counts.append(len(batch.items))
        if len(counts) > stop_after[0]:
            raise KeyboardInterrupt
        return super().answer(batch)


counts: list[int] = []
stop_after = [1000]


def test_a_batch_of_16_answers_as_each_alone(answerer: Answerer, items: list[Item], tmp_path: Path):
    assert answerer.model.dtype == torch.float32
    together = ask(answerer, items, tmp_path / "together", batch_size=16)
    alone = ask(answerer, items, tmp_path / "alone", batch_size=1)
    assert together == alone
    assert len(set(together)) > 30, "a model that always says the same proves nothing"


def test_the_batch_is_what_the_models_own_generate_says(answerer: Answerer, items: list[Item]):
    item = items[0]
    inputs = answerer.processor(item.question, item.image)
    expected = answers(answerer.model, answerer.processor, inputs, max_new_tokens=12)
    assert answerer.answer(answerer.prepare([item])) == expected


def test_an_image_is_encoded_once_a_batch(answerer: Answerer, items: list[Item]):
    batch = answerer.prepare(items[:16])
    assert len(batch.tiles) == len({item.image for item in items[:16]}) == 5
    assert len(batch.image_of) == 16


def test_a_question_without_an_image(answerer: Answerer, items: list[Item], tmp_path: Path):
    without = [replace(item, id=f"{item.id}-text", image="") for item in items[:4]]
    mixed = ask(answerer, [*items[:4], *without], tmp_path / "mixed")
    assert mixed[4:] == ask(answerer, without, tmp_path / "alone", batch_size=1)
    assert mixed[:4] != mixed[4:]


def test_batches_hold_questions_about_one_image_and_those_of_like_length(items: list[Item]):
    batches = plan_batches(items, 16)
    order = [item.image for batch in batches for item in batch]
    assert [len(batch) for batch in batches] == [16, 16, 16]
    assert len([image for image, _ in itertools.groupby(order)]) == len(set(order))
    alone = [replace(item, image=f"{number}.png") for number, item in enumerate(items)]
    for different in (alone, [replace(item, image="") for item in items]):
        lengths = [[len(item.question) // 16 for item in batch] for batch in plan_batches(different, 16)]
        assert all(min(longer) >= max(shorter) for longer, shorter in itertools.pairwise(lengths))
    assert sorted(item.id for batch in batches for item in batch) == sorted(item.id for item in items)


def test_what_questions_about_one_image_begin_with_is_computed_once(answerer: Answerer, items: list[Item]):
    """And the answers are those of the same questions whose images are each given apart."""
    batch = answerer.prepare(plan_batches(items, 16)[0])
    rows: list[int] = []
    hook = answerer.model.llm.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["attention_mask"])), with_kwargs=True
    )
    together = answerer.answer(batch)
    hook.remove()
    assert rows[0] == len(batch.tiles) == 2
    assert set(rows[1:]) == {16}
    tiles = [batch.tiles[number] for number in batch.image_of]
    assert together == answerer.answer(replace(batch, tiles=tiles, image_of=list(range(16))))
    assert len(set(together)) > 8, "a model that always says the same proves nothing"


def test_interrupted_work_goes_on_without_asking_twice(answerer: Answerer, items: list[Item], tmp_path: Path):
    whole = ask(answerer, items, tmp_path / "whole", batch_size=4)
    counting = Counting(answerer.model, answerer.processor, 12)
    counts.clear()
    stop_after[0] = 2
    with pytest.raises(KeyboardInterrupt):
        ask(counting, items, tmp_path / "out", batch_size=4)
    counts.clear()
    stop_after[0] = 1000
    assert ask(counting, items, tmp_path / "out", batch_size=4) == whole
    assert sum(counts) == len(items) - 2 * 4
    assert ask(counting, items, tmp_path / "out", batch_size=4) == whole
    assert sum(counts) == len(items) - 2 * 4, "a question was asked twice"


def test_a_kill_at_any_byte_leaves_whole_answers(tmp_path: Path):
    odd = {"answer": "an \u2028answer\n\ud800", "problem": ""}
    draw, folder = random.Random(0), tmp_path / "out" / "answers"
    with AnswerStore(tmp_path / "out", SETTINGS) as store:
        for number in range(6):
            store.put({f"{number}-{part}": odd for part in range(3)})
        files = {path.name: path.read_bytes() for path in folder.iterdir()}  # as a kill leaves them
    log = "process_0.sqlite-wal"
    for number in range(40):
        copy = tmp_path / str(number) / "answers"
        copy.mkdir(parents=True)
        for name, content in files.items():
            (copy / name).write_bytes(content[: draw.randrange(len(content) + 1)] if name == log else content)
        with AnswerStore(copy.parent, SETTINGS) as store:
            found = store.read()
            assert list(found.values()) == [odd] * len(found)
            assert sorted(found) == sorted(f"{n}-{part}" for n in range(len(found) // 3) for part in range(3))
            store.put({"new": odd})
            assert len(store.read()) == len(found) + 1


def test_answers_of_other_settings_do_not_mix(tmp_path: Path):
    AnswerStore(tmp_path, {**SETTINGS, "max_new_tokens": 11}).close()  # which came to nothing
    with AnswerStore(tmp_path, SETTINGS) as store:
        store.put({"0": {"answer": "yes", "problem": ""}})
    with pytest.raises(PallavaError, match=r"max_new_tokens \(12 there, 13 now\).*--out"):
        AnswerStore(tmp_path, {**SETTINGS, "max_new_tokens": 13})
    AnswerStore(tmp_path, SETTINGS).close()
    with Store(tmp_path / "answers" / "process_0.sqlite") as lost:
        lost.put("settings", {"settings": {}})
    with pytest.raises(PallavaError, match=r"task \(None there, custom now\)"):
        AnswerStore(tmp_path, SETTINGS)


def test_answers_of_processes_that_no_longer_take_part_count(tmp_path: Path):
    with AnswerStore(tmp_path, SETTINGS, Alone(rank=3)) as store:
        store.put({"0": {"answer": "yes", "problem": ""}})
    with AnswerStore(tmp_path, SETTINGS) as store:
        assert store.read() == {"0": {"answer": "yes", "problem": ""}}
        with pytest.raises(PallavaError, match=r"process_3\.sqlite.*in use"):
            AnswerStore(tmp_path, SETTINGS, Alone(rank=3))
    with pytest.raises(PallavaError, match="13 now"):
        AnswerStore(tmp_path, {**SETTINGS, "max_new_tokens": 13})


def test_answers_of_an_earlier_version_are_refused(tmp_path: Path):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "settings.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "answers" / "process_0.jsonl").write_text('{"asked": "0", "answer": "yes", "problem": ""}\n')
    with pytest.raises(PallavaError, match="earlier version.*use another --out, or remove"):
        AnswerStore(tmp_path, SETTINGS)


def test_one_at_a_time(tmp_path: Path):
    with AnswerStore(tmp_path, SETTINGS), pytest.raises(PallavaError, match=r"process_0\.sqlite.*in use"):
        AnswerStore(tmp_path, SETTINGS)


def test_another_question_of_the_same_id_is_asked(answerer: Answerer, items: list[Item], tmp_path: Path):
    first = ask(answerer, items[:2], tmp_path)
    changed = [replace(items[0], question=items[5].question), items[1]]
    again = ask(answerer, changed, tmp_path)
    assert again[1] == first[1]
    assert again[0] == ask(answerer, changed, tmp_path / "fresh")[0] != first[0]


def test_an_image_that_cannot_be_opened_costs_its_questions_only(answerer: Answerer, items: list[Item], tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    broken = replace(items[0], image=str(tmp_path / "broken.png"))
    with AnswerStore(tmp_path / "out", SETTINGS) as store:
        answers, problems = ask_all(answerer, [broken, *items[1:6]], store)
        assert answers[0].text == ""
        assert list(problems) == [broken.image]
        assert [each.text for each in answers[1:]] == ask(answerer, items[1:6], tmp_path / "other")
        with pytest.raises(PallavaError, match="no image of 1 can be opened.*broken.png"):
            ask_all(answerer, [broken], store)


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


class Alone(Processes):
    """A process that does not hear of the others."""

    def gather(self, value):
        return [value]


def answer_alone(answerer: Answerer, items: list[Item], out: Path, rank: int = 0) -> tuple[list[str], dict[str, str]]:
    """As a process of that number, whose answers are read after those of smaller ones."""
    with AnswerStore(out, SETTINGS, Alone(rank)) as store:
        store.processes = Processes()  # all the work is its own
        answers, problems = ask_all(answerer, items, store)
    return [each.text for each in answers], problems


def test_a_model_folder_is_known_by_what_decides_its_answers(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        for file in ("model.safetensors", "config.json", "tokenizer.json", "adapter/adapter_config.json"):
            (tmp_path / name / file).write_bytes(b"12")
    (tmp_path / "b" / "README.md").write_text("scores of the model")
    for file in ("results.json", "predictions.jsonl", "answers/settings.json", "evaluation/pathvqa/results.json"):
        (tmp_path / "b" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / file).write_text("{}")
    assert hash_model(tmp_path / "a") == hash_model(tmp_path / "b")
    for file in ("model.safetensors", "config.json", "tokenizer.json", "adapter/adapter_config.json"):
        (tmp_path / "b" / file).write_bytes(b"13")
        assert hash_model(tmp_path / "a") != hash_model(tmp_path / "b"), file
        (tmp_path / "b" / file).write_bytes(b"12")
    (tmp_path / "b" / "chat_template.jinja").write_text("new")
    assert hash_model(tmp_path / "a") != hash_model(tmp_path / "b")
