"""From a training checkpoint to a model folder, on the recorded checkpoint and the recorded numbers."""

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from mmengine.config import Config
from safetensors.torch import load_file

from pallava.cli import main
from pallava.errors import PallavaError
from pallava.model import MLPConnector, PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.model.convert import CONFIG_FILE, _build_network, convert, write_training_config
from pallava.model.weights import read_weights
from pallava.training.model import PALLaVAModel
from tests.model.test_encoders import save_encoder
from tests.model.test_weights import save_malicious
from tests.tiny import golden, my_connector
from tests.tiny import training as tiny


def run_config(folder: Path) -> dict[str, Any]:
    """The config of the recorded checkpoint, with its parts in a folder."""
    llm = {"pretrained_model_name_or_path": f"{folder}/llm"}
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = {
        "type": "pallava.training.model.PALLaVAModel",
        "llm": {"type": "pallava.training.llm.load_llm", **llm},
        "visual_encoder": {"type": "pallava.model.load_plip", "source": f"{folder}/plip"},
        "connector": {"type": "pallava.training.model.build_connector", **sizes},
        "llm_lora": {"type": "peft.LoraConfig", **lora},
        "pretrained_pth": "not/read.pth",
    }
    dataset = {
        "tokenizer": {"type": "pallava.training.llm.load_tokenizer", **llm},
        "image_processor": {"type": "pallava.model.load_image_processor", "source": f"{folder}/plip"},
        "prompt_template": "qwen_chat",
    }
    return {"model": model, "train_dataloader": {"dataset": dataset}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory as training leaves it, and the parts that its config names."""
    folder = tmp_path_factory.mktemp("run")
    golden.llm().save_pretrained(folder / "llm")
    tiny.save_tokenizer(folder / "llm")
    golden.published_plip_folder(folder / "plip")
    work_dir = folder / "work_dir"
    work_dir.mkdir()
    write_training_config(work_dir, run_config(folder), "tiny.py")
    (work_dir / "iter_10.pth").write_bytes((golden.GOLDEN / "stage_checkpoint.pth").read_bytes())
    return work_dir


def assert_recorded(folder: Path, tolerance: float = 1e-5) -> None:
    model = PALLaVAForConditionalGeneration.from_pretrained(folder)
    recorded = load_file(golden.GOLDEN / "stage_checkpoint_io.safetensors")
    for index, row in enumerate(golden.samples()):
        with torch.no_grad():
            logits = model(row["input_ids"][None], pixel_values=[row["tiles"]]).logits
        torch.testing.assert_close(logits, recorded[f"logits_{index}"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("merge", [False, True])
def test_the_folder_gives_the_recorded_logits(run: Path, tmp_path: Path, merge: bool) -> None:
    out = convert(run / "iter_10.pth", tmp_path / "out", merge=merge)
    assert_recorded(out)
    assert (out / "adapter").is_dir() is not merge
    processor = PALLaVAProcessor.from_pretrained(out)
    model = PALLaVAForConditionalGeneration.from_pretrained(out)
    assert set(processor.end_token_ids) <= set(model.generation_config.eos_token_id)
    assert model.config.encoder_source == f"{run.parent}/plip"


def test_the_card_names_folder_and_training(run: Path, tmp_path: Path) -> None:
    card = (convert(run / "iter_10.pth", tmp_path / "grown") / "README.md").read_text()
    assert "# grown\n" in card
    assert "LoRA rank" in card
    assert "Not recorded" not in card


def test_the_encoder_is_the_pretrained_one_bit_for_bit(run: Path, tmp_path: Path) -> None:
    out = read_weights(convert(run / "iter_10.pth", tmp_path / "out"))
    published = load_file(golden.GOLDEN / "plip_vision.safetensors")
    published.pop("vision_model.embeddings.position_ids")
    for key, value in published.items():
        assert torch.equal(out["visual_encoder." + key.replace("post_layrnorm", "post_layernorm")], value)


def test_a_connector_of_ones_own_needs_consent(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(my_connector.__file__).read_text().replace("my_mlp", "one_more_mlp")
    (tmp_path / "own_connector.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    values = run_config(run.parent)
    values["model"]["connector"] = {"type": "own_connector.MyConnector", "width": 20}
    write_training_config(tmp_path, values)
    shutil.copy(run / "iter_10.pth", tmp_path)
    with pytest.raises(PallavaError, match="own_connector.MyConnector.*--trust-remote-code"):
        convert(tmp_path / "iter_10.pth", tmp_path / "out")
    assert "own_connector" not in sys.modules
    network = _build_network(values["model"], merge=False, trust_remote_code=True)
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    torch.save({"state_dict": {name: value.detach() for name, value in trained.items()}}, tmp_path / "iter_10.pth")
    out = convert(tmp_path / "iter_10.pth", tmp_path / "out", trust_remote_code=True)
    opened = PALLaVAForConditionalGeneration.from_pretrained(out)
    assert opened.config.connector_class == "own_connector.MyConnector"
    for name, value in trained.items():
        if name.startswith("connector."):
            assert torch.equal(opened.get_parameter(name), value)


@pytest.mark.parametrize("key", ["llm", "visual_encoder", "connector", "llm_lora"])
def test_a_part_with_an_option_that_does_not_exist(run: Path, key: str) -> None:
    model = run_config(run.parent)["model"]
    with pytest.raises(PallavaError, match=f"{'language model' if key == 'llm' else key}.*no_such_option"):
        _build_network({**model, key: {**(model.get(key) or {}), "no_such_option": 1}}, merge=False)


def test_the_mlp_connector_needs_none(run: Path) -> None:
    values = run_config(run.parent)
    for name in ("pallava_mlp", "pallava.model.connectors.MLPConnector"):
        network = _build_network({**values["model"], "connector": {"type": name}}, merge=False)
        assert isinstance(network.connector, MLPConnector)


def test_a_deepspeed_folder_or_a_file_inside_one(run: Path, tmp_path: Path) -> None:
    state = read_weights(run / "iter_10.pth")
    folder = tmp_path / "iter_10.pth"
    folder.mkdir()
    torch.save({"module": state, "ds_version": "0.19"}, folder / "mp_rank_00_model_states.pt")
    optimizer = folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": {}, "ds_version": "0.19"}, optimizer)
    for index, source in enumerate((folder, folder / "mp_rank_00_model_states.pt", optimizer)):
        assert_recorded(convert(source, tmp_path / f"out{index}", config=run / CONFIG_FILE))


def test_parts_may_be_given(run: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("llm", "plip"):
        (parts / name).symlink_to(run.parent / name)
    out = convert(run / "iter_10.pth", tmp_path / "out", llm=str(parts / "llm"), visual_encoder=str(parts / "plip"))
    assert_recorded(out)
    with pytest.raises(PallavaError, match="nowhere"):
        convert(run / "iter_10.pth", tmp_path / "out2", llm="./nowhere")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_model_folder_is_never_replaced(run: Path, tmp_path: Path, overwrite: bool) -> None:
    precious = tmp_path / "out" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    for out in (precious.parent, precious):
        with pytest.raises(PallavaError, match="is not a model folder"):
            convert(run / "iter_10.pth", out, overwrite=overwrite)
    assert precious.read_text() == "mine"


def test_xtuners_command_replaces_no_work_directory(run: Path, tmp_path: Path) -> None:
    """It makes the folder that it is given, and takes any that is there."""
    shutil.copytree(run, tmp_path / "work_dir")
    cfg = Config(run_config(run.parent))
    model = PALLaVAModel(**{k: v for k, v in cfg.model.items() if k not in ("type", "pretrained_pth")})
    with pytest.raises(PallavaError, match="is not a model folder"):
        model.to_hf(cfg, str(tmp_path / "work_dir"), fp32=True)
    assert (tmp_path / "work_dir" / "iter_10.pth").is_file()
    (tmp_path / "empty").mkdir()
    model.to_hf(cfg, str(tmp_path / "empty"), fp32=True)
    assert PALLaVAForConditionalGeneration.from_pretrained(tmp_path / "empty")


def test_xtuners_command_needs_every_trained_weight(run: Path, tmp_path: Path) -> None:
    cfg = Config(run_config(run.parent))
    with init_empty_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, on weights that go nowhere
        model = PALLaVAModel(**{k: v for k, v in cfg.model.items() if k not in ("type", "pretrained_pth")})
    with pytest.raises(PallavaError, match="lacks .* trained weights: connector"):
        model.to_hf(cfg, str(tmp_path / "out"), fp32=True)


def test_a_folder_that_holds_the_checkpoint_is_not_replaced(run: Path, tmp_path: Path) -> None:
    out = convert(run / "iter_10.pth", tmp_path / "out")
    checkpoint = shutil.copy(run / "iter_10.pth", out)
    with pytest.raises(PallavaError, match="replacing it would delete"):
        convert(checkpoint, out, config=run / CONFIG_FILE, overwrite=True)
    assert Path(checkpoint).is_file()


def test_an_empty_folder_is_filled(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    assert_recorded(convert(run / "iter_10.pth", tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PallavaError, match="working directory"):
        convert(run / "iter_10.pth", ".", overwrite=True)


def test_a_model_folder_stays_until_another_is_whole(run: Path, tmp_path: Path) -> None:
    out = convert(run / "iter_10.pth", tmp_path / "out")
    (out / "precious.txt").write_text("mine")
    with pytest.raises(PallavaError, match="--overwrite"):
        convert(run / "iter_10.pth", out)
    broken = {k: v for k, v in read_weights(run / "iter_10.pth").items() if "norm.weight" not in k}
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(PallavaError, match="missing: connector.norm.weight"):
        convert(tmp_path / "broken.pth", out, config=run / CONFIG_FILE, overwrite=True)
    assert (out / "precious.txt").read_text() == "mine"


def test_a_malicious_checkpoint_executes_nothing(run: Path, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    with pytest.raises(PallavaError, match="nothing in it was executed"):
        convert(save_malicious(tmp_path / "a.pth", proof), tmp_path / "out", config=run / CONFIG_FILE)
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


def test_without_a_config(tmp_path: Path) -> None:
    checkpoint = tmp_path / "a.pth"
    checkpoint.write_bytes((golden.GOLDEN / "stage_checkpoint.pth").read_bytes())
    with pytest.raises(PallavaError, match="by --config"):
        convert(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("kind", ["timm_folder", "timm_name", "dinov2", "siglip"])
def test_another_encoder_is_converted_and_answers(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One setting of the config names the encoder; the folder needs neither it nor its weights any more."""
    parts, data = tiny.save_parts(tmp_path), tiny.save_data(tmp_path, num_rows=1)
    source, options = save_encoder(kind, tmp_path / "encoder")
    config = tiny.write_config("pallava_domain_alignment", {**parts, "plip": source}, data, tmp_path / "config.py")
    cfg = Config.fromfile(config)
    for part in (cfg.model.visual_encoder, cfg.train_dataloader.dataset.image_processor):
        part.update(options)
    write_training_config(tmp_path, cfg.to_dict(), config)
    model = PALLaVAModel(**{key: value for key, value in cfg.model.items() if key != "type"})
    torch.save({"state_dict": model.state_dict()}, tmp_path / "iter_8.pth")
    assert main(["convert", str(tmp_path / "iter_8.pth"), str(tmp_path / "model"), "--merge"]) == 0
    shutil.rmtree(tmp_path / "encoder")
    capsys.readouterr()
    words = ["--image", str(data["sample"]), "--question", "what is shown here ?", "--max-new-tokens", "3"]
    assert main(["chat", str(tmp_path / "model"), *words]) == 0
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert opened.config.vision_config.model_type == model.visual_encoder.config.model_type
    pixels = torch.linspace(-1, 1, 3 * 3 * 32 * 32).view(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(opened.encode_images(pixels), model.eval().network.encode_images(pixels))
