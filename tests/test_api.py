"""The public names of the package."""

import inspect
from pathlib import Path

import pytest

import pallava


@pytest.mark.parametrize("name", pallava.__all__)
def test_a_public_name(name: str) -> None:
    found = getattr(pallava, name)
    assert callable(found)
    assert inspect.getdoc(found)
    if inspect.isfunction(found):
        annotated = found.__annotations__
        assert "return" in annotated
        assert set(inspect.signature(found).parameters) <= annotated.keys()


def test_the_page_names_them() -> None:
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    functions = {name for name in pallava.__all__ if name[0].islower()}
    assert {name for name in functions if name not in page} == set()


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = pallava.nothing
    assert set(pallava.__all__) <= set(dir(pallava))
