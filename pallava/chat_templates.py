"""Read the marks of who speaks from a tokenizer's own chat template, by what it writes of a short conversation.

A template is a program, and it may write an earlier answer, or the head of an answer to come, in another way than the
answer at the end: Qwen3 drops an empty thinking block from the former. What is read here is the form of a question and
its answer at the end of a conversation, and each round has it: what is asked is then what was trained.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

from pallava.errors import PallavaError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _QUESTION, _ANSWER, _SECOND = "pallava-system", "pallava-question", "pallava-answer", "pallava-second"
_ONCE = [("user", _QUESTION), ("assistant", _ANSWER)]
_TWICE = [*_ONCE, ("user", _SECOND), ("assistant", "pallava-last")]
_DAY = datetime.datetime(2024, 7, 26)  # Llama 3.1's; a prompt must not change with the day that a template writes
_SETTINGS: dict[str, Any] = {"enable_thinking": False, "strftime_now": _DAY.strftime}
_TAUGHT = re.compile(r"\{%-?\s*generation\s*-?%\}")


def read_chat_template(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the fields of a `PromptTemplate` that writes as the tokenizer's chat template does.

    Taught of an answer is what ``{% generation %}`` encloses, or else all up to the first token behind it that the
    vocabulary has as a whole.

    Raises:
        PallavaError: The tokenizer has no chat template, or one that does not write plain questions and answers, or
            writes no end token behind an answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise PallavaError("the tokenizer must have a chat template for prompt_template 'tokenizer', got none")
    try:
        once, twice = _render(tokenizer, _ONCE), _render(tokenizer, _TWICE)
        asked = _render(tokenizer, _ONCE[:1], add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PallavaError(f"the tokenizer's chat template must write a conversation, got '{reason:.200}'") from None
    if fields := [each for each in ("{input}", "{round}", "{system}") if each in once + twice + asked]:
        raise PallavaError(f"the tokenizer's chat template must not write {', '.join(fields)}")
    head, after, tail = _cut(once, _QUESTION, _ANSWER)
    end_token = _first_token(tail, tokenizer)
    suffix = _taught_end(tokenizer, once) or tail[: tail.index(end_token) + len(end_token)]
    _, between, _ = _cut(twice, _ANSWER, _SECOND)
    if between.startswith(suffix):
        rest = between.removeprefix(suffix)
    else:  # another end than that of the last answer
        rest = between.partition(_first_token(between, tokenizer))[2]
    before = rest.lstrip()
    if not before or not head.endswith(before):
        raise PallavaError(
            f"the tokenizer's chat template must write questions in one way, got {head[-80:]!r} and {before[-80:]!r}"
        )
    begin = head.removesuffix(before)
    question_end = _cut(asked, _QUESTION)[1]
    prefix = after.removeprefix(question_end) if after.startswith(question_end) else after
    if prefix.strip():  # the head of an answer to come is another one
        question_end, prefix = after, ""
    return {
        "instruction": f"{before}{{input}}{question_end}",
        "suffix": suffix,
        "suffix_as_eos": True,
        "sep": rest.removesuffix(before),
        "stop_words": [end_token],
        "begin": begin,
        **({"answer_prefix": prefix} if prefix else {}),
        **_read_system(tokenizer, begin, before),
    }


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[tuple[str, str]], **options: Any) -> str:
    conversation = [{"role": role, "content": text} for role, text in messages]
    return str(tokenizer.apply_chat_template(conversation, tokenize=False, **_SETTINGS, **options))


def _cut(text: str, *words: str) -> list[str]:
    """Return what is before, between and behind words, each of which is in the text once."""
    pieces = []
    for word in words:
        if text.count(word) != 1:
            raise PallavaError(f"the tokenizer's chat template must write each message once, got {text[:200]!r}")
        before, _, text = text.partition(word)
        pieces.append(before)
    return [*pieces, text]


def _first_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the first token in a text that the vocabulary has as a whole, whatever is around it."""
    known = {str(token) for token in (*tokenizer.added_tokens_decoder.values(), *tokenizer.all_special_tokens)}
    found = [(text.index(token), -len(token), token) for token in known if token.strip() and token in text]
    if not found:
        raise PallavaError(f"the tokenizer's chat template must write an end token behind an answer, got {text[:80]!r}")
    return min(found)[2]


def _taught_end(tokenizer: PreTrainedTokenizerBase, once: str) -> str:
    """Return what the template itself says is taught behind the answer; nothing where it does not say."""
    if not _TAUGHT.search(str(tokenizer.chat_template)) or not getattr(tokenizer, "is_fast", False):
        return ""
    found: Any = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in _ONCE],
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
        **_SETTINGS,
    )
    ends = [
        end for (_, end), is_taught in zip(found["offset_mapping"], found["assistant_masks"], strict=True) if is_taught
    ]
    return once[once.index(_ANSWER) + len(_ANSWER) : max(ends, default=0)]


def _read_system(tokenizer: PreTrainedTokenizerBase, begin: str, before: str) -> dict[str, str]:
    """Return how a system message is written: before the first question, or at its head, as where none is known."""
    try:
        head = _cut(_render(tokenizer, [("system", _SYSTEM), *_ONCE]), _QUESTION)[0]
        _cut(head, _SYSTEM)
    except Exception:  # a template may raise anything; Gemma's refuses a system message
        return {"question_system": "{system}\n\n"}
    if head.endswith(before):
        return {"system": head.removesuffix(before).replace(_SYSTEM, "{system}")}
    inside = head.removeprefix(begin + before) if head.startswith(begin + before) else f"{_SYSTEM}\n\n"
    return {"question_system": inside.replace(_SYSTEM, "{system}")}
