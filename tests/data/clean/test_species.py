"""Species by rules: what must stay and go, and how many captions that were held back are told right.

All captions are our own, by the hand that wrote the rules. These were tuned on the captions of `species_captions.jsonl`
and on the short phrases of `species_phrases.jsonl`. Two sets were held back, one after the other:

- 133 captions, written before the rules were rewritten, of which no error was looked at while they were: precision
  0.955, recall 0.955. Afterwards their six errors were looked at, and they went to the captions for tuning.
- 193 captions, written before those six errors were looked at: precision 0.959, recall 0.969 at once, and what the help
  of `pallava data clean` says after the errors of the first set were mended. They are `species_held_out.jsonl`, a third
  of all captions, and which of them the rules get wrong has not been looked at.

The tests tell numbers alone. Whoever looks at what is held back, or tunes on it, writes a new set.
"""

import inspect
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from pallava.cli import load_command
from pallava.data.clean import judge_species, species
from pallava.data.clean.filters import Candidate, Filter
from pallava.data.clean.species import SpeciesRules, find_species
from pallava.data.sources.base import Pair, Question


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(__file__).with_name(name).open(encoding="utf-8")]


TUNING, HELD_OUT, PHRASES = map(read, ("species_captions.jsonl", "species_held_out.jsonl", "species_phrases.jsonl"))


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "Invasive ductal carcinoma of the breast.",
        "stained with rabbit polyclonal anti-CD20",
        "mouse monoclonal",
        "goat anti-rabbit secondary",
        "Rabbit anti-p16, mouse anti-Ki67 and goat anti-rabbit IgG",
        "CD68 (mouse, clone PG-M1, 1:100, Dako) and p53 (rabbit; 1:50)",
        "cultured in 10% fetal bovine serum",
        "blocked with normal goat serum and bovine serum albumin",
        "rosettes with sheep red blood cells",
        "detached with pig trypsin",
        "porcine trypsin",
        "guinea pig anti-keratin",
        "horse radish peroxidase",
        "horseradish peroxidase",
        "bovine collagen",
        "cat scratch disease",
        "a bull's eye lesion",
        "owl eye inclusion",
        "owl’s-eye nucleoli",
        "chicken wire vessels",
        "chicken-wire calcification",
        "mouse double minute 2 (MDM2) amplification",
        "murine antibody OKT3",
        "hamster anti-CD3",
        "FISH shows amplification of HER2",
        "CAT scan of the chest",
        "an impacted canine tooth with a dentigerous cyst",
        "animal-type melanoma",
        "A man bitten by a dog",
        "A farmer who works with sheep",
    ],
)
def test_human_stays(caption: str) -> None:
    assert find_species(caption) is None
    assert judge_species(caption) == "human"


@pytest.mark.parametrize(
    "caption",
    [
        "untreated mice",
        "on pig liver",
        "Sprague-Dawley rats",
        "Sprague–Dawley",
        "canine mammary tumour",
        "C57BL/6",
        "zebrafish",
        "murine model",
        "xenograft in nude mice",
        "rat liver section",
        "cell line from hamster ovary",
        "GUINEA PIG, cochlea",
        "human and mouse islets",
        "human tumour cells grown in mice, stained with mouse anti-human Ki-67",
        "rabbit cornea stained with rabbit polyclonal anti-CD20",
        "Fgfr3−/− growth plate",
        "leaf of tomato",
        "the midgut of an insect",
    ],
)
def test_other_material_goes(caption: str) -> None:
    assert judge_species(caption) == "non-human"


def test_short_phrases() -> None:
    wrong = [(row["text"], find_species(row["text"])) for row in PHRASES if judge_species(row["text"]) != row["label"]]
    assert not wrong


def test_every_rule_is_used() -> None:
    text = Path(species.__file__).with_suffix(".ini").read_text(encoding="utf-8")
    names = re.findall(r"^(?:words|terms|animals|phrases|pattern|list|products|pairs) ([A-Z_]+) =", text, re.M)
    assert len(set(names)) == len(names) > 60
    used = set(re.findall(r"\{([A-Z_]+)\}", text)) | set(re.findall(r'"([A-Z_]+)"', inspect.getsource(species)))
    assert set(names) - {"PRODUCT"} <= used


def measure(rows: list[dict[str, str]]) -> tuple[float, float]:
    """Precision and recall for non-human."""
    counts = Counter((row["label"], judge_species(row["text"])) for row in rows)
    found = counts["non-human", "non-human"]
    return found / (found + counts["human", "non-human"]), found / (found + counts["non-human", "human"])


def test_a_third_of_the_captions_is_held_back() -> None:
    texts = {row["text"] for rows in (TUNING, HELD_OUT, PHRASES) for row in rows}
    assert len(texts) == len(TUNING) + len(HELD_OUT) + len(PHRASES)
    assert len(HELD_OUT) >= 80
    assert len(HELD_OUT) * 3 >= len(TUNING) + len(HELD_OUT) >= 240
    for rows in (TUNING, HELD_OUT):
        assert min(Counter(row["label"] for row in rows).values()) >= 0.4 * len(rows)


@pytest.mark.parametrize("rows", [TUNING, HELD_OUT], ids=["tuning", "held-out"])
def test_precision_and_recall(rows: list[dict[str, str]]) -> None:
    precision, recall = measure(rows)
    assert precision >= 0.95
    assert recall >= 0.95


def test_the_help_of_cleaning_tells_what_is_measured() -> None:
    precision, recall = measure(HELD_OUT)
    line = f"precision {precision:.3f} and recall {recall:.3f} for non-human on {len(HELD_OUT)} captions held back"
    print(line)
    assert line in " ".join(load_command("data clean")[2].split())


@pytest.mark.parametrize(
    "part", ["mouse, ", "(mouse ", "rabbit specific ", "normal mouse and rat or ", "man kept a ", "anti-"]
)
def test_a_very_long_text_takes_no_very_long_time(part: str) -> None:
    start = time.process_time()
    judge_species(part * 4000 + "dog")
    assert time.process_time() - start < 4


def test_the_filter_drops_non_human_and_tells_the_words() -> None:
    rules = SpeciesRules()
    assert isinstance(rules, Filter)
    records = [
        Pair("pairs", "1", "a.png", "Kidney of untreated mice"),
        Pair("pairs", "2", "b.png", "Kidney biopsy"),
        Question("pmc-vqa", "3", "c.png", "Which organ is it?", "A", ("rat liver", "rat lung")),
    ]
    items = [Candidate(record, Path("/") / record.image) for record in records]
    scores = rules.score(items)
    assert [score["found"] for score in scores] == ["mice", "", "rat"]
    verdicts = [rules.decide(item, score) for item, score in zip(items, scores, strict=True)]
    assert [verdict.reason for verdict in verdicts] == ["non_human", "", "non_human"]
    assert len({rules.item_key(item) for item in items}) == 3
