"""Captions and questions about synthetic micrographs, with answers that follow from `Facts`.

Training and test never share a wording. Every closed question of the test is asked as often with the answer yes as with
the answer no.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from numpy.random import Generator

from pallava.demo.micrographs import DENSITIES, GLAND_COUNTS, STAIN_SHARES, Facts, Region

ATTRIBUTES = ("stain", "density", "glands", "necrosis", "inflammation", "mitosis")
FINE_DETAIL = "mitosis"
"""The attribute that the overview's scaling removes, so that only the tiles can tell."""


@dataclass(frozen=True)
class Kind:
    """One question: its attribute, its wordings for training and for the held-out test, and its answer.

    Attributes:
        closed: Whether the answer is yes or no.
        yes: Share of all pictures for which a closed question's answer is yes.
    """

    attribute: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    answer: Callable[[Facts], str] = field(compare=False)
    closed: bool = True
    yes: float = 0.5


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


CLOSED: tuple[Kind, ...] = (
    Kind(
        "stain",
        ("Is the stain H&E?", "Is this section stained with H&E?", "Was H&E used here?"),
        ("Is this an H&E stain?", "Is the tissue stained with H&E?"),
        lambda facts: _yes_no(facts.stain == "H&E"),
        yes=STAIN_SHARES["H&E"],
    ),
    Kind(
        "density",
        ("Is the nuclear density high?", "Are the nuclei dense?", "Is this a dense nuclear pattern?"),
        ("Is the density of nuclei high?", "Would you call the nuclei dense?"),
        lambda facts: _yes_no(facts.density == "dense"),
        yes=1 / len(DENSITIES),
    ),
    Kind(
        "glands",
        ("Are there glands?", "Is a gland present?", "Do you see any gland?"),
        ("Are any glands present?", "Is there a gland?"),
        lambda facts: _yes_no(facts.glands > 0),
        yes=1 - 1 / len(GLAND_COUNTS),
    ),
    Kind(
        "necrosis",
        ("Is there necrosis?", "Does the section show necrosis?", "Is an area of necrosis present?"),
        ("Is necrosis present?", "Do you see necrosis?"),
        lambda facts: _yes_no(facts.necrosis),
    ),
    Kind(
        "inflammation",
        ("Is there inflammation?", "Does the section show inflammation?", "Is an inflamed area present?"),
        ("Is inflammation present?", "Do you see inflammation?"),
        lambda facts: _yes_no(facts.inflammation),
    ),
    Kind(
        "mitosis",
        ("Is there a mitotic figure?", "Does the section show mitosis?", "Are dividing cells present?"),
        ("Is a mitotic figure present?", "Do you see mitosis?"),
        lambda facts: _yes_no(facts.mitosis),
    ),
)
OPEN: tuple[Kind, ...] = (
    Kind(
        "stain",
        ("Which stain is this?", "What stain was used?", "Name the stain."),
        ("What is the stain?", "Which stain was used here?"),
        lambda facts: facts.stain,
        closed=False,
    ),
    Kind(
        "density",
        ("How dense are the nuclei?", "What is the nuclear density?", "Describe the density of nuclei."),
        ("What is the density of the nuclei?", "How dense is the nuclear pattern?"),
        lambda facts: facts.density,
        closed=False,
    ),
    Kind(
        "glands",
        ("How many glands are there?", "What is the number of glands?", "Count the glands."),
        ("How many glands do you see?", "What is the gland count?"),
        lambda facts: GLAND_COUNTS[facts.glands],
        closed=False,
    ),
)


@dataclass(frozen=True)
class TestQuestion:
    """A held-out question about the picture with this index."""

    __test__ = False  # not a test case, whatever its name says to pytest

    picture: int
    attribute: str
    question: str
    answer: str
    closed: bool


_CLOSED_TURNS = 0.25
"""Share of a closed question with a certain answer among an attribute's turns."""

CAPTION_PROMPTS = ("Describe it.", "What is shown?", "Describe the image.", "Give the findings.")
"""Short prompts: on a small computer every token costs time."""


def caption(facts: Facts) -> str:
    """Return one line that names every fact."""
    parts = [f"{facts.stain} stain", f"{facts.density} nuclei", f"{GLAND_COUNTS[facts.glands]} glands"]
    parts += [f"{name} {_yes_no(getattr(facts, name))}" for name in ("necrosis", "inflammation", "mitosis")]
    return ", ".join(parts) + "."


def view_caption(facts: Facts, regions: Sequence[Region], *, overview: bool, on_figures: bool = False) -> str:
    """Describe one view for the encoder: the small whole picture, or a part of it at full size.

    Args:
        facts: Facts of the whole picture.
        regions: Regions inside the view.
        overview: Whether it is the whole, whose scaling hides the figures, so that they are not named.
        on_figures: Whether nothing but figures is named, if the view has any.
    """
    kinds = [region.kind for region in regions]
    glands = ("none", "one", "two", "three", "four")[kinds.count("gland")]
    figure = ("mitotic bars" if facts.mitosis else "pale smudge") if "figure" in kinds and not overview else ""
    if figure and on_figures:
        return figure
    parts = [f"{facts.stain} {facts.density}", f"glands {glands}"]
    parts += [f"{kind} {_yes_no(kind in kinds)}" for kind in ("necrosis", "inflammation")]
    return " ".join(("overview" if overview else "tile", *parts, figure)).strip()


def training_turns(facts: Facts, rng: Generator, num_turns: int) -> list[tuple[str, str]]:
    """Return questions and answers about one picture for instruction tuning, in random order.

    Each attribute is asked for in turn before one is asked for again. Over all pictures a closed question is
    answered yes as often as no.
    """
    turns: list[tuple[str, str]] = []
    while len(turns) < num_turns:
        for attribute in rng.permutation(ATTRIBUTES):
            kind = _pick_kind(str(attribute), facts, rng)
            turns.append((str(rng.choice(kind.train)), kind.answer(facts)))
    return turns[:num_turns]


def _pick_kind(attribute: str, facts: Facts, rng: Generator) -> Kind:
    """Pick an attribute's open or closed question, the latter less often if its answer is frequent."""
    closed = next(kind for kind in CLOSED if kind.attribute == attribute)
    choices = [kind for kind in OPEN if kind.attribute == attribute]
    share = closed.yes if closed.answer(facts) == "yes" else 1 - closed.yes
    return choices[0] if choices and rng.uniform() > _CLOSED_TURNS / share else closed


def held_out_questions(
    facts: Sequence[Facts], rng: Generator, *, closed_per_kind: int, open_per_kind: int
) -> list[TestQuestion]:
    """Return questions on held-out pictures, balanced in every closed wording and in every open answer.

    Each closed question is asked about `closed_per_kind` times, each open one about `open_per_kind` times.
    """
    asked: list[TestQuestion] = []
    for kind in (*CLOSED, *OPEN):
        wanted = closed_per_kind if kind.closed else open_per_kind
        answers = sorted({kind.answer(fact) for fact in facts})
        each = max(1, round(wanted / len(answers) / len(kind.test)))
        for answer in answers:
            pool = rng.permutation([i for i, fact in enumerate(facts) if kind.answer(fact) == answer])
            for position in range(each * len(kind.test)):
                wording = kind.test[position % len(kind.test)]
                picture = int(pool[position % len(pool)])
                asked.append(TestQuestion(picture, kind.attribute, wording, answer, kind.closed))
    return [asked[i] for i in rng.permutation(len(asked))]
