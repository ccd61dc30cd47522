"""A tokenizer's own chat template as a template to train with; those here are written in short for the families."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers.decoders import ByteLevel
from transformers import CLIPImageProcessor

from pallava.errors import PallavaError
from pallava.model import PALLaVAProcessor
from pallava.model.processor import jinja_template, parse_prompt, render_prompt
from pallava.prompts import (
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
    TEMPLATES,
    PromptTemplate,
    Turn,
    choose_template,
    encode_answer,
    encode_conversation,
    encode_prompt,
    end_token_ids,
    get_template,
)
from tests.test_prompts import family_tokenizer

_LOOP, _END = "{% for m in messages %}", "{% endfor %}"
_ASKED = "{% if add_generation_prompt %}"
_CHATML = (
    f"{_LOOP}{{{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}}}{_END}"
    f"{_ASKED}<|im_start|>assistant\n{{% endif %}}"
)
_NO_THOUGHT = "<think>\n\n</think>\n\n"
FAMILIES: dict[str, tuple[list[str], str]] = {
    "llama3": (
        ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "{{ bos_token }}" + _LOOP + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + "
        "'<|eot_id|>' }}" + _END + _ASKED + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    "qwen": (["<|im_start|>", "<|im_end|>"], _CHATML),
    "qwen2.5": (
        ["<|im_start|>", "<|im_end|>"],
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}" + _CHATML,
    ),
    "qwen3": (
        ["<|im_start|>", "<|im_end|>"],
        _LOOP
        + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}{{ '"
        + _NO_THOUGHT
        + "' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
        + _END
        + _ASKED
        + "{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is false %}{{ '" + _NO_THOUGHT + "' }}{% endif %}{% endif %}",
    ),
    "smollm3": (  # says itself what is taught, and writes the day
        ["<|im_start|>", "<|im_end|>"],
        "{{ '<|im_start|>system\n' + ('' if enable_thinking is false else 'Think. ') + 'Day: ' + "
        "strftime_now('%d %B %Y') + (messages[0].content if messages[0].role == 'system' else '') + '<|im_end|>\n' }}"
        + _LOOP
        + "{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
        "{% elif m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}"
        "{% endgeneration %}{% endif %}" + _END + _ASKED + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    "phi3": (
        ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        _LOOP
        + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}"
        + _END
        + _ASKED
        + "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    ),
    "mistral": (
        ["<s>"],
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}" + _LOOP + "{% if m.role == 'user' %}"
        "{{ '[INST] ' + (s if loop.last or messages | length == 2 else '') + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}" + _END,
    ),
    "gemma": (
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}" + _LOOP + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + "
        "m.content | trim + '<end_of_turn>\n' }}" + _END + _ASKED + "{{ '<start_of_turn>model\n' }}{% endif %}",
    ),
    "gpt-oss": (  # another end for earlier answers, and another head for an answer to come
        ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"],
        _LOOP + "{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + "
        "'<|end|>' }}{% endif %}" + _END + _ASKED + "{{ '<|start|>assistant' }}{% endif %}",
    ),
}
_FULL = sorted({*FAMILIES} - {"qwen3", "gpt-oss", "mistral"})  # write every round in one way
TURNS = [Turn("<image>\nWhat is {it}?", "liver"), Turn("Sure?", "yes, 2.")]


def make_tokenizer(name: str) -> Any:
    specials, text = FAMILIES[name]
    tokenizer = family_tokenizer(*specials, chat_template=text)
    tokenizer.backend_tokenizer.decoder = ByteLevel()
    if specials[0] in ("<|begin|>", "<s>", "<bos>"):
        tokenizer.bos_token = specials[0]
    return tokenizer


def messages_of(turns: list[Turn], system: str | None = None) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages += [{"role": "assistant", "content": turn.answer}] if turn.answer is not None else []
    return messages


def own(name: str) -> tuple[Any, PromptTemplate]:
    tokenizer = make_tokenizer(name)
    return tokenizer, choose_template("tokenizer", tokenizer)


@pytest.mark.parametrize("system", [None, "You read slides."])
@pytest.mark.parametrize(
    ("name", "table"), [("llama3", "llama3_chat"), ("qwen", "qwen_chat"), ("qwen", "internlm2_chat"),
                        ("phi3", "phi3_chat")]
)  # fmt: skip
def test_tokens_and_labels_equal_the_tables(name: str, table: str, system: str | None) -> None:
    tokenizer, template = own(name)
    turns = [Turn(TURNS[0].question, TURNS[0].answer, system), TURNS[1]]
    expected = encode_conversation(turns, tokenizer, get_template(table))
    assert encode_conversation(turns, tokenizer, template) == expected
    assert set(end_token_ids(tokenizer, template)) == set(end_token_ids(tokenizer, get_template(table)))


def test_mistral_differs_from_the_table_in_spaces_alone() -> None:
    """xtuner's has a space before the mark that ends a question, none behind it, and a line break after an answer."""
    tokenizer, template = own("mistral")
    found = encode_conversation(TURNS[:1], tokenizer, template)
    expected = encode_conversation(TURNS[:1], tokenizer, get_template("mistral"))
    read = [tokenizer.decode([i for i in each.input_ids if i >= 0]) for each in (found, expected)]
    assert read[0] == read[1].replace(" [/INST]", "[/INST] ").removesuffix("\n")
    assert [i for i in found.labels if i >= 0][1:] == [i for i in expected.labels if i >= 0]


@pytest.mark.parametrize("system", [None, "You read slides."])
@pytest.mark.parametrize("name", _FULL)
def test_the_text_is_that_of_the_tokenizer(name: str, system: str | None) -> None:
    tokenizer, template = own(name)
    turns = [Turn(TURNS[0].question, TURNS[0].answer, system), Turn(TURNS[1].question)]
    if system and name == "gemma":
        turns, system = [Turn(f"{system}\n\n{turns[0].question}", turns[0].answer), turns[1]], None
    options = {"enable_thinking": False, "strftime_now": datetime.date(2024, 7, 26).strftime}
    expected = tokenizer.apply_chat_template(
        messages_of(turns, system), tokenize=False, add_generation_prompt=True, **options
    )
    assert render_prompt(turns, template, tokenizer.eos_token) == expected
    ids = [index for index in encode_prompt(turns, tokenizer, template) if index != IMAGE_TOKEN_INDEX]
    assert tokenizer.decode(ids) == expected.replace("<image>", "")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_single_question_is_that_of_the_tokenizer(name: str) -> None:
    """With its answer; gpt-oss's template opens the channel of an answer only with it."""
    tokenizer, template = own(name)
    options = {"enable_thinking": False, "strftime_now": datetime.date(2024, 7, 26).strftime}
    ids = [index for index in encode_conversation(TURNS[:1], tokenizer, template).input_ids if index >= 0]
    expected = tokenizer.apply_chat_template(messages_of(TURNS[:1]), tokenize=False, **options).replace("<image>", "")
    assert tokenizer.decode(ids) == expected.removesuffix(tokenizer.eos_token if name == "phi3" else "")
    if name != "gpt-oss":
        asked = tokenizer.apply_chat_template(
            messages_of([Turn("Why?")]), tokenize=False, add_generation_prompt=True, **options
        )
        assert tokenizer.decode(encode_prompt([Turn("Why?")], tokenizer, template)) == asked


@pytest.mark.parametrize("system", [None, "You read slides."])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_is_asked_is_what_was_trained(name: str, system: str | None) -> None:
    tokenizer, template = own(name)
    turns = [Turn(TURNS[0].question, TURNS[0].answer, system), TURNS[1]]
    for count in (1, 2):
        trained = encode_conversation(turns[:count], tokenizer, template)
        asked = [*turns[: count - 1], Turn(turns[count - 1].question, None, turns[count - 1].system)]
        prompt = encode_prompt(asked, tokenizer, template)
        assert trained.input_ids[: len(prompt)] == prompt
        assert trained.labels[len(prompt) - 1] == IGNORE_INDEX
        taught = [label for label in trained.labels[len(prompt) :] if label != IGNORE_INDEX]
        assert tokenizer.decode(taught).strip().startswith(turns[count - 1].answer)
        assert set(taught) & set(end_token_ids(tokenizer, template))
        assert encode_answer(turns[count - 1].answer or "", tokenizer, template) == taught
    text = render_prompt(asked, template, tokenizer.eos_token)
    read = parse_prompt(text, template, tokenizer.eos_token)
    assert read is not None
    assert encode_prompt(read, tokenizer, template) == prompt
    elsewhere = tokenizer.apply_chat_template(
        messages_of(asked, system), chat_template=jinja_template(template), tokenize=False
    )
    assert elsewhere == text


def test_the_template_says_itself_what_is_taught() -> None:
    template = own("smollm3")[1]
    assert template.suffix == "<|im_end|>\n"
    assert template.stop_words == ("<|im_end|>",)
    silent = make_tokenizer("smollm3")
    silent.chat_template = silent.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert choose_template("tokenizer", silent).suffix == "<|im_end|>"


def test_a_prompt_does_not_change_by_night() -> None:
    assert "26 July 2024" in (own("smollm3")[1].begin or "")


def test_the_families_own_system_message_and_thinking() -> None:
    assert own("qwen2.5")[1].begin == "<|im_start|>system\nYou help.<|im_end|>\n"
    assert "Think" not in (own("smollm3")[1].begin or "")
    assert own("qwen3")[1].instruction.endswith(f"assistant\n{_NO_THOUGHT}")
    assert own("gemma")[1].question_system == own("mistral")[1].question_system == "{system}\n\n"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_it_survives_json_and_leaves_the_tables_alone(name: str) -> None:
    template = own(name)[1]
    assert get_template(template.to_dict()) == template
    assert "begin" not in TEMPLATES["qwen_chat"].to_dict()  # or what was prepared before would be prepared again


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "got none"),
        ("{{ raise_exception('not like this') }}", "not like this"),
        (_LOOP + "{{ m.role + ': ' + m.content + '\n' }}" + _END, "end token"),
        (_LOOP + "{{ m.role }}" + _END, "once"),
        (_LOOP + "{{ loop.index ~ m.role + m.content + '<|im_end|>' }}" + _END, "one way"),
    ],
)
def test_a_template_that_cannot_be_used(text: str | None, found: str) -> None:
    tokenizer = family_tokenizer("<|im_start|>", "<|im_end|>", chat_template=text)
    with pytest.raises(PallavaError, match=rf"{found}.*prompt_template: .*qwen_chat"):
        choose_template("tokenizer", tokenizer)


def test_it_is_among_the_choices() -> None:
    with pytest.raises(PallavaError, match="tokenizer"):
        get_template("none")
    with pytest.raises(PallavaError, match="qwen_chat, tokenizer"):
        choose_template("llama3_chat", make_tokenizer("qwen"))


@pytest.mark.parametrize("name", ["qwen2.5", "mistral", "gemma"])
def test_a_model_folder_asks_with_it(name: str, tmp_path: Path) -> None:
    tokenizer, template = own(name)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    PALLaVAProcessor(images, tokenizer, "tokenizer").save_pretrained(tmp_path)
    opened = PALLaVAProcessor.from_pretrained(tmp_path)
    assert opened.template == template
    assert opened.tokenizer.convert_tokens_to_ids(template.stop_words[0]) in opened.end_token_ids
    conversation = [*messages_of([Turn("What?", "liver")], None if name == "gemma" else "S"), *messages_of(TURNS[1:])]
    prompt = opened.apply_chat_template(conversation[:-1])
    asked = [Turn("What?", "liver", None if name == "gemma" else "S"), Turn(TURNS[1].question)]
    for text in (prompt, [{"from": "human", "value": "x"}]):
        ids = opened(text)["input_ids"][0].tolist()
        assert ids == encode_prompt(asked if text is prompt else [Turn("x")], tokenizer, template)


@pytest.mark.parametrize("mark", ["{input}", "{round}", "{system}"])
def test_a_template_with_our_own_fields_is_refused(mark: str) -> None:
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = mark + tokenizer.chat_template
    with pytest.raises(PallavaError, match=f"must not write {mark}"):
        choose_template("tokenizer", tokenizer)


def test_white_space_ends_no_answer() -> None:
    tokenizer = make_tokenizer("qwen")
    tokenizer.add_tokens(["\n"])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "\n<|im_end|>")
    assert choose_template("tokenizer", tokenizer).stop_words == ("<|im_end|>",)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    with pytest.raises(PallavaError, match="end token"):
        choose_template("tokenizer", tokenizer)


def test_an_end_that_is_an_ordinary_token_is_not_read() -> None:
    tokenizer = make_tokenizer("qwen")
    tokenizer.add_tokens(["<over>"])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<over>")
    processor = PALLaVAProcessor(CLIPImageProcessor(), tokenizer, "tokenizer")
    ids = tokenizer.encode("liver<over>", add_special_tokens=False)
    assert processor.batch_decode([ids]) == ["liver"]
    assert processor.batch_decode([ids], skip_special_tokens=False) == ["liver<over>"]


def test_a_character_beyond_the_first_plane() -> None:
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = "\U0001f600" + tokenizer.chat_template
    template = choose_template("tokenizer", tokenizer)
    messages = [{"role": "user", "content": "a"}]
    written = tokenizer.apply_chat_template(messages, chat_template=jinja_template(template), tokenize=False)
    assert written.startswith("\U0001f600<|im_start|>user")
