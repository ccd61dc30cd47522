"""What a user chooses for a cleaning run, as it is stored with the scores, and the filters that this makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pallava.data.clean.clip_judge import CLIP_THRESHOLD
from pallava.data.clean.filters import APPLIES_TO, Filter
from pallava.data.clean.image_check import MAX_BACKGROUND, ImageFilter
from pallava.data.clean.pipeline import Input
from pallava.data.clean.published_index import PublishedIndexFilter
from pallava.data.clean.words import MIN_WORDS, WordsFilter
from pallava.data.sources import SOURCES, open_source
from pallava.errors import PallavaError

DEFAULT_FILTERS = ("words", "image", "pathology", "species", "duplicates")
INDEX_FILTERS = ("published-index", "image")
"""The default where a published list is given: its images have passed the paper's filters."""

_TEXT_JUDGES = ("metadata", "rules")  # cost next to nothing, so they go before any image is decoded


@dataclass(frozen=True)
class SourceSetting:
    """A source: its name, its root without links, and the split to read."""

    name: str
    root: str
    split: str | None = None


@dataclass(frozen=True)
class CleanSettings:
    """All that the outcome depends on; the options of ``pallava data clean`` describe it."""

    sources: tuple[SourceSetting, ...]
    image_folder: str | None = None
    image_policy: str = "first"
    filters: tuple[str, ...] = DEFAULT_FILTERS
    min_words: int = MIN_WORDS
    max_background: float = MAX_BACKGROUND
    published_index: str | None = None
    pathology: str = "metadata"
    clip_model: str | None = None
    clip_weights: str | None = None
    clip_threshold: float = CLIP_THRESHOLD
    pathology_url: str | None = None
    pathology_model: str | None = None
    species: str = "rules"
    species_url: str | None = None
    species_model: str | None = None
    drop_unanswered: bool = False

    @property
    def labels(self) -> list[str]:
        """Names of the sources in the output: their own; "pairs-2" for the second of a name."""
        names = [each.name for each in self.sources]
        counts = [names[: index + 1].count(name) for index, name in enumerate(names)]
        return [name if count == 1 else f"{name}-{count}" for name, count in zip(names, counts, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Gives the settings as JSON holds them."""
        lists = {"sources": [asdict(each) for each in self.sources], "filters": list(self.filters)}
        return {**asdict(self), **lists}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CleanSettings:
        """The settings that `to_json` gave."""
        known = {each.name: value[each.name] for each in fields(cls) if each.name in value}
        known["sources"] = tuple(SourceSetting(**each) for each in value["sources"])
        return cls(**{**known, "filters": tuple(value["filters"])})


def open_inputs(settings: CleanSettings) -> list[Input]:
    """Opens the sources.

    Raises:
        PallavaError: A source is unknown, its root does not look like it, or it holds classes.
    """
    for each in settings.sources:
        if each.name not in SOURCES:
            raise PallavaError(f"there is no source '{each.name}'; known are {', '.join(SOURCES)}")
        if SOURCES[each.name].kind == "classes":
            raise PallavaError(f"'{each.name}' is a set of classes; captions and questions are cleaned")
    policy = settings.image_policy
    return [
        Input(label, open_source(each.name, Path(each.root), split=each.split, image_policy=policy))
        for label, each in zip(settings.labels, settings.sources, strict=True)
    ]


@dataclass(frozen=True)
class Effort:
    """How much is done at a time, which changes nothing in the outcome.

    Attributes:
        num_workers: Processes that decode images.
        concurrency: Requests to an endpoint under way.
    """

    num_workers: int = 1
    concurrency: int = 8


def make_filters(settings: CleanSettings, effort: Effort | None = None) -> list[Filter]:
    """Makes the filters in the order in which they decide.

    What costs little comes first. Duplicates come last: only among what all others keep is the first of several chosen.

    Raises:
        PallavaError: A filter is unknown, or lacks what it needs.
    """
    names = _check_names(settings)
    made = {name: _make_filter(name, settings, effort or Effort()) for name in APPLIES_TO if name in names}
    order = sorted(made, key=lambda name: _rank(name, settings))
    return [each for each in (made[name] for name in order) if each is not None]


def _check_names(settings: CleanSettings) -> Sequence[str]:
    names = settings.filters
    for name in names:
        if name not in APPLIES_TO:
            raise PallavaError(f"there is no filter '{name}'; known are {', '.join(APPLIES_TO)}")
    looks = settings.pathology in ("clip", "endpoint")
    needing = [name for name in names if name == "duplicates" or (name == "pathology" and looks)]
    if needing and "image" not in names:
        raise PallavaError(f"the filter '{needing[0]}' needs what the filter 'image' reads; add 'image' to the filters")
    if ("published-index" in names) != (settings.published_index is not None):
        raise PallavaError("the filter 'published-index' and the list (--published-index FILE) go together; give both")
    return names


def _rank(name: str, settings: CleanSettings) -> tuple[int, int]:
    judge = {"pathology": settings.pathology, "species": settings.species}.get(name)
    is_cheap = name in ("published-index", "words") or judge in _TEXT_JUDGES
    return (0 if is_cheap else 1), list(APPLIES_TO).index(name)


def _make_filter(name: str, settings: CleanSettings, effort: Effort) -> Filter | None:
    if name == "published-index":
        assert settings.published_index is not None  # checked before
        return PublishedIndexFilter(settings.published_index)
    if name == "words":
        return WordsFilter(settings.min_words)
    if name == "image":
        folder = settings.image_folder and Path(settings.image_folder)
        return ImageFilter(settings.max_background, num_workers=effort.num_workers, image_folder=folder or None)
    if name == "duplicates":
        from pallava.data.clean.duplicates import DuplicateFilter

        return DuplicateFilter()
    return _make_pathology(settings, effort) if name == "pathology" else _make_species(settings, effort)


def _make_pathology(settings: CleanSettings, effort: Effort) -> Filter | None:
    if settings.pathology == "metadata":
        from pallava.data.clean.metadata_judge import PathologyMetadata

        return PathologyMetadata()
    if settings.pathology == "clip":
        from pallava.data.clean.clip_judge import PathologyClip

        if not settings.clip_model:
            raise PallavaError("--pathology clip needs --clip-model, open_clip's name of a model, and --clip-weights")
        return PathologyClip(settings.clip_model, settings.clip_weights, threshold=settings.clip_threshold)
    if settings.pathology == "endpoint":
        from pallava.data.clean.endpoint_judges import PathologyEndpoint

        return PathologyEndpoint(_endpoint("pathology", settings.pathology_url, settings.pathology_model, effort))
    return None


def _make_species(settings: CleanSettings, effort: Effort) -> Filter | None:
    if settings.species == "rules":
        from pallava.data.clean.species import SpeciesRules

        return SpeciesRules()
    if settings.species == "endpoint":
        from pallava.data.clean.endpoint_judges import SpeciesEndpoint

        return SpeciesEndpoint(_endpoint("species", settings.species_url, settings.species_model, effort))
    return None


def _endpoint(name: str, url: str | None, model: str | None, effort: Effort) -> Any:
    from pallava.judging.endpoint import Endpoint

    if not url or not model:
        raise PallavaError(
            f"--{name} endpoint needs --{name}-url (such as http://localhost:8000/v1) and --{name}-model, the model's "
            f"name there"
        )
    return Endpoint(url, model, concurrency=effort.concurrency)
