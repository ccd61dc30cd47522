"""The model card, README.md of a model folder: what the model is, its data, scores, licences and limits."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader

from pallava import __version__
from pallava.errors import PallavaError
from pallava.io.files import write_text
from pallava.io.texts import read_text
from pallava.model.connectors import describe_connector
from pallava.model.loading import ADAPTER_FOLDER
from pallava.model.weights import StrPath, read_json
from pallava.report.table import escape_markdown

CARD = "README.md"
_SCORES_BEGIN, _SCORES_END = "<!-- scores -->", "<!-- end of scores -->"
_TASK_HEADING = "### "
# In front matter: its line and those below that belong to it, without comments that stand before the next key.
_INDEX = re.compile(r"^model-index:.*\n(?:[ \t-].*\n|\n|#.*\n(?=(?:#.*\n|\n)*[ \t-]))*", re.MULTILINE)


def _estimate(score: Mapping[str, Any]) -> str:
    values = (score["value"], score.get("low"), score.get("high"))
    value, low, high = ("–" if each is None or each != each else f"{each:.3f}" for each in values)
    return f"{value} [{low}, {high}]"


_ENVIRONMENT = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters |= {"cell": escape_markdown, "estimate": _estimate}


def write_model_card(folder: StrPath, *, title: str | None = None, training: Mapping[str, Any] | None = None) -> Path:
    """Write the model card of a model folder, over an existing one, and return its path.

    `training` has `data`, names of files or sets, or mappings of `name`, `terms` and `num_records`; any other key is a
    setting by its name. `title` is by default the folder's name.

    Raises:
        PallavaError: The folder is not a model folder.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise PallavaError(f"no model folder at '{folder}': no config.json in it")
    config = read_json(folder / "config.json")
    # Of a language model that was merged in, the source of its configuration.
    base = str(config.get("base_llm") or config.get("text_config", {}).get("_name_or_path") or "")
    adapter = folder / ADAPTER_FOLDER / "adapter_config.json"
    training = dict(training or {})
    data = [each if isinstance(each, Mapping) else {"name": each} for each in training.get("data", ())]
    content = _ENVIRONMENT.get_template("card.md.jinja").render(
        title=title or folder.resolve().name,
        version=__version__,
        llm=config.get("text_config", {}),
        lora=read_json(adapter) if adapter.is_file() else None,
        encoder=config.get("vision_config", {}),
        layer=config.get("vision_feature_layer", -2),
        connector=describe_connector(config.get("connector_config", {}), config.get("connector_class")),
        training=training,
        data=[{**each, "name": _name(str(each["name"]))} for each in data],
        settings={name: value for name, value in training.items() if name != "data"},
        base=_name(base) or "not named",
        hub_name=base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None,
        licence=_licence(base),
    )
    write_text(folder / CARD, str(ModelCard(content)) + "\n")
    return folder / CARD


def add_scores(folder: StrPath, results: Mapping[str, Any]) -> Path:
    """Add a ``results.json`` of ``pallava evaluate`` to a folder's model card, in its text and in its ``model-index``.

    Scores of the same task and data are replaced; everything else stays as it is. A card is written if there is none.

    Raises:
        PallavaError: The results have another form, or the card has lost its place for scores.
    """
    path = Path(folder) / CARD
    shown = dict(_score_sections(results))
    if not path.is_file():
        write_model_card(folder)
    content = read_text(path, "the card")
    before, begin, rest = content.partition(_SCORES_BEGIN)
    inside, end, after = rest.partition(_SCORES_END)
    if not begin or not end:
        raise PallavaError(
            f"'{path}' has lost its place for scores; put the lines {_SCORES_BEGIN} and {_SCORES_END} where they belong"
        )
    known = {part.split("\n", 1)[0]: part.strip() for part in inside.split(_TASK_HEADING)[1:]}
    sections = [_TASK_HEADING + part for part in {**known, **shown}.values()]
    text = before + begin + "\n" + "\n\n".join(sections) + "\n" + end + after
    write_text(path, _with_index(text, results))
    return path


def _with_index(text: str, results: Mapping[str, Any]) -> str:
    """Put the results into the ``model-index`` of a card, unless its front matter was removed or cannot be read.

    The rest of the front matter stays as it was written, with its comments.
    """
    new = list(_index(results))
    if not new or not text.startswith("---"):
        return text
    try:
        card = ModelCard(text)
    except Exception:  # of YAML by hand
        return text
    data: Any = card.data
    replaced = {(each.task_name, each.dataset_name) for each in new}
    old = [each for each in data.eval_results or [] if (each.task_name, each.dataset_name) not in replaced]
    heading = re.search(r"^# (.+)$", card.text, re.MULTILINE)
    data.model_name = data.model_name or (heading[1].strip() if heading else "PA-LLaVA")
    data.eval_results = old + new
    index = ModelCardData(model_name=data.model_name, eval_results=data.eval_results).to_yaml()
    front, _, rest = text.partition("\n---\n")
    written = _INDEX.sub("", front + "\n") + index + "\n---\n" + rest
    with suppress(Exception):  # front matter of another layout, such as {license: mit}
        if ModelCard(written).data.to_dict() == data.to_dict():
            return written
    return str(card)


def _index(results: Mapping[str, Any]) -> Iterator[EvalResult]:
    kind = {True: "visual-question-answering", False: "zero-shot-image-classification"}
    for name, result in results["data"].items():
        dataset = escape_markdown(name)
        for metric, score in (result.get("scores") or result["metrics"]).items():
            if score["value"] is not None and score["value"] == score["value"]:
                yield EvalResult(
                    task_type=kind["scores" in result],
                    task_name=str(results["task"]),
                    dataset_type=re.sub(r"[^\w.-]+", "-", dataset),
                    dataset_name=dataset,
                    metric_type=str(metric),
                    metric_name=str(metric),
                    metric_value=float(score["value"]),
                )


def _name(given: str) -> str:
    """Return a hub name unchanged, and the last part of a path: the rest says where it was and not what it is."""
    return given if given.count("/") < 2 and not given.startswith((".", "/", "~")) else Path(given).name


def _licence(base: str) -> str:
    """Return the licence in the front matter of the language model's own card, if it is beside the weights."""
    card = Path(base, CARD)
    text = card.read_text(encoding="utf-8", errors="replace") if base and card.is_file() else ""
    front = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    lines = dict(re.findall(r"^(license|license_name):[ \t]*(\S.*)$", front, re.MULTILINE))
    stated = lines.get("license_name") or lines.get("license")
    return f"which states: {stated}" if stated else "whose licence its own page states"


def _score_sections(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield heading, and section with it, for each data set of the results."""
    data = results.get("data")
    if not isinstance(data, Mapping) or "task" not in results:
        raise PallavaError("results of `pallava evaluate` must have `task` and, by name, `data`")
    for name, result in data.items():
        scores = result.get("scores") or result.get("metrics")
        if not isinstance(scores, Mapping):
            raise PallavaError(f"the results on {name} must have scores, got {', '.join(result) or 'nothing'}")
        if wrong := [each for each, score in scores.items() if not isinstance(score, Mapping) or "value" not in score]:
            raise PallavaError(f"the results on {name} must have a value of the score {wrong[0]}")
        heading = escape_markdown(f"{results['task']}: {name}")
        count = result.get("num_questions", result.get("num_images", ""))
        values = {**result, "heading": heading, "scores": scores, "count": count}
        values["controls"] = result.get("controls") or {}
        yield heading, _ENVIRONMENT.get_template("card_scores.md.jinja").render(values).strip()
