"""One evaluation from the data to the report: of a PA-LLaVA, which answers, or of an encoder, which embeds."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pallava.data.material import check_columns, read_columns
from pallava.data.sources import SOURCES
from pallava.devices import find_device
from pallava.errors import PallavaError, check_at_least
from pallava.evaluation.answers.confidence import score_confidence
from pallava.evaluation.answers.consistency import UNCHANGED_MEANING, score_consistency, share_by_group, shuffle_images
from pallava.evaluation.answers.generation import Answerer, ask_all
from pallava.evaluation.answers.items import AS_IS, SHUFFLED, AnswerSet, EvaluateOptions, Questions
from pallava.evaluation.answers.questions import read_excluded, read_training_answers, select
from pallava.evaluation.answers.store import AnswerStore, Processes
from pallava.evaluation.encoders.embeddings import EmbeddingCache, count_reasons, default_cache
from pallava.evaluation.encoders.load import load_encoder, model_kind
from pallava.evaluation.report import write_report
from pallava.evaluation.tasks import TASKS, Task
from pallava.io.hashing import hash_folder
from pallava.model import PALLaVAConfig, load
from pallava.model.connectors import import_connector
from pallava.model.loading import ADAPTER_FOLDER
from pallava.model.weights import read_json

Data = str | Path | Sequence[str | Path]
_Report = dict[str, Any]
_Sources = Mapping[str, tuple[str, Path]]

_PATHS = ("image_folder", "training", "class_set", "exclude")
_QUESTIONS_AT_ONCE, _IMAGES_AT_ONCE = 16, 64
_DECIDING = (
    "*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.index.json", "*config.json",
    "*token*.json", "vocab.*", "merges.txt", "chat_template.*", "*.model", "*.tiktoken", "*.jinja", "*.py",
)  # fmt: skip


def evaluate(model: str | Path, task: str, data: Data, out: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Evaluate a model in one task.

    In several processes, as torchrun starts them, all share the work.

    Args:
        model: Folder of a PA-LLaVA; or an encoder, as `pallava.evaluation.encoders.load.load_encoder` takes it.
        task: Name of a task: one of `TASKS`.
        data: Path, or NAME=PATH for a public set; or several of them.
        out: Folder for ``results.json``, ``index.html`` and the answers, by which a stopped evaluation is resumed; all
            processes must share it. Without it nothing is written.
        options: Fields of `EvaluateOptions`.

    Returns:
        The content of ``results.json``: ``model``, ``task``, ``kind``, and the results by name of the data set in
        ``data``; numbers that are not defined are NaN. In several processes only the first one returns results, the
        others an empty dictionary.

    Raises:
        PallavaError: Data, model or options are wrong, or the folder is in use or belongs to another evaluation.
    """
    if task not in TASKS:
        raise PallavaError(f"{task!r} is not a task; choose {', '.join(TASKS)}")
    paths = {name: Path(options[name]) for name in _PATHS if options.get(name)}
    row, given, kind = TASKS[task], EvaluateOptions(**{**options, **paths}), model_kind(str(model))
    _check(str(model), kind, row, given)
    texts = [str(each) for each in ([data] if isinstance(data, str | Path) else data)]
    sources = _name_data(texts)
    if row.is_named:
        check_columns(read_columns(given.columns), texts)
        if given.split and not any(name in SOURCES for name, _ in sources.values()):
            raise PallavaError(f"--split {given.split} is for a public set, NAME=PATH, got {', '.join(texts)}")
    folder = None if out is None else Path(out)
    if folder:
        _refuse_another(folder, {"model": str(model), "task": task, "kind": kind})
    run = _evaluate_encoder if kind == "encoder" else _evaluate_model
    return run(str(model), row, sources, folder, given)


def _evaluate_encoder(model: str, task: Task, sources: _Sources, out: Path | None, options: EvaluateOptions) -> _Report:
    assert task.measure is not None
    # Read the data before loading the model, so that a wrong path fails at once.
    data = {label: task.read(path, name, options) for label, (name, path) in sources.items()}
    device = find_device(options.device)
    encoder = load_encoder(model, model_name=options.model_name, pretrained=options.pretrained, device=device)
    cache = EmbeddingCache(options.cache or default_cache(), encoder)
    how = {"batch_size": options.batch_size or _IMAGES_AT_ONCE, "seed": options.seed}
    results = {label: task.measure(encoder, each, cache, **how) for label, each in data.items()}
    report = {"model": model, "task": task.name, "kind": "encoder", "data": results}
    if out:
        write_report(report, out)
    return report


def _refuse_another(out: Path, expected: dict[str, str]) -> None:
    """Refuse a folder with the results of something else; the same evaluation is written anew."""
    path = out / "results.json"
    found = read_json(path) if path.is_file() else expected
    if any(found.get(name) != value for name, value in expected.items()):
        raise PallavaError(
            f"'{out}' has the results of the task {found.get('task')} of '{found.get('model')}'; give another --out"
        )


def _evaluate_model(model: str, task: Task, sources: _Sources, out: Path | None, options: EvaluateOptions) -> _Report:
    with Processes.join() as processes:
        questions, num_excluded = processes.agree(lambda: _read(task, sources, options))
        settings = processes.agree(lambda: _settings(model, task, options) if processes.rank == 0 else {})
        settings = processes.gather(settings)[0]
        given = nullcontext(str(out)) if out else tempfile.TemporaryDirectory(prefix="pallava-")
        with given as folder, AnswerStore(Path(folder), settings, processes) as store:
            answerer = processes.agree(lambda: _load(model, options, settings["max_new_tokens"], processes.local_rank))
            answers = {label: _ask(answerer, each, store, options) for label, each in questions.items()}
        if processes.rank > 0:
            return {}
        results = {label: _score(task, each, options) for label, each in answers.items()}
        settings["num_excluded"] = num_excluded
        report = {"model": model, "task": task.name, "kind": "pallava", "settings": settings, "data": results}
        if out:
            write_report(report, out, answers, task.is_right)
        return report


def _read(task: Task, sources: _Sources, options: EvaluateOptions) -> tuple[dict[str, Questions], int]:
    """Return the questions to ask by label, and the number of those excluded."""
    data = {label: task.read_questions(path, name, options) for label, (name, path) in sources.items()}
    excluded = read_excluded(options.exclude) if options.exclude else []
    training = read_training_answers(options.training) if options.training else []
    chosen, num_excluded = select(data, excluded=excluded, limit=options.limit)
    return {label: replace(each, training=training) for label, each in chosen.items()}, num_excluded


def _ask(answerer: Answerer, questions: Questions, store: AnswerStore, options: EvaluateOptions) -> AnswerSet:
    """Ask all questions in all views that the options name; those with a stored answer are not asked again."""
    items, views = questions.items, {AS_IS: questions.items}
    if not options.without_shuffled and (others := shuffle_images(items, options.seed)):
        views[SHUFFLED] = others
    if options.consistency and (with_image := [item for item in items if item.image]):
        views |= dict.fromkeys(UNCHANGED_MEANING, with_image)
    by_view, problems = {}, dict[str, str]()
    for view, chosen in views.items():
        size = options.batch_size or _QUESTIONS_AT_ONCE
        by_view[view], found = ask_all(answerer, chosen, store, view=view, batch_size=size)
        problems |= found
    return AnswerSet(by_view, questions, problems)


def _score(task: Task, answers: AnswerSet, options: EvaluateOptions) -> dict[str, Any]:
    """Compute scores, controls, groups and consistency, and count the questions that could not be asked.

    A question about an image that cannot be opened counts as unanswered, unless the task's score leaves it out.
    """
    assert task.score is not None
    reasons, how = count_reasons(answers.problems), {"seed": options.seed}
    problems = {f"{reason}: its questions count as unanswered": count for reason, count in reasons.items()}
    result = {"left_out": dict(answers.questions.left_out), "problems": problems, **task.score(answers, **how)}
    is_right = None if (rule := task.is_right) is None else lambda answer: rule(answer, answers.questions)
    if is_right:
        result["groups"] = share_by_group(answers.as_is, is_right, **how)
    if options.consistency:
        changed = {name: each for name, each in answers.by_view.items() if name in UNCHANGED_MEANING}
        result["consistency"] = score_consistency(answers.as_is, changed, is_right, unopened=answers.problems, **how)
    if options.confidence and is_right:
        result |= score_confidence(answers.as_is, is_right, **how)
    return result


def _check(model: str, kind: str, task: Task, options: EvaluateOptions) -> None:
    """Refuse a task or an option that does not go with the model."""
    is_encoder = kind == "encoder"
    what = "an encoder" if is_encoder else "a whole PA-LLaVA"
    suitable = [each.name for each in TASKS.values() if (each.measure if is_encoder else each.score)]
    if task.name not in suitable:
        if is_encoder and not Path(model).exists():  # not a name of an encoder
            raise PallavaError(f"the model folder '{model}' does not exist")
        raise PallavaError(f"'{model}' is {what}; its tasks are {', '.join(suitable)}, not {task.name}")
    for field in fields(options):
        value, flag = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if value not in (field.default, (), []) and field.name not in task.option_names(kind):
            raise PallavaError(f"{flag} does not go with the task {task.name} of '{model}', which is {what}")
    check_at_least(1, **{name: getattr(options, name) for name in ("batch_size", "limit", "max_new_tokens")})
    check_at_least(0, seed=options.seed)


def _name_data(data: Sequence[str]) -> dict[str, tuple[str, Path]]:
    """Label in the report to (name of a public set or "", path)."""
    named: dict[str, tuple[str, Path]] = {}
    for text in data:
        name, _, path = text.partition("=") if re.match(r"[a-z][a-z0-9_-]*=", text) else ("", "", text)
        label = name if name and name != "csv" else Path(path).resolve().stem
        if label in named:
            raise PallavaError(f"two data sets have the label '{label}' in the report; evaluate one at a time")
        named[label] = name, Path(path)
    return named


def _settings(model: str, task: Task, options: EvaluateOptions) -> dict[str, Any]:
    """Collect what the answers depend on, beside the questions."""
    if options.trust_remote_code:
        import_connector(model)
    config = PALLaVAConfig.from_pretrained(model)
    base = (options.base_llm or config.base_llm) if (Path(model) / ADAPTER_FOLDER).is_dir() else None
    settings = {
        "task": task.name,
        "model": hash_model(model),
        "base_llm": hash_model(base) if base else "",
        "max_new_tokens": options.max_new_tokens or task.max_new_tokens,
    }
    # What is not asked for is left out: answers from before it existed stay resumable.
    return settings | {name: True for name in ("confidence", "load_in_4bit") if getattr(options, name)}


def hash_model(folder: str | Path) -> str:
    """Return a key for the weights, configurations and tokenizer of a model folder; anything else is its own key."""
    return hash_folder(folder, _DECIDING) if Path(folder).is_dir() else str(folder)


def _load(model: str, options: EvaluateOptions, max_new_tokens: int, local_rank: int) -> Answerer:
    device = find_device(options.device, local_rank)
    given = {name: getattr(options, name) for name in ("base_llm", "load_in_4bit", "trust_remote_code")}
    parts = load(model, device, **given)
    return Answerer(*parts, max_new_tokens, options.confidence)
