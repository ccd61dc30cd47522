"""The demo's page, of made-up results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pallava.demo.page import write_page
from pallava.evaluation.answers.items import Answer, Item

TAG = "<script>alert(1)</script>"


def shares(value: float) -> dict[str, object]:
    return {"share": {"value": value}, "chance": 0.125}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    for name in ("seen", "real"):
        Image.new("RGB", (160, 96), "pink").save(images / f"{name}.png")
    records = [{"name": "seen.png"}, {"name": "real.png", "stain": "PAS", "caption": f"Real, {TAG}"}]
    (tmp_path / "data" / "train.json").write_text(json.dumps(records))
    region = {"kind": "figure", "x": 158.0, "y": 3.0, "radius": 8.0}  # at a corner
    details = [{"name": "seen.png", "facts": {"mitosis": True}, "regions": [region]}]
    (tmp_path / "data" / "test.json").write_text(json.dumps(details))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "plip.log").write_text("Train Epoch: 0 [32/64 (50%)] Loss: 1.5\n")
    keys = ("accuracy", "accuracy_untrained", "largest_class")
    plip = {f"{name}_{key}": 0.25 for name in ("stain", "density") for key in keys}
    (tmp_path / "plip_report.json").write_text(json.dumps({"num_pictures": 7, **plip}))
    return tmp_path


def test_the_page_shows_every_figure_and_escapes_text(folder: Path):
    image = str(folder / "data" / "images" / "seen.png")
    answered = [
        Answer(Item("1", image, "Is there a <gland>?", "yes", "closed", group="mitosis"), "yes"),
        Answer(Item("2", image, "Which stain?", "pink", "open", group="stain"), TAG),
    ]
    report = {
        "closed_accuracy": 0.91,
        "closed_accuracy_shuffled": 0.52,
        "closed_accuracy_majority": 0.53,
        "open_exact_match": 0.84,
        "attribute_accuracy": {"stain": 0.85, "mitosis": 0.76},
        "fine_detail_accuracy": {"with_tiles": 0.76, "tiles_replaced_by_overview": 0.47},
        "pointing": {"gland": {"num_pictures": 5, "hits": shares(0.66), "tokens": shares(0.11)}},
        "seconds": {"draw": 30.4, "total": 150.0},
    }
    write_page(folder, report, answered, [replace(answered[0], text="no")], {"seen.png": 3})
    page = (folder / "index.html").read_text()
    for value in ("91.0 %", "52.0 %", "84.0 %", "76.0 %", "47.0 %"):
        assert f"<b>{value}</b>" in page
    for cells in (
        ("stain", "1", "85.0 %"),
        ("mitosis (the fine detail)", "1", "76.0 %"),
        ("all closed, most frequent answer", "1", "53.0 %"),
        ("all open", "1", "84.0 %"),
        ("gland", "5", "66.0 %", "12.5 %", "11.0 %", "12.5 %"),
        ("draw", "30"),
    ):
        assert "".join(f"<td>{cell}</td>" for cell in cells) in page
    assert page.count("25.0 %") == 6
    assert page.count("<svg") == 4
    assert "tile 4, read most" in page
    assert '<span>with tiles</span><span class="right">✓ yes</span>' in page
    assert '<span>without</span><span class="wrong">✗ no (true: yes)</span>' in page
    assert "trained on this computer in\n2 minutes" in page  # two and a half, to the even number
    assert 'Is there a &lt;gland&gt;?</span><span class="right">✓ yes</span>' in page
    assert "✗ &lt;script&gt;alert(1)&lt;/script&gt; (true: pink)" in page
    assert "Real, &lt;script&gt;" in page
    assert "<script" not in page
    assert page.count("not for diagnosis") == 2
