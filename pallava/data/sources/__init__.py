"""Readers of data sets. A module in this folder that calls `register_source` is found by itself.

A reader outside of the package calls `pallava.register_source` on its class; it is then opened by its name as well.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from pallava.data.sources.base import SOURCES, Source, register_source
from pallava.errors import PallavaError

__all__ = ["SOURCES", "Source", "open_source", "register_source"]


def import_readers() -> None:
    """Import every module of this folder, which registers its readers."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


import_readers()


def open_source(name: str, root: str | Path, **options: Any) -> Source:
    """Open one of `SOURCES` by its folder; "pairs" and "csv" also by their file.

    Options are `split` (docs/data_sets.md says the default of each set), `image_policy`, `columns` and `image_folder`,
    see `Source`.

    Raises:
        PallavaError: The set, split, policy or columns do not exist, or the folder does not look like the set.
    """
    if name not in SOURCES:
        raise PallavaError(f"{name!r} is not a data set; choose {', '.join(SOURCES)}")
    return SOURCES[name](root, **options)
