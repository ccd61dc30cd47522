"""What judges are asked: wordings for language models, captions for CLIP-style models; the owner of both.

The paper asked GLM-4V-9B and Qwen2-7B and did not publish its wording; these are our own. A stored score belongs to the
version of a prompt: whoever changes a wording raises its version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class JudgePrompt:
    """A question with two possible answers.

    Attributes:
        version: Raised with every change of the wording.
        text: What the model is asked; ``{text}`` stands for the item's text.
        labels: What it may answer -> the pattern by which an answer is known, in lower case.
    """

    version: int
    text: str
    labels: dict[str, str]

    def read(self, reply: str) -> str | None:
        """Finds the label that a reply gives, or None if it gives none or several.

        What a reasoning model thinks aloud is not read, and a label at the beginning counts more than one further on
        ("No, ... yes").
        """
        text = re.sub(r"<think>.*?</think>", " ", reply.lower(), flags=re.DOTALL)
        if "<think>" in text:
            return None  # cut off in its thoughts
        text = re.sub(r"^[\s\W]*(?:(?:the )?(?:final )?answer(?: is)?\b)?[\s\W]*", "", text)
        for label, pattern in self.labels.items():
            if re.match(rf"(?:{pattern})\b", text):
                return label
        found = [label for label, pattern in self.labels.items() if re.search(rf"\b(?:{pattern})\b", text)]
        return found[0] if len(found) == 1 else None


SPECIES = JudgePrompt(
    version=1,
    text=(
        "Below is the text that belongs to a biomedical image. Decide whether the image shows material of human origin "
        "only.\n"
        "Answer 'non-human' if it shows tissue, cells or organisms of an animal or a plant, a human tumour grown in an "
        "animal, or human and animal material side by side.\n"
        "Answer 'human' if it shows human material, or if no species is mentioned. An animal that merely supplied an "
        "antibody, serum, reagent or implant, or that a patient had to do with, does not count.\n"
        "Answer with one word, human or non-human, and nothing else.\n\n"
        "Text: {text}"
    ),
    labels={
        "non-human": r"non[- ]?humans?|not (?:of )?human(?: origin)?",
        "human": r"(?<!non-)(?<!non )(?<!not )(?<!not of )human",
    },
)
"""Whether a text speaks of human material alone."""

PATHOLOGY = JudgePrompt(
    version=1,
    text=(
        "Is this a pathology image, that is, tissue or cells seen through a microscope: stained sections (H&E, special "
        "stains, immunohistochemistry, immunofluorescence), smears, cytology, or a figure made mainly of such "
        "pictures?\n"
        "X-rays, CT, MRI, ultrasound, endoscopy, pictures of the eye's fundus, photographs of patients or of organs, "
        "charts, diagrams, gels and text are not.\n"
        "Answer with one word, yes or no, and nothing else."
    ),
    labels={"no": r"no|not a pathology image", "yes": r"yes"},
)
"""Whether a picture is one of pathology."""

CLIP_VERSION = 1
"""Raised with every change of the captions below."""

PATHOLOGY_CAPTIONS = (
    "a histopathology image of tissue stained with hematoxylin and eosin",
    "a photomicrograph of a stained tissue section",
    "an immunohistochemistry image of tissue with brown staining",
    "a microscopic image of cells in a cytology smear",
    "a tissue section with a special stain under the microscope",
    "an immunofluorescence micrograph of tissue",
)
"""What a CLIP-style model compares an image with to find it a pathology image."""

OTHER_CAPTIONS = (
    "a chest X-ray",
    "a CT scan",
    "an MRI scan",
    "an ultrasound image",
    "an endoscopy image",
    "a fundus photograph of the retina",
    "a clinical photograph of a patient",
    "a photograph of a person",
    "a photograph of an animal",
    "a photograph of objects",
    "a photograph of a landscape or a surface",
    "a chart or a graph",
    "a diagram or a drawing",
    "a page of text",
    "a gel or a blot",
)
"""What it compares an image with to find it anything else."""
