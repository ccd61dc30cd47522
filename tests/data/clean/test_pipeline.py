import pytest

from pallava.data.clean.filters import Decision, Filter, WordsFilter
from pallava.data.clean.pipeline import Pipeline
from pallava.data.clean.settings import FILTERS, CleanSettings, make_filters
from pallava.data.sources.base import Question
from pallava.errors import PallavaError
from pallava.io.store import Store
from pallava.judging.endpoint import UnansweredError
from tests.tiny.records import (
    MemorySource,
    pair,
)


class Judge(Filter):
    """Scores a text's length, and notes what it was asked."""

    name = "pathology"
    kinds = frozenset({"captions", "questions"})
    key = "judge"

    def __init__(self, limit: int = 10) -> None:
        self.limit, self.asked = limit, []

    def item_key(self, item):
        return item.text

    def score(self, items):
        self.asked += [item.text for item in items]
        return [{"length": len(item.text)} for item in items]

    def decide(self, item, score):
        return Decision("" if score["length"] >= self.limit else "too_short", score["length"])


class Streaming(Judge):
    """Yields in any order, and breaks after some."""

    is_costly = True

    def __init__(self, num_answers: int, error: Exception) -> None:
        super().__init__()
        self.num_answers, self.error = num_answers, error

    def iter_scores(self, items):
        for count, index in enumerate(reversed(range(len(items)))):
            if count == self.num_answers:
                raise self.error
            self.asked.append(items[index].text)
            yield index, {"length": len(items[index].text)}


def decisions(store, source, filters) -> list[tuple[str, str]]:
    outcomes = Pipeline({"memory": source}, filters, store).decide()
    return [(outcome.candidate.record.id, outcome.filter_name) for outcome in outcomes]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        yield store


@pytest.fixture
def source(tmp_path):
    return MemorySource(tmp_path, [pair(number, text="x" * number) for number in range(600)])


def judge(store, source, *filters):
    Pipeline({"memory": source}, filters, store).judge()


def test_nothing_is_asked_twice(store, source):
    judges = Judge(), Judge(limit=500)
    for each in judges:
        judge(store, source, each)
    assert len(judges[0].asked) == 600
    assert judges[1].asked == [], "a threshold judged anew"
    assert decisions(store, source, [judges[1]]) == [(str(n), "" if n >= 500 else "pathology") for n in range(600)]


def test_equal_texts_are_asked_once(store, tmp_path):
    each = Judge()
    judge(store, MemorySource(tmp_path, [pair(n, text="the same text") for n in range(5)]), each)
    assert each.asked == ["the same text"]


def test_what_an_earlier_filter_drops_is_not_asked(store, source):
    class Odd(Judge):
        key = "odd"
        name = "words"

        def decide(self, item, score):
            return Decision("odd" if score["length"] % 2 else "")

    each = Judge()
    judge(store, source, Odd(), each)
    assert len(each.asked) == 300


def test_each_answer_is_stored_at_once(store, source):
    """A judge that breaks down in the middle of a batch loses nothing."""
    broken = Streaming(100, RuntimeError("killed"))
    with pytest.raises(RuntimeError):
        judge(store, source, broken)
    again = Streaming(1000, RuntimeError())
    judge(store, source, again)
    assert len(broken.asked) == 100
    assert sorted(broken.asked + again.asked) == sorted("x" * n for n in range(600))


def test_unanswered_requests_are_told_at_the_end(store, source):
    broken = Streaming(100, UnansweredError("some failed"))
    with pytest.raises(PallavaError, match=r"some failed.*1 more"):
        judge(store, source, broken)
    assert len(broken.asked) == 288, "the other batches were not asked"
    with pytest.raises(PallavaError, match="has not judged"):
        decisions(store, source, [broken])
    again = Judge()
    judge(store, source, again)
    assert len(again.asked) == 312


def test_questions_pass_filters_for_captions(store, tmp_path):
    records = [Question("memory", "q", "0.png", "Is it so?", "yes"), pair(1, text="short")]
    source = MemorySource(tmp_path, records)
    judge(store, source, WordsFilter(20))
    assert decisions(store, source, [WordsFilter(20)]) == [("q", ""), ("1", "words")]


def test_an_ordered_filter_sees_the_order_and_decides_after_judging(store, source):
    class Ordered(Judge):
        key = ""
        is_ordered = True

        def begin(self):
            self.seen = []

        def decide(self, item, score):
            self.seen.append(item.record.id)
            return Decision("" if len(self.seen) % 2 else "every second")

    each = Ordered()
    judge(store, source, each, late := Judge())
    assert len(late.asked) == 600
    decided = decisions(store, source, [each])
    assert each.seen == [str(n) for n in range(600)]
    assert [name for _, name in decided] == ["", "pathology"] * 300


def test_filters_apply_as_the_table_says(tmp_path):
    (tmp_path / "list").write_text("a.jpg")
    settings = CleanSettings((), filters=tuple(FILTERS), published_index=str(tmp_path / "list"))
    filters = make_filters(settings)
    assert {each.name: each.kinds for each in filters} == {name: row.kinds for name, row in FILTERS.items()}
    names = " ".join(each.name for each in filters)
    assert names == "published-index words pathology species image duplicates"
