"""The two phases of cleaning: every filter's scores into a store, then one pass of decisions in the records' order.

A stopped run finds its scores again, and decisions rest on stored scores alone, so that what comes out does not depend
on kills, batches or processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from pallava.data.clean.filters import Filter, Item, OrderedFilter, Score, StreamingFilter, SurveyFilter, Verdict
from pallava.data.sources.base import Source
from pallava.errors import PallavaError
from pallava.io.processes import batches
from pallava.io.store import Store
from pallava.judging.endpoint import UnansweredError

_BATCH = 256


@dataclass(frozen=True)
class Input:
    """A source under the name that it has in the output; two sources of one set are told apart by it."""

    label: str
    source: Source


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        item: The item.
        verdict: The last filter's.
        filter_name: The filter that dropped it; nothing if it is kept.
        scores: The number that each filter's decision rested on, where there is one.
    """

    item: Item
    verdict: Verdict
    filter_name: str = ""
    scores: dict[str, float] = field(default_factory=dict)


class Pipeline:
    """Sources, filters in their order, and the store of scores."""

    def __init__(
        self,
        inputs: Sequence[Input],
        filters: Sequence[Filter],
        store: Store,
        *,
        drop_unanswered: bool = False,
    ) -> None:
        """Notes all of them.

        Args:
            inputs: In the order of the output.
            filters: In the order in which they decide.
            store: Where scores are kept.
            drop_unanswered: Drops what an endpoint did not answer, instead of ending without a decision.
        """
        self._inputs = inputs
        self._filters = filters
        self._store = store
        self._drop_unanswered = drop_unanswered
        self._unanswered: list[UnansweredError] = []

    def survey(self) -> None:
        """Shows all items to the filters that want to see them first."""
        filters = [each for each in self._filters if isinstance(each, SurveyFilter)]
        if filters:
            for item in self._items("survey"):
                for each in filters:
                    if item.kind in each.kinds:
                        each.survey(item)

    def judge(self) -> None:
        """Scores what is not scored yet, and stores it batch by batch.

        Raises:
            PallavaError: A source or a filter cannot go on, or, at the end, some requests were not answered and their
                items are not to be dropped; what was scored stays.
        """
        for batch in batches(self._items("judge"), _BATCH):
            self._judge_batch(batch)
        if self._unanswered and not self._drop_unanswered:
            more = f" ({len(self._unanswered) - 1} more such batches)" if len(self._unanswered) > 1 else ""
            raise PallavaError(
                f"{self._unanswered[0]}{more} If they fail every time, --drop-unanswered drops their rows."
            )

    def decide(self) -> Iterator[Outcome]:
        """Yields what becomes of each record, in order.

        Raises:
            PallavaError: A score is missing, since a file or the sources changed after they were judged.
        """
        for each in self._filters:
            if isinstance(each, OrderedFilter):
                each.begin()
        for batch in batches(self._items("decide"), _BATCH):
            yield from self._decide_batch(batch)

    def _items(self, what: str) -> Iterator[Item]:
        total = sum(each.source.num_bytes for each in self._inputs)
        with tqdm(total=total, desc=what, unit="B", unit_scale=True, mininterval=1, disable=None) as bar:
            done = 0
            for each in self._inputs:
                root = each.source.root.absolute()
                for record in each.source:
                    if record.source != each.label:
                        record = dataclasses.replace(record, source=each.label)
                    yield Item(record, root / record.image)
                    bar.update(done + each.source.num_bytes_read - bar.n)
                done += each.source.num_bytes

    def _judge_batch(self, items: list[Item]) -> None:
        for each in self._filters:
            chosen = [item for item in items if item.kind in each.kinds]
            is_ordered, dropped = isinstance(each, OrderedFilter), set()
            for item, score in zip(chosen, self._score(each, chosen), strict=True):
                if score is not None:
                    item.shared.update(score)
                if score is None or not (is_ordered or each.decide(item, score).keep):
                    dropped.add(id(item))
            items = [item for item in items if id(item) not in dropped]

    def _score(self, each: Filter, items: list[Item]) -> Sequence[Score | None]:
        """Gives the score of each item, None without an answer, and computes and stores those that are not stored."""
        if not each.key:
            return each.score(items)
        keys = [each.item_key(item) for item in items]
        scores = self._store.get(each.key, set(keys))
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in scores}
        if missing:
            scores |= self._compute(each, list(missing), list(missing.values()))
        return [scores.get(key) for key in keys]

    def _compute(self, each: Filter, keys: list[str], items: list[Item]) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        if isinstance(each, StreamingFilter):
            try:
                for index, score in each.iter_scores(items):
                    scores[keys[index]] = score
                    self._store.put(each.key, {keys[index]: score})
            except UnansweredError as error:
                self._unanswered.append(error)
            return scores
        scores.update(zip(keys, each.score(items), strict=True))
        self._store.put(each.key, scores)
        return scores

    def _decide_batch(self, items: list[Item]) -> Iterator[Outcome]:
        """Decides filter by filter, which looks scores up by batch; the ordered ones come last and go item by item."""
        outcomes = {id(item): Outcome(item, Verdict(True)) for item in items}
        for each in self._filters:
            alive = [item for item in items if outcomes[id(item)].verdict.keep and item.kind in each.kinds]
            for item, score in zip(alive, self._stored(each, alive), strict=True):
                item.shared.update(score or {})
                outcomes[id(item)] = _after(outcomes[id(item)], each, score)
        return iter(outcomes.values())

    def _stored(self, each: Filter, items: list[Item]) -> Sequence[Score | None]:
        """Gives the score of each item, None for an unanswered one that is to be dropped."""
        if not each.key:
            return each.score(items)
        keys = [each.item_key(item) for item in items]
        scores = self._store.get(each.key, set(keys))
        may_be_missing = self._drop_unanswered and isinstance(each, StreamingFilter)
        for key, item in zip(keys, items, strict=True):
            if key not in scores and not may_be_missing:
                raise PallavaError(
                    f"'{item.path}' ({item.record.source} {item.record.id}) has no score of the filter '{each.name}': "
                    f"images or records changed since they were judged; run `pallava data clean` again"
                )
        return [scores.get(key) for key in keys]


def _after(before: Outcome, each: Filter, score: Score | None) -> Outcome:
    verdict = Verdict(False, "unanswered") if score is None else each.decide(before.item, score)
    scores = before.scores if verdict.score is None else {**before.scores, each.name: verdict.score}
    return Outcome(before.item, verdict, "" if verdict.keep else each.name, scores)
