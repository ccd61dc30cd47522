"""The command `pallava demo`."""

import sys
from pathlib import Path
from typing import Annotated


def run_demo(
    scale: Annotated[
        float, "fraction of the demo's size, above 0 to 1; a small one only shows that all steps run"
    ] = 1.0,
) -> None:
    """Train a small PA-LLaVA on this computer, and look at what it learnt."""
    from pallava.demo import DemoSettings

    settings = DemoSettings().scaled(scale)
    from pallava.demo.pipeline import Demo  # takes seconds to import; a wrong argument fails at once

    report = Demo(Path("demo"), settings, _Lines()).run()
    fine = report["fine_detail_accuracy"]
    print(
        f"\nOf {report['num_questions']} held-out questions on synthetic images:\n"
        f"  closed  {report['closed_accuracy']:.1%} right ({report['closed_accuracy_shuffled']:.1%} with shuffled "
        f"images, {report['closed_accuracy_majority']:.1%} by always giving the more frequent answer)\n"
        f"  open    {report['open_exact_match']:.1%} exactly right\n"
        f"  fine detail  {fine['with_tiles']:.1%} with tiles, {fine['tiles_replaced_by_overview']:.1%} without\n\n"
        "The page: demo/index.html   The numbers: demo/report.json   Ask it something:\n"
        '  pallava chat demo/model --image demo/data/images/test-00000.png --question "Is necrosis present?"'
    )


class _Lines:
    """Printer of lines; those that begin with a carriage return replace each other on a terminal."""

    def __init__(self) -> None:
        self._is_open, self._count = False, 0

    def __call__(self, text: str) -> None:
        if not text.startswith("\r"):
            print("\n" * self._is_open + text, flush=True)
            self._is_open = False
        elif sys.stdout.isatty():
            print(f"\r\x1b[K{text[1:]}", end="", flush=True)
            self._is_open = True
        else:
            self._count += 1
            if self._count % 50 == 0:  # a log file has one in so many
                print(text[1:], flush=True)
