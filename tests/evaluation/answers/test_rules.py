"""Each rule on answers that were judged by hand, against other people's code, and against plain versions of itself."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pallava.evaluation.answers import rules
from pallava.evaluation.answers.items import Answer, Item
from pallava.evaluation.answers.rules import class_names, read_choice, read_class
from pallava.evaluation.answers.scores import SCORES
from pallava.evaluation.class_sets import known_sets
from tests.evaluation.multimedeval_run import RECORDED, TRICKY

Row = dict[str, Any]
ROOT = Path(__file__).parents[3]
TRICKY_ROWS: dict[str, list[Row]] = json.loads(TRICKY.read_text(encoding="utf-8"))
VOCABULARY = """
the a An yes no not none abnormal tumor cells x-ray x ray 10 ten 1,000 2.5 e.g. don't dont isnt (H&E) h&e, liver/kidney
well-differentiated "quoted" [1] stage: ii; it's its wont theyre cell. what? yes! - -- _ +ve p=0.05 <5 >10 @ `x` α
"""


def draw_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of a few words, some joined in odd ways."""
    rng = random.Random(seed)
    joints = [" "] * 6 + ["  ", ", ", ". ", "-", " - "]
    return [rng.choice(joints).join(rng.choices(VOCABULARY.split(), k=rng.randrange(9))) for _ in range(count)]


def answer_of(row: Row) -> Answer:
    return Answer(Item("", "", "?", row["reference"], "choice", tuple(row.get("choices", ()))), row["answer"])


def of(kind: str) -> Any:
    return pytest.mark.parametrize("row", TRICKY_ROWS[kind], ids=lambda row: f"{row['answer']!r}")


@pytest.mark.parametrize("kind", ["closed", "open", "choice"])
def test_tricky_answers_have_a_verdict_of_every_rule(kind: str):
    wanted = {name for name, score in SCORES.items() if kind in score.kinds}
    assert len(TRICKY_ROWS[kind]) > 15
    for row in TRICKY_ROWS[kind]:
        assert set(row["expected"]) == wanted, row


@pytest.mark.parametrize("kind", ["closed", "open", "choice"])
def test_tricky_answers_are_judged_as_by_hand(kind: str):
    for row in TRICKY_ROWS[kind]:
        found = {name: SCORES[name].rule(answer_of(row)) for name in row["expected"]}
        assert found == pytest.approx(row["expected"], abs=1e-6), row


@of("choice")
def test_a_choice_is_read_as_a_careful_reader_would(row: Row):
    assert read_choice(row["answer"], row["choices"]) == row["read"]


@of("class")
def test_a_class_is_read_by_label_name_or_letter(row: Row):
    number = read_class(row["answer"], class_names(row["choices"]))
    assert (None if number is None else row["choices"][number]) == row["read"]


def test_names_of_classes_are_those_of_the_set_that_is_given():
    given = known_sets()["nct-crc-he"]
    assert class_names(("TUM", "ADI"), given)[1] == ("ADI", "ADI", "ADI", "ADI", "adipose tissue", "fat")
    assert read_class("fat", class_names(("TUM", "ADI"), given)) == 1
    assert read_class("fat", class_names(("TUM", "other"))) is None


def test_a_name_within_a_longer_one_is_not_another_class():
    assert read_class("It is a squamous cell carcinoma", [("carcinoma",), ("squamous cell carcinoma",)]) == 1
    assert read_class("a squamous cell carcinoma, no carcinoma", [("carcinoma",), ("squamous cell carcinoma",)]) is None


def test_long_and_odd_answers_are_read_at_once():
    parts = (
        'it is "(',
        "\n * ",
        ". B is the ",
        ", ",
        "in A, ",
        "so B is most ",
        "I think that ",
        "\nBased on it, ",
        "\\boxed{ ",
    )
    texts = ["answer" + " " * 9000, "answer " * 2000, "answer A" + " or" * 2000, "in " + ", " * 9000]
    for text in (*texts, *(part * 2000 for part in parts)):
        read_choice(text, ["x", "y"])
        rules.tokens(text)


def recorded() -> list[list[Any]]:
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def ours(answer: str, reference: str) -> list[float]:
    _, recall, f1 = rules.token_overlap(answer, reference)
    return [recall, f1, rules.bleu_1(answer, reference)]


def test_recall_f1_and_bleu_equal_those_that_multimedeval_gave():
    assert len(recorded()) > 150
    assert sum(row[-1] not in (0, 1) for row in recorded()) > 30
    for answer, reference, *theirs in recorded():
        assert ours(answer, reference) == pytest.approx(theirs, abs=1e-6), (answer, reference)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("multimedeval", "torchmetrics"))),
    reason="pip install --no-deps multimedeval torchmetrics lightning-utilities",
)
def test_recall_f1_and_bleu_equal_those_of_multimedeval_itself():
    texts = [text for text in draw_texts(900) if rules.tokens(text)]
    pairs = list(zip(texts, texts[1:] + texts[:1], strict=True))
    pairs += [(text + " tumor cells", text) for text in texts] + [tuple(row[:2]) for row in recorded()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.multimedeval_run"],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs[-len(recorded()) :] == [row[2:] for row in recorded()]
    assert [ours(*pair) for pair in pairs] == [pytest.approx(row, abs=1e-6) for row in theirs]


def test_bleu_equals_that_of_sacrebleu():
    from sacrebleu.metrics import BLEU

    theirs = BLEU(max_ngram_order=1, tokenize="none", smooth_method="none", effective_order=True)
    texts = [text for text in draw_texts(300, seed=1) if rules.tokens(text)]
    values = set()
    for answer, reference in pairwise(texts):
        words = [" ".join(rules.tokens(text)) for text in (answer, reference)]
        expected = theirs.sentence_score(words[0], [words[1]]).score / 100
        assert rules.bleu_1(answer, reference) == pytest.approx(expected, abs=1e-9)
        values.add(expected)
    assert len(values) > 20


def plain_overlap(answer: str, reference: str) -> tuple[float, float, float]:
    """Counted word by word."""
    said, right = list(dict.fromkeys(rules.tokens(answer))), list(dict.fromkeys(rules.tokens(reference)))
    hits = [word for word in said if word in right]
    precision = len(hits) / len(said) if said else 0.0
    recall = len(hits) / len(right) if right else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def test_overlap_equals_a_plain_version():
    texts = draw_texts(400, seed=2)
    for answer, reference in pairwise(texts):
        assert tuple(rules.token_overlap(answer, reference)) == pytest.approx(plain_overlap(answer, reference))


def plain_published(text: str) -> str:
    """Letter by letter."""
    kept = "".join(letter for letter in text.lower() if letter not in {*",.'!?\"()*#:;~"})
    return re.sub(r" - ", "-", re.sub(r"x[ -]ray", "xray", kept)).strip(" ")


def test_the_published_form_equals_a_plain_version():
    forms = [rules.published_form(text) for text in draw_texts(600, seed=3)]
    assert forms == [plain_published(text) for text in draw_texts(600, seed=3)]
    assert "-" in "".join(forms)


def plain_yes_no(answer: str, reference: str) -> tuple[bool, bool]:
    """LLaVA-Med's and Quilt-LLaVA's verdict."""
    words = rules.tokens(answer)
    if not words:
        return False, False
    in_text = reference in " ".join(words)
    says_no = any(word in ("no", "not") for word in words)
    return in_text, says_no == (reference == "no")


def test_yes_and_no_equal_plain_versions():
    verdicts = set()
    for answer in draw_texts(400, seed=4):
        for reference in ("yes", "no"):
            found = rules.is_right_by_llava_med(answer, reference), rules.is_right_by_quilt_llava(answer, reference)
            assert found == plain_yes_no(answer, reference), answer
            verdicts.add((reference, *found))
    assert len(verdicts) == 7  # an answer with the word not has the letters no, too


def test_what_a_careful_reader_takes_includes_what_the_published_rule_takes():
    """But for answers that name two letters or contradict themselves."""
    for letter in "ABCD":
        for answer in (letter, letter.lower(), f"{letter}: some text", f"{letter}:text"):
            assert rules.is_published_choice(answer, letter)
            assert read_choice(answer, ["w", "x", "y", "z"]) == letter
