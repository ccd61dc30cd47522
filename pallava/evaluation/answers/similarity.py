"""Similarity of generated texts to references: in words by BLEU and ROUGE, in meaning by a language model.

Scores of words see no meaning, and pathology has many words for one thing: hence the judge, on the published scale of
0 to 10. It sees words only, not the image. Letters in shapes: N captions, R resamples, K scores.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from pallava.errors import PallavaError
from pallava.evaluation import statistics
from pallava.evaluation.answers.items import AS_IS, Answer, AnswerSet, read_predictions
from pallava.evaluation.answers.scores import CONTROLS, count_answers
from pallava.evaluation.report import as_json, write_files
from pallava.evaluation.statistics import DEFINITIONS, UNDEFINED, Counts, Floats, as_control, describe_interval
from pallava.io.hashing import hash_bytes
from pallava.io.store import Store
from pallava.judging.endpoint import MAX_REPLY, Endpoint, Request
from pallava.judging.prompts import ANSWER_SIMILARITY, CAPTION_SIMILARITY, MAX_GRADE, read_grade
from pallava.prompts import CHOICE_LETTERS
from pallava.report.table import Table, estimate

_ORDER = 4
_SMOOTHING = "exp"  # sacrebleu's own choice for a corpus
SCORES = DEFINITIONS["captions"]
CONTROL = "another reference"
_GRADES = "grades.sqlite"
_SIMILARITY = (
    f"similarity to the reference, 0 to {MAX_GRADE}, as the judge sees it: mean of all that it graded, where an empty "
    "answer gets 0 unasked; unreadable and refused ones are left out"
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The judge's verdict on one answer, and the beginning of its reply."""

    id: str
    grade: float | None  # 0 to 10; None if the reply has none, or the server does not answer this very request
    verdict: Literal["graded", "empty", "unreadable", "refused"]  # an "empty" answer gets 0 without a request
    reply: str = ""


def score_captions(answers: AnswerSet, **bootstrap: int) -> dict[str, Any]:
    """Score generated captions against those that people wrote.

    An empty caption counts, and is worth nothing. A control compares each generated caption with the reference of
    another item: what the style of the captions alone is worth.

    Returns:
        Counts and ``interval``, and ``scores``, name to ``value``, ``low``, ``high`` (from 0 to 1; NaN without
        captions), ``count`` and ``definition``; ``controls`` has the same scores by name of the control.
    """
    references = [each.item.reference for each in answers.as_is]
    controls: dict[str, Any] = {}
    if half := len(references) // 2:
        others = references[half:] + references[:half]  # neighbours may come from one slide
        controls[CONTROL] = as_control(_scores(answers.as_is, others, **bootstrap), "reference of another item")
    if given := answers.shuffled:
        scores = _scores(given, [each.item.reference for each in given], **bootstrap)
        controls["shuffled images"] = as_control(scores, CONTROLS["shuffled images"])
    return {
        **count_answers(answers.as_is),
        "scores": _scores(answers.as_is, references, **bootstrap),
        "controls": controls,
        "interval": describe_interval("captions", **bootstrap),
    }


def judge_predictions(
    predictions: Path, out: Path, *, url: str | None, model: str | None, concurrency: int, seed: int
) -> dict[str, Any]:
    """Compare predictions with their references: captions word by word, and all by a language model if one is named.

    `predictions` are a ``predictions.jsonl`` of `pallava evaluate`, or its folder. Grades in `out` are not asked for
    again. The `model` answers at the `url` of an OpenAI-compatible endpoint, `concurrency` requests at a time; `seed`
    is that of the bootstrap.

    Returns:
        The content of ``results.json``: ``predictions``, ``counts``, ``similarity`` and ``words``; numbers that are
        not defined are NaN.

    Raises:
        PallavaError: The predictions cannot be read or compared, the endpoint fails, or the results cannot be written.
    """
    if bool(url) != bool(model):
        raise PallavaError("a judge needs both --url and --model; without either, words alone are compared")
    endpoint = Endpoint(url, model, concurrency=concurrency) if url and model else None
    answers = read_predictions(predictions)
    captions = [each for each in answers if each.item.kind == "caption"]
    if not endpoint and not captions:
        raise PallavaError(
            f"'{predictions}' must have captions to be compared by words, got {len(answers)} answers to questions; "
            "give --url and --model to have them judged (`pallava evaluate` has scored them by rules)"
        )
    similarity, files = None, {}
    if endpoint:
        with Store(out / _GRADES) as store:
            judgements = judge(answers, endpoint, store)
        versions = {"caption": CAPTION_SIMILARITY.version, "answer": ANSWER_SIMILARITY.version}
        about = {"model": endpoint.model, "url": endpoint.base_url, "prompt_versions": versions}
        similarity = {"judge": about, **score_judgements(judgements, [each.item.image for each in answers], seed=seed)}
        lines = (json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in judgements)
        files["judgements.jsonl"] = "".join(lines)
    report = {
        "predictions": str(predictions),
        "counts": count_answers(answers)["counts"],
        "similarity": similarity,
        "words": score_captions(AnswerSet({AS_IS: captions}), seed=seed) if captions else None,
    }
    write_files(out, {**files, "results.json": as_json(report)})
    return report


def results_folder(predictions: Path) -> Path:
    """Return the folder for the results of judging: beside the predictions, apart from those of another file."""
    if predictions.is_dir():
        return predictions / "judge"
    return predictions.parent / ("judge" if predictions.name == "predictions.jsonl" else f"judge_{predictions.stem}")


def judge(answers: Sequence[Answer], endpoint: Endpoint, store: Store) -> list[Judgement]:
    """Have every answer judged that is not graded yet.

    Every grade is stored as it comes, under the judge's name and the whole text of the request, so that nothing is
    asked twice: not after an error or a kill, and not if two models gave the same answer.
    """
    namespace = f"similarity-endpoint/{endpoint.model}/prompts-{CAPTION_SIMILARITY.version}-{ANSWER_SIMILARITY.version}"
    requests = [_request(each) for each in answers]
    keys = [text and hash_bytes(text.encode()) for text in requests]
    by_key = {key: text for key, text in zip(keys, requests, strict=True) if key}
    found = store.get(namespace, by_key.keys())
    missing = [key for key in by_key if key not in found]
    with tqdm(total=len(by_key), initial=len(found), desc="judge", disable=None) as bar:
        for index, reply in endpoint.iter_settled([Request(by_key[key]) for key in missing]):
            key = missing[index]
            grade = None if reply.failure else read_grade(reply.text)
            verdict = "refused" if reply.failure else "unreadable" if grade is None else "graded"
            found[key] = {"grade": grade, "verdict": verdict, "reply": reply.text[:MAX_REPLY]}
            store.put(namespace, {key: found[key]})
            bar.update()
    return [
        Judgement(each.item.id, **found[key]) if key else Judgement(each.item.id, 0.0, "empty")
        for each, key in zip(answers, keys, strict=True)
    ]


def _request(answer: Answer) -> str:
    """Return all that the judge is shown, a lettered choice with its text; nothing for an empty answer."""
    if not answer.final.strip():
        return ""
    item, reference = answer.item, answer.item.reference
    texts = dict(zip(CHOICE_LETTERS, item.choices, strict=False)) if item.kind == "choice" else {}
    if reference in texts:
        reference = f"{reference}: {texts[reference]}"
    prompt = ANSWER_SIMILARITY if item.question and item.kind != "caption" else CAPTION_SIMILARITY
    return prompt.fill(question=item.question, reference=reference, answer=answer.final.strip())


def score_judgements(judgements: Sequence[Judgement], images: Sequence[str], **bootstrap: int) -> dict[str, Any]:
    """Return counts of all judgements and of each rounded grade, and the mean grade with its interval; NaN if none.

    Answers about one of the `images`, empty for none, are drawn together.
    """
    verdicts = Counter(each.verdict for each in judgements)
    graded = [(each.grade, image) for each, image in zip(judgements, images, strict=True) if each.grade is not None]
    grades = [grade for grade, _ in graded]
    (found,) = statistics.estimate_means([grades], [image for _, image in graded], **bootstrap)
    rounded = Counter(int(grade + 0.5) for grade in grades)
    return {
        "num_questions": len(judgements),
        "num_unanswered": verdicts["empty"],
        "num_unreadable": verdicts["unreadable"],
        "num_refused": verdicts["refused"],
        "grades": {str(grade): rounded[grade] for grade in range(MAX_GRADE + 1)},
        "scores": {"similarity": found.to_dict(len(grades), _SIMILARITY)},
        "interval": describe_interval("images with all their graded answers", **bootstrap),
    }


def similarity_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of `judge_predictions`: grades, and scores of words beside their control."""
    shown = []
    if result := report["similarity"]:
        score = result["scores"]["similarity"]
        value = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]" if score["count"] else "–"
        counts = [str(result[f"num_{name}"]) for name in ("questions", "unanswered", "unreadable", "refused")]
        header = (f"similarity, 0 to {MAX_GRADE}", "answers", "of them empty", "unreadable replies", "refused requests")
        shown.append(Table(f"judged by {result['judge']['model']}", header, [[value, *counts]]))
        grades = result["grades"]
        shown.append(Table("answers of each grade", list(grades), [list(map(str, grades.values()))]))
    if result := report["words"]:
        control = result["controls"].get(CONTROL) or dict.fromkeys(result["scores"], asdict(UNDEFINED))
        rows = [[name, *(estimate(s[name]) for s in (result["scores"], control))] for name in result["scores"]]
        title = f"words of {result['num_questions']} captions, {result['num_unanswered']} of them empty"
        shown.append(Table(title, ("score", "own reference", "another's reference"), rows))
    return shown


def _scores(answers: Sequence[Answer], references: list[str], **bootstrap: int) -> dict[str, dict[str, Any]]:
    count, estimates = len(answers), [UNDEFINED] * len(SCORES)
    if count:
        generated = [each.final for each in answers]
        summands = np.concatenate([_ngrams(generated, references), _rouge(generated, references)], axis=1)

        def statistic(weights: Counts) -> Floats:
            """From how often each caption is drawn, (R, N), to scores, (R, K)."""
            ngrams, rouge = np.split(weights @ summands, [2 * _ORDER + 2], axis=1)
            bleu = [[_bleu(row, order) for order in (1, _ORDER)] for row in ngrams.astype(np.int64).tolist()]
            return np.concatenate([bleu, rouge / count], axis=1)

        estimates = statistics.bootstrap(statistic, count, **bootstrap)
    return {
        name: estimate.to_dict(count, definition)
        for (name, definition), estimate in zip(SCORES.items(), estimates, strict=True)
    }


def _ngrams(generated: list[str], references: list[str]) -> Floats:
    """Count what BLEU adds up over captions, (N, 10): matches of 1 to 4 words, as many totals, both lengths."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(lowercase=True, tokenize="13a", effective_order=True)  # for a sentence, of which only counts are used
    each = [bleu.sentence_score(text, [reference]) for text, reference in zip(generated, references, strict=True)]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in each], dtype=np.float64)


def _rouge(generated: list[str], references: list[str]) -> Floats:
    """F1 of each caption: (N, 3)."""
    from rouge_score.rouge_scorer import RougeScorer  # two seconds

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names)
    each = [scorer.score(reference, text) for text, reference in zip(generated, references, strict=True)]
    return np.array([[score[name].fmeasure for name in names] for score in each])


def _bleu(sums: list[int], order: int) -> float:
    from sacrebleu.metrics import BLEU

    right, total, (length, reference_length) = sums[:_ORDER], sums[_ORDER:-2], sums[-2:]
    score = BLEU.compute_bleu(
        right[:order], total[:order], length, reference_length, smooth_method=_SMOOTHING, max_ngram_order=order
    )
    return score.score / 100
