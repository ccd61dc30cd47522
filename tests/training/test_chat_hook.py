import copy
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.visualization import LocalVisBackend, MLflowVisBackend, TensorboardVisBackend, Visualizer
from peft import LoraConfig
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    StoppingCriteriaList,
)

from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.tiling import TileSpec
from pallava.training.hooks import chat as chat_hook_module
from pallava.training.hooks.chat import SampleChatHook, as_converted, contact_sheet
from pallava.training.model import PALLaVAModel, build_connector
from tests.tiny.folders import answers

PROCESSOR = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@pytest.fixture
def model(smollm2_tokenizer):
    """A small model with random weights, dropout in LoRA, and checkpointing on."""
    torch.manual_seed(0)
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(smollm2_tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            eos_token_id=0,
            initializer_range=1.0,
        )
    )
    encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    connector = {"type": build_connector, **sizes}
    lora = {"type": LoraConfig, "r": 2, "lora_dropout": 0.5, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    model = PALLaVAModel(llm=llm, visual_encoder=encoder, connector=connector, llm_lora=lora)
    model.train()
    return model


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "sample.png"
    pixels = np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def runner(model, tmp_path):
    logger = logging.getLogger("test_chat_hook")
    logger.setLevel(logging.INFO)
    visualizer = Visualizer(save_dir=str(tmp_path), vis_backends=[{"type": LocalVisBackend}])
    return SimpleNamespace(model=model, iter=0, logger=logger, visualizer=visualizer, log_dir=str(tmp_path / "log"))


@pytest.fixture
def make_hook(smollm2_tokenizer, image):
    def make(**changes):
        options = {
            "tokenizer": smollm2_tokenizer,
            "image_processor": PROCESSOR,
            "images": [str(image)],
            "questions": ["What is it?", "Is necrosis present?"],
            "prompt_template": "qwen_chat",
            "every_n_iters": 10,
            "max_new_tokens": 8,
        }
        return SampleChatHook(**{**options, **changes})

    return make


def said(runner, step):
    return (Path(runner.log_dir) / "vis_data" / f"sample_chat_{step}.txt").read_text()


def test_answers_are_those_of_the_converted_model(model, runner, make_hook, smollm2_tokenizer, image, tmp_path):
    hook = make_hook()
    hook.after_train(runner)

    parts = copy.deepcopy((model.llm, model.visual_encoder, model.connector))
    merged = PALLaVAForConditionalGeneration.from_parts(parts[0].merge_and_unload(), *parts[1:])
    merged.use_end_tokens(hook.processor.end_token_ids)
    merged.save_pretrained(tmp_path / "converted")
    PALLaVAProcessor(PROCESSOR, smollm2_tokenizer, "qwen_chat").save_pretrained(tmp_path / "converted")
    converted = PALLaVAForConditionalGeneration.from_pretrained(tmp_path / "converted")
    processor = PALLaVAProcessor.from_pretrained(tmp_path / "converted")
    for question in hook.questions:
        answer = answers(converted, processor, processor(question, images=str(image)), max_new_tokens=8)[0]
        assert f"Question: {question}\nAnswer: {answer}\n" in said(runner, 0)


def test_every_tile_is_seen_once_and_all_questions_are_one_batch(model, runner, make_hook, monkeypatch):
    seen, batches = [], []
    generate, encode = model.network.generate, model.network.encode_tiles
    monkeypatch.setattr(model.network, "generate", lambda **inputs: batches.append(inputs) or generate(**inputs))
    monkeypatch.setattr(model.network, "encode_tiles", lambda tiles: seen.append(tiles) or encode(tiles))
    make_hook().after_train(runner)
    assert [tiles.shape for tiles in seen] == [(9, 3, 16, 16)]  # 64 x 32: a canvas of 4 x 2
    assert [len(inputs["input_ids"]) for inputs in batches] == [2]


def test_processes_share_the_questions(model, runner, make_hook, monkeypatch):
    """The first of two asks the one question, the second the other, and the answers are those of one process."""
    make_hook(max_new_tokens=6).after_train(runner)
    expected, gathered = said(runner, 0), []
    for rank in (1, 0, 2):
        monkeypatch.setattr(chat_hook_module, "get_dist_info", lambda rank=rank: (rank, 3))
        monkeypatch.setattr(chat_hook_module, "is_main_process", lambda rank=rank: rank == 0)
        monkeypatch.setattr(chat_hook_module, "all_gather_object", lambda own: gathered.append(own) or gathered)
        runner.log_dir = str(Path(runner.log_dir).with_name(f"log{rank}"))
        hook = make_hook(max_new_tokens=6)
        hook.after_train(runner)
        assert hook._last_step is None
        assert Path(runner.log_dir).exists() == (rank == 0)
        if rank == 0:
            assert said(runner, 0) == expected
    assert [list(own) for own in gathered] == [[1], [0], []]


def test_training_goes_on_as_if_nothing_had_happened(model, runner, make_hook):
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2  # frozen parts are in evaluation mode
    assert model.connector.gradient_checkpointing
    state = torch.get_rng_state()
    make_hook().before_train(runner)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.connector.gradient_checkpointing
    assert model.llm.is_gradient_checkpointing
    assert model.llm.config.use_cache is False
    assert torch.equal(torch.get_rng_state(), state)


def test_state_while_answering_and_after_a_failure(model):
    def fail_in_between():
        with as_converted(model):
            assert not any(module.training for module in model.modules())
            assert not model.llm.is_gradient_checkpointing
            assert not model.connector.gradient_checkpointing
            assert model.llm.config.use_cache is True
            torch.rand(1)
            raise RuntimeError("in between")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="in between"):
        fail_in_between()
    assert model.llm.training
    assert model.connector.gradient_checkpointing
    assert model.llm.config.use_cache is False
    assert torch.equal(torch.get_rng_state(), state)


def test_it_asks_when_it_is_due(runner, make_hook, monkeypatch):
    asked = []
    monkeypatch.setattr(SampleChatHook, "_answer", lambda self, *args: asked.append((runner.iter, args[-1])) or ["yes"])
    hook = make_hook(questions=["What is it?"], max_new_tokens=200)
    hook.before_train(runner)
    for runner.iter in range(20):
        hook.after_train_iter(runner, runner.iter)
    runner.iter = 20
    hook.after_train(runner)  # the last iteration has just been asked
    assert asked == [(0, 50), (9, 200), (19, 200)]
    assert sorted(path.name for path in (Path(runner.log_dir) / "vis_data").glob("*.txt")) == [
        "sample_chat_0.txt",
        "sample_chat_10.txt",
        "sample_chat_20.txt",
    ]
    hook = make_hook(questions=["What is it?"])
    runner.iter = 25
    hook.after_train(runner)
    assert asked[-1][0] == 25


def test_a_signal_cuts_the_answers_short(model, runner, make_hook, monkeypatch):
    received = SimpleNamespace(received=0)
    runner.train_loop = SimpleNamespace(interrupts=received)
    gathered = []
    monkeypatch.setattr(chat_hook_module, "all_gather_object", lambda own: gathered.append(own) or [own])
    forward = model.llm.get_base_model().forward

    def forward_and_interrupt(*args, **kwargs):
        received.received = 15
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.llm.get_base_model(), "forward", forward_and_interrupt)
    make_hook().after_train(runner)
    assert all(len(answer.split()) <= 1 for answer in gathered[0].values())
    assert list(gathered[0]) == [0, 1]
    make_hook().after_train(runner)
    assert gathered[1] == {}, "a process that was interrupted before asks nothing, and yet the others hear of it"
    monkeypatch.undo()
    until = StoppingCriteriaList([chat_hook_module._StopOnSignal(runner)])
    network = model.network
    ids = torch.ones(1, 3, dtype=torch.long)
    assert network.generate(ids, max_new_tokens=8, min_new_tokens=8, stopping_criteria=until).shape == (1, 4)


def test_text_and_picture_reach_log_and_tensorboard(runner, make_hook, tmp_path, monkeypatch, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(SampleChatHook, "_answer", lambda self, *args: ["an answer"] * 2)
    backends = [{"type": LocalVisBackend}, {"type": TensorboardVisBackend}]
    runner.visualizer = Visualizer(save_dir=str(tmp_path), vis_backends=backends)
    with caplog.at_level(logging.INFO, logger="test_chat_hook"):
        make_hook().before_train(runner)
    assert "Question: What is it?\nAnswer: an answer" in caplog.text
    runner.visualizer.close()
    events = EventAccumulator(str(next(tmp_path.rglob("events.out*"))))
    events.Reload()
    assert events.Tags()["images"] == ["sample_chat_0"]
    assert b"an answer" in events.Tensors("sample_chat/text_summary")[0].tensor_proto.string_val[0]
    picture = next(tmp_path.rglob("vis_image/sample_chat_0_0.png"))
    assert Image.open(picture).size == (5 * 20, 2 * 20)


def test_the_picture_is_a_file_in_mlflow(runner, make_hook, monkeypatch):
    """Whose library, which is not needed otherwise, chooses the format by the ending of the name."""
    names = []
    monkeypatch.setattr(MLflowVisBackend, "add_image", lambda self, name, *args: names.append(name))
    monkeypatch.setattr(MLflowVisBackend, "experiment", None)
    monkeypatch.setattr(SampleChatHook, "_answer", lambda self, *args: ["an answer"] * 2)
    runner.visualizer._vis_backends["mlflow"] = MLflowVisBackend(save_dir="unused")
    make_hook().before_train(runner)
    assert names == ["sample_chat_0.png"]


def test_picture_shows_overview_and_tiles_in_their_places():
    spec = TileSpec.from_image_processor(PROCESSOR)
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:16, :16, 0], pixels[16:, 48:, 1] = 250, 200  # red in the first tile, green in the last
    sheet = contact_sheet(Image.fromarray(pixels), spec)
    assert sheet.shape == (40, 100, 3)
    assert sheet[8, 28].tolist() == [250, 0, 0]
    assert sheet[28, 88].tolist() == [0, 200, 0]
    assert sheet[8, 88].tolist() == [0, 0, 0]
    assert sheet[2, 1, 0] > 200  # the overview, left
    assert sheet[30, 8].tolist() == [255, 255, 255]


@pytest.mark.parametrize("changes", [{"images": []}, {"questions": []}])
def test_nothing_to_ask_switches_it_off(changes, runner, make_hook):
    hook = make_hook(**changes)
    hook.before_train(runner)
    hook.after_train(runner)
    assert not Path(runner.log_dir).exists()


def test_wrong_samples_are_named_at_once(make_hook, image):
    with pytest.raises(PallavaError, match=r"nowhere.png.*sample_images"):
        make_hook(images=["nowhere.png"])
    with pytest.raises(PallavaError, match="images.* 3 for 2 questions"):
        make_hook(images=[str(image)] * 3)


def test_it_is_registered():
    assert HOOKS.get("SampleChatHook") is SampleChatHook
