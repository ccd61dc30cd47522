"""Draws what a model looks at in an image: overview, tiles, and which of them the connector's attention read.

With --text also where on the image the text is true, patch by patch; of several texts it is shown what tells each from
the others. That takes a whole CLIP: MODEL itself, or the one that the model's encoder is part of, found where `pallava
convert` took the encoder from or as plip beside MODEL, or --clip. Attention tells where the model read, not why it
answers as it does. For research only, not for diagnosis.

Example:
  pallava look pa-llava --image slide.png --text "an H&E image of necrosis" --text "an H&E image of stroma"
  pallava look pa-llava --image slide.png --text "necrosis" --clip plip
"""

import argparse
import sys
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
        "--clip",
        help="a CLIP with its text tower, such as a folder of `pallava pretrain` (default: the encoder's own)",
    )
    parser.add_argument("--model-name", default="", help="of an open_clip checkpoint: open_clip's name of its model")
    parser.add_argument("--out", type=Path, default=Path("look.png"), help="picture to write (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Draws."""
    from pallava.evaluation.encoders.load import model_kind

    is_whole = model_kind(options.model) == "pallava"
    clip = _choose_clip(options, is_whole)
    _check(options, is_whole, clip)
    _tell(options, clip)
    from pallava.images import open_image
    from pallava.report.look import draw_panels

    image = open_image(options.image)
    panels = _attention_panels(options.model, image) if is_whole else []
    if clip and options.text:
        seen, found = _similarity_panels(clip, options.model_name, image, options.text)
        panels += found if is_whole else [*seen, *found]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    name = Path(options.model).resolve().name
    draw_panels(panels, options.out, title=f"{Path(options.image).name}, seen by {name}", footnote=_FOOTNOTE)
    print(f"wrote {options.out}")
    return 0


def _choose_clip(options: argparse.Namespace, is_whole: bool) -> str | None:
    """What compares image and text: --clip, MODEL itself, or the whole CLIP that the model's encoder is part of."""
    if options.clip or not is_whole:
        return str(options.clip or options.model)
    if not options.text:
        return None
    from pallava.evaluation.encoders.load import is_whole_clip
    from pallava.model.weights import read_json

    model = Path(options.model)
    source = read_json(model / "config.json").get("encoder_source")
    # `pallava pretrain` writes the encoder into a folder inside that of the whole CLIP.
    places = [Path(source), Path(source).parent] if isinstance(source, str) and Path(source).is_dir() else []
    places.append(model.resolve().parent / "plip")
    return next((str(place) for place in places if is_whole_clip(place)), None)


def _check(options: argparse.Namespace, is_whole: bool, clip: str | None) -> None:
    if options.out.suffix.lower() not in _ENDINGS:
        raise PallavaError(f"--out {options.out}: the picture's name must end in {', '.join(_ENDINGS)}.")
    if options.text and clip and Path(clip).is_file() and not options.model_name:
        raise PallavaError(
            f"{clip} does not say what model it holds: name it by --model-name, such as ViT-B-16-quickgelu."
        )
    if not options.text and (options.clip or not is_whole):
        raise PallavaError(
            f"Nothing to look for with {clip}: give --text."
            if Path(str(clip)).exists()
            else f"No model at {clip}: the path does not exist."
        )


def _tell(options: argparse.Namespace, clip: str | None) -> None:
    """Says what compares the texts where the user did not, and on stderr that nothing does."""
    if options.text and clip is None:
        print(
            f"note: {options.model} has no text tower, and no whole CLIP lies where its encoder came from, so the "
            "picture will not show where the text is true; give one, such as --clip plip",
            file=sys.stderr,
        )
    elif clip not in (None, options.clip, options.model):
        print(f"texts are compared by the CLIP in {clip}")


def _attention_panels(folder: str, image: Any) -> list["Panel"]:
    from pallava.model import PALLaVAProcessor
    from pallava.model.attention import load_eyes, read_tiles
    from pallava.tiling import make_tiles

    spec = PALLaVAProcessor.from_pretrained(folder).tile_spec
    pixels = make_tiles(image, spec)
    attention = read_tiles(load_eyes(folder), pixels)  # (K, T, N, T)
    overview, canvas = _seen_panels(image, spec, pixels, attention.shape[1])
    return [overview, canvas, *_heat_panels(canvas, 100 * attention)]


def _seen_panels(image: Any, spec: Any, pixels: Any, num_tokens: int) -> tuple["Panel", "Panel"]:
    """What the encoder is given of an image: its overview, and its canvas of tiles."""
    from pallava.report.look import Panel
    from pallava.tiling import denormalize, join_tiles

    pictures, (columns, rows) = denormalize(pixels, spec), _grid(image, spec)
    overview, canvas = (part.permute(1, 2, 0).numpy() for part in (pictures[0], join_tiles(pictures[1:], columns)))
    size = f"{spec.size} x {spec.size} pixels"
    return (
        Panel("Overview", f"all of the image in {size}, {num_tokens} tokens", overview),
        Panel("Canvas", f"{columns} x {rows} tiles of {size}", canvas, (columns, rows)),
    )


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


def _similarity_panels(
    clip: str, model_name: str, image: Any, texts: list[str]
) -> tuple[tuple["Panel", "Panel"], list["Panel"]]:
    """Overview and canvas as the CLIP is given them, and the canvas under the likeness to each text."""
    import torch
    from torch.nn.functional import normalize

    from pallava.evaluation.encoders.load import load_encoder
    from pallava.model.attention import embed_patches
    from pallava.model.clip import load_projected_vision, projected_tile_spec
    from pallava.tiling import join_tiles, make_tiles

    tower = load_projected_vision(clip, model_name)
    spec = projected_tile_spec(clip, tower)
    with torch.no_grad():
        directions = normalize(load_encoder(clip, model_name=model_name or None).encode_text(texts).float(), dim=-1)
    pixels = make_tiles(image, spec)
    likeness = embed_patches(tower, pixels[1:]) @ directions.T  # (N, T, texts)
    note = "likeness of each patch to the text"
    if len(texts) > 1:  # what a patch has in common with every text says nothing of this one
        likeness, note = likeness - likeness.mean(-1, keepdim=True), "likeness of each patch, beyond that to all texts"
    seen = _seen_panels(image, spec, pixels, likeness.shape[1])
    canvas, side = seen[1], round(likeness.shape[1] ** 0.5)
    return seen, [
        replace(
            canvas,
            title=f'"{text}"',
            note=note,
            heat=join_tiles(likeness[..., number].view(-1, side, side), canvas.grid[0]).numpy(),
            unit="cosine similarity",
            starts_at_zero=False,
        )
        for number, text in enumerate(texts)
    ]


def _grid(image: Any, spec: Any) -> tuple[int, int]:
    from pallava.tiling import choose_canvas

    width, height = choose_canvas(image.size, spec.size)
    return width // spec.size, height // spec.size
