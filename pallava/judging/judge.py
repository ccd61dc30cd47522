"""A language model judges how near answers come to their references in meaning, on the published scale of 0 to 10.

Every grade is stored as it comes, under the judge's name and the whole text of the request, so that nothing is asked
twice: not after a kill, and not if two models gave the same answer. A judge sees words only, not the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

from pallava.io.hashing import hash_bytes
from pallava.io.store import Store
from pallava.judging.endpoint import MAX_REPLY, Endpoint, Request
from pallava.judging.prompts import ANSWER_SIMILARITY, CAPTION_SIMILARITY, read_grade


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model's answer to be judged by the right one; the question is empty for a caption."""

    id: str
    reference: str
    answer: str
    question: str = ""

    @property
    def request(self) -> str:
        """Return everything that the judge is shown."""
        prompt = ANSWER_SIMILARITY if self.question else CAPTION_SIMILARITY
        return prompt.fill(question=self.question, reference=self.reference, answer=self.answer.strip())


@dataclass(frozen=True, slots=True)
class Judgement:
    """The judge's verdict on one answer, and the beginning of its reply."""

    id: str
    grade: float | None  # 0 to 10; None if the reply has none, or the server does not answer this very request
    verdict: Literal["graded", "empty", "unreadable", "refused"]  # an "empty" answer gets 0 without a request
    reply: str = ""


def judge(candidates: Sequence[Candidate], endpoint: Endpoint, store: Store) -> list[Judgement]:
    """Have every answer judged that is not graded yet; grades that came before an error of the endpoint are stored."""
    namespace = f"similarity-endpoint/{endpoint.model}/prompts-{CAPTION_SIMILARITY.version}-{ANSWER_SIMILARITY.version}"
    keys = [hash_bytes(each.request.encode()) for each in candidates]
    by_key = {key: each for key, each in zip(keys, candidates, strict=True) if each.answer.strip()}
    found = store.get(namespace, by_key.keys())
    missing = [key for key in by_key if key not in found]
    with tqdm(total=len(by_key), initial=len(found), desc="judge", disable=None) as bar:
        for index, reply in endpoint.iter_settled([Request(by_key[key].request) for key in missing]):
            key = missing[index]
            grade = None if reply.failure else read_grade(reply.text)
            verdict = "refused" if reply.failure else "unreadable" if grade is None else "graded"
            found[key] = {"grade": grade, "verdict": verdict, "reply": reply.text[:MAX_REPLY]}
            store.put(namespace, {key: found[key]})
            bar.update()
    return [
        Judgement(each.id, **found[key]) if key in by_key else Judgement(each.id, 0.0, "empty")
        for key, each in zip(keys, candidates, strict=True)
    ]
