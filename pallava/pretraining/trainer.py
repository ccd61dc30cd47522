"""One process of the training: open_clip's own trainer with our code in five places, and the export after it.

Started by `pallava.pretraining.run`, through torchrun for several processes. Each hook replaces one name that
`open_clip_train` looks up at run time, and calls what stood there.
"""

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import open_clip_train.data as reading
import open_clip_train.main as training
import torch
import webdataset
from open_clip_train.data import CsvDataset
from open_clip_train.params import parse_args
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import Normalize
from transformers import CLIPImageProcessor

from pallava.devices import find_device
from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.io.files import whole_file, whole_folder, write_json
from pallava.io.processes import end_with_parent
from pallava.model import clip
from pallava.model.weights import read_weights
from pallava.open_clip_weights import read_wrapped_keys
from pallava.pretraining.run import ENCODER, LATEST, describe
from pallava.transforms import PathologyAugmentation

_USER_ERROR = 2
_RESAMPLE = {"bicubic": 3, "bilinear": 2, "random": 3}  # Pillow's numbers
_PICTURES = {f".{name}" for name in ("jpg", "jpeg", "png", "webp")}


class PairDataset(CsvDataset):
    """open_clip's table of pairs, whose pictures are read as we read every picture.

    Its own reader is Pillow's `Image.open` with a conversion to RGB: transparency turns black, 16 bits are clipped,
    and a picture that a camera turned stays turned.
    """

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the pixels (3, P, P) and the token ids (T,) of a pair."""
        pixels = self.transforms(open_image(str(self.images[index])))
        return pixels, self.tokenize([str(self.captions[index])])[0]


class DataParallelOnCPU(DistributedDataParallel):
    """The trainer passes ``device_ids=[device]`` always, which PyTorch refuses for modules on a CPU."""

    def __init__(self, module: torch.nn.Module, device_ids: object = None, **options: Any) -> None:
        super().__init__(module, **options)


def read_picture(key: str, data: bytes) -> Any:
    """Decode a member of a shard by our reader, in place of WebDataset's; None for what is not a picture."""
    return open_image(data) if key.lower() in _PICTURES else None


def install_hooks(*, augmentation: PathologyAugmentation | None, on_cpu: bool, on_model: Callable[[Any], None]) -> None:
    """Put the hooks in place, once a process; `on_model` receives the model that the trainer built."""
    reading.CsvDataset = PairDataset
    decode = webdataset.decode
    webdataset.decode = lambda *_, **options: decode(read_picture, **options)
    if on_cpu:
        torch.nn.parallel.DistributedDataParallel = DataParallelOnCPU  # type: ignore[misc, assignment]
    read_wrapped_keys()
    create = training.create_model_and_transforms

    @functools.wraps(create)
    def create_and_extend(*arguments: Any, **options: Any) -> Any:
        # The trainer sets every existing logger to INFO, those inside PyTorch too: hundreds of lines.
        for name in logging.root.manager.loggerDict:
            if name.startswith(("torch", "transformers")):
                logging.getLogger(name).setLevel(logging.WARNING)
        try:
            model, train, val = create(*arguments, **options)
        except Exception as error:  # whatever a damaged file, or one of another model, makes torch raise
            if len(arguments) < 2 or not Path(str(arguments[1])).is_file():
                raise
            reason = " ".join(str(error).split())[:150]
            raise PallavaError(f"weights '{arguments[1]}' cannot be loaded into {arguments[0]}: {reason}") from None
        on_model(model)
        if augmentation is not None:
            # On cropped and resized tensors, where it costs least and works with timm's augmentation too.
            place = next(number for number, step in enumerate(train.transforms) if isinstance(step, Normalize))
            train.transforms.insert(place, augmentation)
        return model, train, val

    training.create_model_and_transforms = create_and_extend


def main(words: Sequence[str]) -> int:
    """Train and export by ``OUT [--description FILE] [--augment] --`` and the trainer's arguments; return the code."""
    end_with_parent()
    split = list(words).index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--description", type=Path)
    parser.add_argument("--augment", action="store_true")
    options = parser.parse_args(words[:split])
    try:
        return train(options.out, words[split + 1 :], options.description, augment=options.augment)
    except PallavaError as error:
        sys.stderr.write(f"error: {error}\n")
        return _USER_ERROR


def train(out: Path, arguments: Sequence[str], description: Path | None, *, augment: bool) -> int:
    """Run open_clip's trainer in this process and return its exit code; the first process exports.

    `description` is a JSON file of a model that open_clip does not know; the others are as in `Pretraining`.

    Raises:
        PallavaError: The model is not a CLIP ViT, the weights to start from are unknown, a picture cannot be read, or
            the device is not available.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # The last of an option given twice counts: these are defaults.
    words = ["--device", device, "--precision", "amp" if device == "cuda" else "fp32", *arguments]
    parsed = parse_args(words)
    find_device(parsed.device)
    described = describe(str(description or parsed.model), parsed.pretrained, parsed)
    if described.get("quick_gelu"):
        words.append("--force-quick-gelu")
    if description is not None:
        open_clip.add_model_config(description)
    built: list[Any] = []
    install_hooks(
        augmentation=PathologyAugmentation() if augment else None,
        on_cpu=parsed.device == "cpu",
        on_model=lambda model: built.append(open_clip.get_model_preprocess_cfg(model)),
    )
    code = training.main(words) or 0
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if code == 0 and is_first:
        export(out, described, built[0])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 1 if code else 0


def export(out: Path, description: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> None:
    """Write the last checkpoint's whole model, ``open_clip.json`` and ``open_clip.pt``, and at last ``encoder/``.

    The preprocessing is open_clip's: ``size``, ``mean``, ``std``, ``interpolation`` and ``resize_mode``.
    """
    state = read_weights(out / LATEST)
    write_json(out / clip.DESCRIPTION, description)
    with whole_file(out / clip.WEIGHTS, "wb") as file:
        torch.save(state, file)
    encoder = clip.open_clip_vision(description, state, out / LATEST)
    with whole_folder(out / ENCODER, replace=True) as folder:
        encoder.save_pretrained(folder)
        image_processor(preprocessing).save_pretrained(folder)


def image_processor(preprocessing: Mapping[str, Any]) -> CLIPImageProcessor:
    """Return open_clip's preprocessing as an image processor of transformers."""
    size = preprocessing["size"]
    return clip.make_image_processor(
        size if isinstance(size, int) else size[0],
        squash=preprocessing["resize_mode"] == "squash",
        resample=_RESAMPLE[preprocessing["interpolation"]],
        image_mean=list(preprocessing["mean"]),
        image_std=list(preprocessing["std"]),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
