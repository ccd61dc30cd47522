"""The model card, README.md of a model folder: what the model is, its data, scores, licences and limits."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pallava import __version__
from pallava.errors import PallavaError
from pallava.model.connectors import describe_connector
from pallava.model.weights import read_json

CARD = "README.md"
_SCORES_BEGIN, _SCORES_END = "<!-- scores -->", "<!-- end of scores -->"
_NO_SCORES = (
    "Not measured yet. `pallava evaluate` measures, and `pallava card FOLDER --scores results.json` writes it here."
)
_TASK_HEADING = "### "

_USE = """    import pallava.model  # makes transformers' Auto classes and pipelines open this folder
    from pallava.images import open_image
    from transformers import pipeline

    ask = pipeline("image-text-to-text", model="FOLDER")
    image = open_image("slide.png")
    question = [{"type": "image", "image": image}, {"type": "text", "text": "Is necrosis present?"}]
    print(ask(text=[{"role": "user", "content": question}], return_full_text=False)[0]["generated_text"])

`pallava chat FOLDER --image slide.png` asks on the command line. Pictures go through `open_image`, as in training."""

_LIMITS = """**For research only. Not for diagnosis, not for any decision about a patient, and no medical device.**

- Answers can be wrong, incomplete or made up, and sound sure of themselves. Nothing in an answer says how sure it is.
- It reads an image scaled to an overview and a canvas of at most eight tiles: a whole slide loses its detail, and a
  picture other than of human tissue under a microscope is answered as if it were one.
- Public training pictures come from publications, teaching files and social media: organs, stains, scanners, labs and
  people are not represented evenly, rare findings hardly. Scores on public sets need not hold in another laboratory.
- Many questions of public sets can be answered without looking at the image: read a score beside its controls.
- Training data and test data of public sets can share images; `pallava data leak` looks for them."""


def write_model_card(
    folder: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the model card of a model folder, in the place of the one that is there.

    Args:
        folder: With the model's ``config.json``.
        training: What it was trained on and how: `data`, names of files or sets, or mappings of `name`, `terms` and
            `num_records`; any other key is a setting by its name. None where nothing is known.
        scores: Of ``pallava evaluate``, as its ``results.json`` has them.

    Returns:
        The card.

    Raises:
        PallavaError: There is no model, or the scores have another form.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise PallavaError(f"No model folder at {folder}: it has no config.json.")
    config = read_json(folder / "config.json")
    sections = (
        _front_matter(config),
        f"# {_title(folder)}",
        "A [PA-LLaVA](https://arxiv.org/abs/2408.09530): answers questions about human pathology images. Written by "
        f"pallava {__version__}.",
        "## Limits\n\n" + _LIMITS,
        "## Parts\n\n" + _table(("part", "what it is"), list(_parts(config, folder))),
        "## Use\n\n" + _USE.replace("FOLDER", _title(folder)),
        "## Training\n\n" + _training(training or {}),
        f"## Scores\n\n{_SCORES_BEGIN}\n{_NO_SCORES}\n{_SCORES_END}",
        "## Licences\n\n" + _licences(config),
    )
    card = folder / CARD
    _replace(card, "\n\n".join(sections) + "\n")
    return add_scores(folder, scores) if scores else card


def add_scores(folder: str | os.PathLike[str], results: Mapping[str, Any]) -> Path:
    """Puts scores into a model card; those of the same task and data are replaced, and all else stays as it is.

    Args:
        folder: With the card; it is written if there is none.
        results: What ``results.json`` of ``pallava evaluate`` holds.

    Returns:
        The card.

    Raises:
        PallavaError: The results have another form, or the card has lost its place for scores.
    """
    card = Path(folder) / CARD
    shown = dict(_score_sections(results))
    if not card.is_file():
        write_model_card(folder)
    text = card.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_SCORES_BEGIN)
    inside, end, after = rest.partition(_SCORES_END)
    if not begin or not end:
        raise PallavaError(
            f"{card} has no place for scores: put the lines {_SCORES_BEGIN} and {_SCORES_END} where they shall stand."
        )
    known = {part.split("\n", 1)[0]: part.strip() for part in inside.split(_TASK_HEADING)[1:]}
    sections = [_TASK_HEADING + part for part in {**known, **shown}.values()]
    _replace(card, before + begin + "\n" + "\n\n".join(sections) + "\n" + end + after)
    return card


def _front_matter(config: Mapping[str, Any]) -> str:
    """What the Hugging Face hub reads of a card."""
    base = _base(config)
    lines = ["license: other", "license_name: see-licences-below", "language: en", "library_name: transformers"]
    lines += [
        "pipeline_tag: image-text-to-text",
        "tags:",
        *(f"- {tag}" for tag in ("pathology", "pa-llava", "medical")),
    ]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        lines.append(f"base_model: {base}")
    return "\n".join(["---", *lines, "---"])


def _title(folder: Path) -> str:
    """The folder's name, also while it is being written under another one."""
    return re.sub(r"^\.(.+?)\.\d+\.unfinished$", r"\1", folder.resolve().name)


def _parts(config: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    llm, encoder = config.get("text_config", {}), config.get("vision_config", {})
    connector = config.get("connector_config", {})
    adapter = folder / "adapter" / "adapter_config.json"
    kind = f"{llm.get('model_type', 'llama')}, {llm.get('hidden_size', '?')} wide"
    yield "language model", f"{_name(_base(config)) or 'not named'} ({kind})"
    if adapter.is_file():
        lora = read_json(adapter)
        yield (
            "LoRA",
            f"in `adapter/`, rank {lora.get('r')}, alpha {lora.get('lora_alpha')}; the language model is apart",
        )
    else:
        yield "weights", "whole, the language model's among them"
    yield (
        "encoder",
        f"{encoder.get('model_type', 'clip_vision_model')}, tiles of {encoder.get('image_size', 224)} pixels, hidden "
        f"state {config.get('vision_feature_layer', -2)}",
    )
    yield "connector", describe_connector(connector, config.get("connector_class"))


def _base(config: Mapping[str, Any]) -> str:
    """Name or path of the language model; of one that was merged in, where its configuration came from."""
    return str(config.get("base_llm") or config.get("text_config", {}).get("_name_or_path") or "")


def _name(given: str) -> str:
    """A hub name as it is; of a path its last part, since the rest says where it lay and not what it is."""
    return given if given.count("/") < 2 and not given.startswith((".", "/", "~")) else Path(given).name


def _training(training: Mapping[str, Any]) -> str:
    if not training:
        return "Not recorded: whoever shares this model should say here what it was trained on."
    rows = []
    for entry in training.get("data", ()):
        each = entry if isinstance(entry, Mapping) else {"name": entry}
        rows.append(
            (_name(str(each["name"])), str(each.get("num_records", "")), each.get("terms", "see the data's own page"))
        )
    settings = [(name, str(value)) for name, value in training.items() if name != "data"]
    tables = [_table(("data", "records", "terms"), rows)] if rows else []
    return "\n\n".join(tables + ([_table(("setting", "value"), settings)] if settings else []))


def _licences(config: Mapping[str, Any]) -> str:
    base = _base(config)
    stated = _stated_licence(Path(base)) if base else None
    of_base = f"which states: {stated}" if stated else "whose licence its own page states"
    return (
        f"- Language model: {_name(base) or 'not named'}, {of_base}. It binds whoever uses these weights.\n"
        "- Encoder and connector: the terms of whoever trained them.\n"
        "- Training data: the terms above; many sets are for research alone, and pictures from articles have licences "
        "of their own.\n"
        "- The software, pallava: Apache-2.0."
    )


def _stated_licence(folder: Path) -> str | None:
    """The licence that a model's own card states in its front matter, if it lies beside the weights."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    stated = dict(re.findall(r"^(license|license_name):[ \t]*(\S.*)$", front, re.MULTILINE))
    return stated.get("license_name") or stated.get("license")


def _score_sections(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Heading, and section with it, for each data set of the results."""
    data = results.get("data")
    if not isinstance(data, Mapping) or "task" not in results:
        raise PallavaError("these are no results of `pallava evaluate`: expected `task` and, by name, `data`.")
    for name, result in data.items():
        scores = result.get("scores") or result.get("metrics")
        if not isinstance(scores, Mapping):
            raise PallavaError(f"the results on {name} hold no scores")
        heading = _cell(f"{results['task']}: {name}")
        yield heading, "\n\n".join([heading, *_scores(scores, result)])


def _scores(scores: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    controls = result.get("controls") or {}
    count = result.get("num_questions", result.get("num_images", ""))
    for name, score in scores.items():
        if not isinstance(score, Mapping) or "value" not in score:
            raise PallavaError(f"the results hold no value of the score {name}")
    rows = [
        (
            name,
            str(score.get("count", count)),
            _estimate(score),
            *(_estimate(each[name]) if name in each else "" for each in controls.values()),
        )
        for name, score in scores.items()
    ]
    yield _table(("score", "n", "model", *controls), rows)
    yield f"In brackets: {result['interval']}." if "interval" in result else "In brackets: 95 % intervals."
    definitions = [
        f"- {_cell(name)}: {_cell(each['definition'])}" for name, each in scores.items() if "definition" in each
    ]
    if definitions:
        yield "\n".join(definitions)


def _estimate(score: Mapping[str, Any]) -> str:
    def number(value: Any) -> str:
        return "–" if value is None or value != value else f"{value:.3f}"

    return f"{number(score['value'])} [{number(score.get('low'))}, {number(score.get('high'))}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text of others inside Markdown: no line break, no new column, no tag, no end of the scores."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _replace(card: Path, text: str) -> None:
    unfinished = card.with_name(f".{card.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(card)
    except OSError as error:
        raise PallavaError(f"cannot write {card}: {error.strerror}") from None
