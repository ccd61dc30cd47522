import pytest

from pallava.report.plots import confidence_plot, confusion_plot


def test_confusion_is_one_svg_in_the_colour_of_the_page():
    text = confusion_plot(["a", "b", "no class"], [[3, 1, 0], [0, 0, 0]])
    assert text.startswith("<svg")
    assert text.rstrip().endswith("</svg>")
    assert "currentColor" in text
    assert text.count("opacity: 0.75") == 1  # three of the four images of class a are right


@pytest.mark.parametrize("points", [[(1.0, 0.25)], [(0.5, 0.0), (1.0, 0.25)]])
def test_confidence_is_one_svg_of_two_plots(points: list[tuple[float, float]]):
    text = confidence_plot(
        {"model": points, "random order": [(0.1, 0.25), (1.0, 0.25)]}, [(0.7, 0.5, 1), (0.9, 1.0, 3)]
    )
    assert text.count("<svg") == 1
    assert text.count('<g id="axes_') == 2


def test_a_dollar_in_a_name_is_no_formula(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *_: pytest.fail("read as a formula"))
    assert confusion_plot(["$\\frac{$", "b"], [[3, 1], [0, 0]]).startswith("<svg")
