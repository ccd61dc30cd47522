"""List the names of our configs, which `pallava train` and `pallava config copy` take.

For example: pallava config copy pallava_domain_alignment
"""

import argparse

HELP = "list the configs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes none."""


def run(args: argparse.Namespace) -> int:
    """Prints one name a line."""
    from pallava.config_files import config_names

    print("\n".join(config_names()))
    return 0
