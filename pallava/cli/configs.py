"""The commands of configs: `config list`, `config copy` and `config new`."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pallava.config_files import check_can_train, config_names, find_config
from pallava.errors import PallavaError
from pallava.io.files import write_bytes, write_text
from pallava.new_configs import PRESETS, STAGES, NewConfig, Preset, find_language_model, find_sample_image, first_rows
from pallava.prompts import OWN_TEMPLATE, get_template

_Read = TypeVar("_Read")
_Destination = Annotated[str, "file or folder", {"metavar": "DEST", "nargs": "?"}]


def run_config_list() -> None:
    """List the names of our configs, which `pallava train` and `pallava config copy` take."""
    print("\n".join(config_names()))


def run_config_copy(
    name: Annotated[str, "name from `pallava config list`", {"metavar": "NAME"}],
    destination: _Destination = ".",
    overwrite: Annotated[bool, "replacement of an existing file"] = False,
) -> None:
    """Copy a config to change it."""
    source = find_config(name)
    if "read_base" in source.read_text(encoding="utf-8"):
        raise PallavaError(
            f"'{name}' builds on another config, which a copy would lose; copy the one that its read_base "
            "names, or change it by --cfg-options"
        )
    target = _find_target(destination, source.name, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, source.read_bytes())
    print(target)


def run_config_new(
    destination: _Destination = ".",
    llm: Annotated[str | None, "language model: a preset (below), a folder, or a name on the hub"] = None,
    encoder: Annotated[str | None, "visual encoder: a folder, or timm:NAME"] = None,
    data: Annotated[str | None, "training file, or a folder of such files"] = None,
    images: Annotated[str | None, "folder that the image names are relative to"] = None,
    cards: Annotated[int | None, "number of cards on all nodes"] = None,
    card_gb: Annotated[float | None, "memory of a card in GB"] = None,
    stage: Annotated[Literal["alignment", "instruction"], "stage of the training"] = "alignment",
    stage1: Annotated[str | None, "work directory or checkpoint of the alignment, for --stage instruction"] = None,
    prompt_template: Annotated[
        str | None, "name of the prompt template, or `tokenizer` (default: that of the preset, or of the tokenizer)"
    ] = None,
    overwrite: Annotated[bool, "replacement of an existing file"] = False,
) -> None:
    """Write a config that fits a language model, data and cards; what is not given is asked for on a terminal."""
    check_can_train()
    target = _find_target(destination, f"{STAGES[stage]}.py", overwrite)
    if stage1 and stage != "instruction":
        raise PallavaError("--stage1 is the start of the second stage; add --stage instruction, or leave it out")
    if prompt_template not in (None, OWN_TEMPLATE):
        get_template(prompt_template)
    llm, preset = _choose("--llm", llm, f"language model ({', '.join(PRESETS)}, a folder, a name)", find_language_model)
    encoder = _choose("--encoder", encoder, "visual encoder (a folder, or timm:NAME)", _read_encoder)
    data = _choose("--data", data, "training file, or a folder of such files", _read_data)
    images = _choose("--images", images, "folder of the images", _read_images)
    if stage == "instruction":
        stage1 = _choose("--stage1", stage1, "work directory or checkpoint of the alignment", _read_path)
    cards = _choose("--cards", cards, "number of cards", _read_count)
    card_gb = _choose("--card-gb", card_gb, "memory of a card in GB", _read_number)
    config = NewConfig(
        stage=stage,
        llm=llm,
        prompt_template=prompt_template or (preset.prompt_template if preset else None),
        encoder=encoder,
        data=data,
        images=images,
        stage1=stage1,
        cards=cards,
        sample_image=find_sample_image(data, images),
    )
    print("estimating the memory of a card, some seconds ...", file=sys.stderr)
    with redirect_stdout(sys.stderr):  # logs of the libraries
        from pallava.training.doctor.sizes import find_template, fit_card

        if preset is None and prompt_template is None:
            config = replace(config, prompt_template=find_template(llm))
        config, memory = fit_card(config, card_gb, preset)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, config.write(target.name))
    print("\n".join(_describe(config, preset, target, memory.total / 1e9, card_gb)), file=sys.stderr)
    print(target)


def _describe(config: NewConfig, preset: Preset | None, target: Path, used_gb: float, card_gb: float) -> Iterator[str]:
    """Yield what was chosen, what it needs, and the command that comes next."""
    from pallava.model.versions import INSTALL_BITSANDBYTES
    from pallava.training.doctor.sizes import RUNNER

    if preset and preset.note:
        yield f"{config.llm}: {preset.note}"
    way = f"{'4 bit' if config.in_4bit else 'bf16'}, LoRA of rank {config.lora_rank}"
    rows = f"{config.batch_size} x {config.accumulative_counts} rows per card"
    rows += f" ({config.rows} a step, published {config.published_rows})"
    yield f"{way}, {rows}: at most {used_gb:.1f} of {card_gb:g} GB"
    if config.rows > 1.1 * config.published_rows:
        yield "a step has more rows than the published one; use fewer cards, or adjust the learning rate"
    if config.in_4bit:
        yield f"4 bit needs `{INSTALL_BITSANDBYTES}`"
    if config.sample_image is None:
        yield "sample chats are off, since the first rows name no image that exists; set sample_images"
    words = ["pallava", "doctor", target, "--deepspeed", RUNNER, "--nproc", config.cards, "--card-gb", f"{card_gb:g}"]
    yield f"next: {shlex.join(map(str, words))}"


def _find_target(destination: str, name: str, overwrite: bool) -> Path:
    """Return the file to write in a folder or under a path, which must not exist."""
    target = Path(destination)
    if target.is_dir() or not target.suffix:
        target = target / name
    if target.suffix != ".py" or set(target.name) & set('"\\'):
        raise PallavaError(f"the name of a config must end in .py, and have no quotation mark, got '{target.name}'")
    if target.exists() and not overwrite:
        raise PallavaError(f"'{target}' exists; choose another name, or add --overwrite to replace it")
    return target


def _choose(flag: str, given: Any, what: str, read: Callable[[Any], _Read]) -> _Read:
    """Return what `read` makes of an option, or of what is typed on the terminal, until that will do.

    Raises:
        PallavaError: The option will not do, or there is none and nobody answers.
    """
    try:
        if given is not None:
            return read(given)
        if not sys.stdin.isatty():
            raise PallavaError(f"must be given where no terminal can ask for it: {what}")
    except PallavaError as error:
        raise PallavaError(f"{flag} {error}") from None
    while True:
        print(f"{what}: ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            print(file=sys.stderr)
            raise PallavaError(f"{flag} must be given; the input ended")
        try:
            return read(line.strip())
        except PallavaError as error:
            print(f"  {error}", file=sys.stderr)


def _read_path(given: str) -> str:
    path = Path(given).expanduser()
    if not given or not path.exists():
        raise PallavaError(f"must be a file or folder that exists, got '{given}'")
    return str(path)


def _read_encoder(given: str) -> str:
    return given if given.startswith("timm:") else _read_path(given)


def _read_data(given: str) -> str:
    path = _read_path(given)
    if Path(path).is_dir() and not any(Path(path).glob("*.json*")):
        raise PallavaError(f"must be a training file or a folder of such, got '{path}' without any *.json*")
    if Path(path).is_file():
        rows = first_rows(path)
        if not any(isinstance(row, dict) and "conversations" in row for row in rows):
            begin = str(rows[:1])[:80]
            raise PallavaError(f"must be a training file (id, image, conversations), got '{path}' with {begin}")
    return path


def _read_images(given: str) -> str:
    path = _read_path(given)
    if not Path(path).is_dir():
        raise PallavaError(f"must be a folder, got the file '{path}'")
    return path


def _read_count(given: float | str) -> int:
    value = _read_number(given)
    if value != int(value):
        raise PallavaError(f"must be a whole number, got {value:g}")
    return int(value)


def _read_number(given: float | str) -> float:
    try:
        value = float(given)
    except ValueError:
        raise PallavaError(f"must be a number, got '{given}'") from None
    if not 0 < value < inf:
        raise PallavaError(f"must be a finite number above 0, got {value:g}")
    return value
