"""Captions and questions about synthetic micrographs, with answers that follow from `Facts`.

Training and test never share a wording. Every closed question of the test is asked as often where the answer
is yes as where it is no.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from numpy.random import Generator

from pallava.demo.micrographs import DENSITIES, GLAND_COUNTS, STAINS, Facts, Region

ATTRIBUTES = ("stain", "density", "glands", "necrosis", "inflammation", "mitosis")
FINE_DETAIL = "mitosis"
"""The attribute that the overview's scaling removes, so that only the tiles can tell."""


@dataclass(frozen=True)
class Kind:
    """One question: what it is about, its wordings, and its answer.

    Attributes:
        attribute: One of `ATTRIBUTES`.
        train: Wordings for training.
        test: Wordings for the held-out questions.
        answer: From facts to the answer.
        closed: Whether the answer is yes or no.
    """

    attribute: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    answer: Callable[[Facts], str] = field(compare=False)
    closed: bool = True


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


def _value_kinds() -> list[Kind]:
    """Closed questions that name a value: one kind for each stain and density."""
    kinds = [
        Kind(
            "stain",
            (f"Is the stain {value}?", f"Is this section stained with {value}?", f"Was {value} used here?"),
            (f"Is this a {value} stain?", f"Is the tissue stained with {value}?"),
            lambda facts, value=value: _yes_no(facts.stain == value),  # type: ignore[misc]
        )
        for value in STAINS
    ]
    kinds += [
        Kind(
            "density",
            (f"Is the nuclear density {value}?", f"Are the nuclei {value}?", f"Is this a {value} nuclear pattern?"),
            (f"Is the density of nuclei {value}?", f"Would you call the nuclei {value}?"),
            lambda facts, value=value: _yes_no(facts.density == value),  # type: ignore[misc]
        )
        for value in DENSITIES
    ]
    return kinds


CLOSED: tuple[Kind, ...] = (
    *_value_kinds(),
    Kind(
        "glands",
        ("Are there glands?", "Is a gland present?", "Do you see any gland?"),
        ("Are any glands present?", "Is there a gland?"),
        lambda facts: _yes_no(facts.glands > 0),
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


CAPTION_PROMPTS = ("Describe it.", "What is shown?", "Describe the image.", "Give the findings.")
"""Short ones: on a small computer every token of a prompt costs time."""


def caption(facts: Facts) -> str:
    """One line that names every fact."""
    parts = (
        f"{facts.stain} stain",
        f"{facts.density} nuclei",
        f"{GLAND_COUNTS[facts.glands]} glands",
        f"necrosis {_yes_no(facts.necrosis)}",
        f"inflammation {_yes_no(facts.inflammation)}",
        f"mitosis {_yes_no(facts.mitosis)}",
    )
    return ", ".join(parts) + "."


def view_caption(facts: Facts, regions: Sequence[Region], *, overview: bool) -> str:
    """What one view shows, for the encoder: the whole picture small, or a part of it at full size.

    Args:
        facts: Of the whole picture.
        regions: Those inside the view.
        overview: Whether it is the whole; its scaling hides the figures, so they are not named.
    """
    kinds = [region.kind for region in regions]
    glands = GLAND_COUNTS[min(kinds.count("gland"), len(GLAND_COUNTS) - 1)]
    parts = [f"{facts.stain} {facts.density}", f"glands {glands}"]
    parts += [f"{kind} {_yes_no(kind in kinds)}" for kind in ("necrosis", "inflammation")]
    if not overview and "figure" in kinds:
        parts.append("mitotic bars" if facts.mitosis else "pale smudge")
    return ("overview " if overview else "tile ") + " ".join(parts)


def training_turns(facts: Facts, rng: Generator, num_turns: int) -> list[tuple[str, str]]:
    """Questions and answers about one picture for instruction tuning, in random order.

    Each attribute is asked for in turn before one is asked for again. Where a question names a value, it is
    the true one in half of the cases.
    """
    turns: list[tuple[str, str]] = []
    while len(turns) < num_turns:
        for attribute in rng.permutation(ATTRIBUTES):
            kind = _pick_kind(str(attribute), facts, rng)
            turns.append((str(rng.choice(kind.train)), kind.answer(facts)))
    return turns[:num_turns]


def _pick_kind(attribute: str, facts: Facts, rng: Generator) -> Kind:
    choices = [kind for kind in OPEN if kind.attribute == attribute]
    closed = [kind for kind in CLOSED if kind.attribute == attribute]
    # Captions teach to name a value; to compare one with the picture takes more practice.
    if choices and rng.uniform() < (0.5 if len(closed) == 1 else 0.25):
        return choices[0]
    wanted = _yes_no(bool(rng.integers(2)))
    matching = [kind for kind in closed if kind.answer(facts) == wanted] or closed
    return matching[rng.integers(len(matching))]


def held_out_questions(
    facts: Sequence[Facts], rng: Generator, *, closed_per_kind: int, open_per_kind: int
) -> list[TestQuestion]:
    """Questions on held-out pictures, balanced in every closed wording and in every open answer.

    Args:
        facts: Of the pictures.
        rng: Chooses the pictures.
        closed_per_kind: About how often to ask each closed question.
        open_per_kind: About how often to ask each open one.
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
