"""`pallava evaluate` of a whole PA-LLaVA: it is asked, in one process or in several, and its answers are scored."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pallava.devices import find_device
from pallava.errors import PallavaError

if TYPE_CHECKING:
    from pallava.evaluation.answers.examination import Answers, Plan
    from pallava.evaluation.answers.processes import Processes
    from pallava.evaluation.tasks import Questions

_BATCH_SIZE = 16
_FAILED = 2


def run_model(options: argparse.Namespace, data: dict[str, tuple[str, Path]]) -> int:
    """Reads what is to be asked; then asks, scores and prints, or starts the processes that do."""
    from pallava.evaluation.answers.processes import Processes, is_launched
    from pallava.evaluation.tasks import read_excluded, read_training_answers, select
    from pallava.io.launch import read_launch

    processes = Processes.join()
    try:
        # Read first: a wrong path should not be told after the minutes that a large model takes to load.
        read = {label: _READERS[options.task](options, name, path) for label, (name, path) in data.items()}
        excluded = read_excluded(options.exclude) if options.exclude else []
        questions, num_excluded = select(read, excluded=excluded, limit=options.limit)
        training = read_training_answers(options.training) if getattr(options, "training", None) else []
        if not is_launched() and read_launch(os.environ).processes > 1:
            return _launch(options.words)
        plan = _plan(options, training)
        answers, settings = _ask(options, questions, plan, processes)
        if processes.rank == 0:
            _report(options, answers, plan, {**settings, "num_excluded": num_excluded})
    except PallavaError:
        if processes.rank > 0:  # the first process tells
            return _FAILED
        raise
    finally:
        processes.leave()
    return 0


def _plan(options: argparse.Namespace, training: list[tuple[str, str]]) -> Plan:
    from pallava.evaluation.answers.examination import Plan

    return Plan(
        batch_size=options.batch_size or _BATCH_SIZE,
        is_shuffled=not options.without_shuffled,
        is_consistency=options.consistency,
        training=training,
        seed=options.seed,
    )


def _ask(
    options: argparse.Namespace, questions: dict[str, Questions], plan: Plan, processes: Processes
) -> tuple[dict[str, Answers], dict[str, Any]]:
    """All answers, in every process, and what they depend on."""
    from pallava.evaluation.answers.examination import ask
    from pallava.evaluation.answers.generation import Answerer
    from pallava.evaluation.answers.store import AnswerStore, folder_hash
    from pallava.evaluation.tasks import TASKS
    from pallava.model import PALLaVAConfig, PALLaVAForConditionalGeneration, PALLaVAProcessor
    from pallava.model.modeling import ADAPTER_FOLDER

    config = PALLaVAConfig.from_pretrained(options.model)
    base = (options.base_llm or config.base_llm) if (Path(options.model) / ADAPTER_FOLDER).is_dir() else None
    settings = {
        "task": options.task,
        "model": processes.gather(folder_hash(options.model) if processes.rank == 0 else "")[0],
        "base_llm": processes.gather(folder_hash(base) if base and processes.rank == 0 else "")[0],
        "max_new_tokens": options.max_new_tokens or TASKS[options.task].max_new_tokens,
    }
    store = AnswerStore.open(_out(options), settings, processes)
    try:
        device = find_device(options.device, processes.local_rank)
        model = PALLaVAForConditionalGeneration.from_pretrained(options.model, base_llm=options.base_llm)
        processor = PALLaVAProcessor.from_pretrained(options.model)
        answerer = Answerer(model.to(device).eval(), processor, settings["max_new_tokens"])
        answers = {label: ask(answerer, each, plan, store, processes) for label, each in questions.items()}
    finally:
        store.close()
    return answers, settings


def _report(options: argparse.Namespace, answers: dict[str, Answers], plan: Plan, settings: dict[str, Any]) -> None:
    from pallava.evaluation.answers.examination import right_rule, score
    from pallava.evaluation.answers.report import tables, write_answers_report
    from pallava.evaluation.report import as_text

    results = {label: score(options.task, each, plan) for label, each in answers.items()}
    report = {"model": options.model, "task": options.task, "kind": "pallava", "settings": settings, "data": results}
    predictions = {label: each.by_view for label, each in answers.items()}
    rules = {label: right_rule(options.task, each.questions) for label, each in answers.items()}
    write_answers_report(report, predictions, _out(options), rules)
    print("\n\n".join(map(as_text, tables(report))))
    for label, result in results.items():
        for reason, count in {**result["left_out"], **result["problems"]}.items():
            print(f"{label}: {count} x {reason}")
    print(f"\n{_out(options) / 'index.html'}")


def _out(options: argparse.Namespace) -> Path:
    return options.out or Path("evaluation") / options.task


def _launch(words: list[str]) -> int:
    """Becomes the parent of several processes that run the same command."""
    from pallava.io.launch import read_launch, run_processes

    launch = read_launch(os.environ)
    os.environ.update(launch.environment)  # torchrun gives its own to the processes
    failed = run_processes([*launch.torchrun, "-m", "pallava", "evaluate", *words])
    if failed is None or failed[1] == _FAILED:  # that process has told what went wrong
        return failed[1] if failed else 0
    rank, code = failed
    raise PallavaError(f"process {rank} ended with exit code {code}; the same command goes on where it stopped")


def _read_pathvqa(options: argparse.Namespace, name: str, path: Path) -> Questions:
    from pallava.evaluation.tasks import read_public_questions

    return read_public_questions("path-vqa", path, options.split or "test")


def _read_pmc_vqa(options: argparse.Namespace, name: str, path: Path) -> Questions:
    from pallava.evaluation.tasks import read_public_questions

    return read_public_questions("pmc-vqa", path, options.split or "test")


def _read_custom(options: argparse.Namespace, name: str, path: Path) -> Questions:
    from pallava.evaluation.tasks import read_custom

    return read_custom(path, options.image_folder)


def _read_captions(options: argparse.Namespace, name: str, path: Path) -> Questions:
    from pallava.evaluation.tasks import read_captions

    return read_captions(path, name, image_folder=options.image_folder, split=options.split)


def _read_classes(options: argparse.Namespace, name: str, path: Path) -> Questions:
    from pallava.cli.evaluate import read_classes
    from pallava.evaluation.tasks import class_items

    return class_items(read_classes(options, name, path))


_READERS: dict[str, Callable[[argparse.Namespace, str, Path], Any]] = {
    "pathvqa": _read_pathvqa,
    "pmc-vqa": _read_pmc_vqa,
    "custom": _read_custom,
    "caption": _read_captions,
    "zero-shot": _read_classes,
}
