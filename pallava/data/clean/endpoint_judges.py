"""Judges behind an endpoint: a vision-language model looks at the image, a language model reads the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pallava.data.clean.filters import APPLIES_TO, Item, Score, Verdict
from pallava.data.clean.item_keys import image_key, text_key
from pallava.judging.endpoint import Endpoint, Failure, Reply, Request
from pallava.judging.prompts import PATHOLOGY, SPECIES, JudgePrompt

_MAX_REPLY = 200  # characters of an unreadable reply that are kept


class _EndpointJudge:
    """Asks one prompt of each item.

    A score is ``{"answer": label, "reply": text}``. The label is one of the prompt's; or "unreadable", if the reply
    is neither; or "refused", if the server will not answer this very request. Both are stored, so that nothing is
    asked twice, and dropped with a reason of their own, so that they are counted. A request that failed for a passing
    reason gets no score, and a later run asks it again.
    """

    name: str
    kinds = APPLIES_TO["pathology"]
    _prompt: JudgePrompt
    _keep: str
    _drop_reason: str

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.key = f"{self.name}-endpoint/{endpoint.model}/prompt-{self._prompt.version}"

    def item_key(self, item: Item) -> str:
        """Names what the model is shown."""
        raise NotImplementedError

    def score(self, items: Sequence[Item]) -> list[Score]:
        """Asks about all items, in order.

        Raises:
            PallavaError: As `iter_scores`.
        """
        scores = dict(self.iter_scores(items))
        return [scores[index] for index in range(len(items))]

    def iter_scores(self, items: Sequence[Item]) -> Iterator[tuple[int, Score]]:
        """Asks about all items and yields (index, score) as answers come in.

        Raises:
            UnansweredError: After all others were yielded, if requests failed for a passing reason.
            PallavaError: The server cannot be reached, stopped answering, or has no such model.
        """
        for index, answer in self._endpoint.iter_settled([self._request(item) for item in items]):
            yield index, self._read(answer)

    def decide(self, item: Item, score: Score) -> Verdict:
        """Keeps the label that is wanted; any other is dropped, with a reason that tells which."""
        if score["answer"] == self._keep:
            return Verdict(True)
        reasons = {"unreadable": "unreadable_reply", "refused": "refused_by_server"}
        return Verdict(False, reasons.get(score["answer"], self._drop_reason))

    def _request(self, item: Item) -> Request:
        raise NotImplementedError

    def _read(self, answer: Reply | Failure) -> Score:
        if isinstance(answer, Failure):
            return {"answer": "refused", "reply": answer.reason[:_MAX_REPLY]}
        return {"answer": self._prompt.read(answer.text) or "unreadable", "reply": answer.text[:_MAX_REPLY]}


class SpeciesEndpoint(_EndpointJudge):
    """Filter "species": a language model reads the caption (the paper asked Qwen2-7B)."""

    name = "species"
    _prompt = SPECIES
    _keep = "human"
    _drop_reason = "non_human"

    def item_key(self, item: Item) -> str:
        """Names the text."""
        return text_key(item)

    def _request(self, item: Item) -> Request:
        return Request(self._prompt.text.replace("{text}", item.text))


class PathologyEndpoint(_EndpointJudge):
    """Filter "pathology": a vision-language model looks at the image (the paper asked GLM-4V-9B)."""

    name = "pathology"
    _prompt = PATHOLOGY
    _keep = "yes"
    _drop_reason = "not_pathology"

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self.key += f"/side-{endpoint.image_side}"

    def item_key(self, item: Item) -> str:
        """Names the image's bytes."""
        return image_key(item)

    def _request(self, item: Item) -> Request:
        return Request(self._prompt.text, item.path)
