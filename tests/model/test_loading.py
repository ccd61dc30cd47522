"""The language model as a config names it: its precision, and what is said where there is none."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pallava.devices import device_dtype
from pallava.errors import PallavaError
from pallava.model import MLPConnector, PALLaVAForConditionalGeneration, load
from pallava.model.loading import (
    add_lora,
    check_reopenable_part,
    find_folder,
    is_adapted,
    load_llm,
    load_tokenizer,
    merge_lora,
    open_llm,
)
from tests.tiny import folders, golden
from tests.tiny.training import save_parts, save_tokenizer

IDS = torch.arange(4, 40)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_parts(tmp_path_factory.mktemp("parts"))["llm"])


def test_precision(folder):
    assert load_llm(folder).dtype == device_dtype()
    assert load_llm(folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_tokenizer(folder, padding_side="right").padding_side == "right"


@pytest.mark.parametrize("load", [load_llm, load_tokenizer])
def test_no_such_folder(load):
    with pytest.raises(PallavaError, match=r"(language model|tokenizer) '\./nowhere' does not exist"):
        load("./nowhere")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(PallavaError, match="language model .* cannot be opened"):
        load_llm(str(tmp_path))


def test_a_folder_of_another_model(tmp_path):
    """Before transformers lists all of its weights as missing."""
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(PallavaError, match=r"config\.json.*'llama'"):
        find_folder(tmp_path, {})


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A Gemma 2 whose scores of attention are beyond their cap, and its logits with the cap."""
    folder = tmp_path_factory.mktemp("gemma")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(attn_implementation="eager", **sizes)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.normal_(0, 1.5)
        logits = model(IDS).logits
    model.save_pretrained(folder)
    return folder, logits


@torch.no_grad()
def test_the_cap_of_attention_is_kept_and_said(gemma, caplog):
    folder, capped = gemma
    model = open_llm(folder)
    assert model.config._attn_implementation == "eager"
    assert "Gemma2" in caplog.text
    torch.testing.assert_close(model(IDS).logits, capped, atol=1e-5, rtol=0)
    assert "eager" not in caplog.text.replace(caplog.messages[0], "")  # once


@torch.no_grad()
def test_sdpa_still_leaves_the_cap_out(gemma):
    folder, capped = gemma
    bare = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    different = (bare(IDS).logits - capped).abs().max()
    assert different > 0.1, "sdpa keeps the cap now: drop keep_attention_cap"


@torch.no_grad()
@pytest.mark.parametrize("has_lora", [False, True])
def test_a_model_folder_keeps_the_cap(gemma, tmp_path, has_lora):
    folder, capped = gemma
    parts = golden.model(tmp_path / "plip")
    connector = MLPConnector(MLPConnector.config_class(visual_hidden_size=24, llm_hidden_size=32))
    llm = AutoModelForCausalLM.from_pretrained(folder)  # as another loader than ours opens it
    assert llm.config._attn_implementation == "sdpa"
    if has_lora:
        llm = add_lora(llm, {"r": 2, "task_type": "CAUSAL_LM"})
    model = PALLaVAForConditionalGeneration.from_parts(llm, parts.visual_encoder, connector).eval()
    model.save_pretrained(tmp_path / "model")
    for options in ({}, {"attn_implementation": "sdpa"}):
        opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path / "model", **options)
        for each in (model, opened):
            torch.testing.assert_close(each(IDS).logits, capped, atol=1e-5, rtol=0)
    if has_lora:
        merge_lora(model.llm).save_pretrained(tmp_path / "merged")
        for options in ({}, {"attn_implementation": "sdpa"}):
            merged = open_llm(tmp_path / "merged", **options)
            torch.testing.assert_close(merged(IDS).logits, capped, atol=1e-5, rtol=0)


def test_a_language_model_of_the_newer_stack_names_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen9"}')
    with pytest.raises(PallavaError, match=r"qwen9.*tokenizers=="):
        open_llm(tmp_path)


def test_a_model_without_a_cap_keeps_sdpa(folder, caplog):
    assert open_llm(folder).config._attn_implementation == "sdpa"
    assert not caplog.messages


@pytest.mark.parametrize("base_type", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("own_type", [torch.bfloat16, torch.float16, torch.float32])
def test_a_folder_with_an_adapter_opens_in_the_type_of_its_files(tmp_path, base_type, own_type):
    parts = save_parts(tmp_path)
    load_llm(str(parts["llm"])).to(base_type).save_pretrained(parts["llm"])
    model = folders.build(parts, folders.open_llm(parts, has_lora=True)).to(own_type)
    folders.save(parts, model, tmp_path / "model")
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path / "model")
    types = {name: value.dtype for name, value in opened.named_parameters()}
    assert {kind for name, kind in types.items() if name.startswith("llm.") and ".lora_" not in name} == {base_type}
    assert {kind for name, kind in types.items() if not name.startswith("llm.")} == {own_type}
    lora = {name: value for name, value in opened.named_parameters() if ".lora_" in name}
    assert {value.dtype for value in lora.values()} == {own_type}
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in lora.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_a_type_that_is_given_is_that_of_all_weights(tmp_path, dtype):
    parts = save_parts(tmp_path)
    folder = folders.save(parts, folders.build(parts, folders.open_llm(parts, has_lora=True)), tmp_path / "model")
    for name in ("torch_dtype", "dtype"):
        opened, _ = load(folder, "cpu", **{name: dtype})
        assert {value.dtype for value in opened.parameters()} == {torch.bfloat16}
    opened, _ = load(folder, "cpu")
    assert {value.dtype for value in opened.parameters()} == {torch.float32}


def test_a_model_for_answering_has_its_adapter_merged(tmp_path):
    parts = folders.save_parts(tmp_path / "parts")
    built = folders.build(parts, folders.open_llm(parts, has_lora=True))
    folder = folders.save(parts, built, tmp_path / "model")
    kept = PALLaVAForConditionalGeneration.from_pretrained(folder).eval()
    merged, processor = load(folder, "cpu")
    assert is_adapted(kept.llm)
    assert not is_adapted(merged.llm)
    assert not any("lora" in name for name, _ in merged.named_modules())
    inputs = processor(["what is shown ?", "yes ?"], [Image.new("RGB", (70, 50), "pink")] * 2)
    expected = folders.answers(kept, processor, inputs, max_new_tokens=8)
    assert folders.answers(merged, processor, inputs, max_new_tokens=8) == expected


def test_a_model_for_answering_is_of_one_type(tmp_path):
    parts = folders.save_parts(tmp_path / "parts")
    built = folders.build(parts, folders.open_llm(parts, has_lora=True))
    folder = folders.save(parts, built, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(parts["llm"], torch_dtype=torch.bfloat16).save_pretrained(parts["llm"])
    model, processor = load(folder, "cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    inputs = processor("what is shown ?", Image.new("RGB", (70, 50), "pink"))
    assert folders.answers(model, processor, inputs, max_new_tokens=2)
    given, _ = load(folder, "cpu", torch_dtype=torch.float32)
    assert {weight.dtype for weight in given.parameters()} == {torch.float32}


def test_a_folder_whose_tokenizer_has_too_many_tokens_is_not_loaded(tmp_path):
    parts = save_parts(tmp_path)
    folder = folders.save(parts, folders.build(parts, folders.open_llm(parts)), tmp_path / "model")
    num_tokens = save_tokenizer(folder, ["blue"])
    with pytest.raises(PallavaError, match=f"below {num_tokens - 1}.*blue"):
        load(folder, "cpu")


class OwnLlama(LlamaForCausalLM):
    """A class that does not come with transformers."""


class OwnTokenizer(PreTrainedTokenizerFast):
    """A class that does not come with transformers."""


def test_what_no_folder_could_open_again_is_refused(folder):
    adapted = add_lora(OwnLlama.from_pretrained(folder), {"r": 2})
    for part in (OwnLlama.from_pretrained(folder), adapted, OwnTokenizer.from_pretrained(folder)):
        name = "OwnTokenizer" if isinstance(part, OwnTokenizer) else "OwnLlama"
        with pytest.raises(PallavaError, match=f"the part must be .*{name}"):
            check_reopenable_part(part, "part")
    check_reopenable_part(load_tokenizer(folder), "part")
    check_reopenable_part(add_lora(open_llm(folder), {"r": 2}), "part")


@torch.no_grad()
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {},
    ],
)
def test_merged_lora_computes_the_same(lora, is_tied, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=is_tied, **sizes))
    adapted = add_lora(llm, {"r": 4, "task_type": "CAUSAL_LM", **lora}).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.normal_(0, 0.3)
    expected = adapted(IDS).logits
    merged = merge_lora(adapted)
    merged.save_pretrained(tmp_path)
    for each in (merged, open_llm(tmp_path)):
        torch.testing.assert_close(each(IDS).logits, expected, atol=1e-4, rtol=0)
    assert merged.config.tie_word_embeddings is (is_tied and not lora)


def test_a_tokenizer_that_is_not_here_is_not_looked_for_on_the_hub():
    with pytest.raises(PallavaError, match="tokenizer 'nobody/nothing' is not on this machine"):
        load_tokenizer("nobody/nothing", local_files_only=True)
