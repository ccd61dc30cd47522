"""The registry of filters, and the settings from which they are made. A new filter is one file, and one row here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pallava.data.clean import judges
from pallava.data.clean.engine import Engine
from pallava.data.clean.filters import BOTH_KINDS, CAPTIONS, Filter, WordsFilter
from pallava.data.clean.images import MAX_BACKGROUND, DuplicateFilter, ImageFilter
from pallava.data.clean.published_index import PublishedIndexFilter
from pallava.data.clean.ray_engine import RayEngine
from pallava.data.clean.species import SpeciesRules
from pallava.data.material import SourceSpec
from pallava.data.sources.base import IMAGE_POLICIES
from pallava.errors import PallavaError, check_at_least
from pallava.io.processes import default_num_workers
from pallava.judging.endpoint import Endpoint

KEPT, DROPPED = "kept.jsonl", "dropped.jsonl"
ENGINES = ("local", "ray")
_INDEX = "published-index"
_INDEX_FILTERS = (_INDEX, "image")  # images of the published list have passed the paper's filters
_WITHOUT_EFFECT = ("num_workers", "concurrency", "engine", "ray_address")


@dataclass(frozen=True)
class CleanSettings:
    """Settings of a cleaning run, each with its help text; the sources are in the order of the output."""

    sources: tuple[SourceSpec, ...]
    image_folder: Annotated[
        str | None, "folder to which image paths are relative (default: the one above all roots)"
    ] = None
    image_policy: Annotated[str, "treatment of rows with several images", {"choices": IMAGE_POLICIES}] = "first"
    filters: Annotated[
        tuple[str, ...],
        "filters, separated by commas (default: all but published-index, or published-index,image with a list)",
        {"type": _split},
    ] = ()
    min_words: Annotated[int, "minimum number of words in a caption"] = 20  # as in PA-LLaVA
    max_background: Annotated[float, "maximum share of an image without tissue, 0 to 1"] = MAX_BACKGROUND
    published_index: Annotated[str | None, "list of image names, as PA-LLaVA published it", {"metavar": "FILE"}] = None
    pathology: Annotated[str, "judge of images", {"choices": JUDGES["pathology"]}] = "metadata"
    model_name: Annotated[
        str | None, "open_clip's name of the judging model, such as ViT-B-16 or hf-hub:ORGANIZATION/NAME"
    ] = None
    pretrained: Annotated[str | None, "open_clip's tag of its weights, or a checkpoint"] = None
    clip_threshold: Annotated[float, "minimum share of the pathology captions, 0 to 1"] = judges.CLIP_THRESHOLD
    pathology_url: Annotated[
        str | None, "OpenAI-compatible endpoint that judges images, such as http://localhost:8000/v1"
    ] = None
    pathology_model: Annotated[str | None, "name of the vision-language model at that endpoint"] = None
    species: Annotated[str, "judge of captions", {"choices": JUDGES["species"]}] = "rules"
    species_url: Annotated[str | None, "OpenAI-compatible endpoint that judges captions"] = None
    species_model: Annotated[str | None, "name of the language model at that endpoint"] = None
    drop_unanswered: Annotated[bool, "drop rows that an endpoint fails to answer; a later run asks again"] = False
    num_workers: Annotated[
        int, "number of processes that decode images (default: one for each core, at most 16)", "--workers"
    ] = field(default_factory=default_num_workers)
    concurrency: Annotated[int, "number of requests to an endpoint at a time"] = 8
    engine: Annotated[
        str,
        "engine that runs the filters: processes of this machine, or Ray Data, whose nodes must all see the images",
        {"choices": ENGINES},
    ] = "local"
    ray_address: Annotated[
        str | None, "Ray cluster as HOST:PORT, or auto (default: start Ray here, with --workers CPUs)"
    ] = None

    @classmethod
    def create(cls, sources: Iterable[SourceSpec], values: Mapping[str, Any]) -> CleanSettings:
        """Make settings of given values; None means the default, and paths become absolute.

        Raises:
            PallavaError: A filter or a judge is unknown, or a judge's filter is not among the filters.
        """
        values = {name: value for name, value in values.items() if value is not None}
        for name in ("image_folder", "published_index"):
            if name in values:
                values[name] = _absolute(values[name])
        if Path(values.get("pretrained", "")).is_file():
            values["pretrained"] = _absolute(values["pretrained"])
        default = _INDEX_FILTERS if "published_index" in values else [name for name in FILTERS if name != _INDEX]
        filters = tuple(values.pop("filters", default))
        if unknown := [name for name in filters if name not in FILTERS]:
            raise PallavaError(f"'{unknown[0]}' is not a filter; choose from {', '.join(FILTERS)}")
        for name, known in JUDGES.items():
            if (judge := values.get(name, next(iter(known)))) not in known:
                raise PallavaError(f"'{judge}' is not a judge of {name}; choose from {', '.join(known)}")
            if values.get(name, "none") != "none" and name not in filters:
                raise PallavaError(f"the judge '{judge}' is not used: add {name} to the filters (--filters)")
        if (engine := values.get("engine", "local")) not in ENGINES:
            raise PallavaError(f"'{engine}' is not an engine; choose from {', '.join(ENGINES)}")
        if "ray_address" in values and engine != "ray":
            raise PallavaError(f"--ray-address {values['ray_address']} must go with --engine ray, got {engine}")
        check_at_least(1, workers=values.get("num_workers"), concurrency=values.get("concurrency"))
        for name in ("max_background", "clip_threshold"):
            if not 0 <= values.get(name, 0) <= 1:
                raise PallavaError(f"--{name.replace('_', '-')} must be from 0 to 1, got {values[name]:g}")
        specs = (replace(each, root=_absolute(each.root)) for each in sources)
        return cls(tuple(specs), filters=filters, **values)

    def to_json(self) -> dict[str, Any]:
        """Return the settings on which the outcome depends, as JSON holds them."""
        lists = {"sources": [asdict(each) for each in self.sources], "filters": list(self.filters)}
        return {name: value for name, value in {**asdict(self), **lists}.items() if name not in _WITHOUT_EFFECT}


def make_filters(settings: CleanSettings) -> list[Filter]:
    """Make the filters in the order in which they decide.

    Those that read no image come first, and duplicates last: only among what all others keep is the first of several
    chosen.

    Raises:
        PallavaError: A filter lacks what it needs.
    """
    names = settings.filters
    looks = settings.pathology in ("clip", "endpoint")
    needing = [name for name in names if name == "duplicates" or (name == "pathology" and looks)]
    if needing and "image" not in names:
        raise PallavaError(f"the filter '{needing[0]}' needs what the filter 'image' reads; add 'image' to the filters")
    if (_INDEX in names) != (settings.published_index is not None):
        raise PallavaError("the filter 'published-index' and the list (--published-index FILE) go together; give both")
    cheap = {_INDEX: True, "words": True, "pathology": settings.pathology == "metadata"}
    cheap["species"] = settings.species == "rules"
    order = sorted((name for name in FILTERS if name in names), key=lambda name: not cheap.get(name))
    makes = [FILTERS[name].make or JUDGES[name][getattr(settings, name)] for name in order]
    return [made for make in makes if (made := make(settings))]


def make_engine(settings: CleanSettings) -> Engine:
    """Make what computes the filters' findings.

    Raises:
        PallavaError: It is not installed.
    """
    return RayEngine(settings.ray_address, settings.num_workers) if settings.engine == "ray" else Engine()


_Make = Callable[[CleanSettings], Filter | None]


class FilterRow(NamedTuple):
    """A filter's kinds of records, what it drops, and how it is made, unless one of its `JUDGES` is."""

    kinds: frozenset[str]
    drops: str
    make: _Make | None = None


def _make_image(settings: CleanSettings) -> Filter:
    return ImageFilter(settings.max_background, num_workers=settings.num_workers)


def _make_clip(settings: CleanSettings) -> Filter:
    if not settings.model_name:
        raise PallavaError("the judge 'clip' needs --model-name, open_clip's name of a model, and --pretrained")
    return judges.PathologyClip(settings.model_name, settings.pretrained, threshold=settings.clip_threshold)


def _endpoint(settings: CleanSettings, name: str) -> Endpoint:
    url, model = getattr(settings, f"{name}_url"), getattr(settings, f"{name}_model")
    if not url or not model:
        raise PallavaError(
            f"the judge 'endpoint' of {name} needs --{name}-url (such as http://localhost:8000/v1) and --{name}-model, "
            "the model's name there"
        )
    return Endpoint(url, model, concurrency=settings.concurrency)


JUDGES: dict[str, dict[str, _Make]] = {
    "pathology": {
        "metadata": lambda settings: judges.PathologyMetadata(),
        "clip": _make_clip,
        "endpoint": lambda settings: judges.PathologyEndpoint(_endpoint(settings, "pathology")),
        "none": lambda settings: None,
    },
    "species": {
        "rules": lambda settings: SpeciesRules(),
        "endpoint": lambda settings: judges.SpeciesEndpoint(_endpoint(settings, "species")),
        "none": lambda settings: None,
    },
}
"""Judges of the filters that have several, the default first."""

FILTERS = {
    _INDEX: FilterRow(
        CAPTIONS,
        "images that are not on a list such as PCaption-0.5M's",
        lambda settings: PublishedIndexFilter(settings.published_index or ""),
    ),
    "words": FilterRow(CAPTIONS, "captions with few words", lambda settings: WordsFilter(settings.min_words)),
    "image": FilterRow(BOTH_KINDS, "missing, unreadable, truncated, too large or nearly empty images", _make_image),
    "pathology": FilterRow(BOTH_KINDS, "images other than pathology (--pathology metadata, clip or endpoint)"),
    "species": FilterRow(BOTH_KINDS, "material that is not human (--species rules or endpoint)"),
    "duplicates": FilterRow(
        BOTH_KINDS, "the same image again, or nearly so, in all sources", lambda settings: DuplicateFilter()
    ),
}
"""All filters by name."""


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
