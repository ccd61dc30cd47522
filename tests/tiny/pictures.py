"""Files of every odd kind that users have, and what a person sees in each."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = [(8, 8), (8, 40), (40, 8), (5, 3), (3, 1), (1, 1), (2000, 8), (8, 1500)]


def noise(width: int, height: int) -> Image.Image:
    """Squares of four pixels, each of a colour of its own."""
    coarse = np.random.default_rng(1).integers(0, 256, ((height + 3) // 4, (width + 3) // 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def write_odd_pictures(folder: Path) -> dict[Path, Image.Image]:
    """Write them; return the path of each with the same picture in plain RGB."""
    image, grey = noise(40, 24), noise(40, 24).convert("L")
    shown: dict[Path, Image.Image] = {}
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str, stored: Image.Image, seen: Image.Image, **options: object) -> None:
        stored.save(folder / name, **options)
        shown[folder / name] = seen

    is_hidden = np.arange(24)[:, None] < np.full(40, 12)
    alpha = np.dstack([np.asarray(image), np.where(is_hidden, 0, 255).astype(np.uint8)])
    on_white = np.where(is_hidden[..., None], 255, np.asarray(image)).astype(np.uint8)
    save("alpha.png", Image.fromarray(alpha), Image.fromarray(on_white))
    deep = Image.fromarray(np.asarray(grey, dtype=np.uint16) * 257)
    save("deep.tif", deep, grey.convert("RGB"))
    save("deep.png", deep, grey.convert("RGB"))
    cmyk, buffer = image.convert("CMYK"), io.BytesIO()
    cmyk.save(buffer, "JPEG", quality=95)
    save("cmyk.jpg", cmyk, Image.open(buffer).convert("RGB"), quality=95)
    palette = image.quantize(64)
    save("palette.png", palette, palette.convert("RGB"))
    exif = Image.Exif()
    exif[0x0112] = 6
    save("turned.png", image.transpose(Image.Transpose.ROTATE_90), image, exif=exif)
    for width, height in SIZES:
        save(f"{width}x{height}.png", noise(width, height), noise(width, height))
    return shown


def write_plain_pictures(shown: dict[Path, Image.Image], folder: Path) -> list[Path]:
    """Write what is seen as plain RGB, under the same names but for the ending."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{path.stem}{path.suffix[1:]}.bmp" for path in shown]
    for path, seen in zip(paths, shown.values(), strict=True):
        seen.convert("RGB").save(path)
    return paths


def break_pictures(folder: Path) -> dict[str, str]:
    """Write files that are not pictures in eight ways; return words of the reason by the name of each."""
    whole = {}
    for kind, ending in (("PNG", "png"), ("JPEG", "jpg")):
        buffer = io.BytesIO()
        noise(64, 48).save(buffer, kind)
        whole[ending] = buffer.getvalue()
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(whole["png"][: len(whole["png"]) // 2])
    (folder / "cut.jpg").write_bytes(whole["jpg"][: len(whole["jpg"]) // 2])
    (folder / "page.png").write_text("<html>404 Not Found</html>")
    (folder / "folder.png").mkdir()
    with zipfile.ZipFile(folder / "archive.png", "w") as archive:
        archive.writestr("image.png", whole["png"])
    (folder / "bomb.png").write_bytes(whole["png"][:8] + chunk + whole["png"][33:])
    return {
        "missing.png": "no such file",
        "empty.png": "the file is empty",
        "cut.png": "damaged or unsupported",
        "cut.jpg": "damaged or unsupported",
        "page.png": "not a picture of a known format",
        "folder.png": "it is a folder or a device, not a file",
        "archive.png": "not a picture of a known format",
        "bomb.png": "is too large",
    }
