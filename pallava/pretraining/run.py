"""PLIP pretraining from a file of pairs to an encoder's folder, with open_clip's trainer in processes of its own."""

import argparse
import contextlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.io.locks import hold_lock
from pallava.io.processes import run_child
from pallava.pretraining.pairs import SHARDS, TABLE, hash_of, left_out, write_pairs
from pallava.pretraining.steps import count_steps

DEFAULT_MODEL, DEFAULT_WEIGHTS = "ViT-B-16-quickgelu", "openai"
"""The published shape, ViT-B/16 at 224, from CLIP's weights."""
RUN = "run"
_SETTINGS = "pretraining.json"
_LATEST = Path(RUN, "checkpoints", "epoch_latest.pt")
_PREPARED = ("pairs", SHARDS, ".")
_TAIL_LINES = 15
_OURS = ("train_data", "dataset_type", "csv_separator", "csv_img_key", "csv_caption_key", "logs", "name", "resume")
_FIRST = ("model", "pretrained")  # given before the `--`


class TrainerFailed(Exception):
    """The trainer ended with an error of its own; the message holds its last lines.

    Attributes:
        code: Its exit code.
    """

    def __init__(self, code: int, tail: Sequence[str]) -> None:
        super().__init__(f"open_clip_train ended with exit code {code}; its last lines:\n" + "\n".join(tail))
        self.code = code


@dataclass(frozen=True)
class Pretraining:
    """What to train on what.

    Attributes:
        pairs: A JSON list or JSONL of ``{"image", "caption"}``.
        image_folder: What the image names are relative to.
        out: Folder of the training, and of the encoder at the end.
        model: open_clip's name of a CLIP ViT, or a JSON file that describes one.
        pretrained: Weights to start from, a tag or a file; empty for random ones.
        shards: Number of WebDataset shards to write and to train from; 0 trains from a table of files.
        augment: Turns, flips and changes the stains of each picture at random.
        options: Passed on to open_clip_train.
    """

    pairs: Path
    image_folder: Path
    out: Path
    model: str = DEFAULT_MODEL
    pretrained: str = DEFAULT_WEIGHTS
    shards: int = 0
    augment: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """How the processes are started.

    Attributes:
        command: What starts a Python module: an interpreter, or torchrun.
        environment: Of the processes.
        processes: How many there are, on all nodes.
        node: Number of this one.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    processes: int = 1
    node: int = 0


def pretrain(settings: Pretraining, launch: Launch, on_line: Callable[[str], object]) -> Path:
    """Trains, or goes on from the last epoch that an interrupted training with the same settings has finished.

    Args:
        settings: What to train.
        launch: How to start the trainer.
        on_line: Gets what happens, line by line.

    Returns:
        The encoder's folder.

    Raises:
        PallavaError: A mistake in the settings or in the data, or another run trains in the folder now.
        TrainerFailed: The trainer failed otherwise.
    """
    parsed = _parse(settings)
    encoder = settings.out / "encoder"
    content = _content(settings, launch)
    _check_folder(settings.out, content)
    if (encoder / "config.json").is_file():
        on_line(f"{encoder} is there already\n")
        return encoder
    _check_model(settings, parsed)
    with _taken(settings.out, launch.node):
        _train(settings, launch, parsed, content, on_line)
    return encoder


def _train(
    settings: Pretraining,
    launch: Launch,
    parsed: argparse.Namespace,
    content: Mapping[str, Any],
    on_line: Callable[[str], object],
) -> None:
    num_pairs = write_pairs(settings.pairs, settings.image_folder, settings.out, settings.shards)
    steps = count_steps(num_pairs, parsed, launch.processes, settings.shards)
    (settings.out / _SETTINGS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for reason, count in left_out(settings.out).items():
        on_line(f"{count} pairs are left out: {reason}\n")
    on_line(f"{num_pairs} pairs, {steps} steps in {parsed.epochs} epochs of {parsed.batch_size * launch.processes}\n")
    _run([*launch.command, *_words(settings, parsed, steps)], launch.environment, on_line)


@contextlib.contextmanager
def _taken(out: Path, node: int) -> Iterator[None]:
    """Keeps other runs off the folder; each node of a training takes it for itself."""
    out.mkdir(parents=True, exist_ok=True)
    with hold_lock(
        out / f".node_{node}.lock", f"another run trains in '{out}'; wait for it to end, or name another folder"
    ):
        yield


def _parse(settings: Pretraining) -> argparse.Namespace:
    """Reads the trainer's options as the trainer will, and refuses those that are ours to set."""
    from open_clip_train.params import parse_args

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parsed, bare = parse_args(list(settings.options)), parse_args([])
    except SystemExit:
        reason = said.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise PallavaError(f"open_clip_train does not understand what follows `--`: {reason}") from None
    for name in (*_OURS, *_FIRST):
        if getattr(parsed, name) != getattr(bare, name):
            flag = "--" + name.replace("_", "-")
            place = "give it before the `--`" if name in _FIRST else "pallava sets it; leave it out"
            raise PallavaError(f"{flag} cannot follow the `--`: {place}")
    if parsed.image_resize_mode == "longest":
        raise PallavaError(
            "an encoder's preprocessing cannot say --image-resize-mode longest; give shortest, which crops, or squash"
        )
    return parsed


def _check_model(settings: Pretraining, parsed: argparse.Namespace) -> None:
    """Tells of a mistake now that the trainer would find when all pictures are read."""
    from pallava.pretraining.description import describe

    describe(settings.model, settings.pretrained, parsed)


def _content(settings: Pretraining, launch: Launch) -> dict[str, Any]:
    """What a training that goes on must have in common with its beginning."""
    model: Any = settings.model
    if settings.model.endswith(".json"):
        from pallava.model.clip import read_description

        model = read_description(settings.model)
    return {
        "pairs": hash_of(settings.pairs),
        "image_folder": str(settings.image_folder.resolve()),
        "model": model,
        "pretrained": settings.pretrained,
        "shards": settings.shards,
        "augment": settings.augment,
        "options": list(settings.options),
        "processes": launch.processes,
    }


def _check_folder(out: Path, content: dict[str, Any]) -> None:
    note = out / _SETTINGS
    if out.is_dir() and not note.is_file() and any(not path.name.startswith(_PREPARED) for path in out.iterdir()):
        raise PallavaError(f"{out} holds something else than a training; give another folder")
    if not (out / _LATEST).is_file():
        return
    before = json.loads(note.read_text(encoding="utf-8"))
    other = [key for key in content if before.get(key) != content[key]]
    if other:
        changes = ", ".join(f"{key} was {before.get(key)!r} and is {content[key]!r}" for key in other)
        raise PallavaError(f"{out} holds a training with other settings ({changes}); give another folder, or remove it")


def _words(settings: Pretraining, parsed: argparse.Namespace, steps: int) -> list[str]:
    """What the trainer's module is told: ours first, so that the user's options have the last word."""
    out = settings.out.resolve()
    ours = ["-m", "pallava.pretraining.trainer", str(out)]
    name = settings.model
    if name.endswith(".json"):
        ours += ["--description", str(Path(name).resolve())]
        name = Path(name).stem
    if settings.augment:
        ours.append("--augment")
    ours += ["--", "--model", name, "--logs", str(out), "--name", RUN, "--resume", "latest"]
    if settings.pretrained:
        ours += ["--pretrained", settings.pretrained]
    # The last epoch's checkpoint alone, under its name only when complete: a run that is killed can go on.
    ours += ["--save-most-recent", "--save-frequency", "0"]
    # CLIP's own for a ViT, which open_clip guesses from the model's name; ten thousand steps of warm-up are too many
    # for most sets of pairs.
    ours += ["--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--warmup", str(min(10_000, steps // 10))]
    # Without these two, several processes take a smaller step than one does on the same batch.
    ours += ["--local-loss", "--gather-with-grad"]
    if parsed.lock_text:
        ours.append("--lock-text-freeze-layer-norm")  # the only way that open_clip can lock its text tower
    if settings.shards:
        pattern = f"{out / SHARDS}/{{00000..{settings.shards - 1:05d}}}.tar"
        return [*ours, "--train-data", pattern, "--dataset-type", "webdataset", *settings.options]
    return [*ours, "--train-data", str(out / TABLE), "--dataset-type", "csv", *settings.options]


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
