#!/usr/bin/env python
"""What do the tiles, the connector and the encoder contribute? Seven variants on the demo's synthetic micrographs.

Each is trained with the same data, steps and seeds: the words of captions first, then questions (the demo's stage 1 is
left out, to save time). Every variant answers the same held-out questions. What was stopped goes on where it was; after
a change of pallava's code, remove the folder.

Examples:
  python benchmarks/ablation                          # 7 variants, 3 seeds
  python benchmarks/ablation --variants "cross-attention" "overview alone, MLP" --seeds 1
  python benchmarks/ablation --report                 # docs/ablation.md and its plot again, from what has run
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ablation_parts
from ablation_report import WITHOUT_TILES, Run, write_report
from ablation_variants import VARIANTS, Variant, shuffle_captions, write_configs

from pallava import convert, evaluate
from pallava.config_files import find_config
from pallava.demo import DemoSettings
from pallava.demo.exam import MAX_NEW_TOKENS, ask_without_tiles
from pallava.demo.pipeline import ALIGNMENT, INSTRUCTION, WORDS, Demo, Step, quiet, run_steps
from pallava.demo.questions import ATTRIBUTES
from pallava.demo.stages import pretrain_plip, train_stage
from pallava.errors import PallavaError, check_at_least
from pallava.evaluation.answers.items import read_predictions
from pallava.io.files import write_json, write_text
from pallava.io.processes import end_with_parent, num_cores, run_child

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
SETTINGS = DemoSettings(turns=3, instruction_rows=1800)
CHANGED = 10  # questions of each attribute that are also asked about changed images


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has not run yet and write the report; return 2 if something cannot run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("ablation"), help="working folder (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds (default: 1 2 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the size, to try the steps")
    parser.add_argument("--jobs", type=int, default=num_cores(2), help="runs at the same time (default: %(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # one of those runs, in its process
    parser.add_argument("--report", action="store_true", help="run nothing, report what has run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "ablation.md", help="page to write the table into")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    runs = [
        Run(name, seed, folder / f"{VARIANTS[name].slug}-{seed}") for seed in options.seeds for name in options.variants
    ]
    try:
        check_at_least(1, jobs=options.jobs)
        check_at_least(0, seeds=min(options.seeds))
        settings = SETTINGS.scaled(options.scale)
        if options.worker:
            end_with_parent()
            for run in runs:
                run_one(run, folder, replace(settings, seed=run.seed))
            return 0
        if not options.report:
            run_all(runs, folder, settings, options)
        write_report(runs, options.out)
    except PallavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        os._exit(130)  # runs in processes of their own end with this one
    return 0


def run_all(runs: Sequence[Run], folder: Path, settings: DemoSettings, options: argparse.Namespace) -> None:
    """Draw the data and train the encoder once, then do every run, seed by seed, some at the same time.

    Raises:
        PallavaError: A step fails, with the end of its log.
    """
    demo = Demo(folder / "demo", settings, lambda text: None if text[0] == "\r" else print(text, flush=True))
    demo.prepare()
    threads = max(1, num_cores() // options.jobs)
    paths = [str(ROOT), str(FOLDER), os.environ.get("PYTHONPATH", "")]
    variables = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def start(run: Run) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(FOLDER), "--worker", "--folder", str(folder), "--scale", str(options.scale)]
        command += ["--variants", run.name, "--seeds", str(run.seed)]
        log = run.folder / "log.txt"
        code = run_child(command, lambda line: None, {**os.environ, **variables}, log=log)
        if code:
            tail = "".join(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-25:])
            raise PallavaError(f"{run.name}, seed {run.seed}, failed; {log} ends with:\n{tail}")
        demo.say(f"{run.name}, seed {run.seed}: done")

    pool = ThreadPoolExecutor(options.jobs)
    waiting = [pool.submit(start, run) for run in runs]
    try:
        for future in waiting:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an error or Ctrl-C ends it at once


def run_one(run: Run, folder: Path, settings: DemoSettings) -> None:
    """Do the steps of a run that are not done yet, in the run's folder as working directory, as the configs have it."""
    variant, demo, shared = VARIANTS[run.name], run.folder / "demo", folder / "demo"
    (demo / "logs").mkdir(parents=True, exist_ok=True)
    for name in ("llm", "data"):
        (demo / name).unlink(missing_ok=True)
        (demo / name).symlink_to(shared / name, target_is_directory=True)
    encode = partial(_make_encoder, variant, demo, shared, settings)
    own = [FOLDER / f"ablation_{name}.py" for name in ("parts", "variants")]
    configs = [find_config(name) for name in (WORDS, ALIGNMENT, INSTRUCTION)]
    given = {"settings": settings, "progress": lambda text: None, "processes": 1}
    words = partial(train_stage, "words.py", demo / "words", **given)
    questions = partial(train_stage, "questions.py", demo / "stage2", **given)
    ask, changed = partial(_ask, demo, settings), partial(_ask_about_changed, demo, settings)
    steps = [
        Step("encoder", encode, asdict(settings), own, demo / "plip" / "encoder" / "config.json"),
        Step("configs", partial(write_configs, variant, run.folder), None, configs, run.folder / "questions.py"),
        Step("words", words, None, [], demo / "words" / "last_checkpoint"),
        Step("questions", questions, None, [], demo / "stage2" / "last_checkpoint"),
        Step("convert", partial(_convert, demo), None, [], demo / "model" / "config.json"),
        Step("answers", ask, None, [], demo / WITHOUT_TILES),
        Step("changed", changed, None, [], demo / "changed" / "results.json"),
    ]
    os.chdir(run.folder)
    run_steps(steps, run.folder / ".stamps", partial(print, flush=True))
    for stage in ("words", "stage2"):  # weights of all runs would take 15 GB, and nothing reads them any more
        for checkpoint in (demo / stage).glob("iter_*"):
            shutil.rmtree(checkpoint)
    (demo / "model" / "model.safetensors").unlink(missing_ok=True)


def _make_encoder(variant: Variant, demo: Path, shared: Path, settings: DemoSettings) -> None:
    own = demo / "plip"
    if own.is_symlink():
        own.unlink()
    shutil.rmtree(own, ignore_errors=True)
    if variant.encoder == "shuffled":
        other = demo.parent / "shuffled"
        shuffle_captions(shared / "data", other / "data", settings.seed)
        (other / "logs").mkdir(exist_ok=True)
        pretrain_plip(other, settings, lambda text: None)
        own.symlink_to(other / "plip", target_is_directory=True)
    elif variant.encoder == "imagenet":
        ablation_parts.write_imagenet_encoder(own / "encoder")
    else:
        own.symlink_to(shared / "plip", target_is_directory=True)


def _convert(demo: Path) -> None:
    convert(demo / "stage2", demo / "model", merge=True, overwrite=True, trust_remote_code=True)


def _ask(demo: Path, settings: DemoSettings) -> None:
    """Ask all held-out questions, with shuffled images, too, and those on fine detail without tiles."""
    shutil.rmtree(demo / "evaluation", ignore_errors=True)
    _evaluate(demo, demo / "data" / "questions.jsonl", demo / "evaluation", settings)
    answered = read_predictions(demo / "evaluation")
    again = ask_without_tiles(demo / "model", answered, settings.eval_batch, lambda text: None)
    write_json(demo / WITHOUT_TILES, [each.as_record() for each in again], indent=1)


def _ask_about_changed(demo: Path, settings: DemoSettings) -> None:
    """Ask some questions on each attribute also about images scaled, turned, flipped and stained otherwise."""
    shutil.rmtree(demo / "changed", ignore_errors=True)
    questions = [json.loads(line) for line in (demo / "data" / "questions.jsonl").read_text().splitlines()]
    some = [each for name in ATTRIBUTES for each in [q for q in questions if q["group"] == name][:CHANGED]]
    write_text(demo / "changed.jsonl", "".join(json.dumps(each) + "\n" for each in some))
    _evaluate(demo, demo / "changed.jsonl", demo / "changed", settings, consistency=True, without_shuffled=True)


def _evaluate(demo: Path, questions: Path, out: Path, settings: DemoSettings, **options: Any) -> None:
    sizes = {"batch_size": settings.eval_batch, "max_new_tokens": MAX_NEW_TOKENS, "trust_remote_code": True}
    with quiet(demo / "logs" / f"{out.name}.log"):
        evaluate(demo / "model", "custom", questions, out, image_folder=demo / "data" / "images", **sizes, **options)


if __name__ == "__main__":
    sys.exit(main())
