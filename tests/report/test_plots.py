import pytest

from pallava.report.plots import confusion_plot


def test_confusion_is_one_svg_in_the_colour_of_the_page():
    text = confusion_plot(["a", "b", "no class"], [[3, 1, 0], [0, 0, 0]])
    assert text.startswith("<svg")
    assert text.rstrip().endswith("</svg>")
    assert "currentColor" in text
    assert text.count("opacity: 0.75") == 1  # three of the four images of class a are right


def test_a_dollar_in_a_name_is_no_formula(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *_: pytest.fail("read as a formula"))
    assert confusion_plot(["$\\frac{$", "b"], [[3, 1], [0, 0]]).startswith("<svg")
