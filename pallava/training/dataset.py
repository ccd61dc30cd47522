"""Training rows with their tiles, and their batches."""

import errno
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.dist import barrier, is_distributed
from mmengine.logging import print_log
from pyarrow.compute import list_value_length
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase
from xtuner.registry import BUILDER, MAP_FUNC

from pallava.data.tokenize import Prepared, prepare
from pallava.data.training_row import EncodingSettings
from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.model.connectors import ConnectorConfig
from pallava.model.encoders import count_tokens
from pallava.model.loading import check_reopenable_part
from pallava.model.processor import PALLaVAProcessor
from pallava.prompts import IGNORE_INDEX, PromptTemplate
from pallava.tiling import MAX_TILES, cut_tiles
from pallava.training.features import FeatureCache, collate_features
from pallava.training.model import PALLaVAModel, build, connector_settings

T = TypeVar("T")

ON_BAD_IMAGE = ("raise", "skip")
_NUM_KEPT = 8  # images whose tiles a worker keeps, for rows near each other about one image; 1.4 MB each at most
_TRIES = 100  # rows that are looked at beyond the budget before a replacement is given up
_PLACE = re.compile(r"^(cannot \w+ )?image '.*?'(: | )")  # the beginning of an ImageError
# What the system says of a file that will stay as it is; anything else may be better in a resumed run.
_LASTING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}


@BUILDER.register_module()
class PALLaVADataset(Dataset[dict[str, Any]]):
    """Image-text rows: tokenized ahead, while images are opened and tiled on access.

    In distributed training one process of each node tokenizes, and the others read what it kept.

    Args:
        data_path: A JSONL or JSON file, a folder of such files, or the output of ``pallava data prepare``.
        image_folder: Folder that `image` in a row is relative to.
        tokenizer: The language model's tokenizer, or its config.
        image_processor: The encoder's image processor, or its config.
        prompt_template: A name in `pallava.prompts.TEMPLATES`, "tokenizer" for its own chat template, a template, or
            its dictionary (None: that of the tokenizer's family).
        context_length: Largest number of tokens of a sample, visual ones included.
        num_visual_tokens: Largest number of visual tokens of an image (default: computed from the connector and the
            encoder that `image_processor` names by its source).
        connector: The config of the model's connector, which decides whether tiles are cut and how many visual tokens
            an image has (default: the published one).
        num_proc: Number of processes that tokenize.
        cache_dir: Folder of tokenized rows (default: ``pallava`` in the cache of `datasets`).
        on_bad_image: ``"raise"`` ends the training at an image that cannot be opened; ``"skip"`` takes the next row
            that opens in the place of its row. Which one that is depends on the row alone, so a resumed run repeats it.
        max_bad_images: Largest share of the rows, 0 to 1, that `BadImagesHook` lets be replaced; one row always may.
        features: The cache of the encoder's tokens, or its config, which `TrainLoop` opens for the model's encoder;
            with a folder, an image that has an entry is not decoded.

    Raises:
        PallavaError: The data are missing, broken or prepared with other settings, the number of visual tokens is not
            the encoder's, or missing where no encoder is named, the parts do not fit each other or a model folder, or
            a setting is unknown.
    """

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path,
        tokenizer: Mapping[str, Any] | PreTrainedTokenizerBase,
        image_processor: Mapping[str, Any] | BaseImageProcessor,
        prompt_template: str | Mapping[str, Any] | PromptTemplate | None = None,
        context_length: int = 2048,
        num_visual_tokens: int | None = None,
        num_proc: int = 4,
        cache_dir: str | Path | None = None,
        connector: Mapping[str, Any] | None = None,
        on_bad_image: str = "raise",
        max_bad_images: float = 0.001,
        features: Mapping[str, Any] | FeatureCache | None = None,
    ) -> None:
        if on_bad_image not in ON_BAD_IMAGE or not 0 <= max_bad_images <= 1:
            raise PallavaError(
                f"on_bad_image must be raise or skip, and max_bad_images a share from 0 to 1, got {on_bad_image!r} and "
                f"{max_bad_images}"
            )
        self.on_bad_image, self.max_bad_images = on_bad_image, max_bad_images
        self.features: FeatureCache = build(features) or FeatureCache()
        connects = connector_settings(connector)
        num_visual_tokens = _count_visual_tokens(image_processor, num_visual_tokens, connects)
        tokenizer, image_processor = build(tokenizer), build(image_processor)
        check_reopenable_part(tokenizer, "tokenizer")
        processor = PALLaVAProcessor(image_processor, tokenizer, prompt_template, reads_tiles=connects.reads_tiles)
        self.tile_spec = processor.tile_spec
        settings = EncodingSettings.make(tokenizer, prompt_template, context_length, num_visual_tokens)
        prepared: Prepared = _one_per_node_first(
            lambda: prepare(data_path, tokenizer, settings, num_workers=num_proc, cache_dir=cache_dir)
        )
        print_log(f"{data_path}: {prepared.describe()}", logger="current")
        self.rows = prepared.rows
        self.image_folder = Path(image_folder)
        self._kept: dict[Path, torch.Tensor] = {}

    @functools.cached_property
    def modality_length(self) -> list[int]:
        """Return the length of each row in tokens, visual ones included; negative for rows without image."""
        columns = self.rows.with_format("arrow")
        lengths, num_images = columns["length"][:].to_numpy(), list_value_length(columns["images"][:]).to_numpy()
        return np.where(num_images > 0, lengths, -lengths).tolist()  # a list, which xtuner's sampler insists on

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def bad_image_budget(self) -> int:
        """Return the largest number of rows that may be replaced."""
        return max(1, int(self.max_bad_images * len(self) + 1e-6))  # 0.29 * 100 is 28.999999999999996

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row, or with `on_bad_image` "skip" the next one that can be opened.

        That is its `id`, `input_ids` and `labels` (lists, with -200 for each image), `pixel_values` (sum of 1+N, 3, P,
        P) with the tiles of all its images in bytes, the `normalization` (2, 3) that the model applies to them,
        `tiles_per_image` (list), and the bad rows that it has `replaced` (list of `index`, `id`, `image` and `reason`).
        Its `features` are what `FeatureCache.find` returned for each image; those with tokens have no pixels.

        Raises:
            PallavaError: An image cannot be opened, or those of too many rows after another cannot.
        """
        replaced: list[dict[str, Any]] = []
        while len(replaced) < min(len(self), self.bad_image_budget + _TRIES):
            place = (index + len(replaced)) % len(self)
            row = self.rows[place]
            try:
                return {**self._encode(row), "replaced": replaced}
            except _BadImage as bad:
                if self.on_bad_image == "raise" or not bad.is_lasting:
                    # A loader makes the error anew from the text alone.
                    raise PallavaError(f"row '{row['id']}', image '{bad.path}': {bad}") from bad.__cause__
                image = str(bad.path.relative_to(self.image_folder))
                replaced.append({"index": place, "id": row["id"], "image": image, "reason": _PLACE.sub("", str(bad))})
        first = replaced[0]
        raise PallavaError(
            f"the images of {len(replaced)} rows after another cannot be opened, from row '{first['id']}', "
            f"'{first['image']}', on ({first['reason']}); correct image_folder ('{self.image_folder}') or the images"
        )

    def _encode(self, row: dict[str, Any]) -> dict[str, Any]:
        paths = [self.image_folder / name for name in row["images"]]
        features = [self.features.find(path) for path in paths]
        size = self.tile_spec.size
        nothing = torch.zeros(0, 3, size, size, dtype=torch.uint8)
        found = zip(paths, features, strict=True)
        tiles = [self._tiles(path) if isinstance(each, str) else nothing for path, each in found]
        return {
            "id": row["id"],
            "input_ids": row["input_ids"],
            "labels": row["labels"],
            "pixel_values": torch.cat([nothing, *tiles]),
            "normalization": self.tile_spec.normalization,
            "tiles_per_image": [len(image) or len(each) for image, each in zip(tiles, features, strict=True)],
            "features": features,
        }

    def _tiles(self, path: Path) -> torch.Tensor:
        if path not in self._kept:
            try:
                tiles = cut_tiles(open_image(path), self.tile_spec)
            except PallavaError as error:
                raise _BadImage(path, error) from error
            if len(self._kept) == _NUM_KEPT:
                del self._kept[next(iter(self._kept))]  # the oldest
            self._kept[path] = tiles
        return self._kept[path]


class _BadImage(PallavaError):
    def __init__(self, path: Path, error: PallavaError) -> None:
        super().__init__(str(error))
        cause = error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        self.path = path
        self.is_lasting = not isinstance(cause, MemoryError) and (number is None or number in _LASTING)


@MAP_FUNC.register_module()
def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pad rows of `PALLaVADataset` on the right and join their tiles; return "data" and "data_samples".

    The data are `input_ids` (0 is padding), `attention_mask` and `labels` (-100 is padding), each (B, L),
    `pixel_values` (sum of 1+N, 3, P, P), not padded, and `tiles_per_image` (I,), both in the order of the images over
    the batch and empty where it has none; for pixels in bytes their `normalization` (2, 3); and with a feature cache
    those of `collate_features`. The samples are what the model does not read: the rows' `ids` and the bad rows that
    they have `replaced`, both lists over the batch.
    """
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    counts = list(chain.from_iterable(row["tiles_per_image"] for row in rows))
    data = {
        "input_ids": pad_sequence(ids, batch_first=True),  # (B, L)
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
        "tiles_per_image": torch.tensor(counts, dtype=torch.long),
        **collate_features(rows),
    }
    if data["pixel_values"].dtype == torch.uint8:
        data["normalization"] = rows[0]["normalization"]
    samples = {
        "ids": [row["id"] for row in rows],
        "replaced": list(chain.from_iterable(row["replaced"] for row in rows)),
    }
    return {"data": data, "data_samples": samples}


def check_connectors(config: Mapping[str, Any]) -> None:
    """Check that the rows of a config's `PALLaVADataset` have the tiles and visual tokens that the model takes.

    The config names the connector twice; where a user's function builds it, only the function knows these.

    Raises:
        PallavaError: The two differ in whether tiles are read, or in the number of visual tokens.
    """
    model, dataset = config.get("model") or {}, (config.get("train_dataloader") or {}).get("dataset") or {}
    kinds = [part.get("type") for part in (model, dataset)]
    names = [getattr(kind, "__name__", str(kind)).rpartition(".")[2] for kind in kinds]  # imported, or by its path
    parts = [part.get("connector") for part in (model, dataset)]
    if names != [PALLaVAModel.__name__, PALLaVADataset.__name__] or parts[0] == parts[1]:
        return
    of_model, of_dataset = map(connector_settings, parts)
    differences = []
    if of_model.reads_tiles != of_dataset.reads_tiles:
        differences.append(f"reads_tiles is {of_model.reads_tiles} and {of_dataset.reads_tiles}")
    processor = dataset.get("image_processor")
    is_plain = all(type(each).num_visual_tokens is ConnectorConfig.num_visual_tokens for each in (of_model, of_dataset))
    if not is_plain and isinstance(processor, Mapping) and "source" in processor:
        counts = [_count_visual_tokens(processor, None, connector) for connector in (of_model, of_dataset)]
        if counts[0] != counts[1]:
            differences.append(f"an image has {counts[0]} and {counts[1]} visual tokens")
    if differences:
        raise PallavaError(
            "model.connector and train_dataloader.dataset.connector must agree, got two connectors of which "
            f"{'; '.join(differences)}; set both alike"
        )


def _count_visual_tokens(image_processor: Any, given: int | None, connector: ConnectorConfig) -> int:
    """Count by the encoder that the image processor names, before hours are spent on tokenizing."""
    if not isinstance(image_processor, Mapping) or "source" not in image_processor:
        if given is None:
            raise PallavaError("num_visual_tokens must be set (such as to 196) if image_processor has no source")
        return given
    encoder = {key: value for key, value in image_processor.items() if key != "type"}
    found = connector.num_visual_tokens(count_tokens(**encoder), MAX_TILES)
    if given not in (None, found):
        raise PallavaError(
            f"num_visual_tokens must be {found} for the visual encoder '{encoder['source']}', got {given}; None "
            "computes it"
        )
    return found


def _one_per_node_first(work: Callable[[], T]) -> T:
    """Run work that leaves a result on disk, on the first process of each node and then on the others.

    A failure of the first is raised after the others are released, which then fail by themselves in the same way.
    """
    # Every launcher sets the first, which under Slurm may be 0 for all (`slurm`). mmengine's own get_local_rank needs a
    # process group that its runner does not make.
    numbers = {os.environ.get(name, "0") for name in ("LOCAL_RANK", "SLURM_LOCALID")}
    is_first = not is_distributed() or numbers == {"0"}
    try:
        result = work() if is_first else None
    except Exception:
        barrier()
        raise
    barrier()
    return result if is_first else work()  # type: ignore[return-value]
