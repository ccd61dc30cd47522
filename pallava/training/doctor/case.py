"""What is examined: a config with its parts, each opened once, and a training on so many cards."""

import json
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from xtuner.configs import cfgs_name_path

from pallava.config_files import DEEPSPEED_SETTINGS, check_syntax, find_config
from pallava.devices import device_dtype
from pallava.errors import PallavaError
from pallava.io.processes import default_num_workers
from pallava.model.encoders import outline_encoder
from pallava.model.loading import outline_llm
from pallava.training.doctor.memory import CARDS_GB, Memory, Parameters
from pallava.training.failures import user_message
from pallava.training.model import build
from pallava.training.recompute import Choice, choice_of

T = TypeVar("T")
_OUTLINED = {"load_llm": "llm", "from_pretrained": "llm", "load_encoder": "encoder", "load_plip": "encoder"}
_CARDS_PER_NODE = 8


@dataclass(frozen=True)
class DoctorSettings:
    """A training to examine.

    Args:
        config: File or name of the config.
        deepspeed: Name or JSON file of DeepSpeed's settings; None is the plain runner.
        num_processes: Number of processes, each with a card of its own, on all nodes.
        num_nodes: Number of nodes (None: one for every 8 processes).
        work_dir: Folder of logs and checkpoints (None: the config's, or ``work_dirs/<config>``).
        cfg_options: Settings to override, as ``KEY=VALUE``.
        card_gb: Memory of a card in GB (None: that of the card here, or else 80).
        peak_tflops: Peak of a card in the precision of the training; 989 is an H100 in bf16.
        share: Share of the peak that is reached, above 0 to 1.
    """

    config: str
    deepspeed: str | None = None
    num_processes: int = 1
    num_nodes: int | None = None
    work_dir: str | None = None
    cfg_options: tuple[str, ...] = ()
    card_gb: float | None = None
    peak_tflops: float = 989.0
    share: float = 0.4

    @property
    def processes_per_node(self) -> int:
        """Return the number of processes on a node."""
        return -(-self.num_processes // (self.num_nodes or -(-self.num_processes // _CARDS_PER_NODE)))


class NotChecked(Exception):
    """A check needs a part that could not be opened, which another check has reported."""


def once(opener: Callable[["Case"], T]) -> property:
    """Make a property that is computed once; where that failed, it raises `NotChecked` from then on."""
    name = opener.__name__

    def get(case: "Case") -> T:
        if name not in case.opened:
            case.opened[name] = NotChecked(f"not checked: needs the {name.replace('_', ' ')}")
            case.opened[name] = opener(case)
        if isinstance(case.opened[name], NotChecked):
            raise case.opened[name]
        return case.opened[name]

    return property(get, doc=opener.__doc__)


class Case:
    """A config and its parts.

    Raises:
        PallavaError: The config does not exist or cannot be read, or an option would change nothing.
    """

    def __init__(self, settings: DoctorSettings) -> None:
        self.settings = settings
        self.opened: dict[str, Any] = {}
        self.path = find_config(settings.config)
        check_syntax(self.path)
        self.config = _read_config(self.path, settings.cfg_options)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value under a full key of the config, such as ``model.llm``."""
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if hasattr(value, "get") else None
        return default if value is None else value

    @property
    def work_dir(self) -> Path:
        """Return the folder of checkpoints."""
        return Path(self.settings.work_dir or self.get("work_dir") or Path("work_dirs", self.path.stem))

    @once
    def deepspeed(self) -> dict[str, Any] | None:
        """Return DeepSpeed's settings, or None."""
        given = self.settings.deepspeed
        if given is None:
            return None
        path = Path(given if Path(given).is_file() else cfgs_name_path.get(given, given))
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PallavaError(f"--deepspeed '{given}' must be {DEEPSPEED_SETTINGS} ({error})") from None
        return found

    @property
    def num_workers(self) -> int:
        """Return the number of workers of each process's loader; where the config has None, by the cores here."""
        given = self.config.train_dataloader.get("num_workers", 0)
        return default_num_workers(self.settings.processes_per_node) if given is None else given

    @property
    def zero_stage(self) -> int:
        """Return the stage of ZeRO; 0 is without it."""
        return int((self.deepspeed or {}).get("zero_optimization", {}).get("stage", 0))

    @property
    def runner_name(self) -> str:
        """Return the way to train, as a plan of its memory names it."""
        return "plain" if self.deepspeed is None else f"ZeRO-{self.zero_stage}"

    @property
    def card_bytes(self) -> float:
        """Return the memory of a card: the given one, that of the smallest card here, or else the largest known."""
        if self.settings.card_gb is not None:
            return self.settings.card_gb * 1e9
        cards = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
        return min(cards, default=CARDS_GB[-1] * 1e9)

    @property
    def room(self) -> float:
        """Return the bytes that must hold what a training needs."""
        return self.card_bytes

    def need(self, plan: Memory) -> int:
        """Return the bytes of a plan that the room must hold."""
        return plan.total

    def fits(self, plan: Memory, share: float = 1.0) -> bool:
        """Return whether a plan fits in a share of the room."""
        return self.need(plan) <= share * self.room

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the training: that of the card here, else bf16, unless the config insists."""
        precision = self.get("optim_wrapper.precision", "auto")
        if self.settings.deepspeed is None and precision != "auto":
            return getattr(torch, str(precision))
        halves = [((self.deepspeed or {}).get(name) or {}).get("enabled", "auto") for name in ("fp16", "bf16")]
        if self.deepspeed and halves == [False, False]:
            return torch.float32
        return device_dtype() if torch.cuda.is_available() else torch.bfloat16

    @once
    def tokenizer(self) -> Any:
        """Return the data set's tokenizer."""
        return build({**self.config.train_dataloader.dataset.tokenizer, "local_files_only": True})

    @once
    def language_model(self) -> Any:
        """Return the language model without its weights."""
        return _outline(self.get("model.llm"), self.dtype, "llm")

    @once
    def visual_encoder(self) -> Any:
        """Return the visual encoder without its weights."""
        return _outline(self.get("model.visual_encoder"), self.dtype, "encoder")

    @once
    def model(self) -> Any:
        """Return the whole model on the meta device, as the config trains it."""
        return self.outline(self.choice)

    @property
    def choice(self) -> Choice:
        """Return the config's choice of activation checkpointing."""
        return choice_of(self.get("model", {}))

    def outline(self, choice: Choice) -> Any:
        """Build the whole model on the meta device, with a choice of activation checkpointing."""
        parts = {"llm": self.language_model, "visual_encoder": self.visual_encoder}
        for name in ("language_model", "visual_encoder"):  # LoRA changes a part in place
            del self.opened[name]
        options = {"pretrained_pth": None, "activation_checkpointing": choice, "use_activation_checkpointing": None}
        with torch.device("meta"):
            return build({**self.config.model, **parts, **options}).to(self.dtype)

    @once
    def parameters(self) -> Parameters:
        """Return the numbers of parameters."""
        return Parameters.of(self.model)

    @once
    def loader(self) -> Any:
        """Return the data loader of the config, without workers."""
        dataloader = self.config.train_dataloader.copy()
        dataloader.update(num_workers=0, pin_memory=False)
        for name in ("persistent_workers", "prefetch_factor"):
            dataloader.pop(name, None)
        dataloader.dataset = {**dataloader.dataset, "tokenizer": self.tokenizer}
        return Runner.build_dataloader(dataloader, seed=0)

    @once
    def first_batch(self) -> Any:
        """Return the first batch of the training."""
        return next(iter(self.loader))

    @once
    def longest_batch(self) -> Any:
        """Return the batch of the longest rows, or the first batch where the data set does not know lengths."""
        return self._batch_below(1)

    @once
    def half_batch(self) -> Any:
        """Return the batch of the longest rows of at most half the length of the longest; likewise."""
        return self._batch_below(0.5)

    def _batch_below(self, share: float) -> Any:
        dataset, size = self.loader.dataset, len(self.first_batch["data"]["input_ids"])
        lengths = [abs(length) for length in getattr(dataset, "modality_length", [])]
        bound = share * max(lengths, default=0)
        rows = [index for index, length in enumerate(lengths) if length <= bound]
        if not rows:
            return self.first_batch
        longest = sorted(rows, key=lambda index: -lengths[index])[:size]
        return self.loader.collate_fn([dataset[index] for index in longest])

    @property
    def num_epochs(self) -> float:
        """Return the number of passes over the data."""
        if epochs := self.get("train_cfg.max_epochs"):
            return float(epochs)
        return self.get("train_cfg.max_iters", 0) / max(self.num_batches, 1)

    @property
    def num_batches(self) -> int:
        """Return the number of batches of each process in an epoch."""
        batch_size = self.get("train_dataloader.batch_size", 1) * self.settings.num_processes
        return -(-len(self.loader.dataset) // batch_size)


def _read_config(path: Path, options: tuple[str, ...]) -> Config:
    parser = ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is a program
        reason = user_message(error) or f"{type(error).__name__}: {error}"
        raise PallavaError(f"config '{path}' cannot be read: {reason}") from None
    if options:
        config.merge_from_dict(parser.parse_args(["--cfg-options", *options]).cfg_options)
    return config


def _outline(part: Any, dtype: torch.dtype, kind: str) -> Any:
    """Build a part of the model without its weights, where it is opened by a function whose result is known."""
    arguments = dict(part or {})
    opener = arguments.pop("type", None)
    name = getattr(opener, "__name__", str(opener)).rpartition(".")[2]
    if _OUTLINED.get(name) != kind:
        raise PallavaError(
            f"the {'language model' if kind == 'llm' else 'encoder'} is opened by {name}, whose result is not known "
            "without its weights; open it by pallava's load_llm or load_encoder"
        )
    if kind == "encoder":
        return outline_encoder(**arguments)
    return outline_llm(**{**arguments, "torch_dtype": dtype})
