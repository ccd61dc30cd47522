"""Train a small PA-LLaVA on this computer, and look at what it learnt.

Draws synthetic micrographs, trains a small encoder and both stages of PA-LLaVA on a small language model, and puts
held-out questions to the result. It takes about 20 minutes on two cores; results lie in ./demo, a page among them.
A second run goes on where the first one stopped. For research only: nothing here is fit for diagnosis.

Example:
  pallava demo && pallava chat demo/model --image demo/data/images/test-00000.png --question "Is necrosis present?"
"""

import argparse
import signal
import sys
from pathlib import Path

HELP = "train a small PA-LLaVA on this computer, and look at what it learnt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the demo's one argument."""
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of the size; a small one only shows that all steps run"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the demo in ./demo.

    Raises:
        PallavaError: A step failed; the message has the reason.
    """
    from pallava.demo.settings import DemoSettings

    settings = DemoSettings().scaled(args.scale)
    from pallava.demo.pipeline import Demo  # takes seconds to import; a wrong argument is told at once

    # Asked to end, Python would leave the training that it started alone and running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    report = Demo(Path("demo"), settings, _Lines()).run()
    fine = report["fine_detail_accuracy"]
    print(
        f"\nOf {report['num_questions']} held-out questions on synthetic images:\n"
        f"  closed  {report['closed_accuracy']:.1%} right ({report['closed_accuracy_shuffled']:.1%} with shuffled "
        f"images, {report['closed_accuracy_majority']:.1%} by always saying the more frequent answer)\n"
        f"  open    {report['open_exact_match']:.1%} exactly right\n"
        f"  fine detail  {fine['with_tiles']:.1%} with tiles, {fine['tiles_replaced_by_overview']:.1%} without\n\n"
        "The page: demo/index.html   The numbers: demo/report.json   Ask it something:\n"
        '  pallava chat demo/model --image demo/data/images/test-00000.png --question "Is necrosis present?"'
    )
    return 0


class _Lines:
    """Prints lines; those that begin with a carriage return replace each other on a terminal."""

    def __init__(self) -> None:
        self._open, self._count = False, 0

    def __call__(self, text: str) -> None:
        passing = text.startswith("\r")
        if passing and not sys.stdout.isatty():
            self._count += 1
            if self._count % 50:  # in a log file, one in so many
                return
            passing, text = False, text[1:]
        end = "" if passing else "\n"
        if self._open and not passing:
            print()
        print(f"\r\x1b[K{text[1:]}" if passing else text, end=end, flush=True)
        self._open = passing
