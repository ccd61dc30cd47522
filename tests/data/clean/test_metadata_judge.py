"""What a source says about its images, in the forms in which it says it."""

from pathlib import Path
from typing import Any

import pytest

from pallava.data.clean.filters import Candidate, Filter
from pallava.data.clean.judges import PathologyMetadata
from pallava.data.sources.base import Pair, Question


def item(**metadata: Any) -> Candidate:
    return Candidate(Pair("source", "1", "a.jpg", "text", metadata), Path("/a.jpg"))


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, ""),
        ({"modality": None, "not_histology": None}, ""),
        ({"modality": ""}, ""),
        ({"modality": "Microscopy Images"}, ""),
        ({"modality": "microscopy images "}, ""),
        ({"modality": "Histopathology"}, ""),
        ({"modality": "Computed Tomography"}, "not_microscopy"),
        ({"modality": "Digital Photography"}, "not_microscopy"),
        ({"not_histology": "0"}, ""),
        ({"not_histology": 0}, ""),
        ({"not_histology": "0.0"}, ""),
        ({"not_histology": ""}, ""),
        ({"not_histology": "1"}, "not_histology"),
        ({"not_histology": 1}, "not_histology"),
        ({"not_histology": "1.0"}, "not_histology"),
        ({"not_histology": True}, "not_histology"),
    ],
)
def test_drops_what_is_known_to_be_no_pathology(metadata: dict[str, Any], reason: str) -> None:
    judge = PathologyMetadata()
    (score,) = judge.score([item(**metadata)])
    verdict = judge.decide(item(**metadata), score)
    assert (verdict.keep, verdict.reason) == (not reason, reason)


def test_is_a_filter_whose_item_key_names_what_it_reads() -> None:
    judge = PathologyMetadata()
    assert isinstance(judge, Filter)
    assert judge.kinds == {"captions", "questions"}
    assert judge.item_key(item(modality="CT")) != judge.item_key(item(modality="MRI"))
    assert judge.item_key(item(modality="CT", other=1)) == judge.item_key(item(modality="CT", other=2))
    question = Candidate(Question("pmc-vqa", "1", "a.jpg", "what?", "A"), Path("/a.jpg"))
    assert judge.decide(question, judge.score([question])[0]).keep
