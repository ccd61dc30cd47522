"""Everything that turns words into the ids a language model reads: the only owner of prompts.

Templates, turns and ids equal those of xtuner 0.2.0 (``PROMPT_TEMPLATE``, ``llava_map_fn``, ``encode_fn``),
as tests check; nothing of xtuner is imported, so that a converted model answers questions without it. One file, if a
long one, because a template, its marks and its end tokens change together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pallava.chat_templates import read_chat_template
from pallava.errors import PallavaError
from pallava.io.files import read_package_data
from pallava.io.texts import find_damage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_TOKEN = "<image>"
IMAGE_TOKEN_INDEX = -200
IGNORE_INDEX = -100
_DATA = read_package_data(__file__)


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """Marks of who speaks, for one family of language models."""

    name: str  # in configs
    instruction: str  # text with ``{input}`` around a human message, up to where the answer begins
    system: str = "{system}\n"  # text with ``{system}``, used only with a system message
    suffix: str = ""  # text after each answer that is trained
    suffix_as_eos: bool = False  # whether the suffix ends the answer; otherwise the tokenizer's end token follows it
    sep: str = ""  # text after the end of each answer that is not trained
    stop_words: tuple[str, ...] = ()  # tokens that end an answer
    extra_end_tokens: tuple[str, ...] = ()  # further ones, wherever the vocabulary has them
    # Those of a tokenizer's own chat template; None in xtuner's.
    begin: str | None = None  # text before the first question without a system message, the begin token included
    question_system: str | None = None  # text with ``{system}``, first in the first question, in the place of `system`
    answer_prefix: str | None = None  # text before each answer that is generated with it

    def to_dict(self) -> dict[str, Any]:
        """Return the template as plain values that JSON can hold."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptTemplate:
        """Build a template from the values of `to_dict`, which a config may hold: they are checked.

        Raises:
            PallavaError: A key is unknown, a required one is missing, or ``instruction`` has no ``{input}``.
        """
        known = sorted(field.name for field in dataclasses.fields(cls))
        if unknown := sorted(set(values).difference(known)):
            raise PallavaError(f"prompt template cannot have keys {', '.join(unknown)}; choose {', '.join(known)}")
        if missing := [key for key in ("name", "instruction") if key not in values]:
            raise PallavaError(f"prompt template must have {' and '.join(missing)}, got {', '.join(sorted(values))}")
        if "{input}" not in values["instruction"]:
            raise PallavaError(f"instruction of prompt template '{values['name']}' must contain {{input}}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


OWN_TEMPLATE = "tokenizer"
"""Name of the template that is read from the tokenizer's chat template."""
TEMPLATES = {name: PromptTemplate.from_dict({"name": name, **values}) for name, values in _DATA["templates"].items()}
CAPTION_PROMPTS: tuple[str, ...] = tuple(_DATA["caption_prompts"])
CHOICE_INSTRUCTION = "Answer with the letter of the right option."
CHOICE_LETTERS = "ABCDEFGHIJ"
CLASS_QUESTION = "Which of these does this pathology image show: {}?"


@dataclasses.dataclass(frozen=True)
class Turn:
    """One human message, with its image markers in front, and the answer to it (None: still to be given)."""

    question: str
    answer: str | None = None
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Ids (``IMAGE_TOKEN_INDEX`` once per image) and as many labels (``IGNORE_INDEX``: not trained)."""

    input_ids: list[int]
    labels: list[int]


def get_template(template: str | Mapping[str, Any] | PromptTemplate) -> PromptTemplate:
    """Return the template of a name, or of a dictionary of `PromptTemplate.to_dict`; a template is unchanged.

    Raises:
        PallavaError: No template has that name, or the dictionary is not that of a template.
    """
    if isinstance(template, PromptTemplate):
        return template
    if isinstance(template, Mapping):
        return PromptTemplate.from_dict(template)
    if template not in TEMPLATES:
        names = ", ".join([*sorted(TEMPLATES), OWN_TEMPLATE])
        raise PallavaError(f"prompt template must be one of {names}, got '{template}'")
    return TEMPLATES[template]


def choose_template(
    template: str | Mapping[str, Any] | PromptTemplate | None, tokenizer: PreTrainedTokenizerBase
) -> PromptTemplate:
    """Return the template to train a tokenizer's language model with: the one given, or else that of its family.

    "tokenizer" is the tokenizer's own chat template.

    Raises:
        PallavaError: The tokenizer lacks a token of the template, or its own family is not certain, or its chat
            template cannot be read.
    """
    fitting = {name: each for name, each in TEMPLATES.items() if not _missing_marks(each, tokenizer)}
    own_name = [OWN_TEMPLATE] if getattr(tokenizer, "chat_template", None) else []
    names = ", ".join([*([name for name, each in fitting.items() if each.suffix] or fitting), *own_name])
    if template is not None:
        if template == OWN_TEMPLATE:
            try:
                template = {"name": OWN_TEMPLATE, **read_chat_template(tokenizer)}
            except PallavaError as error:
                raise PallavaError(f"{error}; choose another prompt_template: {', '.join(fitting)}") from None
        template = get_template(template)
        if missing := _missing_marks(template, tokenizer):
            raise PallavaError(
                f"the tokenizer must have the tokens of the prompt template '{template.name}', but does not know "
                f"{', '.join(missing)}, so that answers would not end; choose another prompt_template: {names}"
            )
        return template
    prompt = ""
    with contextlib.suppress(Exception):  # it has no chat template, or one that demands more
        message = {"role": "user", "content": "{input}"}
        prompt = str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
    own = {
        each.instruction: each
        for each in fitting.values()
        if each.suffix and each.instruction in (prompt or each.instruction)
    }
    if len(own) != 1:
        raise PallavaError(f"prompt_template must be given, since the tokenizer's own is not certain; choose {names}")
    return own.popitem()[1]


def _missing_marks(template: PromptTemplate, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the marks of a template that the tokenizer would split, or that end no answer."""
    ends = _as_list(tokenizer.eos_token_id)
    if template.suffix_as_eos:
        taught = tokenizer.encode("x" + template.suffix, add_special_tokens=False)
        ends = [index for index in end_token_ids(tokenizer, template) if index in taught]
    missing = [] if ends else [(template.suffix_as_eos and template.suffix) or "an end token"]
    if template.suffix and template == TEMPLATES.get(template.name):  # its marks are tokens in its family
        marks = re.findall(r"<[^<>\s]+>", template.instruction)
        missing += [mark for mark in marks if _token_id(mark, tokenizer) is None]
    return list(dict.fromkeys(missing))


def build_question(text: str, num_images: int = 1) -> str:
    """Put image markers in front of a question, as training data has them.

    A text that holds markers keeps its number of them, and they are moved to the front.
    """
    count = text.count(IMAGE_TOKEN) or num_images
    if count == 0:
        return text
    text = text.replace(IMAGE_TOKEN, "").strip()
    return f"{IMAGE_TOKEN * count}\n{text}".strip()


def build_choice_question(question: str, options: Sequence[str]) -> str:
    """Put the options below a question, one a line behind its letter, and say how to answer.

    Raises:
        PallavaError: It has fewer than two options, or more than ten.
    """
    if not 2 <= len(options) <= len(CHOICE_LETTERS):
        raise PallavaError(f"a choice must have 2 to {len(CHOICE_LETTERS)} options, got {len(options)}")
    lines = (f"{letter}. {option.strip()}" for letter, option in zip(CHOICE_LETTERS, options, strict=False))
    return "\n".join([question.strip(), *lines, CHOICE_INSTRUCTION])


def build_class_question(names: Sequence[str]) -> str:
    """Build the question which of some classes, by their names in words, an image shows.

    Raises:
        PallavaError: It has fewer than two classes.
    """
    if len(names) < 2:
        raise PallavaError(f"a question for a class must have at least two classes, got {len(names)}")
    return CLASS_QUESTION.format(f"{', '.join(names[:-1])} or {names[-1]}")


def possible_answers(question: str, answer: str) -> list[str]:
    """Return the few answers that a question allows, written as one of them is; none if it allows others.

    They are yes and no, or the letters of options, one a line, as `build_choice_question` writes them.
    """
    words = ["yes", "no"]
    bare = answer.rstrip(".")
    if bare.lower() not in words:
        words = [letter.lower() for letter in re.findall(r"^([A-J])[.:)] ", question, re.MULTILINE)]
        words = words if len(words) > 1 and "".join(words).upper() == CHOICE_LETTERS[: len(words)] else []
    case = next((case for case in (str.lower, str.capitalize, str.upper) if case(bare) == bare), None)
    if case is None or bare.lower() not in words:
        return []
    return [case(word) + answer[len(bare) :] for word in words]


def encode_answer(answer: str, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> list[int]:
    """Return the ids of an answer with its end, as it is trained."""
    labels = encode_conversation([Turn("", answer)], tokenizer, template).labels
    return [label for label in labels if label != IGNORE_INDEX]


def turns_from_conversations(conversations: Sequence[Mapping[str, str]]) -> list[Turn]:
    """Pair the messages of a LLaVA-style conversation.

    As xtuner's ``llava_map_fn``: leading answers are skipped, human messages that follow each other are
    joined, markers go to the front of their message. Beyond it, the first message may be from "system", a
    message may have several markers, and a human message at the end gives a turn without an answer.

    Raises:
        PallavaError: A message lacks ``from`` or a text as ``value``, or its speaker is none of the three.
    """
    turns: list[Turn] = []
    question: str | None = None
    system: str | None = None
    for position, message in enumerate(conversations):
        speaker, value = _read_message(message, position)
        if speaker == "system" and position == 0:
            system = value
        elif speaker == "human":
            question = (question or "") + build_question(value, num_images=0)
        elif speaker == "gpt":
            if question is None and not turns:
                continue
            turns.append(Turn(question or "", value, system))
            question = system = None
        else:
            expected = "'human', 'gpt' or, at the start, 'system'"
            raise PallavaError(f"message {position + 1} must be from {expected}, got '{speaker}'")
    if question is not None:
        turns.append(Turn(question, None, system))
    return turns


def _read_message(message: Any, position: int) -> tuple[str, str]:
    values = message if isinstance(message, Mapping) else {}
    speaker, value = values.get("from"), values.get("value")
    if not isinstance(speaker, str) or not isinstance(value, str):
        raise PallavaError(
            f'message {position + 1} must be {{"from": "human" or "gpt", "value": text}}, got {message!r}'
        )
    return speaker, value


def encode_conversation(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> Encoded:
    """Return the ids and labels that a conversation is trained on, equal to those of xtuner's ``encode_fn``.

    Raises:
        PallavaError: A turn has no answer, or the template needs an end token that the tokenizer lacks.
    """
    input_ids: list[int] = []
    labels: list[int] = []
    for round_, turn in enumerate(turns, start=1):
        if turn.answer is None:
            raise PallavaError(f"turn {round_} must have an answer to train on")
        prompt = _encode_question(turn, round_, tokenizer, template)
        answer = _encode_answer(turn.answer + template.suffix, tokenizer, template)
        if not template.suffix_as_eos:
            if tokenizer.eos_token_id is None:
                raise PallavaError(f"the tokenizer must have an end token for prompt template '{template.name}'")
            answer = answer + _as_list(tokenizer.eos_token_id)
        sep = tokenizer.encode(template.sep, add_special_tokens=False) if template.sep else []
        input_ids += prompt + answer + sep
        labels += [IGNORE_INDEX] * len(prompt) + answer + [IGNORE_INDEX] * len(sep)
    return Encoded(input_ids, labels)


def encode_prompt(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> list[int]:
    """Return the ids before the answer to the last turn, the same that training has before it.

    Raises:
        PallavaError: The list of turns is empty, or one before the last has no answer.
    """
    if not turns:
        raise PallavaError("a conversation must have a question to answer")
    history = encode_conversation(turns[:-1], tokenizer, template).input_ids
    return history + _encode_question(turns[-1], len(turns), tokenizer, template)


def _encode_question(
    turn: Turn, round_: int, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate
) -> list[int]:
    if damage := find_damage(f"{turn.question}{turn.system or ''}"):
        raise PallavaError(f"a question must be text, got one that cannot be encoded: {damage}")
    ids = []
    if template.begin is None and (round_ == 1 or not template.suffix_as_eos):
        # The begin token stands first, and again after an end token, but not after a suffix that ends an answer.
        ids = _as_list(_DATA["begin_ids"].get(type(tokenizer).__name__, tokenizer.bos_token_id))
    for index, chunk in enumerate(write_question(turn, round_, template).split(IMAGE_TOKEN)):
        if index > 0:
            ids.append(IMAGE_TOKEN_INDEX)
        ids += tokenizer.encode(chunk, add_special_tokens=False)
    return ids


def write_question(turn: Turn, round_: int, template: PromptTemplate) -> str:
    """Return the text from the end of the answer before to where this answer begins, without a table's begin token."""
    question, opening = turn.question, (template.begin or "") if round_ == 1 else ""
    if turn.system and template.question_system is not None:
        question = template.question_system.replace("{system}", turn.system) + question
    elif turn.system:
        opening = template.system.replace("{system}", turn.system)
    return opening + template.instruction.replace("{round}", str(round_)).replace("{input}", question)


def _encode_answer(text: str, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> list[int]:
    """Return the ids of an answer with its suffix, under a tokenizer's own template as they are behind a question."""
    if template.begin is not None:
        before = template.instruction.partition("{input}")[2]
        text = (template.answer_prefix or "") + text
        first, both = (tokenizer.encode(each, add_special_tokens=False) for each in (before, before + text))
        if both[: len(first)] == first:
            return both[len(first) :]
    return tokenizer.encode(text, add_special_tokens=False)


def _as_list(ids: Any) -> list[int]:
    return list(ids) if isinstance(ids, list) else [] if ids is None else [ids]


def end_token_ids(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> list[int]:
    """Return every id that ends an answer: the template's in the vocabulary, and the tokenizer's own."""
    ids: list[int] = []
    for token in (*template.stop_words, *template.extra_end_tokens):
        if (index := _token_id(token, tokenizer)) is not None:
            ids.append(index)
    return list(dict.fromkeys([*ids, *_as_list(tokenizer.eos_token_id)]))


def _token_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    index = tokenizer.convert_tokens_to_ids(token)
    return index if isinstance(index, int) and tokenizer.convert_ids_to_tokens(index) == token else None


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Refuse a tokenizer with ids that have no embedding, which would end a training in its middle."""
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= num_embeddings:
        raise PallavaError(
            f"the tokenizer's ids must be below {num_embeddings}, the number of the language model's embeddings, got "
            f"{highest} ({token[:40]!r}); use the tokenizer of this language model"
        )
