"""The tables, the files and the page of an evaluation, of made-up results."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pallava.evaluation.answers.confidence import score_confidence
from pallava.evaluation.answers.items import AS_IS, Answer, AnswerSet, Item, Questions
from pallava.evaluation.report import as_json, report_text, write_report

TAG = "<script>alert(1)</script>"


def score(value: float = 0.5) -> dict[str, Any]:
    return {"value": value, "low": 0.25, "high": 0.75, "count": 4, "definition": f"Share of {TAG}."}


def report(**result: Any) -> dict[str, Any]:
    data = {"num_questions": 4, "num_unanswered": 1, "interval": "95 %", "left_out": {}, "controls": {}, **result}
    settings = {"max_new_tokens": 8}
    return {"model": TAG, "task": "custom", "kind": "pallava", "settings": settings, "data": {"set": data}}


def of_classes() -> dict[str, Any]:
    classes = {label: {"precision": 1.0, "recall": 0.5, "f1": 0.667, "support": 2.0} for label in ("fat", TAG)}
    return {
        "num_images": 4,
        "metrics": {"accuracy": score()},
        "largest_class": 0.5,
        "num_without_class": 1,
        "per_class": classes,
        "confusion": {"labels": list(classes), "counts": [[1, 0, 1], [0, 2, 0]]},
        "class_set": {"names": {"fat": ["fat", "adipose tissue"], TAG: [TAG]}, "templates": [f"{{}} {TAG}"]},
    }


def test_numbers_that_are_not_defined_are_null():
    text = as_json({"a": [float("nan"), 1.5], "b": {"c": float("nan"), "d": ("NaN", None)}})
    assert json.loads(text) == {"a": [None, 1.5], "b": {"c": None, "d": ["NaN", None]}}


def test_scores_stand_beside_their_controls():
    scores = {"exact": score(), "other": score(float("nan"))}
    lines = report_text(report(scores=scores, controls={"majority": {"exact": score(1)}}, groups={"g": score()}))
    assert "exact          4  50.0 % [25.0, 75.0]  100.0 % [25.0, 75.0]" in lines
    assert "other          4                    –" in lines
    assert "set: right answers in each group" in lines


def of_confidence(count: int = 6) -> dict[str, Any]:
    items = [Item(str(n), f"{n // 2}.png", "?", "yes", "closed") for n in range(count)]
    answers = [Answer(item, "yes" if n % 3 else "no", 0.9 - n / 50, 2) for n, item in enumerate(items)]
    missing = Answer(Item("x", "x.png", "?", "yes", "closed"), "")
    return score_confidence([*answers, missing], lambda answer: answer.text == "yes", num_resamples=4)


def test_confidence_has_tables_a_plot_and_definitions(tmp_path: Path):
    results = report(scores={"exact": score()}, **of_confidence())
    text = report_text(results)
    assert "set: confidence; questions left out whose image cannot be opened: 1" in text
    assert "set: thresholds fitted on 2 images, and what they do on the other 1" in text
    write_report(results, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 1
    for words in ("not reached", "AURC", "arXiv:1706.04599", "selective_accuracy", "best order"):
        assert words in page
    assert (tmp_path / "confidence_set.svg").read_text() in page
    written = json.loads((tmp_path / "results.json").read_text())["data"]["set"]
    thresholds = [each["threshold"] for each in written["thresholds"]["kinds"]["all"]]
    assert None in thresholds, "a threshold that is not reached is null"


@pytest.mark.parametrize("threshold", [0.99998, 1 - 2**-24, 1.0, 0.87654321987, 0.29])
def test_a_printed_threshold_accepts_what_the_exact_one_does(threshold: float):
    result = of_confidence()
    result["thresholds"]["kinds"] = {"all": result["thresholds"]["kinds"]["all"][:1]}
    result["thresholds"]["kinds"]["all"][0] |= {"threshold": threshold, "is_reached": True}
    (printed,) = re.findall(r"^all +80.0 % +(\S+)", report_text(report(scores={}, **result)), re.MULTILINE)
    below = np.nextafter(np.float32(threshold), np.float32(0))
    assert below < float(printed) <= threshold


@pytest.mark.parametrize("is_right", [None, lambda answer, questions: answer.text == "yes"])
def test_foreign_text_is_escaped(tmp_path: Path, is_right: Any):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    (tmp_path / f"{TAG.replace('/', '')}.png").write_bytes(b"nothing")
    paths = (str(tmp_path / "image.png"), str(tmp_path / f"{TAG.replace('/', '')}.png"), "")
    items = [Item(str(number), path, f"Is it {TAG}?", TAG) for number, path in enumerate(paths)]
    answers = [Answer(items[0], TAG), Answer(items[1], "yes"), Answer(items[2], "")]
    made = {"set": AnswerSet({AS_IS: answers}, Questions(items))}
    problems = {f"cannot open {TAG}": 1}
    write_report(report(scores={TAG: score()}, problems=problems), tmp_path / "out", made, is_right)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page
    assert page.count("Is it &lt;script&gt;alert(1)&lt;/script&gt;?") == 3
    assert page.count("data:image/png;base64,") == 1
    assert "(no answer)" in page
    assert "set: 1 x cannot open &lt;script&gt;" in page
    assert page.count("✓ yes") == (is_right is not None)
    assert (tmp_path / "out" / "predictions.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize("kind", ["encoder", "pallava"])
def test_classes_have_a_confusion_matrix(tmp_path: Path, kind: str):
    results = {**report(**of_classes(), left_out={f"not {TAG}": 2}), "task": "zero-shot", "kind": kind}
    write_report(results, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert "4 images;\nleft out: 2 x not &lt;script&gt;" in page
    assert "fat; adipose tissue" in page
    assert page.count("<svg") == 1
    assert page.count("<h2>Samples</h2>") == page.count("<h2>Settings</h2>") == (kind == "pallava")
    assert page.count("<th>templates</th>") == (kind == "encoder")
    assert (tmp_path / "confusion_set.svg").read_text().startswith("<svg")
    assert ("left out 2 x not" in report_text(results)) is (kind == "encoder")
