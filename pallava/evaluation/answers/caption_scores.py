"""How near generated captions come to reference captions in words alone: BLEU by sacrebleu, ROUGE by rouge-score.

Such scores see words, not meaning, and pathology has many words for one thing: `pallava.judging.judge` asks a
language model. Letters in shapes: N captions, R resamples, K scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pallava.evaluation import statistics as metrics
from pallava.evaluation.answers.items import Answered

_ORDER = 4
_SMOOTHING = "exp"  # sacrebleu's own choice for a corpus
_BLEU = {
    "bleu_1": "BLEU of single words, over all captions together, with brevity penalty (Papineni et al. 2002)",
    "bleu_4": "BLEU of one to four words in a row, over all captions together, with brevity penalty",
}
_ROUGE = {
    "rouge1": "ROUGE-1: F1 of the words of two captions, mean of all (Lin 2004)",
    "rouge2": "ROUGE-2: F1 of the pairs of words of two captions, mean of all",
    "rougeL": "ROUGE-L: F1 of the longest common subsequence of words of two captions, mean of all",
}
CONTROL = "another reference"

Floats = NDArray[np.float64]


def score_captions(
    answered: Sequence[Answered], *, num_resamples: int = metrics.NUM_RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Scores what was generated against what was written by people.

    The controls hold each generated caption against the reference of another item: what the style of the captions
    alone is worth.

    Args:
        answered: Captions; an empty one counts, and is worth nothing.
        num_resamples: Of the bootstrap, for which captions are drawn with replacement.
        seed: Of the bootstrap.

    Returns:
        As JSON holds it: ``num_questions``, ``counts`` by kind, ``num_unanswered``, ``interval``, and ``scores``, name
        to ``value``, ``low``, ``high`` (from 0 to 1; NaN without captions), ``count`` and ``definition``; ``controls``
        has the same scores by name of the control.
    """
    generated = [each.answer for each in answered]
    references = [each.item.reference for each in answered]
    half = len(references) // 2  # neighbours may come from one slide
    others = references[half:] + references[:half]
    control = _estimates(generated, others, num_resamples, seed) if half else {}
    for each in control.values():
        each["definition"] += "; reference of another item"
    return {
        "num_questions": len(answered),
        "counts": dict(Counter(each.item.kind for each in answered)),
        "num_unanswered": sum(not text.strip() for text in generated),
        "scores": _estimates(generated, references, num_resamples, seed),
        "controls": {CONTROL: control} if control else {},
        "interval": f"95 %, {num_resamples} bootstrap resamples of captions, seed {seed}",
    }


def _estimates(generated: list[str], references: list[str], num_resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    definitions = {**_BLEU, **{name.lower().replace("rouge", "rouge_"): text for name, text in _ROUGE.items()}}
    count = len(generated)
    estimates = [metrics.UNDEFINED] * len(definitions)
    if count:
        summands = np.concatenate([_ngrams(generated, references), _rouge(generated, references)], axis=1)
        scores = partial(_from_weights, summands)
        estimates = metrics.bootstrap(scores, count, num_resamples=num_resamples, seed=seed)
    how = f"; sacrebleu, lower case, 13a tokens, {_SMOOTHING} smoothing"
    return {
        name: {
            **asdict(estimate),
            "count": count,
            "definition": definition + (how if name in _BLEU else "; rouge-score, lower case, no stemming"),
        }
        for (name, definition), estimate in zip(definitions.items(), estimates, strict=True)
    }


def _ngrams(generated: list[str], references: list[str]) -> Floats:
    """What BLEU adds up over captions, (N, 10): matches of 1 to 4 words in a row, as many totals, both lengths."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(lowercase=True, tokenize="13a", effective_order=True)  # of a sentence, of which only counts are used
    each = [bleu.sentence_score(text, [reference]) for text, reference in zip(generated, references, strict=True)]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in each], dtype=np.float64)


def _rouge(generated: list[str], references: list[str]) -> Floats:
    """F1 of each caption: (N, 3)."""
    from rouge_score.rouge_scorer import RougeScorer  # two seconds

    scorer = RougeScorer(list(_ROUGE))
    each = [scorer.score(reference, text) for text, reference in zip(generated, references, strict=True)]
    return np.array([[score[name].fmeasure for name in _ROUGE] for score in each])


def _from_weights(summands: Floats, weights: NDArray[np.int64]) -> Floats:
    """From what captions add to sums, (N, 13), and how often each is drawn, (R, N), to scores, (R, K)."""
    sums = weights @ summands
    ngrams = sums[:, : 2 * _ORDER + 2].astype(np.int64).tolist()
    bleu = np.array([[_bleu(row, order) for order in (1, _ORDER)] for row in ngrams])
    return np.concatenate([bleu, sums[:, 2 * _ORDER + 2 :] / len(summands)], axis=1)


def _bleu(sums: list[int], order: int) -> float:
    from sacrebleu.metrics import BLEU

    right, total, (length, reference_length) = sums[:_ORDER], sums[_ORDER:-2], sums[-2:]
    score = BLEU.compute_bleu(
        right[:order], total[:order], length, reference_length, smooth_method=_SMOOTHING, max_ngram_order=order
    )
    return score.score / 100
