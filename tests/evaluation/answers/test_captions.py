"""Offline scores of captions: against the libraries' own corpus scores, and against naive versions."""

import math

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU

from pallava.evaluation import statistics as metrics
from pallava.evaluation.answers.items import Answer, AnswerSet, Item
from pallava.evaluation.answers.similarity import CONTROL, score_captions

REFERENCES = [
    "Sheets of tumor cells with extensive necrosis.",
    "A normal gland, lined by columnar cells.",
    "Stroma only",
    "The mucosa is inflamed, with many lymphocytes and plasma cells.",
    "Adipose tissue with a small vessel in the lower left corner",
]
GENERATED = [
    "Tumor cells in sheets with extensive necrosis.",
    "A gland of columnar cells",
    "",
    "Inflamed mucosa with many lymphocytes and plasma cells",
    "fat",
]


def captions(generated: list[str], references: list[str]) -> AnswerSet:
    pairs = enumerate(zip(generated, references, strict=True))
    return AnswerSet(
        {"": [Answer(Item(str(n), "", "Describe it.", right, "caption"), text) for n, (text, right) in pairs]}
    )


def value(scored: dict, name: str) -> float:
    return scored["scores"][name]["value"]


def longest_common(first: list[str], second: list[str]) -> int:
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + longest_common(first[:-1], second[:-1])
    return max(longest_common(first[:-1], second), longest_common(first, second[:-1]))


def naive_rouge_l(generated: list[str], references: list[str]) -> float:
    scores = []
    for text, reference in zip(generated, references, strict=True):
        words, right = ("".join(c if c.isalnum() else " " for c in t.lower()).split() for t in (text, reference))
        common = longest_common(words, right)
        scores.append(2 * common / (len(words) + len(right)))
    return float(np.mean(scores))


def test_the_corpus_scores_of_the_libraries() -> None:
    scored = score_captions(captions(GENERATED, REFERENCES), num_resamples=10)
    assert value(scored, "bleu_4") == pytest.approx(
        sacrebleu.corpus_bleu(GENERATED, [REFERENCES], lowercase=True).score / 100
    )
    one = BLEU(lowercase=True, max_ngram_order=1).corpus_score(GENERATED, [REFERENCES])
    assert value(scored, "bleu_1") == pytest.approx(one.score / 100)
    assert value(scored, "rouge_l") == pytest.approx(naive_rouge_l(GENERATED, REFERENCES))
    others = REFERENCES[2:] + REFERENCES[:2]
    control = value({"scores": scored["controls"][CONTROL]}, "bleu_4")
    assert control == pytest.approx(sacrebleu.corpus_bleu(GENERATED, [others], lowercase=True).score / 100)
    assert scored["controls"][CONTROL]["rouge_l"]["value"] == pytest.approx(naive_rouge_l(GENERATED, others))
    assert scored["num_questions"] == 5
    assert scored["counts"] == {"caption": 5}
    assert scored["num_unanswered"] == 1


def test_intervals_are_those_of_resampled_captions() -> None:
    scored = score_captions(captions(GENERATED, REFERENCES), num_resamples=50, seed=3)
    (drawn,) = metrics.draw(5, 50, 3)
    naive = [
        sacrebleu.corpus_bleu([GENERATED[n] for n in row], [[REFERENCES[n] for n in row]], lowercase=True).score / 100
        for row in drawn
    ]
    low, high = np.quantile(naive, [0.025, 0.975])
    assert scored["scores"]["bleu_4"]["low"] == pytest.approx(low)
    assert scored["scores"]["bleu_4"]["high"] == pytest.approx(high)
    assert scored["interval"] == "95 %, 50 bootstrap resamples of captions, seed 3"
    assert scored == score_captions(captions(GENERATED, REFERENCES), num_resamples=50, seed=3)


def test_equal_captions_are_worth_one_and_empty_ones_nothing() -> None:
    same = score_captions(captions(REFERENCES, REFERENCES), num_resamples=10)
    empty = score_captions(captions([""] * 5, REFERENCES), num_resamples=10)
    for name, score in same["scores"].items():
        assert score["value"] == score["low"] == score["high"] == pytest.approx(1), name
        assert empty["scores"][name]["value"] == empty["scores"][name]["high"] == 0, name
        assert score["count"] == 5
        assert "sacrebleu" in score["definition"] or "rouge-score" in score["definition"]


def test_of_nothing_there_is_no_score() -> None:
    scored = score_captions(captions([], []))
    assert all(math.isnan(score[key]) for score in scored["scores"].values() for key in ("value", "low", "high"))
    assert scored["controls"] == score_captions(captions(GENERATED[:1], REFERENCES[:1]))["controls"] == {}
