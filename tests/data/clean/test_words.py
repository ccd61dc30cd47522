import pytest

from pallava.data.clean.filters import WordsFilter
from pallava.errors import PallavaError
from tests.tiny.records import item, pair


@pytest.mark.parametrize(("num_words", "keep"), [(19, False), (20, True), (21, True), (0, False)])
def test_the_papers_limit(num_words, keep):
    each = item(pair(0, text=" \n ".join(["word"] * num_words)))
    (score,) = WordsFilter(20).score([each])
    verdict = WordsFilter(20).decide(each, score)
    assert (verdict.keep, verdict.reason, verdict.score) == (keep, "" if keep else "few_words", num_words)


def test_another_limit():
    each = item(pair(0, text="three words here"))
    assert WordsFilter(3).decide(each, {"words": 3}).keep
    assert not WordsFilter(4).decide(each, {"words": 3}).keep


def test_questions_are_not_held_to_words():
    assert WordsFilter(20).kinds == {"captions"}


def test_a_limit_below_zero_is_refused():
    with pytest.raises(PallavaError, match="-1"):
        WordsFilter(-1)
