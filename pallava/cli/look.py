"""Draws what a model looks at in an image: overview, tiles, and which of them the connector's attention read.

With --text also where on the image the text is true, patch by patch, for which a whole CLIP is needed: MODEL itself, or
--clip; of several texts it is shown what tells each from the others. Attention tells where the model read, not why it
answers as it does. For research only, not for diagnosis.

Example:
  pallava look pa-llava --image slide.png
  pallava look pa-llava --image slide.png --clip plip --text "an H&E image of necrosis" --text "stroma"
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pallava.errors import PallavaError

if TYPE_CHECKING:
    from pallava.report.look import Panel

_ENDINGS = (".png", ".pdf", ".svg", ".jpg")
_FOOTNOTE = "For research only, not for diagnosis. Attention tells where the model read, not why it answers as it does."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", help="folder that `pallava convert` wrote, or a whole CLIP")
    parser.add_argument("--image", required=True, help="the image")
    parser.add_argument("--text", action="append", default=[], help="where is this? repeatable; needs a CLIP")
    parser.add_argument(
        "--clip", help="a CLIP with its text tower: a folder of `pallava pretrain`, Hugging Face's, ..."
    )
    parser.add_argument("--model-name", default="", help="of an open_clip checkpoint: open_clip's name of its model")
    parser.add_argument("--out", type=Path, default=Path("look.png"), help="picture to write (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Draws."""
    from pallava.evaluation.encoders import model_kind

    is_whole = model_kind(options.model) == "pallava"
    clip = options.clip or (None if is_whole else options.model)
    _check(options, is_whole, clip)
    from pallava.images import open_image
    from pallava.report.look import draw_panels

    image = open_image(options.image)
    panels = _attention_panels(options.model, image) if is_whole else []
    if options.text:
        found = _similarity_panels(str(clip), options.model_name, image, options.text)
        panels += found if is_whole else [replace(found[0], title="Canvas", note="and its tiles", heat=None), *found]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    name = Path(options.model).resolve().name
    draw_panels(panels, options.out, title=f"{Path(options.image).name}, seen by {name}", footnote=_FOOTNOTE)
    print(f"wrote {options.out}")
    return 0


def _check(options: argparse.Namespace, is_whole: bool, clip: str | None) -> None:
    if options.out.suffix.lower() not in _ENDINGS:
        raise PallavaError(f"--out {options.out}: the picture's name must end in {', '.join(_ENDINGS)}.")
    if options.text and clip is None:
        raise PallavaError(
            f"--text needs a CLIP with its text tower, which {options.model} has not: give --clip, the folder of the "
            "encoder's own pretraining."
        )
    if options.text and Path(str(clip)).is_file() and not options.model_name:
        raise PallavaError(
            f"{clip} does not say what model it holds: name it by --model-name, such as ViT-B-16-quickgelu."
        )
    if not options.text and (options.clip or not is_whole):
        raise PallavaError(
            f"Nothing to look for with {clip}: give --text."
            if Path(str(clip)).exists()
            else f"No model at {clip}: the path does not exist."
        )


def _attention_panels(folder: str, image: Any) -> list["Panel"]:
    from pallava.model import PALLaVAProcessor
    from pallava.model.attention import load_eyes, read_tiles
    from pallava.report.look import Panel
    from pallava.tiling import denormalize, join_tiles, make_tiles

    spec = PALLaVAProcessor.from_pretrained(folder).tile_spec
    pixels = make_tiles(image, spec)
    attention = read_tiles(load_eyes(folder), pixels)  # (K, T, N, T)
    pictures, (columns, rows) = denormalize(pixels, spec), _grid(image, spec)
    overview, canvas = (part.permute(1, 2, 0).numpy() for part in (pictures[0], join_tiles(pictures[1:], columns)))
    size, num_tokens = f"{spec.size} x {spec.size} pixels", attention.shape[1]
    shown = Panel("Canvas", f"{columns} x {rows} tiles of {size}", canvas, (columns, rows))
    return [
        Panel("Overview", f"all of the image in {size}, {num_tokens} tokens", overview),
        shown,
        *_heat_panels(shown, 100 * attention),
    ]


def _heat_panels(canvas: "Panel", attention: Any) -> list["Panel"]:
    """The canvas under the attention (K, T, N, T), in percent, by tile and by token."""
    from pallava.tiling import join_tiles

    columns, rows = canvas.grid
    read = attention.mean((0, 1))  # (N, T)
    side = round(read.shape[1] ** 0.5)
    per_tile = read.sum(-1).view(rows, columns).numpy()
    return [
        replace(
            canvas,
            title="Tiles that were read",
            note=f"share of the attention; evenly it would be {1 / len(read):.0%}",
            heat=per_tile,
            written=[[f"{share:.0f}%" for share in row] for row in per_tile],
            unit="% of the attention",
        ),
        replace(
            canvas,
            title="Tokens that were read",
            note=f"mean of {attention.shape[0]} layers, all heads and {attention.shape[1]} overview tokens",
            heat=join_tiles(read.view(-1, side, side), columns).numpy(),
            unit="% of the attention",
            is_peaked=True,
        ),
    ]


def _similarity_panels(clip: str, model_name: str, image: Any, texts: list[str]) -> list["Panel"]:
    import torch
    from torch.nn.functional import normalize

    from pallava.evaluation.encoders import load_encoder
    from pallava.model.clip_files import load_projected_vision, projected_tile_spec
    from pallava.model.similarity import embed_patches
    from pallava.report.look import Panel
    from pallava.tiling import denormalize, join_tiles, make_tiles

    tower = load_projected_vision(clip, model_name)
    spec = projected_tile_spec(clip, tower)
    with torch.no_grad():
        directions = normalize(load_encoder(clip, model_name=model_name or None).encode_text(texts).float(), dim=-1)
    pixels = make_tiles(image, spec)[1:]
    likeness = embed_patches(tower, pixels) @ directions.T  # (N, T, texts)
    note = "likeness of each patch to the text"
    if len(texts) > 1:  # what a patch has in common with every text says nothing of this one
        likeness, note = likeness - likeness.mean(-1, keepdim=True), "likeness of each patch, beyond that to all texts"
    columns, rows = _grid(image, spec)
    canvas = join_tiles(denormalize(pixels, spec), columns).permute(1, 2, 0).numpy()
    side = round(likeness.shape[1] ** 0.5)
    return [
        Panel(
            f'"{text}"',
            note,
            canvas,
            (columns, rows),
            join_tiles(likeness[..., number].view(-1, side, side), columns).numpy(),
            unit="cosine similarity",
            starts_at_zero=False,
        )
        for number, text in enumerate(texts)
    ]


def _grid(image: Any, spec: Any) -> tuple[int, int]:
    from pallava.tiling import choose_canvas

    width, height = choose_canvas(image.size, spec.size)
    return width // spec.size, height // spec.size
