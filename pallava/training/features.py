"""Tokens of the frozen encoder, kept on disk: an image is decoded, tiled and encoded once, not once an epoch.

A data worker looks an image up and reads its tokens in the place of its pixels. The model encodes the others, and a
thread writes their tokens. Letters in shapes: N tiles of an image, P side of a tile, T tokens of a tile, D encoder
width.
"""

import shutil
import stat
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import PIL
import torch
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from safetensors.torch import load, save
from torch import Tensor, nn

from pallava.errors import PallavaError
from pallava.io.files import report_os_errors, walk_files, write_bytes
from pallava.io.hashing import hash_bytes, hash_file, hash_json, hash_text
from pallava.tiling import PUBLISHED_CANVASES, TileSpec

_VERSION = 1  # to be raised where an image, unchanged, gets other tiles or tokens
_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
_GB = 10**9
_DIGEST = 64  # characters of the hash before an entry's content
_BACKLOG = 16  # images that wait to be written
# What a configuration says of where it came from, not of the encoder.
_ORIGIN = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}


class FeatureCache:
    """A folder of encoder tokens, by the content of the image, its tiling and the encoder.

    Several runs, processes and nodes may share it. An entry is one file, written whole and checked when it is read: a
    damaged one counts as missing. A full folder is read, and nothing is added or removed.

    Args:
        folder: Where the entries are; made if it is missing. None: nothing is cached.
        max_gb: Largest size of the folder in GB (10^9 bytes); of a disk that has less, half of what is free. Runs
            that fill it at the same time each keep to what was left when they started.
        dtype: Type on disk: "float32", "bfloat16", or "auto" for the one that the encoder computes in, which changes
            no number. With another one, tokens are rounded to it whether they are cached or not, so that a loss does
            not depend on what is in the cache.

    Raises:
        PallavaError: The size or the type is not one of these.
    """

    def __init__(self, folder: str | Path | None = None, max_gb: float = 100, dtype: str = "auto") -> None:
        if dtype not in _DTYPES or not max_gb > 0:
            raise PallavaError(
                f"a feature cache must have a size above 0 GB and one of the types {', '.join(_DTYPES)}, got {max_gb} "
                f"and {dtype!r}"
            )
        self.folder = None if folder is None else Path(folder)
        self.max_bytes, self.dtype = int(max_gb * _GB), _DTYPES[dtype]
        self.entries: Path | None = None  # of one encoder and tiling; None until they are known

    def open(self, encoder: nn.Module, *, layer: int, spec: TileSpec, precision: str) -> None:
        """Choose the entries of an encoder, a layer of its hidden states, a tiling and the precision it computes in."""
        if self.folder is None:
            return
        name = hash_json(
            {
                "versions": [_VERSION, PIL.__version__],  # another Pillow may decode and resize differently
                "encoder": hash_encoder(encoder),
                "layer": layer,
                "tiling": [asdict(spec), PUBLISHED_CANVASES],
                "precision": precision,
                "dtype": self.dtype,
            }
        )
        self.entries = self.folder / name[:32]

    def find(self, image: Path) -> Tensor | str:
        """Return the tokens (1+N, T, D) of an image, or the name that they will have, if they are not here.

        The name is empty while the cache is closed, and of a file that cannot be read, which `open_image` reports.
        """
        try:
            if self.entries is None or not stat.S_ISREG(image.stat().st_mode):
                return ""
            name = hash_file(image)
        except OSError:
            return ""
        tokens = _read(self.entries / name[:2] / name[2:])
        return name if tokens is None else tokens


class FeatureWriter:
    """Writes a process's share of what a cache still has room for, in a thread."""

    def __init__(self, cache: FeatureCache, max_bytes: int) -> None:
        assert cache.entries is not None
        self.dtype, self._entries, self._left = cache.dtype, cache.entries, max_bytes
        self._thread, self._waiting = ThreadPoolExecutor(1), deque[Future[None]]()

    def put(self, name: str, tokens: Tensor) -> None:
        """Write the tokens (1+N, T, D) of an image, soon; a disk that refuses them does not end the training."""
        if not name or self._left <= 0:
            return
        self._waiting.append(self._thread.submit(self._write, self._entries / name[:2] / name[2:], tokens.detach()))
        if len(self._waiting) > _BACKLOG:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Wait for the disk."""
        self._thread.shutdown()

    def _write(self, path: Path, tokens: Tensor) -> None:
        if path.exists():  # another row is about the same image
            return
        content = save({"tokens": tokens.cpu().contiguous()})
        self._left -= _DIGEST + len(content)
        if self._left < 0:
            print_log("the feature cache is full: images beyond it are encoded in each epoch", "current")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, hash_bytes(content).encode() + content, durable=False)
        except OSError as error:
            self._left = 0
            print_log(f"no more features are cached, '{path}' cannot be written: {error.strerror}", "current")


def hash_encoder(encoder: nn.Module) -> str:
    """Return a hash of an encoder's weights, their types and device, and its configuration."""
    tensors = (
        f"{name} {list(tensor.shape)} {tensor.dtype} {tensor.device.type} {hash_bytes(_bytes_of(tensor))}"
        for name, tensor in sorted(encoder.state_dict().items())
    )
    config: Any = encoder.config
    settings = {key: value for key, value in config.to_dict().items() if key not in _ORIGIN}
    return hash_text(hash_json(settings), *tensors)


@contextmanager
def connected_features(dataset: Any, model: Any, optim_wrapper: Any = None) -> Iterator[None]:
    """Let a `PALLaVADataset` read its cache and a `PALLaVAModel` fill it within the context.

    Raises:
        PallavaError: The encoder is trained, or the folder cannot be made.
    """
    cache = getattr(dataset, "features", None)
    if not isinstance(cache, FeatureCache) or cache.folder is None:
        yield
        return
    model = getattr(model, "module", model)
    if any(parameter.requires_grad for parameter in model.visual_encoder.parameters()):
        raise PallavaError(
            f"feature_cache must be None while the visual encoder is trained, got '{cache.folder}'; unset it, or set "
            "freeze_visual_encoder=True"
        )
    # Without DeepSpeed, the weights alone do not say in which type a mixed precision computes.
    precision = str(getattr(optim_wrapper, "cast_dtype", None))
    layer = model.network.config.vision_feature_layer
    cache.open(model.visual_encoder, layer=layer, spec=dataset.tile_spec, precision=precision)
    model.features = FeatureWriter(cache, _room(cache) // get_world_size())
    try:
        yield
    finally:
        model.features.close()
        model.features = cache.entries = None


def collate_features(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the `features` of rows.

    Returns:
        `cached_tokens` (sum of 1+N of the cached images, T, D), and `feature_names`, which has for each image of the
        batch the name that its tokens will have, or None if they are cached. Nothing where no cache is open.
    """
    features = list(chain.from_iterable(row.get("features", ()) for row in rows))
    if not any(isinstance(each, Tensor) or each for each in features):
        return {}
    cached = [each for each in features if isinstance(each, Tensor)]
    names = [None if isinstance(each, Tensor) else each for each in features]
    return {"cached_tokens": torch.cat(cached) if cached else torch.zeros(0), "feature_names": names}


def complete_tokens(network: Any, data: Mapping[str, Any], writer: FeatureWriter | None) -> Tensor:
    """Return the encoder's tokens (sum of 1+N, T, D) of all images of a batch that has `collate_features`.

    Those that are not cached are encoded, and handed to the writer.
    """
    names, counts = data["feature_names"], data["tiles_per_image"].tolist()
    missing = [count for name, count in zip(names, counts, strict=True) if name is not None]
    present = [count for name, count in zip(names, counts, strict=True) if name is None]
    encoded: Iterator[Tensor] = iter(())
    if missing:
        tokens = network.encode_tiles(data["pixel_values"])
        encoded = iter(tokens.to((writer and writer.dtype) or tokens.dtype).split(missing))
    cached = iter(data["cached_tokens"].split(present) if present else ())
    images = [next(cached if name is None else encoded) for name in names]
    for name, image in zip(names, images, strict=True):
        if writer and name:
            writer.put(name, image)
    return torch.cat([image.to(network.device, network.connector.dtype) for image in images])


def _read(path: Path) -> Tensor | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, content = content[:_DIGEST], content[_DIGEST:]
    if hash_bytes(content).encode() == digest:
        return load(content)["tokens"]
    with suppress(OSError):
        path.unlink()  # to be written anew
    return None


def _room(cache: FeatureCache) -> int:
    """Return how many bytes may be added: counted once, since nothing but the training's own processes adds any."""
    assert cache.folder is not None
    with report_os_errors(f"cannot use the feature cache '{cache.folder}'"):
        cache.folder.mkdir(parents=True, exist_ok=True)
        used, free = sum(map(_size, walk_files(cache.folder))), shutil.disk_usage(cache.folder).free
    room = max(0, min(cache.max_bytes - used, free // 2))  # checkpoints need the disk, too
    print_log(f"feature cache: {used / _GB:.1f} GB in '{cache.folder}', room for {room / _GB:.1f} GB more", "current")
    return room


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):  # what another run was writing has its name by now
        return path.stat().st_size
    return 0


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
