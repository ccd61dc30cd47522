"""Our code inside the loop of open_clip's trainer, in the four places where it does not suffice.

Each replaces one name that `open_clip_train` looks up at run time, and calls what stood there.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import open_clip_train.data as reading
import open_clip_train.main as training
import torch
import webdataset
from open_clip_train.data import CsvDataset
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import Normalize

from pallava.images import open_image
from pallava.transforms import PathologyAugmentation

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


def install(*, augmentation: PathologyAugmentation | None, on_cpu: bool, on_model: Callable[[Any], None]) -> None:
    """Put the hooks in place, once a process; `on_model` receives the model that the trainer built."""
    reading.CsvDataset = PairDataset
    decode = webdataset.decode
    webdataset.decode = lambda *_, **options: decode(read_picture, **options)
    if on_cpu:
        torch.nn.parallel.DistributedDataParallel = DataParallelOnCPU  # type: ignore[misc, assignment]
    create = training.create_model_and_transforms

    @functools.wraps(create)
    def create_and_extend(*arguments: Any, **options: Any) -> Any:
        # The trainer sets every existing logger to INFO, those inside PyTorch too: hundreds of lines.
        for name in logging.root.manager.loggerDict:
            if name.startswith(("torch", "transformers")):
                logging.getLogger(name).setLevel(logging.WARNING)
        model, train, val = create(*arguments, **options)
        on_model(model)
        if augmentation is not None:
            # On cropped and resized tensors, where it costs least and works with timm's augmentation too.
            place = next(number for number, step in enumerate(train.transforms) if isinstance(step, Normalize))
            train.transforms.insert(place, augmentation)
        return model, train, val

    training.create_model_and_transforms = create_and_extend
