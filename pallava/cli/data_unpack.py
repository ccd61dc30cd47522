"""Unpacks downloaded zip, tar or tar.gz files into one new folder, or refuses them as a whole.

Refused are members that would leave the folder, links, devices, encrypted members, and whatever unpacks to more than
it says, than is plausible for its size, or than --max-gb. Archives inside of an archive are left packed. Files get the
dates that the archive gives them.

Examples:
  pallava data unpack downloads/images_2.zip data/PMC-VQA/images_2
  pallava data unpack downloads/images_*.zip data/PubMedVision/images --flat
"""

import argparse

from pallava.errors import PallavaError
from pallava.io.archives import MAX_GB, unpack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("archive", nargs="+", help="a file; its kind is told by its content")
    parser.add_argument("out", help="folder to make; must not exist")
    parser.add_argument("--flat", action="store_true", help="leave out the folders that are in the archives")
    parser.add_argument("--max-gb", type=float, default=MAX_GB, help="most that may come out (default: %(default)g)")


def run(options: argparse.Namespace) -> int:
    """Unpacks."""
    if not options.max_gb > 0:
        raise PallavaError(f"--max-gb is a number above 0, not {options.max_gb:g}")
    unpacked = unpack(options.archive, options.out, max_gb=options.max_gb, is_flat=options.flat)
    print(f"{options.out}: {unpacked.num_files} files, {unpacked.num_bytes / 1e9:.2f} GB")
    return 0
