"""What a model looks at in an image, drawn: overview, tiles, the attention to them, and where a text is true.

Letters in shapes: K layers with cross-attention, N tiles, T tokens of a tile.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from pallava.errors import PallavaError, check_paths
from pallava.evaluation.encoders.load import is_whole_clip, load_encoder, model_kind
from pallava.images import open_image
from pallava.io.files import whole_file
from pallava.model import PALLaVAProcessor
from pallava.model.attention import embed_patches, load_eyes, read_tiles
from pallava.model.clip import load_projected_vision
from pallava.model.weights import read_json
from pallava.report.look import Panel, draw_panels
from pallava.tiling import TileSpec, choose_canvas, denormalize, join_tiles, make_tiles

_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")
_FOOTNOTE = "For research only, not for diagnosis. Attention tells where the model read, not why it answers as it does."


def look(
    model: str | Path,
    image: str | Path,
    out: str | Path = "look.png",
    *,
    texts: Sequence[str] = (),
    clip: str | Path | None = None,
    model_name: str = "",
    trust_remote_code: bool = False,
) -> str | None:
    """Draw what a model looks at in an image.

    Args:
        model: Model folder, or a whole CLIP.
        image: Image file.
        out: Picture to write: PNG, PDF, SVG or JPEG by its suffix.
        texts: Texts whose places are shown; several are shown by what tells each from the others.
        clip: Whole CLIP that compares the texts; by default `model` itself or the CLIP that its encoder is part of.
        model_name: open_clip's name of the model of a checkpoint.
        trust_remote_code: Whether to import the module of a connector that does not come with pallava.

    Returns:
        The CLIP that compared the texts; None if no CLIP was found, so that the picture does not show the texts.

    Raises:
        PallavaError: The model, the image or the texts cannot be used.
    """
    check_paths(str(model), str(clip), out)
    is_model, out = model_kind(str(model)) == "pallava", Path(out)
    chosen = _choose_clip(model, clip, is_model, has_texts=bool(texts))
    if out.suffix.lower() not in _SUFFIXES:
        raise PallavaError(f"the picture's name must end in {', '.join(_SUFFIXES)}, got '{out}'")
    if texts and chosen and Path(chosen).is_file() and not model_name:
        raise PallavaError(f"the checkpoint '{chosen}' needs --model-name, such as --model-name ViT-B-16-quickgelu")
    if not texts and (clip or not is_model):
        exists = Path(str(chosen)).exists()
        raise PallavaError(f"the CLIP '{chosen}' needs --text" if exists else f"the model '{chosen}' does not exist")
    picture = open_image(image)
    panels = _attention_panels(model, picture, trust_remote_code) if is_model else []
    if chosen and texts:
        seen, similar = _similarity_panels(chosen, model_name, picture, texts)
        panels += similar if is_model else [*seen, *similar]
    out.parent.mkdir(parents=True, exist_ok=True)
    title = f"{Path(image).name}, seen by {Path(model).resolve().name}"
    with whole_file(out, "wb") as file:
        draw_panels(panels, file, title=title, footnote=_FOOTNOTE, file_format=out.suffix[1:])
    return chosen


def _choose_clip(model: str | Path, clip: str | Path | None, is_model: bool, *, has_texts: bool) -> str | None:
    """Return the given CLIP, the model itself, or the whole CLIP that the model's encoder is part of."""
    if clip or not is_model:
        return str(clip or model)
    if not has_texts:
        return None
    source = read_json(Path(model) / "config.json").get("encoder_source")
    # `pallava pretrain` writes the encoder into a folder inside that of the whole CLIP.
    places = [Path(source), Path(source).parent] if isinstance(source, str) and Path(source).is_dir() else []
    places.append(Path(model).resolve().parent / "plip")
    return next((str(place) for place in places if is_whole_clip(place)), None)


def _attention_panels(folder: str | Path, image: Image.Image, trust_remote_code: bool) -> list[Panel]:
    spec = PALLaVAProcessor.from_pretrained(folder).tile_spec
    pixels = make_tiles(image, spec)
    attention = read_tiles(load_eyes(folder, trust_remote_code=trust_remote_code), pixels)  # (K, T, N, T)
    num_layers, num_tokens = attention.shape[:2]
    overview, canvas = _seen_panels(image, spec, pixels, num_tokens)
    columns, rows = canvas.grid
    read = (100 * attention).mean((0, 1))  # (N, T), in percent
    per_tile = read.sum(-1).view(rows, columns).numpy()
    written = [[f"{share:.0f}%" for share in row] for row in per_tile]
    evenly = f"share of the attention; evenly it would be {1 / len(read):.0%}"
    mean = f"mean of {num_layers} layers, all heads and {num_tokens} overview tokens"
    plain = replace(canvas, unit="% of the attention")
    tiles = replace(plain, title="Tiles that were read", note=evenly, heat=per_tile, written=written)
    tokens = replace(plain, title="Tokens that were read", note=mean, heat=_on_canvas(read, columns), is_peaked=True)
    return [overview, canvas, tiles, tokens]


def _similarity_panels(
    clip: str, model_name: str, image: Image.Image, texts: Sequence[str]
) -> tuple[tuple[Panel, Panel], list[Panel]]:
    """Return overview and canvas of the CLIP, and the canvas under the similarity to each text."""
    tower, spec = load_projected_vision(clip, model_name)
    with torch.no_grad():
        directions = normalize(load_encoder(clip, model_name=model_name or None).encode_text([*texts]).float(), dim=-1)
    pixels = make_tiles(image, spec)
    similarity = embed_patches(tower, pixels[1:]) @ directions.T  # (N, T, texts)
    note = "likeness of each patch to the text"
    if len(texts) > 1:  # what a patch has in common with every text says nothing about this one
        similarity = similarity - similarity.mean(-1, keepdim=True)
        note = "likeness of each patch, beyond that to all texts"
    overview, canvas = _seen_panels(image, spec, pixels, similarity.shape[1])
    plain = replace(canvas, note=note, unit="cosine similarity", starts_at_zero=False)
    heats = [_on_canvas(values, canvas.grid[0]) for values in similarity.unbind(-1)]
    shown = [replace(plain, title=f'"{text}"', heat=heat) for text, heat in zip(texts, heats, strict=True)]
    return (overview, canvas), shown


def _seen_panels(image: Image.Image, spec: TileSpec, pixels: Tensor, num_tokens: int) -> tuple[Panel, Panel]:
    """Return the input of the encoder: the image's overview, and its canvas of tiles."""
    width, height = choose_canvas(image.size, spec.size)
    columns, rows = width // spec.size, height // spec.size
    pictures = denormalize(pixels, spec)
    overview, canvas = (part.permute(1, 2, 0).numpy() for part in (pictures[0], join_tiles(pictures[1:], columns)))
    size = f"{spec.size} x {spec.size} pixels"
    whole = Panel("Overview", f"all of the image in {size}, {num_tokens} tokens", overview)
    return whole, Panel("Canvas", f"{columns} x {rows} tiles of {size}", canvas, (columns, rows))


def _on_canvas(values: Tensor, columns: int) -> NDArray[np.floating]:
    """From (N, T) to (rows, columns) of tokens."""
    side = round(values.shape[1] ** 0.5)
    return join_tiles(values.reshape(-1, side, side), columns).numpy()
