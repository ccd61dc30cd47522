"""Joins the shards that `pallava data clean --shard I/N` judged, and decides what is kept.

OUT must hold the files scores.shard-I-of-N.sqlite of all shards: machines that share no folder have theirs copied. The
sources must be found under the same paths as there, with the same files: an image is known by name, size and date. So
unpack everywhere with `pallava data unpack`, which keeps the dates of the archive, or copy with them (rsync -t, cp -p).

Example:
  pallava data merge clean
"""

import argparse
from pathlib import Path

from pallava.cli.data_clean import print_summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("out", help="the OUT of `pallava data clean`")


def run(options: argparse.Namespace) -> int:
    """Merges."""
    from pallava.data.clean.run import merge

    print_summary(merge(Path(options.out)), options.out)
    return 0
