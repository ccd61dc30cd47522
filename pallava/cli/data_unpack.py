"""Unpack downloaded zip, tar or tar.gz files into one new folder, or refuse them as a whole.

An archive is refused if a member would leave the folder, is a link, a device or encrypted, or if it unpacks to more
than it declares, than is plausible for its size, or than --max-gb. Archives inside of an archive are left packed. Files
get the dates that the archive records.

Examples:
  pallava data unpack downloads/images_2.zip data/PMC-VQA/images_2
  pallava data unpack downloads/images_*.zip data/PubMedVision/images --flat
"""

import argparse

from pallava.errors import PallavaError
from pallava.io.archives import MAX_GB, unpack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("archive", nargs="+", help="zip, tar or tar.gz file; its content decides which")
    add("out", help="folder to make; it must not exist")
    add("--flat", action="store_true", help="leave out the folders in the archives")
    add("--max-gb", type=float, default=MAX_GB, help="maximum unpacked size in GB (default: %(default)g)")


def run(options: argparse.Namespace) -> int:
    """Unpack."""
    if not options.max_gb > 0:
        raise PallavaError(f"--max-gb must be above 0, got {options.max_gb:g}")
    unpacked = unpack(options.archive, options.out, max_gb=options.max_gb, is_flat=options.flat)
    print(f"{options.out}: {unpacked.num_files} files, {unpacked.num_bytes / 1e9:.2f} GB")
    return 0
