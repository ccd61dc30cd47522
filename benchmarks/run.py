#!/usr/bin/env python
"""Run the benchmarks one after the other, and write what they print into `benchmarks/RESULTS.md`.

Each has its section there, with the command, the date, the revision and the machine. Those that do not run keep theirs.

Example:
  python benchmarks/run.py               # all of them: some 40 minutes on two cores that do nothing else
  python benchmarks/run.py flops encode  # two of them
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pallava.io.files import write_text
from pallava.io.processes import num_cores
from pallava.report.plots import COLOURS

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 1500  # seconds of one benchmark
SWEEP, PICTURE = "build/sweep.json", "training.png"
ORDER = ("training", "matmul", "flops", "gpu", "generate", "serve", "evaluate", "encode", "data_pipeline", "resume")
"""Benchmarks in the order of the report; any other in the folder comes after them."""
OPTIONS = {
    "training": ["--sweep", SWEEP],
    "generate": ["--rounds", "3"],
    "evaluate": ["--rounds", "2"],
}
HEAD = """# Results of the benchmarks

`make benchmark` writes this file; `python benchmarks/run.py NAME` runs one again. What is compared, and what it means,
is said at the top of each benchmark's file. Contestants took turns in one run, and a ratio is one of that run."""


def main() -> int:
    """Run the benchmarks that were named, or all; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = find_benchmarks(ROOT / "benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(known)} (default: all)")
    names = parser.parse_args().names or known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no benchmark '{unknown[0]}'; choose {', '.join(known)}")
    failed = run_all(names, ROOT / "benchmarks")
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return int(bool(failed))


def find_benchmarks(folder: Path) -> list[str]:
    """Return the names of the benchmarks in a folder, in the order of the report."""
    found = sorted(path.stem for path in folder.glob("*.py") if path.name != Path(__file__).name)
    return sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def run_all(names: Sequence[str], folder: Path) -> list[str]:
    """Run benchmarks and rewrite their sections of the report, each once it has run; return those that failed."""
    report, failed = folder / "RESULTS.md", []
    for name in names:
        print(f"{name} ...", flush=True)
        code, section = run(name, folder)
        failed += [name] if code else []
        if (ROOT / SWEEP).exists() and name == "training":
            draw(json.loads((ROOT / SWEEP).read_text()), folder / PICTURE)
            section += f"\n![Seconds of a step against tiles, text and batch]({PICTURE})\n"
        sections = read_sections(report) | {name: section}
        ordered = [sections.pop(each) for each in find_benchmarks(folder) if each in sections]
        write_text(report, "\n\n".join([HEAD, *(each.strip() for each in ordered)]) + "\n")
    return failed


def read_sections(report: Path) -> dict[str, str]:
    """Return the sections of a report by the names of their benchmarks."""
    parts = re.split(r"^(?=## )", report.read_text(encoding="utf-8"), flags=re.M) if report.exists() else []
    return {part.split("\n", 1)[0].removeprefix("## "): part for part in parts if part.startswith("## ")}


def run(name: str, folder: Path) -> tuple[int, str]:
    """Run a benchmark; return its exit code and its section: the command, when and where it ran, what it printed."""
    begin, words = time.perf_counter(), OPTIONS.get(name, [])
    (ROOT / SWEEP).parent.mkdir(exist_ok=True)
    (ROOT / SWEEP).unlink(missing_ok=True)
    code, text = execute([sys.executable, str(folder / f"{name}.py"), *words])
    taken = f"{time.perf_counter() - begin:.0f} s"
    where = f"{date.today()}, {describe_revision()}, {taken}, {describe_machine()}"
    failure = f"**Failed with exit code {code}.**\n\n" if code else ""
    command = " ".join(["python", f"benchmarks/{name}.py", *words])
    return code, f"## {name}\n\n`{command}`\n\n{where}\n\n{failure}```text\n{text}\n```\n"


def execute(words: Sequence[str]) -> tuple[int, str]:
    """Run a command; return its exit code and its output, with the end of its errors if it failed."""
    quiet = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}  # DeepSpeed prints that it finds no other
    options: Any = {"cwd": ROOT, "env": {**os.environ, **quiet}, "capture_output": True, "text": True}
    try:
        done = subprocess.run(words, timeout=TIMEOUT, **options)
    except subprocess.TimeoutExpired as error:
        return 124, f"{(error.stdout or b'').decode()}\nended after {TIMEOUT} s".strip()
    return done.returncode, f"{done.stdout}\n{done.stderr[-2000:] if done.returncode else ''}".strip()


def describe_revision() -> str:
    """Return the commit that is measured, and whether files differ from it."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "pallava", "benchmarks/*.py"]).returncode
    return f"revision {commit or 'unknown'}{' with changes' if changed else ''}"


def describe_machine() -> str:
    """Return cores, memory, torch, threads and the card."""
    cpu = Path("/proc/cpuinfo")  # of Linux
    models = re.findall(r"^model name\s*: (.+)$", cpu.read_text(), re.M) if cpu.exists() else []
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = f"{num_cores()} cores of {[*models, platform.machine()][0]}"
    torches = f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    return f"{cores}, {psutil.virtual_memory().total / 1e9:.0f} GB, {card}; {torches}"


def draw(points: Sequence[dict[str, float]], path: Path) -> None:
    """Draw the seconds of a step against each size of a batch, where the other sizes are the usual ones."""
    lines = {"published_s": "published order", "ours_recomputing_s": "ours, recomputing", "ours_s": "ours"}
    labels = {"tiles": "tiles of an image", "text": "tokens of text in a row", "batch": "rows of a batch"}
    usual = {key: Counter(point[key] for point in points).most_common(1)[0][0] for key in labels}
    figure = Figure(figsize=(10, 3.2), layout="constrained", dpi=150)
    for axes, key in zip(figure.subplots(1, 3, sharey=True), labels, strict=True):
        others = [each for each in labels if each != key]
        shown = sorted((p for p in points if all(p[o] == usual[o] for o in others)), key=lambda point: point[key])
        for (column, label), colour in zip(lines.items(), COLOURS, strict=False):
            axes.plot([p[key] for p in shown], [p[column] for p in shown], "o-", color=colour, label=label)
        axes.set(xlabel=labels[key], xticks=[p[key] for p in shown])
        axes.set_title(", ".join(f"{usual[other]:g} {labels[other].split(' of ')[0]}" for other in others), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.axes[0].set(ylabel="seconds of a step", ylim=(0, None))
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
