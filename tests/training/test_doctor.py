"""What is found before a training, and how near it is to what a training measures."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from mmengine.config import Config
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from pallava.cli import main
from pallava.errors import PallavaError
from pallava.four_bit import mark_in_4bit
from pallava.io.stacks import installed_stack
from pallava.model.encoders import load_encoder, outline_encoder
from pallava.model.weights import compare_keys
from pallava.training.checkpoints import checkpoint_bytes
from pallava.training.doctor import DoctorSettings, checks
from pallava.training.doctor.auto import plan_step
from pallava.training.doctor.case import Case
from pallava.training.doctor.memory import Parameters, plain_memory, read_zero_settings, zero_memory
from pallava.training.doctor.step import count_activations, count_flops
from pallava.training.model import PALLaVAModel, build
from pallava.training.optimizer import grouped_adamw
from pallava.training.recompute import Choice
from pallava.training.zero import read_settings
from tests.tiny import folders
from tests.tiny.training import save_data, save_parts, write_config


def of_tensors(formula: Any) -> Any:
    def count(*args: Any, **kwargs: Any) -> int:
        return formula(*args, **kwargs)

    count._get_raw = True  # type: ignore[attr-defined]
    return count


# The kernel of attention on a CPU, of which torch's counter does not know the formula that it has for CUDA's.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: of_tensors(sdpa_flop),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: of_tensors(sdpa_backward_flop),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    path = write_config("pallava_domain_alignment", save_parts(folder), save_data(folder), folder / "tiny.py")
    changed = Config.fromfile(path)
    changed.train_dataloader.batch_size = 4
    changed.optim_wrapper.precision = "float32"
    changed.dump(path)
    return path


def doctor(config: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", str(config), "--json", *words])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return code, json.loads(printed.out)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate fewer choices, each of which takes a second."""
    monkeypatch.setattr("pallava.training.doctor.TRIED", ("none", "all"))


def faults(report: dict[str, Any]) -> dict[str, str]:
    return {each["check"]: each["text"] for each in report["findings"] if each["status"] == "fail"}


def real_model(case: Case, choice: Choice) -> Any:
    torch.manual_seed(0)
    return build({**case.config.model, "activation_checkpointing": choice})


def size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.nbytes for each in tensors)


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if value.dim()]


def peak_of_a_step(model: Any, batch: dict[str, Any]) -> int:
    """Bytes that torch's allocator on the CPU hands out in a micro-step beside the gradients of the one before.

    The pixels of the batch, which were there before, are added.
    """
    model(batch["data"], mode="loss")["loss"].backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(batch["data"], mode="loss")["loss"].backward()
    events = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak + batch["data"]["pixel_values"].nbytes


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("choice", ["all", "none"])
def test_activations_are_those_of_a_real_step(config: Path, choice: Choice, attention: str) -> None:
    case = Case(DoctorSettings(str(config)))
    batch, model, outline = case.longest_batch, real_model(case, choice), case.outline(choice)
    for each in (model, outline):
        each.llm.config._attn_implementation = attention  # which the layers read
    measured = peak_of_a_step(model, batch)
    assert count_activations(outline, batch) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("choice", ["all", "none"])
def test_memory_is_that_of_a_real_step(config: Path, choice: Choice) -> None:
    case = Case(DoctorSettings(str(config)))
    model = real_model(case, choice)
    peak = peak_of_a_step(model, case.longest_batch)
    optimizer = grouped_adamw(model.parameters(), lr=1e-3)
    optimizer.step()
    weights, states = list(model.parameters()), moments(optimizer)
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    found = plan_step(case, "plain", choice)
    assert (found.weights, found.gradients, found.optimizer, found.buffers) == (
        *map(size, (weights, gradients, states)),
        0,
    )
    assert found.total - found.cuda == pytest.approx(size((*weights, *gradients, *states)) + peak, rel=0.1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("choice", ["all", "none"])
def test_flops_are_those_of_a_real_step(config: Path, choice: Choice, attention: str) -> None:
    case = Case(DoctorSettings(str(config)))
    model, outline = real_model(case, choice), case.outline(choice)
    for each in (model, outline):
        each.llm.config._attn_implementation = attention  # which the layers read
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        model(case.first_batch["data"], mode="loss")["loss"].backward()
    assert count_flops(outline, case.first_batch) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_training_that_would_do(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = doctor(config, "--work-dir", str(tmp_path), capsys=capsys)
    assert (code, report["exit_code"], faults(report)) == (0, 0, {})
    assert {each["check"] for each in report["findings"]} == {*checks.CHECKS, "memory", "compute"}
    assert "skipped" not in {each["status"] for each in report["findings"]}
    assert any(f"the {installed_stack().name} stack" in each["text"] for each in report["findings"])
    assert [each["runner"] for each in report["memory"]] == ["plain", "ZeRO-1", "ZeRO-2"] * 5
    compute = report["compute"]
    expected = compute["flops_per_sample_with_checkpointing"] * compute["samples"] / (0.4 * 989e12 * 3600)
    assert compute["hours_with_checkpointing"] == pytest.approx(expected)
    assert compute["samples"] == 8 * 4  # steps of the config x its batch
    assert main(["doctor", str(config)]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("ZeRO-2", "activations", "fits 24"))


@pytest.mark.parametrize(
    ("options", "check", "facts"),
    [
        (["train_dataloader.dataset.data_path=gone/rows.jsonl"], "paths", ["gone/rows.jsonl", "data_path"]),
        (["model.visual_encoder.source=./gone"], "paths", ["./gone", "plip_path"]),
        (["train_dataloader.dataset.prompt_template=llama3_chat"], "tokens", ["llama3_chat", "qwen_chat"]),
        (["model.llm.pretrained_model_name_or_path=nobody/nothing"], "parts", ["nobody/nothing", "download"]),
        (["model.connector.num_attention_heads=5"], "parts", ["num_attention_heads", "5"]),
        (["model.llm.type=my.loader"], "parts", ["loader", "load_llm"]),
        (["param_scheduler.0.end=0"], "steps", ["warm-up", "warmup_ratio"]),
    ],
)
def test_a_fault_is_found(
    config: Path, options: list[str], check: str, facts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = doctor(config, "--cfg-options", *options, capsys=capsys)
    found = faults(report)
    assert code == report["exit_code"] == 1
    assert all(fact in found[check] for fact in facts), found
    assert all(len(text) <= 300 for text in found.values())


def test_too_few_rows_for_a_step(config: Path, few: None, capsys: pytest.CaptureFixture[str]) -> None:
    option = ("--cfg-options", "optim_wrapper.accumulative_counts=9")  # of 8 iterations
    for words, expected in ((("--deepspeed", "pallava_zero1"), "fail"), ((), "warn")):
        _, report = doctor(config, *words, *option, capsys=capsys)
        (found,) = (each for each in report["findings"] if each["check"] == "steps")
        assert found["status"] == expected
        assert "9" in found["text"]


def test_what_needs_a_missing_part_is_skipped(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    option = "model.llm.pretrained_model_name_or_path=nobody/nothing"
    _, report = doctor(config, "--cfg-options", option, capsys=capsys)
    status = {each["check"]: each["status"] for each in report["findings"]}
    assert (status["first batch"], status["shared memory"]) == ("ok", "ok")
    assert {status[name] for name in ("disk", "memory", "compute")} == {"skipped"}


@pytest.mark.usefixtures("few")
def test_too_little_room(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "free_bytes", lambda path: 100_000)
    words = ["--nproc", "16", "--cfg-options", "train_dataloader.num_workers=3"]
    code, report = doctor(config, *words, capsys=capsys)
    found = faults(report)
    assert code == 1
    assert "--shm-size" in found["shared memory"]
    assert f"{3 * 2 * 8} batches" in found["shared memory"]  # of one of two nodes
    assert "save_total_limit" in found["disk"]


@pytest.mark.usefixtures("few")
def test_a_model_that_is_too_large_for_the_card(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny model takes hardly more than CUDA; DeepSpeed's two buckets of 5e8 elements do not fit."""
    words = ["--deepspeed", "deepspeed_zero2", "--cfg-options", "optim_wrapper.precision=auto"]
    code, report = doctor(config, "--card-gb", "3", *words, capsys=capsys)
    assert code == 1
    assert "ZeRO-2" in faults(report)["memory"]
    assert "plain" in faults(report)["memory"]  # which does
    own = next(plan for plan in report["memory"] if plan["runner"] == "ZeRO-2")
    least = own["total"] - own["buffers"] - own["activations"]
    code, report = doctor(config, "--card-gb", str((least + 1000) / 1e9), *words, capsys=capsys)
    assert "reduce_bucket_size" in faults(report)["memory"]
    code, report = doctor(config, "--card-gb", "1", *words, capsys=capsys)
    assert "larger cards" in faults(report)["memory"]
    assert doctor(config, "--card-gb", "4", *words, capsys=capsys)[0] == 0


@pytest.mark.usefixtures("few")
def test_deepspeed_settings(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 5e7, "overlap_comm": False}}
    (tmp_path / "small.json").write_text(json.dumps(small))
    _, report = doctor(config, "--deepspeed", str(tmp_path / "small.json"), capsys=capsys)
    assert {each["buffers"] for each in report["memory"] if each["runner"] != "plain"} == {2 * 50_000_000}
    assert Case(DoctorSettings(str(config), deepspeed="pallava_zero1")).deepspeed == read_settings("pallava_zero1")
    for given, fact in (("deepspeed_zero3", "deepspeed_zero2"), ("gone.json", "gone.json")):
        code, report = doctor(config, "--deepspeed", given, capsys=capsys)
        assert code == 1
        assert fact in faults(report)["launch"]


def test_a_language_model_whose_download_was_not_finished(config: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(Config.fromfile(config).model.llm.pretrained_model_name_or_path, folder)
    (folder / "model.safetensors").unlink()
    option = f"model.llm.pretrained_model_name_or_path={folder}"
    assert "model.safetensors" in faults(doctor(config, "--cfg-options", option, capsys=capsys)[1])["parts"]


def test_the_checkpoint_is_as_large_as_a_saved_one(config: Path) -> None:
    model = real_model(Case(DoctorSettings(str(config))), "all")
    optimizer = grouped_adamw(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    expected = size((*model.state_dict().values(), *moments(optimizer)))
    assert checkpoint_bytes(Parameters.of(model).trained, torch.float32, has_deepspeed=False) == expected


@pytest.mark.parametrize("kind", ["clip", "dinov2", "siglip", "timm"])
def test_an_outline_has_the_shapes_of_the_encoder(kind: str, config: Path, tmp_path: Path) -> None:
    source, options = str(tmp_path), {}
    if kind == "timm":
        source, options = "timm:vit_tiny_patch16_224", {"pretrained": False}
    else:
        parts = {"plip": Path(Config.fromfile(config).model.visual_encoder.source)}
        folders.make_encoder(kind, parts).save_pretrained(tmp_path)
        shutil.copy(parts["plip"] / "preprocessor_config.json", tmp_path)
    outline, real = outline_encoder(source, **options), load_encoder(source, **options)
    assert compare_keys(real.state_dict(), outline.state_dict()) == {}
    assert all(parameter.is_meta for parameter in outline.parameters())
    assert outline.config.image_size == real.config.image_size


def test_a_mixture_of_experts_is_not_counted_wrongly() -> None:
    """Which expert runs depends on numbers that a model without weights does not have."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with init_empty_weights():
        llm = MixtralForCausalLM(MixtralConfig(vocab_size=100, num_key_value_heads=2, **sizes))
        encoder = CLIPVisionModel(CLIPVisionConfig(patch_size=16, **sizes))
        model = PALLaVAModel(llm=llm, visual_encoder=encoder, llm_lora=dict(type=LoraConfig, r=4))
    with pytest.raises(PallavaError, match="card"):
        count_flops(model, batch_of(1, 200, num_taught=2))


def full_size(use_checkpointing: bool = True, *, in_4bit: bool = False, rank: int = 128) -> PALLaVAModel:
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    with init_empty_weights():
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=128256, num_key_value_heads=8, **sizes))
        sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}
        encoder = CLIPVisionModel(CLIPVisionConfig(**sizes))
        if in_4bit:
            mark_in_4bit(llm)
        lora = dict(type=LoraConfig, r=rank, lora_alpha=256, lora_dropout=0.05, target_modules="all-linear")
        options = {"llm_lora": lora, "use_activation_checkpointing": use_checkpointing}
        return PALLaVAModel(llm=llm, visual_encoder=encoder, **options).to(torch.bfloat16)


def batch_of(num_rows: int, num_tokens: int, num_taught: int, num_tiles: int = 7) -> dict[str, Any]:
    """Rows of one image and so many positions behind fusing, of which the last are taught."""
    ids = torch.ones(num_rows, num_tokens - 195, dtype=torch.long)
    ids[:, 0] = -200
    labels = torch.where(torch.arange(ids.shape[1]) >= ids.shape[1] - num_taught, ids, -100)
    tiles = torch.empty(num_rows * num_tiles, 3, 224, 224)
    counts = torch.tensor([num_tiles] * num_rows)
    return {
        "data": {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
            "pixel_values": tiles,
            "tiles_per_image": counts,
        }
    }


def test_the_published_sizes() -> None:
    """Llama-3-8B with stage 1's batch on a card: what was computed by hand, in GB."""
    model, batch = full_size(), batch_of(6, 346, num_taught=110)
    counts = Parameters.of(model)
    assert counts == Parameters(trained=395_406_336, frozen_llm=8_030_261_248, frozen_others=85_799_424)
    activations = count_activations(model, batch)
    stage = {"stage": 2, "overlap_comm": True}
    step: dict[str, Any] = {"activation_checkpointing": "all", "activations": activations}
    plans = [zero_memory(counts, torch.bfloat16, number, stage, **step) for number in (16, 1)]
    plans.append(plain_memory(counts, torch.bfloat16, 16, **step))
    found = [(plan.total - plan.cuda) / 1e9 for plan in plans]
    assert found == pytest.approx([21.8, 26.9, 27.0], rel=0.05)
    stock, ours = plans[0], zero_memory(counts, torch.bfloat16, 16, *read_zero_settings(None, 1), **step)
    assert stock.buffers - ours.buffers == 1_800_000_000
    assert ours.gradients == 4 * counts.trained  # all of them, in float32
    assert ours.total < stock.total + 4 * counts.trained - 1_800_000_000
    assert count_flops(model, batch) / 6 == pytest.approx(16.35e12, rel=0.02)
    assert checkpoint_bytes(counts.trained, torch.bfloat16, has_deepspeed=True) == 14 * counts.trained


@pytest.mark.slow  # a model of 8 billion parameters is outlined three times
def test_memory_in_4_bit(config: Path) -> None:
    """Of the frozen language model, the linear layers alone are in 4 bit; half a byte, and 1.6 % more for scales."""
    found = []
    for in_4bit, rank, rows in ((False, 128, 6), (True, 128, 6), (True, 16, 1)):
        model, batch = full_size(in_4bit=in_4bit, rank=rank), batch_of(rows, 346, num_taught=110)
        step: dict[str, Any] = {"activation_checkpointing": "all", "activations": count_activations(model, batch)}
        found.append(plain_memory(Parameters.of(model), torch.bfloat16, 1, **step).total / 1e9)
    assert found == pytest.approx([26.7, 16.4, 9.8], abs=0.1)
    case = Case(DoctorSettings(str(config), cfg_options=("model.llm.load_in_4bit=True",)))
    counts = case.parameters
    layers = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert counts.in_4bit == layers
    assert counts.unpacked == 32 * 64
    assert counts.total == Case(DoctorSettings(str(config))).parameters.total


def test_4_bit_needs_a_working_bitsandbytes(config: Path) -> None:
    case = Case(DoctorSettings(str(config), cfg_options=("model.llm.load_in_4bit=True",)))
    with pytest.raises(PallavaError, match="bitsandbytes==0.50.2"):
        list(checks.CHECKS["versions"](case))
