import pytest
from jinja2 import UndefinedError
from PIL import Image

from pallava.report.page import _ENVIRONMENT
from pallava.report.plots import _edges, _running_mean, histogram, line_plot
from pallava.report.table import Table, estimate, number, percent, share

PAGE = """{% extends "report/page.html.jinja" %}{% import "report/blocks.html.jinja" as blocks %}
{% block title %}{{ title }}{% endblock %}"""


def render(content: str, title: str = "", **values: object) -> str:
    """A page as its template makes it."""
    template = _ENVIRONMENT.from_string(f"{PAGE}{{% block content %}}{content}{{% endblock %}}")
    return template.render(title=title, **values)


def test_a_page_needs_nothing_beside_it_and_escapes_text():
    content = "{{ blocks.note(note) }}<h3>{{ name }}</h3>{{ blocks.picture(image, 8, caption) }}"
    image = Image.new("RGB", (4, 2))
    text = render(content, "a < b", note="1 < 2", name="<x>", image=image, caption="<script>y</script>")
    assert "http" not in text.replace("http-equiv", "")
    assert "<title>a &lt; b</title>" in text
    assert "1 &lt; 2" in text
    assert "&lt;x&gt;" in text
    assert text.count("&lt;script&gt;y&lt;/script&gt;") == 2  # below the picture and in its place
    assert "<script" not in text
    assert 'width="8" height="4"' in text
    assert text.count("data:image/png;base64,") == 1


def test_a_value_that_is_missing_is_a_mistake():
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        render("{{ name }}")


def test_answers_say_right_and_wrong_without_colour():
    text = render("{{ blocks.answer('Q1', 'yes', 'yes', true) }}{{ blocks.answer('Q2', '<no>', 'yes', false) }}")
    assert "✓ yes" in text
    assert "✗ &lt;no&gt; (true: yes)" in text


def html_of(table: Table) -> str:
    return render("{{ blocks.table(table) }}", table=table).partition("<main>")[2]


def test_one_table_renders_to_text_html_and_markdown():
    table = Table("title <1>", ["x", "y"], [["a & b", "1"], ["c|d", "<2"]])
    assert table.to_text().splitlines() == ["title <1>", "x       y", "a & b   1", "c|d    <2"]
    html = html_of(table)
    assert "<caption>title &lt;1&gt;</caption>" in html
    assert "<td>a &amp; b</td><td>1</td>" in html
    assert table.to_markdown().splitlines() == [
        "title &lt;1>",
        "",
        "| x | y |",
        "| --- | --- |",
        "| a & b | 1 |",
        r"| c\|d | &lt;2 |",
    ]


def test_a_table_refuses_rows_of_another_length():
    with pytest.raises(ValueError, match="3 cells, but the header has 2"):
        Table("", ["x", "y"], [["1", "2", "3"]])


def test_percent():
    assert percent(0.8333) == "83.3 %"
    assert percent(float("nan")) == "–"


def test_shares_and_numbers():
    assert (share(1, 4), share(0, 0)) == ("25.0 %", "–")
    assert (number(999), number(1234567)) == ("999", "1\u202f234\u202f567")


def test_estimate():
    nan = float("nan")
    assert estimate({"value": 0.8333, "low": 0.801, "high": 0.86, "count": 9}) == "83.3 % [80.1, 86.0]"
    assert estimate({"value": nan, "low": 0.1, "high": 0.2}) == "–"
    assert estimate({"value": None, "low": None, "high": None}) == "–"
    assert estimate({"value": 0.5, "low": None, "high": nan}) == "50.0 % [–, –]"


def test_plot_is_one_svg():
    assert _running_mean([0, 2, 4], 2) == [0, 1, 3]
    text = line_plot([(1, 2.0), (2, 1.0)], x_label="step", y_label="loss", smooth=2)
    assert text.startswith("<svg")
    assert text.rstrip().endswith("</svg>")


def test_the_same_plot_is_the_same_text():
    first, second = (line_plot([(1, 2.0), (2, 1.0)], x_label="x", y_label="y") for _ in range(2))
    assert first == second


def test_a_dollar_in_a_name_is_no_formula(monkeypatch):
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *_: pytest.fail("read as a formula"))
    series = {"$\\frac{$": {1: 2}, "b": {2: 1}}
    assert histogram(series, x_label="words").startswith("<svg")


def test_text_of_a_table_is_set_to_the_left():
    assert '<table class="text">' in html_of(Table("", ["x"], [["a"]], is_text=True))
    assert "class" not in html_of(Table("", ["x"], [["a"]])).replace('class="scroll"', "")


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
