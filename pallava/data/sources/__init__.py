"""Readers of the public data sets: one file a set, all of them give records of `pallava.data.sources.base`."""

from __future__ import annotations

from pathlib import Path

from pallava.data.sources.bach import BACH
from pallava.data.sources.base import Source
from pallava.data.sources.colonpath import ColonPath
from pallava.data.sources.oscc import OSCC
from pallava.data.sources.pairs import Pairs
from pallava.data.sources.path_vqa import PathVQA
from pallava.data.sources.pmc_oa import PMCOA
from pallava.data.sources.pmc_vqa import PMCVQA
from pallava.data.sources.pubmedvision import PubMedVision
from pallava.data.sources.quilt import Quilt1M
from pallava.errors import PallavaError

SOURCES: dict[str, type[Source]] = {
    source.name: source for source in (PubMedVision, PMCOA, Quilt1M, PathVQA, PMCVQA, BACH, OSCC, ColonPath, Pairs)
}
"""Readers by name."""


def open_source(name: str, root: str | Path, *, split: str | None = None, image_policy: str = "first") -> Source:
    """Opens a data set.

    Args:
        name: One of `SOURCES`.
        root: Its folder; of "pairs" the file, too.
        split: The split to read, such as "train"; default: what the reader's class says.
        image_policy: What becomes of rows with several images, see `pallava.data.sources.base.IMAGE_POLICIES`.

    Raises:
        PallavaError: No such set, split or policy, or the folder does not look like the set.
    """
    if name not in SOURCES:
        raise PallavaError(f"no data set is called {name!r}; there are {', '.join(SOURCES)}")
    return SOURCES[name](root, split=split, image_policy=image_policy)
