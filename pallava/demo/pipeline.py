"""The demo from an empty folder to a page: fetch, draw, pretrain, train twice, convert, examine, report.

A step is skipped if nothing that it depends on has changed.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pallava
from pallava.config_files import find_config
from pallava.data.training_file import read_prompts, write_training_file
from pallava.demo import PLIP_MODEL, DemoSettings, Progress, fetch
from pallava.demo.exam import ask_without_tiles, plip_accuracies, summary
from pallava.demo.material import read_pictures, write_material
from pallava.demo.page import write_page
from pallava.demo.pointing import measure
from pallava.demo.stages import evaluate_model, pretrain_plip, train_stage
from pallava.evaluation.answers.items import Answer, read_predictions
from pallava.io.files import write_json
from pallava.io.hashing import hash_file, hash_json
from pallava.model.card import add_scores
from pallava.model.convert import convert

WORDS = "demo/pallava_word_alignment"
ALIGNMENT, INSTRUCTION = "demo/pallava_domain_alignment", "demo/pallava_instruction_tuning"


@dataclass(frozen=True)
class Step:
    """One step of a pipeline: its result depends on a JSON value, files and earlier steps, and has an output file."""

    name: str
    run: Callable[[], None]
    settings: object
    sources: Sequence[Path]
    output: Path


def run_steps(steps: Sequence[Step], stamps: Path, say: Progress) -> dict[str, float]:
    """Run steps, each depending on all before it; return the seconds that each took, now or when it last ran.

    One is skipped if its output exists and the hash of all it depends on is that of its stamp.
    """
    stamps.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    before = ""
    for number, step in enumerate(steps, 1):
        stamp = stamps / f"{step.name}.json"
        before = hash_json([before, step.name, step.settings, *map(hash_file, step.sources)])
        title = f"[{number}/{len(steps)}] {step.name}"
        done: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            done = json.loads(stamp.read_text(encoding="utf-8"))
        if done.get("hash") == before and step.output.exists():
            seconds[step.name] = float(done["seconds"])
            say(f"{title}: nothing has changed, skipped")
            continue
        stamp.unlink(missing_ok=True)
        say(f"{title} ...")
        start = time.monotonic()
        step.run()
        seconds[step.name] = round(time.monotonic() - start, 1)
        write_json(stamp, {"hash": before, "seconds": seconds[step.name]})
        say(f"{title}: done in {seconds[step.name]:.0f} s")
    return seconds


class Demo:
    """One run of the demo in a folder: ``demo`` in the working directory, as in the demo's configs.

    It says a line on each event; one that begins with a carriage return may be overwritten by the next.
    """

    def __init__(self, folder: Path, settings: DemoSettings, say: Progress) -> None:
        self.folder, self.settings, self._say = folder, settings, say
        self._start, self._data, self._progress = time.monotonic(), folder / "data", partial(self.say, mark="\r")

    def run(self) -> dict[str, Any]:
        """Run every step that has something to do, write ``report.json`` and ``index.html``, and return the report.

        Raises:
            PallavaError: A step fails; with the reason.
        """
        self._make_folders()
        return self._write_report(run_steps(self._steps(), self.folder / ".stamps", self.say))

    def prepare(self) -> None:
        """Run the steps ahead of the language model's trainings: language model, data, encoder and training files.

        Raises:
            PallavaError: A step fails; with the reason.
        """
        self._make_folders()
        steps = self._steps()
        names = [step.name for step in steps]
        run_steps(steps[: names.index("words")], self.folder / ".stamps", self.say)

    def say(self, text: str, mark: str = "") -> None:
        """Pass a line on, after the time since the beginning."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        self._say(f"{mark}{minutes:3d}:{seconds:02d}  {text}")

    def _steps(self) -> list[Step]:
        folder, data, given = self.folder, self._data, (self.settings, self._progress)
        drawing = _code("demo/__init__.*", "demo/material.py", "demo/micrographs.*", "demo/questions.*")
        plip = _code("pretraining/**/*.*", "demo/stages.py")
        asking = _code("demo/exam.py", "demo/stages.py", "evaluation/**/*.*")
        looking = _code("demo/pointing.py", "model/attention.py")
        configs = [find_config(name) for name in (WORDS, ALIGNMENT, INSTRUCTION)]
        parts = _code("model/**/*.*", "training/**/*.*", "data/**/*.*") + configs
        draw, pretrain = partial(write_material, data, *given), partial(pretrain_plip, folder, *given)
        align_words = partial(train_stage, WORDS, folder / "words", *given, processes=1)
        align = partial(train_stage, ALIGNMENT, folder / "stage1", *given)
        instruct = partial(train_stage, INSTRUCTION, folder / "stage2", *given)
        sizes, done = asdict(self.settings), "last_checkpoint"
        return [
            Step("fetch", self._fetch, None, _code("demo/fetch.*"), folder / "llm" / "config.json"),
            Step("draw", draw, sizes, drawing, data / "questions.jsonl"),
            Step("plip", pretrain, PLIP_MODEL, plip, folder / "plip" / "encoder" / "config.json"),
            Step("plip_report", self._examine_plip, None, asking, folder / "plip_report.json"),
            Step("dataformat", self._format, None, _code("data/**/*.*"), data / "domain_alignment.jsonl"),
            Step("words", align_words, None, parts, folder / "words" / done),
            Step("stage1", align, None, parts, folder / "stage1" / done),
            Step("stage2", instruct, None, parts, folder / "stage2" / done),
            Step("convert", self._convert, None, _code("training/**/*.*"), folder / "model" / "config.json"),
            Step("questions", self._examine, None, asking, folder / "answers_without_tiles.json"),
            Step("pointing", self._point, None, looking, folder / "pointing.json"),
        ]

    def _make_folders(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        (self.folder / "logs").mkdir(exist_ok=True)

    def _fetch(self) -> None:
        fetch.fetch_file(fetch.SLIDE)
        fetch.fetch_file(fetch.IHC_PICTURE)
        link = self.folder / "llm"
        link.unlink(missing_ok=True)
        link.symlink_to(fetch.fetch_smollm2(), target_is_directory=True)

    def _examine_plip(self) -> None:
        facts = [(picture.path, picture.facts) for picture in read_pictures(self._data, "test") if picture.facts]
        with quiet(self.folder / "logs" / "plip_report.log"):
            report = plip_accuracies(self.folder / "plip", facts, self.settings.seed)
        write_json(self.folder / "plip_report.json", report, indent=1)

    def _format(self) -> None:
        """Turn the captions into a training file, as `tools/dataformat.py` does."""
        pairs, images, prompts = (self._data / name for name in ("captions.json", "images", "prompts.txt"))
        rows, wordings = self._data / "domain_alignment.jsonl", read_prompts(prompts)
        write_training_file(pairs, rows, image_folder=images, prompts=wordings, seed=self.settings.seed)

    def _convert(self) -> None:
        with quiet(self.folder / "logs" / "convert.log"):
            convert(self.folder / "stage2", self.folder / "model", merge=True, overwrite=True)

    def _examine(self) -> None:
        """Ask all held-out questions, and those on fine detail also without tiles."""
        evaluate_model(self.folder, self.settings, self._progress)
        batch_size = self.settings.eval_batch
        again = ask_without_tiles(self.folder / "model", self._answered(), batch_size, self._progress)
        write_json(self.folder / "answers_without_tiles.json", [each.as_record() for each in again], indent=1)

    def _point(self) -> None:
        write_json(self.folder / "pointing.json", measure(self._data, self.folder / "model", self._progress), indent=1)

    def _answered(self) -> list[Answer]:
        return read_predictions(self.folder / "evaluation" / "predictions.jsonl")

    def _write_report(self, seconds: dict[str, float]) -> dict[str, Any]:
        results = json.loads((self.folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
        records = json.loads((self.folder / "answers_without_tiles.json").read_text(encoding="utf-8"))
        without_tiles = [Answer.from_record(record) for record in records]
        report = summary(results["data"]["questions"], without_tiles)
        pointing = json.loads((self.folder / "pointing.json").read_text(encoding="utf-8"))
        report["pointing"] = pointing["kinds"]
        report["seconds"] = {**seconds, "total": round(sum(seconds.values()), 1)}
        write_json(self.folder / "report.json", report, indent=1)
        write_page(self.folder, report, self._answered(), without_tiles, pointing["most_read"])
        add_scores(self.folder / "model", results)
        return report


def _code(*patterns: str) -> list[Path]:
    """Return the files of the package that have these patterns, but for what Python compiles."""
    package = Path(pallava.__file__).parent
    found = [path for pattern in patterns for path in sorted(package.glob(pattern))]
    return [path for path in found if path.is_file() and path.suffix != ".pyc"]


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send the output of libraries to a file, and what programs that they start write to standard error."""
    terminal = os.dup(2)
    with log.open("w", encoding="utf-8") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        os.dup2(out.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
