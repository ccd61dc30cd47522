"""Species by rules: the brief list of what must stay and go, and captions of which a third was held back."""

import json
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from pallava.data.clean import judge_species
from pallava.data.clean.filters import Filter, Item
from pallava.data.clean.species import SpeciesRules, find_species
from pallava.data.sources.base import Pair, Question

CAPTIONS = [json.loads(line) for line in Path(__file__).with_name("species_captions.jsonl").open(encoding="utf-8")]


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


def test_a_third_of_the_captions_was_held_back_by_their_hash() -> None:
    assert len(CAPTIONS) >= 150
    assert len({row["text"] for row in CAPTIONS}) == len(CAPTIONS)
    for row in CAPTIONS:
        is_held_out = int(sha256(row["text"].encode()).hexdigest(), 16) % 3 == 0
        assert row["split"] == ("held-out" if is_held_out else "tuning")


@pytest.mark.parametrize("split", ["tuning", "held-out"])
def test_precision_and_recall(split: str) -> None:
    counts = Counter((row["label"], judge_species(row["text"])) for row in CAPTIONS if row["split"] == split)
    found = counts["non-human", "non-human"]
    precision = found / (found + counts["human", "non-human"])
    recall = found / (found + counts["non-human", "human"])
    print(f"{split}: {counts.total()} captions, precision {precision:.3f}, recall {recall:.3f} for non-human")
    assert min(Counter(row["label"] for row in CAPTIONS if row["split"] == split).values()) >= 25
    assert precision >= 0.95
    assert recall >= 0.95


@pytest.mark.parametrize("part", ["mouse, ", "(mouse ", "rabbit specific ", "normal mouse and rat or ", "man kept a "])
def test_a_very_long_text_takes_no_very_long_time(part: str) -> None:
    start = time.process_time()
    judge_species(part * 4000 + "dog")
    assert time.process_time() - start < 4


def test_the_filter_drops_non_human_and_tells_the_words() -> None:
    judge = SpeciesRules()
    assert isinstance(judge, Filter)
    records = [
        Pair("pairs", "1", "a.png", "Kidney of untreated mice"),
        Pair("pairs", "2", "b.png", "Kidney biopsy"),
        Question("pmc-vqa", "3", "c.png", "Which organ is it?", "A", ("rat liver", "rat lung")),
    ]
    items = [Item(record, Path("/") / record.image) for record in records]
    scores = judge.score(items)
    assert [score["found"] for score in scores] == ["mice", "", "rat"]
    verdicts = [judge.decide(item, score) for item, score in zip(items, scores, strict=True)]
    assert [verdict.reason for verdict in verdicts] == ["non_human", "", "non_human"]
    assert len({judge.item_key(item) for item in items}) == 3
