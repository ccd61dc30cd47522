"""The two phases of cleaning: every filter's findings into a store, then one pass of decisions in the records' order.

A stopped run uses its findings again, and decisions rest on stored findings alone, so that the outcome does not depend
on kills, batches or processes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from pallava.data.clean.engine import BATCH, Engine
from pallava.data.clean.filters import KEEP, Candidate, Decision, Filter, Findings
from pallava.data.sources.base import Labelled, Source
from pallava.errors import PallavaError
from pallava.io.processes import batches
from pallava.io.store import Store
from pallava.judging.endpoint import UnansweredError

_UNANSWERED = Decision("unanswered")


@dataclass
class Outcome:
    """The last filter's decision on a candidate, the filter that dropped it, if any, and each filter's score."""

    candidate: Candidate
    decision: Decision = KEEP
    filter_name: str = ""
    scores: dict[str, float] = field(default_factory=dict)


@dataclass
class Pipeline:
    """What is cleaned, and how."""

    inputs: Mapping[str, Source]  # by their names in the output
    filters: Sequence[Filter]  # in the order in which they decide
    store: Store  # of findings
    drop_unanswered: bool = False  # drop what an endpoint did not answer; otherwise there is no decision
    engine: Engine = field(default_factory=Engine)  # what computes the findings
    _unanswered: list[UnansweredError] = field(default_factory=list, init=False)

    def survey(self) -> None:
        """Show all candidates to the filters that need to see them first."""
        filters = [each for each in self.filters if each.needs_survey]
        for candidate in self._candidates("survey") if filters else ():
            for each in filters:
                if candidate.kind in each.kinds:
                    each.survey(candidate)

    def judge(self) -> None:
        """Compute the findings that are missing, and store them part by part; those before an error are kept."""
        for batch in batches(self._candidates("judge"), self.engine.window):
            self._pass_filters(batch, is_judging=True)
        if self._unanswered and not self.drop_unanswered:
            more = f" ({len(self._unanswered) - 1} more such batches)" if len(self._unanswered) > 1 else ""
            raise PallavaError(
                f"{self._unanswered[0]}{more}; if they fail every time, --drop-unanswered drops their rows"
            )

    def decide(self) -> Iterator[Outcome]:
        """Yield the outcome for each record, in order, from findings alone: an error if one is missing."""
        for each in self.filters:
            each.begin()
        for batch in batches(self._candidates("decide"), BATCH):
            yield from self._pass_filters(batch)

    def _candidates(self, phase: str) -> Iterator[Candidate]:
        total = sum(source.num_bytes for source in self.inputs.values())
        with tqdm(total=total, desc=phase, unit="B", unit_scale=True, mininterval=1, disable=None) as bar:
            done = number = 0
            for label, source in self.inputs.items():
                root = source.root.absolute()
                for record in source:
                    assert not isinstance(record, Labelled)  # such sources are not opened
                    if record.source != label:
                        record = dataclasses.replace(record, source=label)
                    yield Candidate(record, root / record.image, number=number)
                    number += 1
                    bar.update(done + source.num_bytes_read - bar.n)
                done += source.num_bytes

    def _pass_filters(self, candidates: list[Candidate], *, is_judging: bool = False) -> list[Outcome]:
        """Decide filter by filter, which reads the store by batch; ordered filters do not decide while judging."""
        outcomes = [Outcome(one) for one in candidates]
        for each in self.filters:
            alive = [one for one in outcomes if one.decision.keep and one.candidate.kind in each.kinds]
            found = self._find(each, [one.candidate for one in alive], compute=is_judging)
            for one, findings in zip(alive, found, strict=True):
                one.candidate.shared.update(findings or {})
                if is_judging and each.is_ordered:
                    continue
                one.decision = _UNANSWERED if findings is None else each.decide(one.candidate, findings)
                if not one.decision.keep:
                    one.filter_name = each.name
                if one.decision.score is not None:
                    one.scores[each.name] = one.decision.score
        return outcomes

    def _find(self, each: Filter, candidates: list[Candidate], *, compute: bool) -> Sequence[Findings | None]:
        """Return the findings on each candidate, None without an answer; compute and store those that are missing."""
        if not each.key:
            return each.score(candidates)
        keys = [each.item_key(one) for one in candidates]
        found = self.store.get(each.key, set(keys))
        missing: dict[str, Candidate] = {}
        for key, one in zip(keys, candidates, strict=True):
            if key not in found:
                missing.setdefault(key, one)
        if missing and compute:
            found |= self._compute(each, missing)
        elif missing and not (self.drop_unanswered and each.is_costly):
            first = next(iter(missing.values()))
            raise PallavaError(
                f"the filter '{each.name}' has not judged '{first.path}' ({first.record.source} {first.record.id}): "
                "images or records changed while the command ran; run `pallava data clean` again"
            )
        return [found.get(key) for key in keys]

    def _compute(self, each: Filter, missing: Mapping[str, Candidate]) -> dict[str, Findings]:
        found: dict[str, Findings] = {}
        for batch in batches(missing, self.engine.window if each.share else BATCH):
            try:
                for part in self.engine.iter_parts(each, [missing[key] for key in batch]):
                    new = {batch[index]: findings for index, findings in part}
                    self.store.put(each.key, new)
                    found |= new
            except UnansweredError as error:
                self._unanswered.append(error)
        return found
