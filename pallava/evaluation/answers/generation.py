"""Asking a PA-LLaVA many questions: in batches of like length, stored as they are answered, none asked twice."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from pallava.errors import PallavaError
from pallava.evaluation.answers.consistency import UNCHANGED_MEANING
from pallava.evaluation.answers.items import AS_IS, Answer, Item
from pallava.evaluation.answers.store import AnswerStore
from pallava.images import ImageError, open_image
from pallava.io.hashing import hash_text
from pallava.io.processes import map_ahead
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.prompts import build_question, encode_answer, possible_answers
from pallava.tiling import make_tiles

_LIKE_LENGTH = 16  # characters
_AHEAD = 2  # batches whose images are opened while the model works


@dataclass(frozen=True)
class Batch:
    """Questions as the model takes them."""

    items: list[Item]  # that can be asked
    problems: dict[str, str]  # by image that cannot be opened, the reason
    prompts: dict[str, Any]  # `input_ids` and `attention_mask` of the questions
    tiles: list[torch.Tensor]  # overview and tiles of each different image: (1+N, 3, P, P)
    image_of: list[int]  # for each of the questions with an image, its number in `tiles`


@dataclass(frozen=True)
class Answerer:
    """A model with its processor, which answers greedily, in at most `max_new_tokens` tokens."""

    model: PALLaVAForConditionalGeneration
    processor: PALLaVAProcessor
    max_new_tokens: int
    confidence: bool = False  # whether answers about images as they are get their probability

    def prepare(self, items: Sequence[Item], view: str = AS_IS) -> Batch:
        """Open each image once, change it as the view says, and write the prompts."""
        change = UNCHANGED_MEANING.get(view, lambda image: image)
        tiles, problems = dict[str, torch.Tensor](), dict[str, str]()
        for image in dict.fromkeys(item.image for item in items if item.image):
            try:
                opened = open_image(image)
            except ImageError as error:
                problems[image] = str(error)
            else:
                tiles[image] = make_tiles(change(opened), self.processor.tile_spec)
        possible = [item for item in items if item.image not in problems]
        texts = [build_question(item.question, int(bool(item.image))) for item in possible]
        numbers = {image: number for number, image in enumerate(tiles)}
        image_of = [numbers[item.image] for item in possible if item.image]
        return Batch(possible, problems, dict(self.processor(texts)) if texts else {}, [*tiles.values()], image_of)

    def answer(self, batch: Batch) -> list[str]:
        """Answer the questions that can be asked, in their order.

        Each image is encoded once, and what the prompts of its questions begin with, up to the image, computed once.

        Raises:
            PallavaError: The device has too little memory.
        """
        if not batch.items:
            return []
        with self._compute(batch):
            return self.processor.batch_decode(self._generate(batch, self._encode(batch)))

    def weigh(self, batch: Batch) -> list[Answer]:
        """Answer as `answer` does, each answer with its probability.

        To closed questions and choices it is that among the possible answers, if the answer is one of them and has
        ended; else it is the geometric mean of the probabilities of the answer's tokens, its end token included.

        Raises:
            PallavaError: The device has too little memory, or a probability is not a number.
        """
        if not batch.items:
            return []
        with self._compute(batch):
            tokens = self._encode(batch)
            rows = self._generate(batch, tokens)
            texts = self.processor.batch_decode(rows)
            given = [self._until_end(row) for row in rows.tolist()]
            possible = [
                possible_replies(item, text) if ids[-1] in self.model.end_token_ids else []
                for item, text, ids in zip(batch.items, texts, given, strict=True)
            ]
            scores = self._score(batch, tokens, [self._ids(*each) for each in zip(possible, given, strict=True)])
        return [
            Answer(item, text, _probability(item, text, own, found, len(ids)), len(own))
            for item, text, own, found, ids in zip(batch.items, texts, possible, scores, given, strict=True)
        ]

    @contextmanager
    def _compute(self, batch: Batch) -> Iterator[None]:
        try:
            with torch.inference_mode():
                yield
        except torch.OutOfMemoryError:
            raise PallavaError(
                f"{self.model.device} has too little memory for {len(batch.items)} questions at once; lower "
                "--batch-size, and the same command resumes the evaluation"
            ) from None

    def _encode(self, batch: Batch) -> list[torch.Tensor]:
        return list(self.model.encode_images(batch.tiles)) if batch.tiles else []

    def _generate(self, batch: Batch, tokens: list[torch.Tensor]) -> torch.Tensor:
        """Return the ids of the answers alone, each with its end token, then padding."""
        images: dict[str, Any] = {"visual_tokens": tokens, "image_of": batch.image_of}
        ids = self.model.generate(**batch.prompts, **images, max_new_tokens=self.max_new_tokens)
        return ids[:, batch.prompts["input_ids"].shape[1] :]

    def _until_end(self, ids: list[int]) -> list[int]:
        ends = (place for place, index in enumerate(ids, 1) if index in self.model.end_token_ids)
        return ids[: next(ends, len(ids))]

    def _ids(self, possible: Sequence[str], given: list[int]) -> list[list[int]]:
        """Return the ids of the possible answers as they are trained, or else those of the given answer."""
        processor = self.processor
        return [encode_answer(text, processor.tokenizer, processor.template) for text in possible] or [given]

    def _score(
        self, batch: Batch, tokens: list[torch.Tensor], answers: Sequence[list[list[int]]]
    ) -> list[torch.Tensor]:
        """Return the log-probabilities of each question's answers, computing no more rows at once than `generate`."""
        images, found = iter(batch.image_of), list[torch.Tensor]()
        image_of = [[next(images)] if item.image else [] for item in batch.items]
        for chosen in _group([len(own) for own in answers], len(batch.items)):
            found += self.model.score_answers(
                batch.prompts["input_ids"][chosen],
                [answers[number] for number in chosen],
                batch.prompts["attention_mask"][chosen],
                visual_tokens=tokens,
                image_of=[image for number in chosen for image in image_of[number]],
            )
        return found


def possible_replies(item: Item, text: str) -> list[str]:
    """Return the answers that a closed question or a choice allows, written as the given one; none if it is not one."""
    if item.kind == "closed":
        return possible_answers("", text)
    return possible_answers(item.question, text) if item.kind == "choice" and len(text.rstrip(".")) == 1 else []


def _probability(item: Item, text: str, possible: Sequence[str], scores: torch.Tensor, num_tokens: int) -> float:
    found = float(scores.softmax(0)[possible.index(text)]) if possible else math.exp(float(scores[0]) / num_tokens)
    if math.isnan(found):
        raise PallavaError(
            f"the probability of the answer to question '{item.id[:100]}' must be a number, got nan; the model's "
            "weights are damaged or overflow, and its answers mean nothing"
        )
    return min(found, 1.0)  # rounding


def _group(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Return numbers of sizes, in order, in groups whose sum is at most `most`, or of one number."""
    groups: list[list[int]] = []
    total = 0
    for number, size in enumerate(sizes):
        if not groups or total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(number)
        total += size
    return groups


def plan_batches(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Cut questions into batches, those about one image side by side, for what they share is computed once a batch.

    Images of like length, which is that of the longest question, stand together, the longest first; within an image
    questions are ordered by their length. The batches depend on the questions alone: neither on what has been answered,
    nor on the number of processes.
    """
    longest: dict[str, int] = {}
    for item in items:
        longest[item.image] = max(longest.get(item.image, 0), len(item.question))

    def place(item: Item) -> tuple[Any, ...]:
        length = longest[item.image] if item.image else len(item.question)
        return -(length // _LIKE_LENGTH), item.image, -len(item.question), item.id

    ordered = sorted(items, key=place)
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def ask_all(
    answerer: Answerer, items: Sequence[Item], store: AnswerStore, *, view: str = AS_IS, batch_size: int = 16
) -> tuple[list[Answer], dict[str, str]]:
    """Ask the questions that have no answer in the store yet, together with the other processes.

    Returns:
        In each process: all questions with their answers in the order of `items`, and for each image that cannot be
        opened, the reason. The answer to a question about such an image is empty; the next run asks it again.

    Raises:
        PallavaError: This process or another failed, or no image can be opened.
    """
    processes = store.processes
    known = {key for key, one in store.read().items() if not one["problem"]}  # an image may be there by now
    waiting = [[item for item in batch if _key(item, view) not in known] for batch in plan_batches(items, batch_size)]
    own = [batch for batch in waiting if batch][processes.rank :: processes.count]
    processes.agree(lambda: _ask(answerer, own, store, view, is_shown=processes.rank == 0))
    stored = store.read()
    found = [(item, stored[_key(item, view)]) for item in items]
    problems = {item.image: one["problem"] for item, one in found if one["problem"]}
    if problems and all(one["problem"] for _, one in found):
        raise PallavaError(
            f"no image of {len(problems)} can be opened; --image-folder gives the folder they are in; the first: "
            f"{next(iter(problems.values()))}"
        )
    answers = [Answer(item, one["answer"], one.get("probability"), one.get("num_possible", 0)) for item, one in found]
    return answers, problems


def _key(item: Item, view: str) -> str:
    return hash_text(item.id, view, item.image, item.question)


def _ask(answerer: Answerer, batches: Sequence[list[Item]], store: AnswerStore, view: str, *, is_shown: bool) -> None:
    name, total = (view or "questions").replace("_", " "), sum(map(len, batches))
    bar = tqdm(total=total, desc=name, unit="question", disable=None if is_shown and total else True)
    with bar, ThreadPoolExecutor(1) as pool:
        prepared = map_ahead(pool, partial(answerer.prepare, view=view), batches, 1 + _AHEAD)
        for items, batch in zip(batches, prepared, strict=True):
            results = {_key(each.item, view): _stored(each) for each in _answer(answerer, batch, view)}
            for item in items:
                if reason := batch.problems.get(item.image):
                    results[_key(item, view)] = {"answer": "", "problem": reason}
            store.put(results)
            bar.update(len(items))


def _answer(answerer: Answerer, batch: Batch, view: str) -> list[Answer]:
    if answerer.confidence and view == AS_IS:
        return answerer.weigh(batch)
    return [Answer(item, text) for item, text in zip(batch.items, answerer.answer(batch), strict=True)]


def _stored(answer: Answer) -> dict[str, Any]:
    stored = {"answer": answer.text, "problem": ""}
    if answer.probability is None:
        return stored
    return {**stored, "probability": answer.probability, "num_possible": answer.num_possible}
