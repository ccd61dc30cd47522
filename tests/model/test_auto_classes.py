"""What users of Hugging Face's transformers do with a model folder, after importing `pallava.model` alone."""

from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    TextStreamer,
    pipeline,
)

from pallava.errors import PallavaError
from pallava.io.stacks import INSTALL
from pallava.model import PALLaVAConfig, PALLaVAForConditionalGeneration, PALLaVAProcessor, loading
from pallava.model.processor import jinja_template, parse_prompt, read_messages, render_prompt
from pallava.model.versions import check_version, read_rope
from pallava.prompts import IMAGE_TOKEN_INDEX, TEMPLATES, Turn, get_template
from tests.tiny import folders as tiny_folders

QUESTION = "what is shown here ?"
NEW = {"max_new_tokens": 5}


def picture(turned: bool = False) -> Image.Image:
    image = Image.linear_gradient("L").resize((80, 50)).convert("RGB")
    return image.rotate(90, expand=True).resize((50, 120)) if turned else image


def message(image: Any = None, text: str = QUESTION) -> list[dict[str, Any]]:
    part = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_folders.save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def folder(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_folders.build(parts, tiny_folders.open_llm(parts))
    return tiny_folders.save(parts, model, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def adapter_folder(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_folders.build(parts, tiny_folders.open_llm(parts, has_lora=True))
    return tiny_folders.save(parts, model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PALLaVAForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> PALLaVAProcessor:
    return AutoProcessor.from_pretrained(folder)


def answer(model: Any, processor: Any, image: Image.Image, text: str = QUESTION) -> str:
    return tiny_folders.answers(model, processor, processor(text, images=image), **NEW)[0]


def test_auto_classes_open_the_folder(folder: Path, model: Any, processor: Any) -> None:
    assert type(AutoConfig.from_pretrained(folder)) is PALLaVAConfig
    assert type(model) is PALLaVAForConditionalGeneration
    assert type(processor) is PALLaVAProcessor
    assert not model.training


def test_auto_classes_open_an_adapter_beside_a_base_that_moved(
    adapter_folder: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "llm"
    moved.symlink_to(parts["llm"])
    opened = AutoModelForImageTextToText.from_pretrained(adapter_folder, base_llm=str(moved))
    direct = PALLaVAForConditionalGeneration.from_pretrained(adapter_folder)
    inputs = AutoProcessor.from_pretrained(adapter_folder)(QUESTION, images=picture())
    with torch.no_grad():
        torch.testing.assert_close(opened(**inputs).logits, direct(**inputs).logits, rtol=0, atol=0)
    assert opened.llm.peft_config
    with pytest.raises(PallavaError, match="language model.*none"):
        AutoModelForImageTextToText.from_pretrained(adapter_folder, base_llm=str(tmp_path / "none"))


def test_everything_survives_saving_and_opening(folder: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert reader.chat_template == processor.chat_template == jinja_template(get_template("qwen_chat"))
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    inputs = reader(QUESTION, images=picture())
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
@pytest.mark.parametrize("option", ["torch_dtype", "dtype"])
def test_the_type_of_weights_is_asked_for(folder: Path, adapter_folder: Path, dtype: Any, option: str) -> None:
    for each in (folder, adapter_folder):
        opened = PALLaVAForConditionalGeneration.from_pretrained(each, **{option: dtype})
        frozen = {parameter.dtype for name, parameter in opened.named_parameters() if "lora" not in name}
        assert {str(found).split(".")[-1] for found in frozen} == {str(dtype).split(".")[-1]}


def test_weights_open_in_the_type_they_are_stored_in(adapter_folder: Path, tmp_path: Path) -> None:
    model = PALLaVAForConditionalGeneration.from_pretrained(adapter_folder)
    model.connector.to(torch.bfloat16)
    model.visual_encoder.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path)
    assert opened.connector.dtype == opened.visual_encoder.dtype == torch.bfloat16
    assert opened.llm.dtype == torch.float32


def test_the_language_models_own_sampling_is_left_alone(adapter_folder: Path, folder: Path, processor: Any) -> None:
    for each in (adapter_folder, folder):
        opened = PALLaVAForConditionalGeneration.from_pretrained(each)
        answers = {answer(opened, processor, picture()) for _ in range(4)}
        assert len(answers) == 1


def test_generate_returns_prompts_and_answers(model: Any, processor: Any) -> None:
    """Harnesses, and `transformers serve`, cut the prompt off by its length."""
    inputs = processor([QUESTION, f"{QUESTION} few nuclei ?"], images=[picture(), picture(turned=True)])
    prompts = inputs["input_ids"]
    assert (prompts == IMAGE_TOKEN_INDEX).sum() == 2
    assert inputs["attention_mask"].min() == 0
    greedy = model.generate(**inputs, **NEW)
    assert torch.equal(greedy[:, : prompts.shape[1]], prompts)
    texts = processor.batch_decode(greedy)
    replies = tiny_folders.answers(model, processor, inputs, **NEW)
    for text, reply, question in zip(texts, replies, (QUESTION, f"{QUESTION} few nuclei ?"), strict=True):
        assert reply
        assert question in text.removesuffix(reply)
    for options in ({"num_beams": 3}, {"do_sample": True, "top_k": 50}):
        several = model.generate(**inputs, num_return_sequences=2, **options, **NEW)
        assert torch.equal(several[:, : prompts.shape[1]], prompts.repeat_interleave(2, dim=0))
    found = model.generate(**inputs, return_dict_in_generate=True, output_scores=True, **NEW)
    assert torch.equal(found.sequences, greedy)
    assert len(found.scores) == greedy.shape[1] - prompts.shape[1]
    beams = model.generate(**inputs, num_beams=2, return_dict_in_generate=True, **NEW)
    assert torch.equal(beams.sequences, model.generate(**inputs, num_beams=2, **NEW))


def test_kaiko_eva_gets_the_answers(model: Any, processor: Any) -> None:
    """The steps of its wrapper: a template for each question, images as tensors, ids cut by the prompt's length."""
    chats = [[{"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": "image"}]}] for _ in range(2)]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    images = [picture(), picture(turned=True)]
    tensors = [[torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)] for image in images]
    inputs = processor(text=texts, return_tensors="pt", images=tensors)
    ids = model.generate(**inputs, temperature=0.0, do_sample=False, top_p=1.0, **NEW)
    answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[-1] :], skip_special_tokens=True)
    assert answers == [answer(model, processor, image) for image in images]


def test_a_call_may_sample(model: Any, processor: Any) -> None:
    inputs = processor(QUESTION, images=picture())
    torch.manual_seed(0)
    drawn = {tuple(model.generate(**inputs, do_sample=True, temperature=5.0, **NEW)[0].tolist()) for _ in range(8)}
    assert len(drawn) > 1
    assert model.generation_config.do_sample is False


def test_the_pipeline_answers_as_the_model_does(folder: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    ask = pipeline("image-text-to-text", model=str(folder), device="cpu")
    images = [picture(), picture(turned=True)]
    expected = [answer(model, processor, image) for image in images]
    options = {"return_full_text": False, **NEW}
    assert ask(text=message(images[0]), **options)[0]["generated_text"] == expected[0]
    assert ask(images=images[0], text=QUESTION, **options)[0]["generated_text"] == expected[0]
    batch = ask(images=images, text=[QUESTION, QUESTION], **options)
    assert [each["generated_text"] for each in batch] == expected
    images[0].save(tmp_path / "image.png")
    chats = [message(str(tmp_path / "image.png")), message(images[1])]
    for size in (1, 2):
        assert [each[0]["generated_text"] for each in ask(text=chats, batch_size=size, **options)] == expected
    told = ask(text=message(images[0]), **NEW)[0]["generated_text"]
    assert told[-1] == {"role": "assistant", "content": expected[0]}


def test_the_pipeline_goes_on_with_a_conversation(folder: Path, model: Any, processor: Any) -> None:
    ask = pipeline("image-text-to-text", model=str(folder), device="cpu")
    more = [
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "text", "text": "few nuclei ?"}]},
    ]
    conversation = [
        {"from": "human", "value": f"<image>\n{QUESTION}"},
        {"from": "gpt", "value": "yes"},
        {"from": "human", "value": "few nuclei ?"},
    ]
    expected = tiny_folders.answers(model, processor, processor(conversation, images=picture()), **NEW)[0]
    given = ask(text=message(picture()) + more, return_full_text=False, **NEW)
    assert given[0]["generated_text"] == expected


def test_streaming(model: Any, processor: Any) -> None:
    told: list[str] = []

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            told.append(text)

    inputs = processor(QUESTION, images=picture())
    for skip_prompt in (True, False):
        told.clear()
        streamer = Streamer(processor.tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        ids = model.generate(**inputs, streamer=streamer, **NEW)
        assert "".join(told).strip() == processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])[0]
        assert len(told) > 1


def test_messages_become_what_training_has(processor: Any) -> None:
    expected = processor(QUESTION, images=picture())
    inputs = processor.apply_chat_template(message(picture()), tokenize=True, return_dict=True)
    torch.testing.assert_close(dict(inputs), dict(expected))
    ids = processor.apply_chat_template(message(), tokenize=True)
    assert ids.tolist() == expected["input_ids"].tolist()
    prompt = processor.apply_chat_template(message(), add_generation_prompt=True)
    torch.testing.assert_close(dict(processor(text=prompt, images=picture(), return_tensors="pt")), dict(expected))
    prompts = processor.apply_chat_template([message(), message()])
    batch = processor(prompts, images=[[picture()], [picture(turned=True)]], padding=True)
    assert (batch["input_ids"] == IMAGE_TOKEN_INDEX).sum(1).tolist() == [1, 1]
    assert len(batch["tiles_per_image"]) == 2


def test_a_prompt_is_decoded_without_markers(processor: Any) -> None:
    ids = processor(QUESTION, images=picture())["input_ids"]
    assert QUESTION in processor.post_process_image_text_to_text(ids, skip_special_tokens=False)[0]


TURNS = [
    [Turn("Q")],
    [Turn("<image>\nQ?", system="S")],
    [Turn("<image>\nQ", "A\n b"), Turn("R", "C"), Turn("T ")],
    [Turn("<image><image>\nQ", "", system="S\nT"), Turn("R")],
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", TURNS, ids=range(len(TURNS)))
def test_a_rendered_prompt_is_read_back(name: str, turns: list[Turn]) -> None:
    template = get_template(name)
    assert parse_prompt(render_prompt(turns, template, "</s>"), template, "</s>") == turns


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_is_no_prompt(name: str) -> None:
    for text in ("", "Is it benign?", "<image>\nWhat do [INST] and USER: mean?", "A\nB."):
        assert parse_prompt(text, get_template(name), "</s>") is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_jinja_template_writes_the_same(processor: Any, name: str) -> None:
    template = get_template(name)
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "Q?"}, {"type": "image"}, {"type": "image"}]},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": [{"type": "text", "text": "R"}]},
    ]
    rendered = processor.tokenizer.apply_chat_template(messages, chat_template=jinja_template(template), tokenize=False)
    turns = [Turn("<image><image>\nQ?", "A", "S"), Turn("R")]
    assert rendered == render_prompt(turns, template, processor.tokenizer.eos_token)
    elsewhere = jinja2.Template(jinja_template(template))  # where line breaks after blocks stay
    assert elsewhere.render(messages=messages, eos_token=processor.tokenizer.eos_token) == rendered


def test_images_of_messages_in_all_forms() -> None:
    parts = [{"type": "image", "url": "a"}, {"type": "image", "path": "b"}, {"type": "image", "base64": "Yw=="}]
    parts += [{"type": "image_url", "image_url": {"url": "d"}}, {"type": "image"}, {"type": "text", "text": "Q"}]
    conversation, images = read_messages([{"role": "user", "content": parts}])
    assert conversation == [{"from": "human", "value": "<image>" * 5 + "\nQ"}]
    assert images == ["a", "b", b"c", "d"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "tool", "content": "x"}],
        [{"content": "x"}],
        ["x"],
        [{"role": "user", "content": [{"type": "video", "video": "x"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": 3}],
    ],
)
def test_other_messages_are_refused(messages: list[Any]) -> None:
    with pytest.raises(PallavaError, match="message 1"):
        read_messages(messages)


def test_what_the_processor_does_not_do_is_said(processor: Any) -> None:
    ended = [*message(), {"role": "assistant", "content": "yes"}]
    with pytest.raises(PallavaError, match="must end with a question"):
        processor.apply_chat_template(ended)
    with pytest.raises(PallavaError, match="end it with a question"):
        processor("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n")
    with pytest.raises(PallavaError, match="end with a question"):
        processor.apply_chat_template(ended, continue_final_message=True)
    with pytest.raises(PallavaError, match="truncation"):
        processor(QUESTION, truncation=True)
    with pytest.raises(PallavaError, match="got np"):
        processor(QUESTION, return_tensors="np")


def change_weights(folder: Path, target: Path, change: Any) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    state = load_file(target / "model.safetensors")
    change(state)
    save_file(state, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("connector.norm.weight"), "1 missing: connector.norm.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda state: state.update({"connector.norm.weight": torch.zeros(3)}),
            "1 reshaped: connector",
        ),
        (lambda state: state["llm.model.norm.weight"].fill_(torch.nan), "1 hold NaN or infinity .llm.model.norm"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(PallavaError, match=said):
        AutoModelForImageTextToText.from_pretrained(change_weights(folder, tmp_path / "changed", change))


def test_broken_and_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    broken = change_weights(folder, tmp_path / "broken", lambda state: None)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(PallavaError, match="cannot be read"):
        PALLaVAForConditionalGeneration.from_pretrained(broken)
    weights.unlink()
    torch.save({}, broken / "pytorch_model.bin")
    with pytest.raises(PallavaError, match="cannot be read"):
        PALLaVAForConditionalGeneration.from_pretrained(broken)


def test_a_tied_language_model_opens_strictly(
    parts: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_folders.build(parts, tiny_folders.open_llm(parts, is_tied=True)).save_pretrained(tmp_path)
    assert "shared tensor" not in caplog.text
    assert "llm.lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path)
    assert opened.llm.lm_head.weight is opened.llm.model.embed_tokens.weight


def test_a_name_of_the_hub_is_fetched_whole(
    folder: Path, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str({"lab/whole": folder, "lab/adapter": adapter_folder}[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    opened = PALLaVAForConditionalGeneration.from_pretrained("lab/adapter", revision="v1")
    assert asked == [("lab/adapter", {"revision": "v1"})]
    assert opened.llm.peft_config
    PALLaVAForConditionalGeneration.from_pretrained("lab/whole")

    def fail(name: str, **options: Any) -> str:
        raise OSError("404 Client Error.\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(PallavaError, match="lab/none.*404 Client Error"):
        loading.find_folder("lab/none", {})


@pytest.mark.parametrize("version", [(4, 47), (4, 49), (4, 56), (6, 0)])
def test_transformers_that_no_test_has_seen_is_refused(version: tuple[int, int]) -> None:
    with pytest.raises(PallavaError, match=f"got {version[0]}.{version[1]}"):
        check_version(version)


def test_the_known_transformers_are_taken() -> None:
    assert [check_version(version).name for version in ((4, 48), (4, 57), (5, 23))] == ["default", "newer", "newest"]
    assert check_version((4, 57), trains=True).trains
    with pytest.raises(PallavaError, match=r"to train, got 5\.23"):
        check_version((5, 23), trains=True)


def test_the_newer_stack_is_the_one_in_the_repository() -> None:
    """What an error advises is what `make test-newer` installs."""
    lines = (Path(__file__).parents[2] / "constraints" / "newer.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) == 2
    assert all(pin in INSTALL for pin in pins)


ROPE = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}


@pytest.mark.parametrize("change", [{}, {"rope_type": "default"}])
def test_rotary_settings_of_transformers_5_are_read(change: dict[str, Any]) -> None:
    config = LlamaConfig(rope_parameters={**ROPE, **change})
    read_rope(config)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == (None if change else {"rope_type": "llama3", "factor": 8.0})
    assert not hasattr(config, "rope_parameters")


@pytest.mark.parametrize(
    "found",
    [
        {"rope_type": "default"},
        {"other_attention": ROPE},
        {"full_attention": ROPE, "sliding_attention": ROPE},
        {**ROPE, "rope_type": "yarn"},
        {**ROPE, "rope_type": "longrope"},
        {**ROPE, "other_attention": ROPE},
    ],
)
def test_rotary_settings_without_names_in_transformers_4_are_refused(found: dict[str, Any]) -> None:
    with pytest.raises(PallavaError, match="rope_parameters of a llama"):
        read_rope(LlamaConfig(rope_parameters=found))
