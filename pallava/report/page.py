"""One HTML file that needs nothing beside it: styles and pictures are inside.

Each function renders one block of ``page.html.jinja``. Texts are escaped; parameters called `content` are HTML already.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

_ENVIRONMENT = Environment(loader=PackageLoader("pallava.report", "."), autoescape=True, undefined=StrictUndefined)


@dataclass(frozen=True)
class Cell:
    """A place on a contact sheet: thumbnails (None for one that cannot be shown), a bold title and a text below."""

    images: Sequence[Image.Image | None]
    title: str
    text: str = ""


@dataclass(frozen=True)
class ShownAnswer:
    """A question with the model's answer and the truth."""

    question: str
    answer: str
    truth: str
    is_right: bool


def render(block: str, **values: Any) -> str:
    """Render one block (a macro) of the page's template with all of its arguments."""
    macro = getattr(_ENVIRONMENT.get_template("page.html.jinja").module, block)
    return str(macro(**values))


def page(title: str, content: Sequence[str]) -> str:
    """Render a whole page."""
    return render("page", title=title, content="".join(content))


def heading(text: str, below: str = "", *, level: int = 2) -> str:
    """Render a heading and a paragraph below it."""
    return render("heading", text=text, below=below, level=level)


def note(text: str) -> str:
    """Render a warning that stands out."""
    return render("note", text=text)


def footer(text: str) -> str:
    """Render the last lines of a page."""
    return render("footer", text=text)


def figures(values: Sequence[tuple[str, str]]) -> str:
    """Render large numbers with a line each: (number, what it is)."""
    return render("figures", values=values)


def grid(content: Sequence[str], *, is_wide: bool = False) -> str:
    """Render cards side by side as far as the width allows; wide ones in two columns at most."""
    return render("grid", content="".join(content), is_wide=is_wide)


def card(title: str, content: str) -> str:
    """Render a box with a title."""
    return render("card", title=title, content=content)


def picture(image: Image.Image, *, width: int, caption: str = "") -> str:
    """Render an image inside the page, `width` pixels wide on the screen."""
    height = round(width * image.height / image.width)
    data = _encode(image, format="PNG", optimize=True)
    return render("picture", data=data, width=width, height=height, caption=caption)


def picture_with_tiles(image: Image.Image, overview: Image.Image, tiles: Sequence[Image.Image], columns: int) -> str:
    """Render an image, the overview that the encoder sees, and the tiles of its canvas."""
    return render(
        "picture_with_tiles",
        image=picture(image, width=200, caption=f"image, {image.width} x {image.height}"),
        overview=picture(overview, width=56, caption="overview"),
        tiles=[picture(tile, width=56) for tile in tiles],
        columns=columns,
    )


def answers(answered: Sequence[ShownAnswer]) -> str:
    """Render questions with answers, marked right or wrong in words and colour."""
    return render("answers", answered=answered)


def contact_sheet(cells: Sequence[Cell]) -> str:
    """Render many small pictures in rows, as JPEG inside the page."""
    shown = [
        {"images": [image and _encode(image, format="JPEG", quality=80) for image in cell.images]}
        | {"title": cell.title, "text": cell.text}
        for cell in cells
    ]
    return render("contact_sheet", cells=shown)


def share_bars(rows: Sequence[tuple[str, Sequence[tuple[str, int]]]], colours: Mapping[str, str]) -> str:
    """Render a bar for each row (name; name and count of each part), cut by share, with one key of CSS colours."""
    present = {part for _, parts in rows for part, count in parts if count}
    bars = []
    for row, parts in rows:
        total = max(sum(count for _, count in parts), 1)
        shown = [
            {"name": part, "count": count, "percent": 100 * count / total, "colour": colours[part]}
            for part, count in parts
            if count
        ]
        bars.append((row, shown))
    return render("share_bars", key=[pair for pair in colours.items() if pair[0] in present], bars=bars)


def _encode(image: Image.Image, **options: Any) -> str:
    out = io.BytesIO()
    image.save(out, **options)
    return base64.b64encode(out.getvalue()).decode()
