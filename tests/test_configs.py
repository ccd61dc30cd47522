"""Every config loads, dumps, reloads and builds; the demo's differ from the published ones where they say so."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import init_empty_weights
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.utils import get_object_from_string
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from pallava.cli import main
from pallava.config_files import config_names, configs_dir, find_config
from pallava.errors import PallavaError
from pallava.training.hooks.config import TrainingConfigHook
from pallava.training.model import PALLaVAModel
from pallava.training.optimizer import grouped_adamw

STAGES = ("pallava_domain_alignment", "pallava_instruction_tuning")
WORDS = "demo/pallava_word_alignment"
NAMES = (*STAGES, *(f"demo/{stage}" for stage in STAGES), WORDS)
COMMON = {
    "accumulative_counts": 6,
    "batch_size": 6,
    "max_epochs": 9,
    "dataloader_num_workers": None,  # as the cores are
    "context_length": 2048,
    "num_visual_tokens": None,  # 196 for PLIP: as the encoder has it
    "llm_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llm_in_4bit": False,
    "prompt_template": "llama3_chat",
    "betas": (0.9, 0.999),
    "weight_decay": 0,
    "max_norm": 1,
    "warmup_ratio": 0.03,
    "save_steps": 2000,
    "save_total_limit": 20,
    "sample_chat_steps": 1000,
    "on_bad_image": "raise",
    "max_bad_images": 0.001,
    "feature_cache": None,
    "resume": False,
    "lr": 1e-4,
    "min_lr": 0.0,
    "connector_lr_mult": 1.0,
}
PUBLISHED = {
    STAGES[0]: COMMON,
    STAGES[1]: {
        **COMMON,
        "accumulative_counts": 4,
        "max_epochs": 12,
        "lr": 2e-4,
        "min_lr": 1e-6,
        "connector_lr_mult": 0.5,
    },
}
# What is read, by the value at the top that it comes from: an override must reach both.
READ_BY = {
    "llm_name_or_path": (
        "model.llm.pretrained_model_name_or_path",
        "tokenizer.pretrained_model_name_or_path",
        "train_dataloader.dataset.tokenizer.pretrained_model_name_or_path",
        "default_hooks.dataset_info.tokenizer.pretrained_model_name_or_path",
        "default_hooks.sample_chat.tokenizer.pretrained_model_name_or_path",
    ),
    "llm_in_4bit": ("model.llm.load_in_4bit",),
    "plip_path": (
        "model.visual_encoder.source",
        "image_processor.source",
        "train_dataloader.dataset.image_processor.source",
        "default_hooks.sample_chat.image_processor.source",
    ),
    "data_path": ("train_dataloader.dataset.data_path",),
    "image_folder": ("train_dataloader.dataset.image_folder",),
    "prompt_template": ("train_dataloader.dataset.prompt_template", "default_hooks.sample_chat.prompt_template"),
    "context_length": ("train_dataloader.dataset.context_length",),
    "num_visual_tokens": ("train_dataloader.dataset.num_visual_tokens",),
    "on_bad_image": ("train_dataloader.dataset.on_bad_image",),
    "max_bad_images": ("train_dataloader.dataset.max_bad_images",),
    "feature_cache": ("train_dataloader.dataset.features.folder",),
    "feature_cache_gb": ("train_dataloader.dataset.features.max_gb",),
    "feature_cache_dtype": ("train_dataloader.dataset.features.dtype",),
    "batch_size": ("train_dataloader.batch_size", "train_dataloader.sampler.batch_size"),
    "dataloader_num_workers": ("train_dataloader.num_workers",),
    "accumulative_counts": ("optim_wrapper.accumulative_counts",),
    "max_epochs": ("train_cfg.max_epochs", "param_scheduler.1.end"),
    "lr": ("optim_wrapper.optimizer.lr",),
    "min_lr": ("param_scheduler.1.eta_min",),
    "connector_lr_mult": ("optim_wrapper.optimizer.lr_mults.connector",),
    "betas": ("optim_wrapper.optimizer.betas",),
    "weight_decay": ("optim_wrapper.optimizer.weight_decay",),
    "max_norm": ("optim_wrapper.clip_grad.max_norm",),
    "recompute": ("model.activation_checkpointing",),
    "precision": ("optim_wrapper.precision", "model.llm.torch_dtype"),
    "save_steps": ("default_hooks.checkpoint.interval",),
    "save_total_limit": ("default_hooks.checkpoint.max_keep_ckpts",),
    "sample_images": ("default_hooks.sample_chat.images",),
    "sample_questions": ("default_hooks.sample_chat.questions",),
    "sample_chat_steps": ("default_hooks.sample_chat.every_n_iters",),
}
DEMO_TOP = {
    "llm_name_or_path",
    "plip_path",
    "data_path",
    "image_folder",
    "sample_images",
    "sample_questions",
    "prompt_template",
    "context_length",
    "recompute",
    "batch_size",
    "dataloader_num_workers",
    "accumulative_counts",
    "max_epochs",
    "lr",
    "connector_lr_mult",
    "save_steps",
    "save_total_limit",
    "sample_chat_steps",
}
DEMO_KEYS = DEMO_TOP | {key for top in DEMO_TOP for key in READ_BY[top]}
DEMO_KEYS |= {"warmup_ratio", "param_scheduler.0.end", "param_scheduler.1.begin", "default_hooks.logger.interval"}
DEMO_KEYS |= {f"model.connector.{key}" for key in ("num_hidden_layers", "num_attention_heads", "intermediate_size")}
DEMO_KEYS |= {f"model.llm_lora.{key}" for key in ("r", "lora_alpha", "lora_dropout")}
DEMO_KEYS |= {
    "model.connector.dropout",
    "default_hooks.sample_chat.max_new_tokens",
    "model.pretrained_pth",
    "model.connector.initializer_range",
}
WORDS_KEYS = {key for top in ("batch_size", "max_epochs", "lr", "connector_lr_mult") for key in (top, *READ_BY[top])}
WORDS_KEYS |= {"train_dataloader.sampler.type"}
WORDS_KEYS |= {"param_scheduler.0.end", "param_scheduler.1.begin", "default_hooks.logger.interval"}
WORDS_KEYS |= {"model.pretrained_pth", "model.objective", "model.llm_lora", "sample_images"}
DIFFERENT = {  # by config: the one that it is compared with, and where it differs
    f"demo/{STAGES[0]}": (STAGES[0], DEMO_KEYS),
    f"demo/{STAGES[1]}": (STAGES[1], DEMO_KEYS | {"pretrained_pth"}),
    WORDS: (f"demo/{STAGES[0]}", WORDS_KEYS | {"default_hooks.sample_chat.images"}),
}
NEW_KEYS = {f"train_dataloader.sampler.{key}" for key in ("batch_size", "shuffle")}
NEW_KEYS |= {"model.connector.initializer_range", "model.objective", "model.llm_lora"}  # not in each config


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """{"a": [{"b": 1}]} to {"a.0.b": 1}; lists of plain values stay whole."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = enumerate(value)
    else:
        return {path: value}
    return {key: leaf for name, part in items for key, leaf in flatten(part, f"{path}.{name}".strip(".")).items()}


def load(path: str | Path, tmp_path: Path) -> dict[str, Any]:
    """A config as xtuner's dump has it: types as names."""
    dumped = tmp_path / "dumped.py"
    Config.fromfile(path).dump(dumped)
    return Config.fromfile(dumped).to_dict()


def test_all_are_found():
    assert sorted(config_names()) == sorted(NAMES)
    files = [path for path in configs_dir().rglob("*.py") if path.name != "__init__.py"]
    assert len(files) == len(NAMES) == 5


@pytest.mark.parametrize("name", NAMES)
def test_dump_reloads_equal(name, tmp_path):
    config = Config.fromfile(find_config(name))
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    config.dump(first)
    Config.fromfile(first).dump(second)
    assert first.read_text() == second.read_text()
    assert Config.fromfile(first).custom_imports["imports"] == ["pallava.training"]


@pytest.mark.parametrize("name", STAGES)
def test_a_copy_stands_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "copy", name, "own.py"]) == 0
    assert load("own.py", tmp_path) == load(find_config(name), tmp_path)
    assert main(["config", "copy", name, "own.py"]) == 2


def test_a_copy_that_would_not_stand_alone(tmp_path):
    assert main(["config", "copy", NAMES[2], str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", STAGES)
def test_published_values(name, tmp_path):
    config = load(find_config(name), tmp_path)
    assert {key: config[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    lora = config["model"]["llm_lora"]
    assert (lora["r"], lora["lora_alpha"], lora["lora_dropout"]) == (128, 256, 0.05)
    assert config["model"]["connector"]["num_hidden_layers"] == 6
    assert config["model"]["freeze_llm"] is config["model"]["freeze_visual_encoder"] is True


@pytest.mark.parametrize("name", NAMES)
def test_values_at_the_top_are_those_read(name, tmp_path):
    flat = flatten(load(find_config(name), tmp_path))
    if name == WORDS:
        flat["train_dataloader.sampler.batch_size"] = flat["batch_size"]  # it has another sampler
    stale = {key: (flat[key], flat[top]) for top, keys in READ_BY.items() for key in keys if flat[key] != flat[top]}
    assert not stale
    warmup = flat["warmup_ratio"] * flat["max_epochs"]
    assert flat["param_scheduler.0.end"] == flat["param_scheduler.1.begin"] == warmup


@pytest.mark.parametrize("name", sorted(DIFFERENT))
def test_demo_differs_in_the_listed_keys(name, tmp_path):
    other, keys = DIFFERENT[name]
    expected, found = (flatten(load(find_config(each), tmp_path)) for each in (other, name))
    assert {key for key in expected.keys() ^ found.keys() if not key.startswith("model.llm_lora.")} <= NEW_KEYS
    assert {key for key in expected.keys() & found.keys() if found[key] != expected[key]} <= keys


@pytest.mark.parametrize("name", NAMES)
def test_builds(name):
    config = Config.fromfile(find_config(name))
    with init_empty_weights():
        llm, encoder = tiny_parts() if name.startswith("demo/") else published_parts()
        keys = ("connector", "llm_lora", "freeze_llm", "freeze_visual_encoder", "objective")
        options = {key: config.model[key] for key in keys if key in config.model}
        model = PALLaVAModel(llm=llm, visual_encoder=encoder, **options)
    counts = Counter()
    for parameter in model.parameters():
        counts[parameter.lr_group] += parameter.numel() if parameter.requires_grad else 0
    if not name.startswith("demo/"):
        assert counts == {"connector": 59_862_016, "llm": 335_544_320, "visual_encoder": 0}
        assert model.connector.config.num_attention_heads == 12
    settings = {key: value for key, value in config.optim_wrapper.optimizer.items() if key != "type"}
    optimizer = grouped_adamw(model.parameters(), **settings)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    expected = {"llm": config.lr, "connector": config.lr * config.connector_lr_mult}
    assert rates == (expected if name != WORDS else {"connector": config.lr})
    wrapper = {key: value for key, value in config.optim_wrapper.items() if key != "optimizer"}
    assert OPTIM_WRAPPERS.build({**wrapper, "optimizer": optimizer})


def published_parts():
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 16}
    return (
        LlamaForCausalLM(LlamaConfig(num_attention_heads=32, num_key_value_heads=8, **sizes)),
        CLIPVisionModel(CLIPVisionConfig(num_attention_heads=12, **vision)),
    )


def tiny_parts():
    sizes = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 12}
    return LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)), CLIPVisionModel(CLIPVisionConfig(**sizes))


@pytest.mark.parametrize("name", NAMES)
def test_the_config_is_kept_as_json(name, tmp_path):
    config = Config.fromfile(find_config(name))
    (hook,) = (hook for hook in config.default_hooks.values() if hook["type"] is TrainingConfigHook)
    hook["type"]().before_run(SimpleNamespace(work_dir=tmp_path, cfg=config))
    kept = json.loads((tmp_path / "training_config.json").read_text())
    assert kept["config_file"] == f"{Path(name).name}.py"
    assert kept["model"]["type"] == "pallava.training.model.PALLaVAModel"
    assert kept["model"]["llm"]["pretrained_model_name_or_path"] == config.llm_name_or_path
    assert kept["train_dataloader"]["dataset"]["image_processor"]["source"] == config.plip_path


@pytest.mark.parametrize(
    "name",
    [
        "collate.collate",
        "llm.load_llm",
        "model.build_connector",
        "chat_hook.SampleChatHook",
        "random_state_hook.RandomStateHook",
    ],
)
def test_names_in_configs_from_before_modules_were_merged(name):
    assert get_object_from_string(f"pallava.training.{name}").__name__ == name.split(".")[1]


def test_names_that_are_none():
    with pytest.raises(PallavaError, match="'nonsense' .* pallava_domain_alignment"):
        find_config("nonsense")
    with pytest.raises(PallavaError, match="pallava_domain_alignment.py' does not exist"):  # a copy, elsewhere
        find_config("pallava_domain_alignment.py")


def test_every_package_is_in_the_wheel():
    root = configs_dir().parent
    listing = (root / "pyproject.toml").read_text().split("\npackages = [")[1].split("]")[0]
    listed = set(re.findall(r'"(.*?)"', listing))  # Python 3.10 has no tomllib
    folders = {path.parent.relative_to(root) for top in ("pallava", "configs") for path in (root / top).rglob("*.py")}
    names = {
        ".".join(("pallava", *folder.parts) if folder.parts[0] == "configs" else folder.parts) for folder in folders
    }
    assert listed == names


def test_every_data_file_is_in_the_wheel():
    root = configs_dir().parent
    patterns = re.findall(
        r'"(\*\..*?)"', (root / "pyproject.toml").read_text().split("\npackage-data = ")[1].split("\n")[0]
    )
    files = {path for top in ("pallava", "configs") for path in (root / top).rglob("*.*") if path.is_file()}
    data = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert data, "no file beside the code"
    assert not [path for path in data if not any(path.match(pattern) for pattern in patterns)]
    assert not [path for path in data if not (path.parent / "__init__.py").is_file()]  # only packages have data


def test_an_installed_copy_finds_its_configs(tmp_path, monkeypatch):
    shutil.copytree(configs_dir(), tmp_path / "pallava" / "configs")
    monkeypatch.setattr("pallava.__file__", str(tmp_path / "pallava" / "__init__.py"))
    assert configs_dir() == tmp_path / "pallava" / "configs"
    assert sorted(config_names()) == sorted(NAMES)
    assert Config.fromfile(find_config(NAMES[2])).batch_size
