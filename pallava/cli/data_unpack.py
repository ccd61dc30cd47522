"""Unpacks a downloaded zip, tar or tar.gz into a new folder, or refuses it as a whole.

Refused are members that would leave the folder, links, devices, encrypted members, and whatever unpacks to more than
it says, than is plausible for its size, or than --max-gb. Archives inside of the archive are left packed.

Example:
  pallava data unpack downloads/images_2.zip data/PMC-VQA
"""

import argparse

from pallava.data.archives import MAX_GB, unpack
from pallava.errors import PallavaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("archive", help="the file; its kind is told by its content")
    parser.add_argument("out", help="folder to make; must not exist")
    parser.add_argument("--max-gb", type=float, default=MAX_GB, help="most that may come out (default: %(default)g)")


def run(options: argparse.Namespace) -> int:
    """Unpacks."""
    if not options.max_gb > 0:
        raise PallavaError(f"--max-gb is a number above 0, not {options.max_gb:g}")
    unpacked = unpack(options.archive, options.out, max_gb=options.max_gb)
    print(f"{options.out}: {unpacked.num_files} files, {unpacked.num_bytes / 1e9:.2f} GB")
    return 0
