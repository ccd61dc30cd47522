import pytest
from PIL import Image

from pallava.report.page import Answered, answers, card, note, page, picture
from pallava.report.plots import line_plot, running_mean
from pallava.report.tables import percent, table


def test_a_page_needs_nothing_beside_it_and_escapes_text():
    text = page("a < b", [note("1 < 2"), card("<x>", picture(Image.new("RGB", (4, 2)), width=8, caption="<y>"))])
    assert "http" not in text.replace("http-equiv", "")
    assert "a &lt; b" in text
    assert "1 &lt; 2" in text
    assert "&lt;x&gt;" in text
    assert "&lt;y&gt;" in text
    assert 'width="8" height="4"' in text


def test_answers_say_right_and_wrong_without_colour():
    text = answers([Answered("Q1", "yes", "yes", True), Answered("Q2", "no", "yes", False)])
    assert "✓ yes" in text
    assert "✗ no (true: yes)" in text


def test_table():
    assert "<td>a &amp; b</td><td>1</td>" in table(["x", "y"], [["a & b", "1"]])
    with pytest.raises(ValueError, match="3 cells, but the header has 2"):
        table(["x", "y"], [["1", "2", "3"]])


def test_percent():
    assert percent(0.8333) == "83.3 %"
    assert percent(float("nan")) == "–"


def test_plot_is_one_svg():
    assert running_mean([0, 2, 4], 2) == [0, 1, 3]
    text = line_plot({"loss": [(1, 2.0), (2, 1.0)]}, x_label="step", y_label="loss", smooth=2)
    assert text.startswith("<svg")
    assert text.rstrip().endswith("</svg>")
