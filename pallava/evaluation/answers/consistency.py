"""Images shown otherwise: exchanged for another one as a control, or changed in ways that keep their meaning.

An answer that changes with the latter is not consistent; to see that needs no right answers.
"""

import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from pallava.evaluation.answers.items import Answer, Item
from pallava.evaluation.statistics import estimate_means
from pallava.transforms import ImageChange, resizing, shift_stains, turning

_NO_WORD = re.compile(r"[\W_]+")
_SAME = "share of answers that equal the one on the unchanged image, case and punctuation aside"
_RIGHT = "share of right answers"


UNCHANGED_MEANING: dict[str, ImageChange] = {
    "half_size": resizing(0.5),
    "double_size": resizing(2),
    "rotated_90": turning(Image.Transpose.ROTATE_90),
    "rotated_180": turning(Image.Transpose.ROTATE_180),
    "rotated_270": turning(Image.Transpose.ROTATE_270),
    "mirrored": turning(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside_down": turning(Image.Transpose.FLIP_TOP_BOTTOM),
    "stain_shifted": shift_stains,
}
"""Changes after which a question about tissue has the same answer, by the names of the views."""


def shuffle_images(items: Sequence[Item], seed: int = 0) -> list[Item]:
    """Return the questions with an image, each about the image of other ones; none if all are about the same image.

    All images are shown as often as before; `seed` decides in which order they take each other's place.
    """
    images = sorted({item.image for item in items if item.image})
    if len(images) < 2:
        return []
    random.Random(seed).shuffle(images)
    successor = dict(zip(images, [*images[1:], images[0]], strict=True))
    return [replace(item, image=successor[item.image]) for item in items if item.image]


def score_consistency(
    as_is: Sequence[Answer],
    changed: Mapping[str, Sequence[Answer]],
    is_right: Callable[[Answer], bool] | None = None,
    *,
    unopened: Collection[str] = (),
    **bootstrap: int,
) -> dict[str, Any]:
    """Compare answers about changed images, by the name of the change, with those about the unchanged ones.

    Of a change, some questions may have no answer. Questions about `unopened` images are left out, and the bootstrap
    draws images with all their questions.

    Returns:
        ``same`` and, with `is_right`, ``accuracy``: estimates as `share` returns them by the name of the change,
        ``unchanged`` and ``all`` among them; ``num_empty`` of each change, and ``num_left_out``.
    """
    answers = {
        name: [each for each in given if each.item.image not in unopened]
        for name, given in {"unchanged": as_is, **changed}.items()
    }
    before = {each.item.id: _words(each.final) for each in answers["unchanged"]}
    is_same = {  # by the name of the change, whether the answer to each id is the same
        name: {each.item.id: _words(each.final) == before[each.item.id] for each in answers[name]} for name in changed
    }
    same = {name: share(found.values(), answers[name], _SAME, **bootstrap) for name, found in is_same.items()}
    repeated = [each for each in answers["unchanged"] if any(each.item.id in found for found in is_same.values())]
    always = [all(found.get(each.item.id, True) for found in is_same.values()) for each in repeated]
    same["all"] = share(always, repeated, f"{_SAME}, under every change", **bootstrap)
    result = {
        "same": same,
        "num_empty": {name: sum(not each.final.strip() for each in given) for name, given in answers.items()},
        "num_left_out": len(as_is) - len(before),
    }
    if is_right is not None:
        definitions = {"unchanged": _RIGHT} | dict.fromkeys(changed, f"{_RIGHT} on the changed image")
        result["accuracy"] = {
            name: share(map(is_right, given), given, definitions[name], **bootstrap) for name, given in answers.items()
        }
    return result


def share(values: Iterable[bool], answers: Sequence[Answer], definition: str, **bootstrap: int) -> dict[str, Any]:
    """Return a share with its interval, for which images are drawn with all their questions; NaN without answers."""
    (found,) = estimate_means([list(values)], [each.item.image for each in answers], **bootstrap)
    return found.to_dict(len(answers), definition)


def share_by_group(answers: Sequence[Answer], is_right: Callable[[Answer], bool], **bootstrap: int) -> dict[str, Any]:
    """Return the share of right answers in each group, in the order of the groups' first answers."""
    groups: dict[str, list[Answer]] = {}
    for each in answers:
        if each.item.group:
            groups.setdefault(each.item.group, []).append(each)
    return {name: share(map(is_right, own), own, _RIGHT, **bootstrap) for name, own in groups.items()}


def _words(answer: str) -> str:
    return _NO_WORD.sub(" ", answer.casefold()).strip()
