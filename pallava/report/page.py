"""One HTML file that needs nothing beside it: styles and pictures are inside."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ground: #fbfafc; --card: #ffffff; --ink: #23202b; --soft: #6d6877;
  --line: #e6e2ec; --accent: #7c5cc4; --good: #1f8a5b; --bad: #c2415b; --note: #fff6e0; --note-ink: #6a4b00; }
@media (prefers-color-scheme: dark) { :root { --ground: #17151c; --card: #201d27; --ink: #ece9f2;
  --soft: #a39daf; --line: #36313f; --accent: #a98df0; --good: #55c795; --bad: #f0809a; --note: #37301c;
  --note-ink: #f1d999; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .8rem; }
p { max-width: 70ch; } .soft { color: var(--soft); }
.note { background: var(--note); color: var(--note-ink); padding: .75rem 1rem; border-radius: 10px;
  max-width: none; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: .9rem;
  margin: 1.5rem 0; }
.figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1rem; }
.figure b { display: block; font-size: 1.75rem; line-height: 1.2; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.figure span { font-size: .85rem; color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); gap: 1rem; }
.grid + .scroll, .scroll + .card, .scroll + .grid, .card + .scroll { margin-top: 1.4rem; }
.card h3 { font-size: 1rem; margin: 0 0 .6rem; } .card svg { width: 100%; height: auto; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
.pictures { display: flex; gap: 1rem; align-items: flex-start; flex-wrap: wrap; }
.pictures figure { margin: 0; } figcaption { font-size: .75rem; color: var(--soft); margin-bottom: .25rem; }
img { display: block; border-radius: 4px; } .tiles { display: grid; gap: 3px; width: max-content; }
ul.answers { list-style: none; margin: .9rem 0 0; padding: 0; font-size: .92rem; }
ul.answers li { padding: .35rem 0; border-top: 1px solid var(--line); display: flex; gap: .75rem;
  justify-content: space-between; }
ul.answers span + span { text-align: right; max-width: 60%; } .right { color: var(--good); }
.wrong { color: var(--bad); }
.scroll { overflow-x: auto; } .scroll + .scroll { margin-top: 1.8rem; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, .text th, .text td { text-align: left; } th { color: var(--soft); font-weight: 600; }
.bars { margin: 0 0 1.5rem; } .bars h3 { font-size: .95rem; margin: .9rem 0 .3rem; }
.bar { display: flex; height: 1.4rem; border-radius: 6px; overflow: hidden; background: var(--line);
  } .bar i { display: block; min-width: 1px; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .85rem; color: var(--soft); }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .8rem; }
.sheet figure { margin: 0; min-width: 0; } .sheet figcaption { overflow-wrap: anywhere; line-height: 1.35; }
.sheet .shown { display: flex; gap: 3px; height: 120px; margin-bottom: .3rem; }
.sheet .shown > * { flex: 1; min-width: 0; height: 100%; object-fit: cover; background: var(--line);
  border: 1px solid var(--line); border-radius: 4px; }
.sheet .none { display: grid; place-items: center; font-size: .75rem; color: var(--soft); }
.sheet b { color: var(--ink); font-weight: 600; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""


@dataclass(frozen=True)
class Cell:
    """A place on a contact sheet.

    Attributes:
        images: Thumbnails, side by side; None where there is no picture to show.
        title: In bold below.
        text: Below the title.
    """

    images: Sequence[Image.Image | None]
    title: str
    text: str = ""


@dataclass(frozen=True)
class Answered:
    """A question with the model's answer and the truth."""

    question: str
    answer: str
    truth: str
    is_right: bool


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts that are HTML already; the title is plain text."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


def heading(text: str, below: str = "", *, level: int = 2) -> str:
    """A heading and a paragraph below it, both plain text."""
    paragraph = f'<p class="soft">{html.escape(below)}</p>' if below else ""
    return f"<h{level}>{html.escape(text)}</h{level}>{paragraph}"


def note(text: str) -> str:
    """A warning that stands out."""
    return f'<p class="note" role="note">{html.escape(text)}</p>'


def figures(values: Sequence[tuple[str, str]]) -> str:
    """Large numbers with a line each: (number, what it is)."""
    boxes = (f'<div class="figure"><b>{html.escape(n)}</b><span>{html.escape(t)}</span></div>' for n, t in values)
    return f'<div class="figures">{"".join(boxes)}</div>'


def grid(cards: Sequence[str], *, is_wide: bool = False) -> str:
    """Cards side by side where there is room; wide ones in two columns at most."""
    return f'<div class="grid{" wide" * is_wide}">{"".join(cards)}</div>'


def card(title: str, content: str) -> str:
    """A box; the title is plain text, the content HTML."""
    return f'<section class="card"><h3>{html.escape(title)}</h3>{content}</section>'


def picture(image: Image.Image, *, width: int, caption: str = "") -> str:
    """An image inside the page, `width` pixels wide on the screen."""
    data = _encoded(image, format="PNG", optimize=True)
    above = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    height = round(width * image.height / image.width)
    return (
        f'<figure>{above}<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{html.escape(caption)}"></figure>'
    )


def _encoded(image: Image.Image, **options: Any) -> str:
    out = io.BytesIO()
    image.save(out, **options)
    return base64.b64encode(out.getvalue()).decode()


def picture_with_tiles(image: Image.Image, overview: Image.Image, tiles: Sequence[Image.Image], columns: int) -> str:
    """An image, what the encoder sees of all of it, and the tiles of its canvas."""
    squares = "".join(picture(tile, width=56) for tile in tiles)
    shown = f'<div class="tiles" style="grid-template-columns: repeat({columns}, 56px)">{squares}</div>'
    size = f"{image.width} x {image.height}"
    return (
        f'<div class="pictures">{picture(image, width=200, caption=f"image, {size}")}'
        f"{picture(overview, width=56, caption='overview')}"
        f"<figure><figcaption>{len(tiles)} tiles</figcaption>{shown}</figure></div>"
    )


def answers(answered: Sequence[Answered]) -> str:
    """Questions with answers, marked right or wrong in words and colour."""
    items = "".join(
        f"<li><span>{html.escape(a.question)}</span>"
        + (
            f'<span class="right">✓ {html.escape(a.answer)}</span></li>'
            if a.is_right
            else f'<span class="wrong">✗ {html.escape(a.answer)} (true: {html.escape(a.truth)})</span></li>'
        )
        for a in answered
    )
    return f'<ul class="answers">{items}</ul>'


def contact_sheet(cells: Sequence[Cell]) -> str:
    """Many small pictures in rows, as JPEG inside the page."""
    return f'<div class="sheet">{"".join(map(_cell, cells))}</div>'


def _cell(cell: Cell) -> str:
    shown = "".join(
        '<span class="none">no picture</span>'
        if image is None
        else f'<img src="data:image/jpeg;base64,{_encoded(image, format="JPEG", quality=80)}" alt="">'
        for image in cell.images
    )
    below = f"<b>{html.escape(cell.title)}</b><br>{html.escape(cell.text)}"
    return f'<figure><div class="shown">{shown}</div><figcaption>{below}</figcaption></figure>'


def share_bars(rows: Sequence[tuple[str, Sequence[tuple[str, int]]]], colours: Mapping[str, str]) -> str:
    """A bar a row, cut into parts by their share of it, with one key for all.

    Args:
        rows: Name of each row, and its parts: what it is, and its count.
        colours: Of each part, as CSS has them.
    """
    named = {part for _, parts in rows for part, count in parts if count}
    key = "".join(
        f'<span><i style="background: {colour}"></i>{html.escape(part)}</span>'
        for part, colour in colours.items()
        if part in named
    )
    bars = "".join(_bar(name, parts, colours) for name, parts in rows)
    return f'<div class="bars"><div class="key">{key}</div>{bars}</div>'


def _bar(name: str, parts: Sequence[tuple[str, int]], colours: Mapping[str, str]) -> str:
    total = max(sum(count for _, count in parts), 1)
    cut = "".join(
        f'<i style="width: {100 * count / total:.3f}%; background: {colours[part]}" '
        f'title="{html.escape(part)}: {count:,} ({100 * count / total:.1f} %)"></i>'
        for part, count in parts
        if count
    )
    return f'<h3>{html.escape(name)}</h3><div class="bar">{cut}</div>'
