import copy
import json
import re
import subprocess
import sys
import warnings

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from pallava.errors import PallavaError
from pallava.prompts import (
    CAPTION_PROMPTS,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
    TEMPLATES,
    Turn,
    build_choice_question,
    build_question,
    check_vocabulary,
    choose_template,
    encode_answer,
    encode_conversation,
    encode_prompt,
    end_token_ids,
    get_template,
    possible_answers,
    turns_from_conversations,
)

CONVERSATION = [
    {"from": "gpt", "value": "a greeting that nobody asked for"},
    {"from": "human", "value": "Is necrosis {present}?\n<image> "},
    {"from": "gpt", "value": "yes"},
    {"from": "human", "value": " How dense "},
    {"from": "human", "value": "are the nuclei?"},
    {"from": "gpt", "value": "sparse\n"},
]


@pytest.fixture(scope="module")
def rows(golden):
    return json.loads((golden / "prompts.json").read_text())["rows"]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_template_equals_xtuner(name):
    from xtuner.utils import PROMPT_TEMPLATE

    ours, theirs = TEMPLATES[name], PROMPT_TEMPLATE[name]
    assert ours.name == name
    assert ours.instruction == theirs.INSTRUCTION
    assert ours.system == theirs.SYSTEM
    assert ours.suffix == theirs.get("SUFFIX", "")
    assert ours.suffix_as_eos == theirs.get("SUFFIX_AS_EOS", False)
    assert ours.sep == theirs.get("SEP", "")
    assert list(ours.stop_words) == list(theirs.get("STOP_WORDS", []))


def test_golden_text(rows):
    assert len(rows) == 4
    for row in rows:
        turns = turns_from_conversations(row["conversations"])
        for name in ("llama3_chat", "qwen_chat"):
            template = get_template(name)
            made = [
                {
                    "input": template.instruction.format(input=turn.question),
                    "output": turn.answer + template.suffix,
                    "need_eos_token": not template.suffix_as_eos,
                    "sep": template.sep,
                }
                for turn in turns
            ]
            assert made == row[name]


def test_golden_ids(rows, smollm2_tokenizer):
    for row in rows:
        turns = turns_from_conversations(row["conversations"])
        encoded = encode_conversation(turns, smollm2_tokenizer, get_template("qwen_chat"))
        assert encoded.input_ids == row["qwen_chat_smollm2_input_ids"]
        assert encoded.labels == row["qwen_chat_smollm2_labels"]


def xtuner_encode(conversations, tokenizer, name, system=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from xtuner.dataset.map_fns.dataset_map_fns.llava_map_fn import llava_map_fn
        from xtuner.dataset.map_fns.template_map_fn import template_map_fn
        from xtuner.dataset.utils import encode_fn
        from xtuner.utils import PROMPT_TEMPLATE

    example = llava_map_fn({"conversations": copy.deepcopy(conversations)})
    example["conversation"][0]["system"] = system
    example = template_map_fn(example, PROMPT_TEMPLATE[name])
    return encode_fn(example, tokenizer, 10_000, with_image_token=True)


@pytest.mark.parametrize("system", [None, "You read slides."])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_ids_equal_xtuner(name, system, smollm2_tokenizer):
    expected = xtuner_encode(CONVERSATION, smollm2_tokenizer, name, system)
    conversation = CONVERSATION if system is None else [{"from": "system", "value": system}, *CONVERSATION]
    encoded = encode_conversation(turns_from_conversations(conversation), smollm2_tokenizer, get_template(name))
    assert encoded.input_ids == expected["input_ids"]
    assert encoded.labels == expected["labels"]


def test_qwen_tokenizer_gets_no_begin_token(smollm2_tokenizer, monkeypatch):
    kind = type("Qwen2TokenizerFast", (type(smollm2_tokenizer),), {})
    tokenizer = copy.copy(smollm2_tokenizer)
    tokenizer.__class__ = kind
    expected = xtuner_encode(CONVERSATION, tokenizer, "mistral")
    encoded = encode_conversation(turns_from_conversations(CONVERSATION), tokenizer, get_template("mistral"))
    assert encoded.input_ids == expected["input_ids"]
    assert encoded.input_ids[0] != tokenizer.bos_token_id


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_inference_sees_what_training_has_before_the_answer(name, smollm2_tokenizer):
    turns = [
        Turn(build_question("What is this?", 2), "liver", system="You read slides."),
        Turn("Sure?", "yes"),
    ]
    template = get_template(name)
    for count in (1, 2):
        trained = encode_conversation(turns[:count], smollm2_tokenizer, template)
        asked = [*turns[: count - 1], Turn(turns[count - 1].question, None, turns[count - 1].system)]
        prompt = encode_prompt(asked, smollm2_tokenizer, template)
        assert trained.input_ids[: len(prompt)] == prompt
        assert trained.labels[len(prompt) - 1] == IGNORE_INDEX
        assert trained.labels[len(prompt)] == trained.input_ids[len(prompt)]  # the answer begins here
        assert prompt.count(IMAGE_TOKEN_INDEX) == 2


def test_markers_go_to_the_front():
    assert build_question("What is it?") == "<image>\nWhat is it?"
    assert build_question("What is it?\n<image>") == "<image>\nWhat is it?"
    assert build_question("Compare <image> with <image>.") == "<image><image>\nCompare  with ."
    assert build_question(" as it is ", num_images=0) == " as it is "
    assert build_question("", num_images=1) == "<image>"


@pytest.mark.parametrize("turn", [Turn("is it \ud83d"), Turn("is it \0"), Turn("what", system="\udcff")])
def test_a_question_that_cannot_be_encoded(turn, smollm2_tokenizer):
    with pytest.raises(PallavaError, match="is not UTF-8 text"):
        encode_prompt([turn], smollm2_tokenizer, get_template("qwen_chat"))


def test_a_question_at_the_end_awaits_its_answer():
    turns = turns_from_conversations([{"from": "human", "value": "<image>Why?"}])
    assert turns == [Turn("<image>\nWhy?", None)]


@pytest.mark.parametrize("message", [{"from": "user", "value": "x"}, {"value": "x"}, {"from": "gpt"}, "text"])
def test_malformed_message_is_named(message):
    with pytest.raises(PallavaError, match="message 2"):
        turns_from_conversations([{"from": "human", "value": "x"}, message])


class _Llama3Tokenizer:
    """The parts of Llama 3's vocabulary that end an answer."""

    eos_token_id = 128009

    def convert_tokens_to_ids(self, token):
        return {"<|eot_id|>": 128009, "<|end_of_text|>": 128001}.get(token)

    def convert_ids_to_tokens(self, index):
        return {128009: "<|eot_id|>", 128001: "<|end_of_text|>"}[index]


def test_llama3_ends_at_both_of_its_tokens(smollm2_tokenizer):
    assert end_token_ids(_Llama3Tokenizer(), get_template("llama3_chat")) == [128009, 128001]
    assert end_token_ids(smollm2_tokenizer, get_template("llama3_chat")) == [2]  # has neither: its own
    assert end_token_ids(smollm2_tokenizer, get_template("qwen_chat")) == [2, 0]


_FAMILIES = {
    "llama3_chat": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen_chat": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "phi3_chat": ["<|user|>", "<|assistant|>", "<|end|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
}
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


def family_tokenizer(*specials, eos="</s>", words=(), chat_template=None):
    """A tokenizer of bytes that has these tokens beside its end token."""
    vocabulary = {word: index for index, word in enumerate([*ByteLevel.alphabet(), *words])}
    inner = Tokenizer(BPE(vocabulary, []))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=eos, additional_special_tokens=[*specials], chat_template=chat_template
    )


@pytest.mark.parametrize("name", _FAMILIES)
def test_a_template_that_is_not_given_is_the_tokenizers(name):
    assert choose_template(None, family_tokenizer(*_FAMILIES[name])) == TEMPLATES[name]


def test_the_chat_template_decides_where_the_tokens_do_not():
    both = [*_FAMILIES["llama3_chat"], *_FAMILIES["qwen_chat"]]
    assert choose_template(None, family_tokenizer(*both, chat_template=_CHATML)).name == "qwen_chat"
    with pytest.raises(PallavaError, match="llama3_chat.*qwen_chat"):
        choose_template(None, family_tokenizer(*both))
    phi4 = _CHATML.replace("\n' + m.content", "<|im_sep|>' + m.content")  # the tokens of ChatML, used otherwise
    with pytest.raises(PallavaError, match="prompt_template must be given"):
        choose_template(None, family_tokenizer(*_FAMILIES["qwen_chat"], chat_template=phi4))
    broken = family_tokenizer(*_FAMILIES["qwen_chat"], chat_template="{{ raise_exception('no') }}")
    assert choose_template(None, broken).name == "qwen_chat"  # as without one


def test_a_template_is_asked_for_where_no_family_is_certain():
    for specials in ([], ["<|im_start|>"], ["[INST]", "[/INST]"]):
        with pytest.raises(PallavaError, match="prompt_template must be given.*vicuna"):
            choose_template(None, family_tokenizer(*specials))


@pytest.mark.parametrize(
    ("template", "tokenizer", "missing"),
    [
        ("llama3_chat", family_tokenizer(*_FAMILIES["qwen_chat"]), "<|eot_id|>, <|start_header_id|>"),
        ("llama3_chat", family_tokenizer("<|eot_id|>"), "<|start_header_id|>"),
        ("gemma", family_tokenizer(*_FAMILIES["qwen_chat"]), "<start_of_turn>, <end_of_turn>"),
        ("internlm2_chat", family_tokenizer("<|im_start|>", words=["<|im_end|>"]), "<|im_end|>"),  # known, never read
        ("mistral", family_tokenizer(eos=None), "an end token"),
        ({"name": "a", "instruction": "{input}", "suffix": "###", "suffix_as_eos": True}, family_tokenizer(), "###"),
        ({"name": "a", "instruction": "{input}", "suffix_as_eos": True}, family_tokenizer(), "an end token"),
    ],
)
def test_a_template_whose_end_would_not_be_taught(template, tokenizer, missing):
    with pytest.raises(PallavaError, match=re.escape(missing)):
        choose_template(template, tokenizer)


@pytest.mark.parametrize(
    ("template", "specials"),
    [
        ("vicuna", []),
        ("zephyr", []),
        ("qwen_chat", ["<|im_start|>", "<|im_end|>"]),  # without its second stop word
        ({"name": "a", "instruction": "{input}", "suffix": "###"}, []),  # the end token follows the suffix
        (
            {
                "name": "a",
                "instruction": "<u>{input}</u>",
                "suffix": "<e>\n",
                "suffix_as_eos": True,
                "stop_words": ["<e>"],
            },
            ["<e>"],
        ),
    ],
)
def test_a_template_with_an_end_is_taken(template, specials):
    assert choose_template(template, family_tokenizer(*specials)) == get_template(template)


def test_ids_without_an_embedding():
    tokenizer = family_tokenizer("<blue>")
    check_vocabulary(tokenizer, len(tokenizer))
    with pytest.raises(PallavaError, match=f"below {len(tokenizer) - 1}.*{len(tokenizer) - 1}.*<blue>"):
        check_vocabulary(tokenizer, len(tokenizer) - 1)


def test_template_survives_json():
    for template in TEMPLATES.values():
        assert get_template(json.loads(json.dumps(template.to_dict()))) == template


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("llama4_chat", "llama3_chat"),
        ({"name": "x"}, "instruction"),
        ({"name": "x", "instruction": "no place"}, "{input}"),
        ({"name": "x", "instruction": "{input}", "SUFFIX": "e"}, "SUFFIX"),
    ],
)
def test_wrong_template_is_named(template, message):
    with pytest.raises(PallavaError, match=re.escape(message)):
        get_template(template)


def test_caption_prompts_are_different():
    assert len(CAPTION_PROMPTS) >= 20
    assert len({prompt.lower().strip(" .?") for prompt in CAPTION_PROMPTS}) == len(CAPTION_PROMPTS)


def test_prompts_import_nothing_heavy():
    code = "import sys, pallava.prompts; sys.exit(any(m in sys.modules for m in ('torch', 'xtuner')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_choices_stand_below_their_question():
    text = build_choice_question(" Which stain? ", [" PAS", "Congo red "])
    assert text == "Which stain?\nA. PAS\nB. Congo red\nAnswer with the letter of the right option."
    for count in (1, 11):
        with pytest.raises(PallavaError, match=f"2 to 10 options, got {count}"):
            build_choice_question("Which?", ["x"] * count)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is it?", "yes", ["yes", "no"]),
        ("Is it?", "No.", ["Yes.", "No."]),
        ("Is it?", "YES", ["YES", "NO"]),
        ("Is it?", "yEs", []),
        ("Is it?", "yes, many", []),
        ("Which?\nA. one\nB. two\nC. three\nAnswer.", "B", ["A", "B", "C"]),
        ("Which?\nA. one\nB. two", "c", []),
        ("Which?\nB. one\nC. two", "B", []),
        ("Which?\nA. one", "A", []),
        ("Is it?", "", []),
    ],
)
def test_answers_that_a_question_allows(question: str, answer: str, expected: list[str]) -> None:
    assert possible_answers(question, answer) == expected
    assert not expected or answer in expected


@pytest.mark.parametrize("name", ["llama3_chat", "qwen_chat", "vicuna"])
def test_the_ids_of_an_answer_are_those_of_training(name, smollm2_tokenizer):
    """Behind any question, the end token with them."""
    template = TEMPLATES[name]
    for answer in ("yes", "few nuclei."):
        whole = encode_conversation([Turn("Is it?", "no"), Turn("What?", answer)], smollm2_tokenizer, template)
        prompt = encode_prompt([Turn("Is it?", "no"), Turn("What?")], smollm2_tokenizer, template)
        taught = [label for label in whole.labels[len(prompt) :] if label != IGNORE_INDEX]
        assert encode_answer(answer, smollm2_tokenizer, template) == taught
        assert taught[-1] in end_token_ids(smollm2_tokenizer, template) or template.suffix_as_eos
