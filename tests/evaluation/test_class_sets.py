"""The words of the public sets are pinned: whoever changes one changes every published number."""

import hashlib
import json
from pathlib import Path

import pytest

from pallava.data.sources import SOURCES
from pallava.errors import PallavaError
from pallava.evaluation.class_sets import known_sets, read_class_set, set_of_labels

PINNED = {
    "bach": ("Normal Benign InSitu Invasive", 64, "86832e94a1324773"),
    "oscc": ("normal oral epithelium|oral squamous cell carcinoma", 32, "8a5d2e54000bc104"),
    "colonpath": ("normal tumor", 32, "ad01e14c89cc9003"),
    "nct-crc-he": ("ADI BACK DEB LYM MUC MUS NORM STR TUM", 144, "79ff54f47e25e9b3"),
}


def test_every_set_is_pinned():
    assert set(known_sets()) == set(PINNED)


@pytest.mark.parametrize("name", PINNED)
def test_words_are_those_of_the_snapshot(name: str):
    labels, count, digest = PINNED[name]
    found = known_sets()[name]
    prompts = found.prompts()
    assert list(found.labels) == (labels.split("|") if "|" in labels else labels.split())
    assert sum(map(len, prompts)) == count
    assert hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16] == digest, prompts
    assert "http" in found.source
    texts = [text for group in prompts for text in group]
    assert len(set(texts)) == len(texts)  # no sentence belongs to two classes
    assert not any("{" in text for text in texts)


def test_a_sentence_of_each_set_reads_as_it_should():
    assert known_sets()["bach"].prompts()[2][4] == "an H&E image of breast malignant in-situ carcinoma."
    assert known_sets()["nct-crc-he"].prompts()[8][0] == (
        "a histopathology slide showing colorectal adenocarcinoma epithelium."
    )


@pytest.mark.parametrize("name", ["bach", "oscc", "colonpath"])
def test_labels_are_those_of_the_readers(name: str):
    assert known_sets()[name].labels == SOURCES[name].classes


def test_sets_of_the_users_own(tmp_path: Path):
    assert set_of_labels("mine", ["blood_vessel", "nerve"]).prompts()[0][-1] == "blood vessel."
    path = tmp_path / "mine.json"
    classes = [{"label": "a", "names": ["fat"]}, {"label": "b", "names": ["mucus", "mucin"]}]
    path.write_text(json.dumps({"classes": classes, "templates": ["Is it {}?", "{}"]}))
    expected = [["Is it fat?", "fat"], ["Is it mucus?", "mucus", "Is it mucin?", "mucin"]]
    assert read_class_set(path).prompts() == expected
    assert read_class_set(path).with_templates(["only {}"]).prompts()[0] == ["only fat"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a class set"),
        ("[]", "not a class set"),
        ('{"classes": [{"label": "a", "names": ["x"]}, {"label": "b", "names": [NaN]}]}', "must be texts"),
        ('{"classes": [{"label": "a", "names": ["x"]}, {"label": "b", "names": ["\\ud83d"]}]}', "ud83d"),
        ('{"classes": [{"label": "a"}]}', "'names'"),
        ('{"classes": [{"label": "a", "names": ["x"]}]}', "at least two classes"),
        ('{"classes": [{"label": "a", "names": ["x"]}, {"label": "a", "names": ["y"]}]}', "each once"),
        ('{"classes": [{"label": "a", "names": ["x"]}, {"label": "b", "names": []}]}', "with a name"),
        ('{"classes": [{"label":"a","names":["x"]},{"label":"b","names":["y"]}],"templates":["no"]}', "must have {}"),
    ],
)
def test_what_is_wrong_with_a_set_is_told(content: str, reason: str, tmp_path: Path):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(PallavaError, match=reason):
        read_class_set(tmp_path / "mine.json")


def test_missing_files_and_templates():
    with pytest.raises(PallavaError, match="cannot read the class set"):
        read_class_set(Path("nowhere.json"))
    with pytest.raises(PallavaError, match="template"):
        known_sets()["bach"].with_templates([])
