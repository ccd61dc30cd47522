import pytest
from PIL import Image

from pallava.report.page import Cell, ShownAnswer, answers, card, contact_sheet, note, page, picture, share_bars
from pallava.report.plots import _edges, _running_mean, histogram, line_plot
from pallava.report.table import Table, estimate, percent


def test_a_page_needs_nothing_beside_it_and_escapes_text():
    text = page("a < b", [note("1 < 2"), card("<x>", picture(Image.new("RGB", (4, 2)), width=8, caption="<y>"))])
    assert "http" not in text.replace("http-equiv", "")
    assert "a &lt; b" in text
    assert "1 &lt; 2" in text
    assert "&lt;x&gt;" in text
    assert "&lt;y&gt;" in text
    assert 'width="8" height="4"' in text


def test_answers_say_right_and_wrong_without_colour():
    text = answers([ShownAnswer("Q1", "yes", "yes", True), ShownAnswer("Q2", "no", "yes", False)])
    assert "✓ yes" in text
    assert "✗ no (true: yes)" in text


def test_one_table_renders_to_text_html_and_markdown():
    table = Table("title <1>", ["x", "y"], [["a & b", "1"], ["c|d", "<2"]], note="n & m")
    assert table.to_text().splitlines() == ["title <1>", "x       y", "a & b   1", "c|d    <2", "n & m"]
    html = table.to_html()
    assert "<caption>title &lt;1&gt;</caption>" in html
    assert "<td>a &amp; b</td><td>1</td>" in html
    assert "n &amp; m" in html
    assert table.to_markdown().splitlines() == [
        "title &lt;1>",
        "",
        "| x | y |",
        "| --- | --- |",
        "| a & b | 1 |",
        r"| c\|d | &lt;2 |",
        "",
        "n & m",
    ]


def test_a_table_refuses_rows_of_another_length():
    with pytest.raises(ValueError, match="3 cells, but the header has 2"):
        Table("", ["x", "y"], [["1", "2", "3"]])


def test_percent():
    assert percent(0.8333) == "83.3 %"
    assert percent(float("nan")) == "–"


def test_estimate():
    assert estimate(0.8333, 0.801, 0.86) == "83.3 % [80.1, 86.0]"
    assert estimate(float("nan"), 0.1, 0.2) == estimate(None, None, None) == "–"
    assert estimate(0.5, None, float("nan")) == "50.0 % [–, –]"


def test_plot_is_one_svg():
    assert _running_mean([0, 2, 4], 2) == [0, 1, 3]
    text = line_plot({"loss": [(1, 2.0), (2, 1.0)]}, x_label="step", y_label="loss", smooth=2)
    assert text.startswith("<svg")
    assert text.rstrip().endswith("</svg>")


def test_the_same_plot_is_the_same_text():
    first, second = (line_plot({"a": [(1, 2.0), (2, 1.0)]}, x_label="x", y_label="y") for _ in range(2))
    assert first == second


def test_a_dollar_in_a_name_is_no_formula(monkeypatch):
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *_: pytest.fail("read as a formula"))
    series = {"$\\frac{$": {1: 2}, "b": {2: 1}}
    assert histogram(series, x_label="words").startswith("<svg")


def test_text_of_a_table_is_set_to_the_left():
    assert '<table class="text">' in Table("", ["x"], [["a"]], is_text=True).to_html()
    assert "class" not in Table("", ["x"], [["a"]]).to_html().replace('class="scroll"', "")


def test_histogram_is_one_svg_with_its_threshold():
    text = histogram({"kept": {20: 3, 25: 1}, "dropped": {5: 2}}, x_label="words", threshold=20)
    assert text.startswith("<svg")
    assert "threshold 20" in text
    assert "dropped" in text
    with pytest.raises(ValueError, match="at least one value"):
        histogram({"kept": {}}, x_label="words")


def test_edges_of_bars():
    assert _edges({"a": {3: 1, 5: 1}}, 40).tolist() == [3, 4, 5, 6]
    assert _edges({"a": {3: 1}, "b": {102: 1}}, 40)[[0, 1, -1]].tolist() == [0, 5, 105]
    assert _edges({"a": {0.5: 1}}, 2).tolist() == [0.5, 1.0, 1.5]
    assert _edges({"a": {0: 500, 1: 499, 10**9: 1}}, 40).tolist() == [0, 1, 2]  # one far away squeezes nothing


def test_contact_sheet_holds_jpeg_and_says_where_there_is_none():
    text = contact_sheet([Cell([Image.new("RGB", (8, 8)), None], "a < b", "x & y")])
    assert text.count("data:image/jpeg;base64,") == 1
    assert "no picture" in text
    assert "<b>a &lt; b</b><br>x &amp; y" in text


def test_share_bars():
    text = share_bars([("quilt", [("kept", 3), ("words", 1), ("image", 0)])], {"kept": "g", "words": "r", "image": "b"})
    assert "width: 75.000%; background: g" in text
    assert 'title="words: 1 (25.0 %)"' in text
    assert "image" not in text
    assert "width" not in share_bars([("empty", [("kept", 0)])], {"kept": "g"})
