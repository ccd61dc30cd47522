"""Captions and questions about synthetic micrographs, with answers that follow from `Facts`.

The wordings stand in ``questions.yaml``; training and test never share one. Every closed question of the test is asked
as often with the answer yes as with the answer no.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from pallava.demo.micrographs import DENSITIES, GLAND_COUNTS, STAIN_SHARES, Facts, Region
from pallava.io.files import read_package_data

ATTRIBUTES = ("stain", "density", "glands", "necrosis", "inflammation", "mitosis")
FINE_DETAIL = "mitosis"
"""The attribute that the overview's scaling removes, so that only the tiles can tell."""
CAPTION_PROMPTS = ("Describe it.", "What is shown?", "Describe the image.", "Give the findings.")
"""Short prompts: on a small computer every token costs time."""

_ASKED_FOR = {"stain": "H&E", "density": "dense"}  # by closed questions; the others ask whether there is any
_YES = {"stain": STAIN_SHARES["H&E"], "density": 1 / len(DENSITIES), "glands": 1 - 1 / len(GLAND_COUNTS)}
"""Share of all pictures for which a closed question's answer is yes, where it is not half of them."""
_CLOSED_TURNS = 0.25
"""Share of a closed question with a certain answer among an attribute's turns."""
_WORDS = {
    "necrosis": {True: "necrosis", False: "viable"},
    "inflammation": {True: "inflamed", False: "quiet"},
    "mitosis": {True: "mitotic bars", False: "pale smudges"},
}
"""Names of what is there and what is not: a fact that shares a word with another one is lost in a bag of words."""


@dataclass(frozen=True)
class Kind:
    """One question: its attribute, its wordings for training and for the test, and whether it is one of yes or no."""

    attribute: str
    closed: bool
    train: list[str]
    test: list[str]

    def answer(self, facts: Facts) -> str:
        """Return the right answer."""
        value = getattr(facts, self.attribute)
        if self.closed:
            return _yes_no(value == _ASKED_FOR[self.attribute] if self.attribute in _ASKED_FOR else value)
        if self.attribute in _WORDS:
            return _WORDS[self.attribute][value]
        return GLAND_COUNTS.get(value, value)


def _read_kinds(name: str) -> tuple[Kind, ...]:
    wordings = read_package_data(__file__)[name]
    return tuple(Kind(attribute, name == "closed", **rows) for attribute, rows in wordings.items())


CLOSED, OPEN = _read_kinds("closed"), _read_kinds("open")


def _yes_no(truth: object) -> str:
    return "yes" if truth else "no"


def caption(facts: Facts) -> str:
    """Return one line that names every fact."""
    parts = [f"{facts.stain} stain", f"{facts.density} nuclei", f"{GLAND_COUNTS[facts.glands]} glands"]
    parts += [words[getattr(facts, name)] for name, words in _WORDS.items()]
    return ", ".join(parts) + "."


def view_caption(facts: Facts, regions: Sequence[Region], *, overview: bool, on_figures: bool = False) -> str:
    """Describe one view for the encoder by the facts of the whole picture and the regions inside the view.

    An overview is the whole picture made small, which hides the figures, so that they are not named. A view that is
    on figures, if it has any, names nothing else.
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

    Each asks for another attribute, since a second answer on the same one could be copied from the first. One is on the
    fine detail, the hardest. Over all pictures a closed question is answered yes as often as no.
    """
    others = rng.permutation([name for name in ATTRIBUTES if name != FINE_DETAIL])[: num_turns - 1]
    kinds = (_pick_kind(str(name), facts, rng) for name in rng.permutation([FINE_DETAIL, *others]))
    return [(str(rng.choice(kind.train)), kind.answer(facts)) for kind in kinds]


def _pick_kind(attribute: str, facts: Facts, rng: Generator) -> Kind:
    """Pick an attribute's open or closed question, the latter less often if its answer is frequent."""
    closed = next(kind for kind in CLOSED if kind.attribute == attribute)
    choices = [kind for kind in OPEN if kind.attribute == attribute]
    yes = _YES.get(attribute, 0.5)
    share = yes if closed.answer(facts) == "yes" else 1 - yes
    return choices[0] if choices and rng.uniform() > _CLOSED_TURNS / share else closed


def held_out_questions(
    pictures: Mapping[str, Facts], rng: Generator, *, closed_per_kind: int, open_per_kind: int
) -> list[dict[str, str]]:
    """Return the records of ``questions.jsonl`` on held-out pictures, given by the names of their files.

    They are balanced in every closed wording and in every open answer: each closed question is asked about
    `closed_per_kind` times, each open one about `open_per_kind` times.
    """
    asked: list[dict[str, str]] = []
    for kind in (*CLOSED, *OPEN):
        wanted, name = (closed_per_kind, "closed") if kind.closed else (open_per_kind, "open")
        answers = sorted({kind.answer(facts) for facts in pictures.values()})
        each = max(1, round(wanted / len(answers) / len(kind.test)))
        for answer in answers:
            pool = rng.permutation([image for image, facts in pictures.items() if kind.answer(facts) == answer])
            for position in range(each * len(kind.test)):
                image, wording = str(pool[position % len(pool)]), kind.test[position % len(kind.test)]
                record = {"image": image, "question": wording, "answer": answer, "kind": name, "group": kind.attribute}
                asked.append(record)
    return [{"id": f"{number:04d}", **asked[i]} for number, i in enumerate(rng.permutation(len(asked)))]
