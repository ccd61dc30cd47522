"""Copy a config to change it.

Example:
  pallava config copy pallava_domain_alignment my_experiment.py
"""

import argparse
import shutil
from pathlib import Path

from pallava.errors import PallavaError

HELP = "copy a config to change it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the config's name and where it goes."""
    parser.add_argument("name", metavar="NAME", help="a name from `pallava config list`")
    parser.add_argument("destination", metavar="DEST", nargs="?", default=".", help="a file or folder; default: here")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace) -> int:
    """Copies the file and says where.

    Raises:
        PallavaError: No such config; the file exists; or the config builds on another file.
    """
    from pallava.config_files import find_config

    source, target = find_config(args.name), Path(args.destination)
    if "read_base" in source.read_text(encoding="utf-8"):
        raise PallavaError(
            f"{source.name} builds on another config, which a copy would lose: copy the one it names in read_base, or "
            "change it with --cfg-options."
        )
    if target.is_dir() or not target.suffix:
        target = target / source.name
    if target.exists() and not args.overwrite:
        raise PallavaError(f"{target} exists: choose another name, or add --overwrite to replace it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"{target}")
    return 0
