"""PLIP pretraining from a file of pairs to an encoder's folder, with open_clip's trainer in processes of its own."""

import argparse
import contextlib
import io
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError, check_at_least
from pallava.io.files import write_json
from pallava.io.launch import Launch
from pallava.io.processes import hold_lock, run_child
from pallava.model import clip
from pallava.open_clip_weights import made_with_quick_gelu
from pallava.pretraining.pairs import SHARDS, TABLE, count_steps, hash_pairs, write_pairs

DEFAULT_MODEL, DEFAULT_WEIGHTS = "ViT-B-16-quickgelu", "openai"
"""The published shape, ViT-B/16 at 224, from CLIP's weights."""
ENCODER = "encoder"
RUN = "run"
"""Name of the trainer's own folder in ours: logs, parameters, checkpoints."""
LATEST = Path(RUN, "checkpoints", "epoch_latest.pt")
_SETTINGS = "pretraining.json"
_PREPARED = ("pairs", SHARDS, ".")
_TAIL_LINES = 15
_OURS = ("train_data", "dataset_type", "csv_separator", "csv_img_key", "csv_caption_key", "logs", "name", "resume")
_FIRST = {"model": "--model-name", "pretrained": "--pretrained"}  # given before the `--`


class TrainerFailed(Exception):
    """The trainer ended with an error of its own, with exit code `code`; the message holds its last lines."""

    def __init__(self, code: int, tail: Sequence[str]) -> None:
        super().__init__(f"open_clip_train ended with exit code {code}; its last lines:\n" + "\n".join(tail))
        self.code = code


@dataclass(frozen=True)
class Pretraining:
    """Settings of a pretraining, as `pallava pretrain` explains them; `options` are passed on to open_clip_train."""

    pairs: Path
    image_folder: Path
    out: Path
    model: str = DEFAULT_MODEL
    pretrained: str = DEFAULT_WEIGHTS  # a tag or a file; empty for random ones
    shards: int = 0
    augment: bool = False
    options: tuple[str, ...] = ()


def pretrain(settings: Pretraining, launch: Launch, on_line: Callable[[str], object]) -> Path:
    """Train, or resume a training with the same settings after its last finished epoch; return the encoder's folder.

    The trainer's output goes to `on_line` line by line. A failure of its own is a `TrainerFailed`; a mistake in
    settings or data, or another run that trains in the folder now, is a `PallavaError`.
    """
    out = settings.out
    parsed = _parse(settings)
    content = _content(settings, launch)
    _check_folder(out, content)
    if (out / ENCODER / "config.json").is_file():
        on_line(f"{out / ENCODER} exists already\n")
        return out / ENCODER
    describe(settings.model, settings.pretrained, parsed)  # finds mistakes before all pictures are read
    out.mkdir(parents=True, exist_ok=True)
    lock = out / f".node_{launch.node}.lock"  # each node of a training has its own
    with hold_lock(lock, f"another run trains in '{out}'; wait for its end, or choose another folder"):
        num_pairs, left_out = write_pairs(settings.pairs, settings.image_folder, out, settings.shards)
        steps = count_steps(num_pairs, parsed, launch.processes, settings.shards)
        write_json(out / _SETTINGS, content)
        for reason, count in left_out.items():
            on_line(f"{count} pairs are left out: {reason}\n")
        batch = parsed.batch_size * launch.processes
        on_line(f"{num_pairs} pairs, {steps} steps in {parsed.epochs} epochs of {batch}\n")
        _run([*launch.command, *_words(settings, parsed, steps)], launch.environment, on_line)
    return out / ENCODER


def describe(model: str, pretrained: str, parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the description of a model (name or file) as the weights and the trainer's options change it.

    Refuse weights that do not exist, and whatever is not a plain CLIP ViT, which the encoder must be.
    """
    described: dict[str, Any] = json.loads(json.dumps(clip.read_description(model)))  # a deep copy
    name = Path(model).stem if model.endswith(".json") else model
    _check_weights(name, pretrained)
    if parsed.force_image_size:
        size = parsed.force_image_size
        described["vision_cfg"]["image_size"] = size[0] if len(size) == 1 else size
    if parsed.force_context_length:
        described["text_cfg"]["context_length"] = parsed.force_context_length
    if parsed.force_quick_gelu or made_with_quick_gelu(name, pretrained):
        described["quick_gelu"] = True
    if parsed.force_custom_text:
        described["custom_text"] = True
    if parsed.siglip:
        described["init_logit_bias"] = -10  # as the trainer does; without it the model has no bias to load
    clip.huggingface_vision_config(described)
    return described


def _check_weights(model: str, pretrained: str) -> None:
    import open_clip  # takes seconds

    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        raise PallavaError(
            f"weights {pretrained!r} of {model} must be a file or a tag of open_clip's ({', '.join(tags) or 'none'}); "
            "choose by --pretrained, `none` for random weights"
        )


def _parse(settings: Pretraining) -> argparse.Namespace:
    """Read the trainer's options as the trainer will, and refuse those that are ours to set."""
    from open_clip_train.params import parse_args

    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            parsed, bare = parse_args(list(settings.options)), parse_args([])
    except SystemExit:
        reason = output.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise PallavaError(f"open_clip_train does not understand the options after `--`: {reason}") from None
    for name in (*_OURS, *_FIRST):
        if getattr(parsed, name) != getattr(bare, name):
            flag = "--" + name.replace("_", "-")
            place = f"give {_FIRST[name]} before the `--`" if name in _FIRST else "pallava sets it; leave it out"
            raise PallavaError(f"{flag} cannot follow the `--`; {place}")
    check_at_least(1, epochs=parsed.epochs, batch_size=parsed.batch_size, accum_freq=parsed.accum_freq)
    check_at_least(0, shards=settings.shards, workers=parsed.workers)
    if parsed.image_resize_mode == "longest":
        raise PallavaError("--image-resize-mode must be shortest or squash, which an encoder can express, got longest")
    return parsed


def _content(settings: Pretraining, launch: Launch) -> dict[str, Any]:
    """Collect what a resumed training must have in common with its beginning."""
    return {
        "pairs": hash_pairs(settings.pairs),
        "image_folder": str(settings.image_folder.resolve()),
        "model": clip.read_description(settings.model) if settings.model.endswith(".json") else settings.model,
        "pretrained": settings.pretrained,
        "shards": settings.shards,
        "augment": settings.augment,
        "options": list(settings.options),
        "processes": launch.processes,
    }


def _check_folder(out: Path, content: dict[str, Any]) -> None:
    note = out / _SETTINGS
    if out.is_dir() and not note.is_file() and any(not path.name.startswith(_PREPARED) for path in out.iterdir()):
        raise PallavaError(f"'{out}' is not empty and not a training; choose another folder")
    if not (out / LATEST).is_file():
        return
    before = json.loads(note.read_text(encoding="utf-8"))
    other = [key for key in content if before.get(key) != content[key]]
    if other:
        changes = ", ".join(f"{key} was {before.get(key)!r} and is {content[key]!r}" for key in other)
        raise PallavaError(f"'{out}' holds a training with other settings ({changes}); remove it, or choose another")


def _words(settings: Pretraining, parsed: argparse.Namespace, steps: int) -> list[str]:
    """Return the arguments of the interpreter: ours first, so that the user's options have the last word."""
    out, name = settings.out.resolve(), settings.model
    ours = ["-m", "pallava.pretraining.trainer", str(out), *(["--augment"] if settings.augment else [])]
    if name.endswith(".json"):
        ours += ["--description", str(Path(name).resolve())]
        name = Path(name).stem
    ours += ["--", "--model", name, "--logs", str(out), "--name", RUN, "--resume", "latest"]
    if settings.pretrained:
        ours += ["--pretrained", settings.pretrained]
    # The last epoch's checkpoint alone, under its name only when complete: a run that is killed can resume.
    ours += ["--save-most-recent", "--save-frequency", "0"]
    # CLIP's own for a ViT, which open_clip guesses from the model's name; ten thousand steps of warm-up are too many
    # for most sets of pairs.
    ours += ["--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--warmup", str(min(10_000, steps // 10))]
    # Without these two, several processes take a smaller step than one does on the same batch.
    ours += ["--local-loss", "--gather-with-grad"]
    if parsed.lock_text:
        ours.append("--lock-text-freeze-layer-norm")  # the only way that open_clip can lock its text tower
    data, kind = str(out / TABLE), "csv"
    if settings.shards:
        data, kind = f"{out / SHARDS}/{{00000..{settings.shards - 1:05d}}}.tar", "webdataset"
    return [*ours, "--train-data", data, "--dataset-type", kind, *settings.options]


def _run(command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], object]) -> None:
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    errors: list[str] = []
    is_torchruns = False

    def read(line: str) -> None:
        nonlocal is_torchruns
        on_line(line)
        if line.startswith("error: "):
            errors.append(line.removeprefix("error: ").strip())
        is_torchruns = is_torchruns or "torch/distributed/elastic/" in line  # its own long report of the failure
        if line.strip() and not is_torchruns:
            tail.append(line.rstrip())

    code = run_child(command, read, environment)
    if code and errors:
        raise PallavaError(errors[0])
    if code:
        raise TrainerFailed(code, tail)
