"""Asking a PA-LLaVA many questions: in batches of like length, kept as they are answered, none asked twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from pallava.errors import PallavaError
from pallava.evaluation.answers.items import Answered, Item
from pallava.evaluation.answers.processes import Processes
from pallava.evaluation.answers.store import AnswerStore, Said, ask_key
from pallava.evaluation.views import View
from pallava.images import ImageError, open_image
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.prompts import build_question
from pallava.tiling import make_tiles

_LIKE_LENGTH = 16  # characters; within them, questions on one image stand together
_AHEAD = 2  # batches whose images are opened while the model works


@dataclass(frozen=True)
class Prepared:
    """A batch as the model takes it.

    Attributes:
        asked: Numbers, within the batch, of the questions that can be asked.
        problems: Why the others cannot, by their numbers.
        prompts: `input_ids` and `attention_mask` of those that can.
        tiles: Overview and tiles of each different image.
        image_of: Of the questions with an image, which of `tiles` it is.
    """

    asked: list[int]
    problems: dict[int, str]
    prompts: dict[str, Any] = field(default_factory=dict)
    tiles: list[torch.Tensor] = field(default_factory=list)
    image_of: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Answerer:
    """A model with its processor, and how it answers: greedily.

    Attributes:
        model: The model.
        processor: Its processor.
        max_new_tokens: Longest answer.
    """

    model: PALLaVAForConditionalGeneration
    processor: PALLaVAProcessor
    max_new_tokens: int

    def prepare(self, items: Sequence[Item], view: View) -> Prepared:
        """Opens images, each once, and writes prompts."""
        numbers: dict[str, int] = {}
        tiles: list[torch.Tensor] = []
        problems: dict[str, str] = {}
        for image in dict.fromkeys(item.image for item in items if item.image):
            try:
                opened = open_image(image)
            except ImageError as error:
                problems[image] = str(error)
                continue
            numbers[image] = len(tiles)
            tiles.append(make_tiles(view.change(opened) if view.change else opened, self.processor.tile_spec))
        asked = [number for number, item in enumerate(items) if item.image not in problems]
        failed = {number: problems[item.image] for number, item in enumerate(items) if item.image in problems}
        if not asked:
            return Prepared(asked, failed)
        texts = [build_question(items[number].question, int(bool(items[number].image))) for number in asked]
        image_of = [numbers[items[number].image] for number in asked if items[number].image]
        return Prepared(asked, failed, dict(self.processor(texts)), tiles, image_of)

    def answer(self, batch: Prepared) -> list[str]:
        """Answers the questions that can be asked, in their order; each image is encoded once.

        Raises:
            PallavaError: The device has too little memory.
        """
        if not batch.asked:
            return []
        try:
            with torch.inference_mode():
                encoded = self.model.encode_images(batch.tiles) if batch.tiles else []
                visual = [encoded[number] for number in batch.image_of] or None
                ids = self.model.generate(**batch.prompts, visual_tokens=visual, max_new_tokens=self.max_new_tokens)
        except torch.OutOfMemoryError:
            raise PallavaError(
                f"{self.model.device} has too little memory for {len(batch.asked)} questions at once: lower "
                "--batch-size; the same command goes on where it stopped"
            ) from None
        return self.processor.batch_decode(ids)


def plan_batches(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Batches of questions of like length, those on one image side by side; the longest come first.

    What is in a batch depends on the questions alone: not on what has been answered, nor on how many work.
    """
    ordered = sorted(items, key=lambda item: (-(len(item.question) // _LIKE_LENGTH), item.image, item.id))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def ask_all(
    answerer: Answerer,
    items: Sequence[Item],
    store: AnswerStore,
    *,
    view: View | None = None,
    batch_size: int = 16,
    processes: Processes | None = None,
) -> tuple[list[Answered], dict[str, str]]:
    """Asks what has not been answered yet, together with the other processes.

    Args:
        answerer: The model.
        items: Questions, of different ids.
        store: Where answers are kept.
        view: How images are shown.
        batch_size: Questions at once.
        processes: Who shares the work.

    Returns:
        In each process: all questions with their answers in the order of `items`, and for each image that could not
        be opened, the reason; an answer that it cost is empty, and is asked for again the next time.

    Raises:
        PallavaError: A process, this one or another, could not go on, or no image can be opened.
    """
    view, processes = view or View(), processes or Processes()
    known = {key for key, one in store.read().items() if not one.problem}  # an image may be there by now
    processes.gather(None)  # nobody writes before all have read
    waiting = [[item for item in batch if _key(item, view) not in known] for batch in plan_batches(items, batch_size)]
    own = [batch for batch in waiting if batch][processes.rank :: processes.count]
    failure = ""
    try:
        _ask(answerer, own, store, view, is_shown=processes.rank == 0)
    except PallavaError as error:
        failure = str(error)
    if failures := [text for text in processes.gather(failure) if text]:
        raise PallavaError(failures[0])
    said = store.read()
    processes.gather(None)  # nobody writes on before all have read
    found = [(item, said[_key(item, view)]) for item in items]
    problems = {item.image: one.problem for item, one in found if one.problem}
    if problems and all(one.problem for _, one in found):
        raise PallavaError(
            f"none of the {len(problems)} images can be opened; the first: {next(iter(problems.values()))}"
        )
    return [Answered(item, one.answer) for item, one in found], problems


def _key(item: Item, view: View) -> str:
    return ask_key(item.id, view.name, item.image, item.question)


def _ask(answerer: Answerer, batches: Sequence[list[Item]], store: AnswerStore, view: View, *, is_shown: bool) -> None:
    name = (view.name or "questions").replace("_", " ")
    total = sum(map(len, batches))
    with tqdm(total=total, desc=name, unit="question", disable=None if is_shown and total else True) as bar:
        for items, batch in _prepared(answerer, batches, view):
            answers = dict(zip(batch.asked, answerer.answer(batch), strict=True))
            said = [
                Said(_key(item, view), answers.get(number, ""), batch.problems.get(number, ""))
                for number, item in enumerate(items)
            ]
            store.append(said)
            bar.update(len(items))


def _prepared(answerer: Answerer, batches: Sequence[list[Item]], view: View) -> Iterator[tuple[list[Item], Prepared]]:
    """Batches with their inputs, a few of which are made ahead."""
    with ThreadPoolExecutor(1) as pool:
        futures: list[Any] = []
        for number, items in enumerate(batches):
            while len(futures) < min(number + 1 + _AHEAD, len(batches)):
                futures.append(pool.submit(answerer.prepare, batches[len(futures)], view))
            yield items, futures[number].result()
            futures[number] = None  # its tiles are not needed any more
