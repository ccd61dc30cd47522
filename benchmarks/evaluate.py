#!/usr/bin/env python
"""How much faster are an evaluation and a chat: against an earlier revision, and against a conversation's first turn?

`pallava evaluate` of both revisions answers the same questions, as the demo asks them, in processes of their own and in
turns; their answers must be equal. The model has the demo's shape and language model (SmolLM2-135M) and random weights,
once with LoRA merged, as the demo has it, and once with LoRA beside its base. An answer has at most four tokens, as the
demo's have. Answering is what `Answerer.answer` takes, encoder included, and cpu its processor time, which says
more on a busy machine; all is the whole command, imports included.

A chat asks two questions about one image of six tiles; the second turn finds what the first one computed. Answers have
as many tokens as the demo's, or are a sentence. The promise is for the demo's answers and the published encoder and
connector (ViT-B/16, 196 visual tokens) before SmolLM2-135M: in a sentence, and with the demo's 16 visual tokens, the
answers themselves take most of both turns.

A ratio is one round's; what is printed is the median over the rounds.

Example:
  python benchmarks/evaluate.py                       # some minutes on two cores
  python benchmarks/evaluate.py --revision b135031    # the revision to compare with
  python benchmarks/evaluate.py --small               # few questions, one round, for a test; its numbers say nothing
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

MIN_EVALUATION, MIN_CHAT = 1.3, 3.0
"""Times as many answers a second, and times as fast a second turn, that are promised."""
REVISION = "b135031"
SIZES = {"pictures": 60, "closed_per_kind": 17, "open_per_kind": 18}  # a quarter of the demo's
SMALL = {"pictures": 8, "closed_per_kind": 4, "open_per_kind": 4}
BATCH, MAX_NEW_TOKENS, SENTENCE = 32, 4, 16
PARTS = ("answering", "cpu", "all")

# Runs the command in the place of `python -m pallava`, and adds up the time within `Answerer.answer`.
PROBE = """
import importlib.util, json, sys, time
begin = time.perf_counter()
from pallava.cli import main
found = [n for n in ("pallava.evaluation.answers", "pallava.evaluation") if importlib.util.find_spec(n)]
answerer = importlib.import_module(found[0] + ".generation").Answerer
answer, times = answerer.answer, {"answering": 0.0, "cpu": 0.0}
def timed(self, *given):
    start = time.perf_counter(), time.process_time()
    result = answer(self, *given)
    times["answering"] += time.perf_counter() - start[0]
    times["cpu"] += time.process_time() - start[1]
    return result
answerer.answer = timed
code = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump({**times, "all": time.perf_counter() - begin}, file)
sys.exit(code)
"""


def main() -> int:
    """Measure, print the tables, and return 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few questions and one round, for a test")
    parser.add_argument("--revision", default=REVISION, help="revision to compare with (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default: %(default)s)")
    options = parser.parse_args()
    from pallava.matmul import use_onednn

    torch.set_num_threads(options.threads)
    rounds = 1 if options.small else options.rounds
    with tempfile.TemporaryDirectory(prefix="evaluate-") as name, checkout(options.revision, Path(name)) as before:
        folder = Path(name)
        num_answers = 2 * write_questions(folder, **(SMALL if options.small else SIZES))  # with shuffled images, too
        models = write_models(folder)
        trees = {options.revision: before, "now": ROOT}
        print(f"{options.threads} threads, {num_answers} answers, batches of {BATCH}, {rounds} rounds\n")
        ratios = [
            report(model.name, num_answers, [run_both(trees, model, options.threads) for _ in range(rounds)])
            for model in models
        ]
    use_onednn()
    for num_tokens in (MAX_NEW_TOKENS, SENTENCE):
        time_chat(rounds, num_tokens, is_published=False)
    time_chat(rounds, SENTENCE, is_published=True)
    turns = time_chat(rounds, MAX_NEW_TOKENS, is_published=True)
    kept = min(ratios) >= MIN_EVALUATION and turns >= MIN_CHAT
    print(
        f"evaluation {min(ratios):.2f} times as many answers a second (at least {MIN_EVALUATION:g}), second turn "
        f"{turns:.2f} times as fast (at least {MIN_CHAT:g}): {'kept' if kept else 'NOT kept'}"
    )
    return 0 if options.small or kept else 1


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """Check a revision out beside the working tree for a while."""
    tree = folder / "before"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def write_questions(folder: Path, pictures: int, closed_per_kind: int, open_per_kind: int) -> int:
    """Draw micrographs, and write ``questions.jsonl`` about them as the demo does; return the number of questions."""
    from PIL import Image

    from pallava.demo.micrographs import draw, random_facts
    from pallava.demo.questions import held_out_questions

    facts = {}
    for number in range(pictures):
        rng = np.random.default_rng([1, number])
        micrograph = draw(random_facts(rng), rng)
        Image.fromarray(micrograph.pixels).save(folder / f"{number}.png", compress_level=1)
        facts[f"{number}.png"] = micrograph.facts
    per_kind = {"closed_per_kind": closed_per_kind, "open_per_kind": open_per_kind}
    rows = held_out_questions(facts, np.random.default_rng(2), **per_kind)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def write_models(folder: Path) -> list[Path]:
    """Write the model with LoRA, as the demo's config has it, merged and as an adapter."""
    from generate import with_images
    from transformers import AutoModelForCausalLM

    from pallava.demo.fetch import fetch_smollm2
    from pallava.model.loading import add_lora, merge_lora

    written = []
    for kind in ("merged", "adapter"):
        torch.manual_seed(0)
        llm = AutoModelForCausalLM.from_pretrained(fetch_smollm2())
        llm = add_lora(llm, {"r": 16, "lora_alpha": 32, "task_type": "CAUSAL_LM", "init_lora_weights": False})
        model, processor = with_images(merge_lora(llm) if kind == "merged" else llm)
        model.config.base_llm = str(fetch_smollm2())
        written.append(folder / kind)
        model.save_pretrained(folder / kind)
        processor.save_pretrained(folder / kind)
        path = folder / kind / "processor_config.json"
        values = json.loads(path.read_text())
        values.pop("reads_tiles")  # the default, which earlier revisions did not name
        path.write_text(json.dumps(values))
    return written


def run_both(trees: dict[str, Path], model: Path, threads: int) -> dict[str, dict[str, float]]:
    """Evaluate once in each tree, and compare the answers."""
    seconds, answers = {}, {}
    for name, tree in trees.items():
        with tempfile.TemporaryDirectory() as scratch:
            out, times = Path(scratch) / "out", Path(scratch) / "times.json"
            command = [sys.executable, "-c", PROBE, times, "evaluate", model, "custom", "--out", out]
            command += ["--data", model.parent / "questions.jsonl", "--image-folder", model.parent, "--device", "cpu"]
            command += ["--batch-size", BATCH, "--max-new-tokens", MAX_NEW_TOKENS]
            environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(
                list(map(str, command)), cwd=scratch, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise SystemExit(f"the evaluation of {name} failed:\n{done.stderr[-2000:]}")
            seconds[name] = json.loads(times.read_text())
            rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
            answers[name] = [(row["id"], row["answer"]) for row in rows]
    if len(set(map(str, answers.values()))) != 1:
        raise SystemExit("the answers of both revisions differ: there is nothing to compare")
    return seconds


def report(title: str, num_answers: int, rounds: Sequence[dict[str, dict[str, float]]]) -> float:
    """Print a table, and return how many times as many answers a second there are now."""
    print(f"{title:<24}{'answers/s':>12}" + "".join(f"{f'{part} s':>14}" for part in PARTS))
    for name in rounds[0]:
        seconds = {part: statistics.median(each[name][part] for each in rounds) for part in PARTS}
        print(
            f"  {name:<22}{num_answers / seconds['answering']:>12.2f}"
            + "".join(f"{s:>14.1f}" for s in seconds.values())
        )
    before, now = rounds[0]
    ratios = {part: [each[before][part] / each[now][part] for each in rounds] for part in PARTS}
    medians = [statistics.median(values) for values in ratios.values()]
    spread = f"rounds from {min(ratios['answering']):.2f} to {max(ratios['answering']):.2f}"
    print(f"  {'ratio':<22}{'':>12}" + "".join(f"{value:>14.2f}" for value in medians) + f"   {spread}\n")
    return medians[0]


def time_chat(rounds: int, num_tokens: int, *, is_published: bool) -> float:
    """Print the seconds of two turns, and return how many times as fast the second is."""
    from generate import with_images, write_picture
    from transformers import AutoModelForCausalLM

    from pallava.demo.fetch import fetch_smollm2
    from pallava.images import open_image
    from pallava.serving.session import Session

    torch.manual_seed(0)
    parts = with_images(AutoModelForCausalLM.from_pretrained(fetch_smollm2()), is_published=is_published)
    with tempfile.TemporaryDirectory() as scratch:
        image = open_image(write_picture(Path(scratch), 0))
    options: dict[str, Any] = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    turns = []
    for number in range(-1, rounds):
        start = time.perf_counter()
        session = Session(*parts, image)
        session.ask("What is the stain?", **options)
        between = time.perf_counter()
        session.ask("Is necrosis present?", **options)
        if number >= 0:
            turns.append((between - start, time.perf_counter() - between))
    first, second = (statistics.median(each) for each in zip(*turns, strict=True))
    ratio = statistics.median(one / two for one, two in turns)
    name = "the published encoder and connector" if is_published else "an encoder and connector of the demo's sizes"
    print(f"chat, {name}, {num_tokens} tokens an answer:")
    print(f"  first turn {first:.2f} s, second {second:.2f} s, ratio {ratio:.2f}\n")
    return ratio


if __name__ == "__main__":
    sys.exit(main())
