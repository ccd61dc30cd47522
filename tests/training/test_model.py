"""What is trained, what is saved, and what it starts from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from pallava.errors import PallavaError
from pallava.model.connectors import build_connector, choose_heads
from pallava.tiling import TileSpec, cut_tiles, make_tiles
from pallava.training.model import PALLaVAModel, word_loss
from tests.model.test_weights import save_malicious
from tests.tiny import golden, my_base
from tests.tiny.pictures import noise


def tiny(cross: bool = True, **changes: Any) -> PALLaVAModel:
    encoder = CLIPVisionModel(CLIPVisionConfig.from_json_file(golden.GOLDEN / "plip_config.json"))
    options: dict[str, Any] = {
        "llm": golden.llm(),
        "visual_encoder": encoder,
        "connector": dict(
            type=build_connector,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            add_cross_attention=cross,
        ),
        "llm_lora": dict(type=LoraConfig, r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    }
    return PALLaVAModel(**{**options, **changes})


def collated(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return golden.batch(rows)


def test_published_sizes() -> None:
    with init_empty_weights():
        llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128256,
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
            )
        )
        encoder = CLIPVisionModel(
            CLIPVisionConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, patch_size=16)
        )
        lora = dict(type=LoraConfig, r=128, lora_alpha=256, target_modules="all-linear", task_type="CAUSAL_LM")
        model = PALLaVAModel(llm=llm, visual_encoder=encoder, llm_lora=lora)
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            counts[parameter.lr_group] = counts.get(parameter.lr_group, 0) + parameter.numel()
    assert counts == {"connector": 59_862_016, "llm": 335_544_320}
    assert sum(p.numel() for p in model.visual_encoder.parameters()) == 85_799_424
    assert all(p.is_meta for p in model.parameters())


def test_the_checkpoint_is_what_is_trained() -> None:
    model = tiny()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(model.state_dict()) == trained
    assert {key.split(".")[0] for key in trained} == {"llm", "connector"}
    assert "llm.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" in trained
    assert "connector.qformer.encoder.layer.0.crossattention.attention.key.weight" in trained
    assert all("lora_" in key for key in trained if key.startswith("llm."))


def test_loss_equals_the_recorded_one() -> None:
    model = tiny(pretrained_pth=str(golden.GOLDEN / "stage_checkpoint.pth"))
    encoder = torch.load(golden.GOLDEN / "plip_vision.bin", weights_only=True)
    encoder = {k.replace("layrnorm", "layernorm") if "post" in k else k: v for k, v in encoder.items()}
    model.visual_encoder.load_state_dict(encoder, strict=False)
    from safetensors.torch import load_file

    recorded = load_file(golden.GOLDEN / "stage_checkpoint_io.safetensors")
    model.eval()
    for index, row in enumerate(golden.samples()):
        loss = model(collated([row]), mode="loss")["loss"]
        torch.testing.assert_close(loss, recorded[f"loss_{index}"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_normalized_as_the_processor_does(dtype: torch.dtype) -> None:
    """Also in half precision, in which the encoder alone computes."""
    model, batch = tiny().eval().to(dtype), collated(golden.samples()[:1])
    spec = TileSpec(model.visual_encoder.config.image_size, (0.48, 0.45, 0.4), (0.27, 0.26, 0.28))
    picture = noise(90, 60)
    tiles, loss = make_tiles(picture, spec), {}
    for pixels in (tiles, cut_tiles(picture, spec)):
        batch.update(pixel_values=pixels, tiles_per_image=torch.tensor([len(pixels)]), normalization=spec.normalization)
        loss[pixels.dtype] = model(dict(batch))["loss"]
    assert loss[torch.uint8] == loss[torch.float32]
    other = model({**batch, "normalization": TileSpec(16, (0, 0, 0), (1, 1, 1)).normalization})["loss"]
    assert loss[torch.uint8] != other


def test_frozen_parts_learn_nothing_and_drop_nothing() -> None:
    model = tiny().train()
    assert not model.visual_encoder.training
    assert model.connector.training
    assert model.llm.training
    model(collated(golden.samples()))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_frozen_language_model_without_lora_drops_nothing_but_recomputes() -> None:
    passes = {}
    for checkpointing in (True, False):
        llm = golden.llm()
        for layer in llm.model.layers:
            layer.self_attn.attention_dropout = 0.5
        counted: list[object] = []
        llm.model.layers[0].register_forward_pre_hook(lambda *_: counted.append(None))  # noqa: B023
        model = tiny(llm=llm, llm_lora=None, use_activation_checkpointing=checkpointing)
        model.train().connector.eval()  # whose own dropout would hide the language model's
        losses = [model(collated(golden.samples()))["loss"] for _ in range(2)]
        assert losses[0] == losses[1] == model.eval()(collated(golden.samples()))["loss"]
        model.train()
        counted.clear()
        model(collated(golden.samples()))["loss"].backward()
        passes[checkpointing] = len(counted)
        assert not any(module.training for layer in llm.model.layers for module in layer.modules())
        assert not any(module.training for module in model.eval().modules())
    assert passes == {True: 2, False: 1}
    assert tiny(llm_lora=None, freeze_llm=False).llm.model.layers[0].training


def test_gradient_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        model = tiny(use_activation_checkpointing=checkpointing)
        torch.manual_seed(1)
        model(collated(golden.samples()))["loss"].backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(grads[0], grads[1])


def test_a_batch_without_images_still_reaches_the_connector() -> None:
    model = tiny()
    row = {
        "input_ids": torch.tensor([5, 6, 7]),
        "labels": torch.tensor([-100, 6, 7]),
        "tiles": torch.zeros(0, 3, 32, 32),
    }
    batch = golden.batch([row])
    batch["tiles_per_image"] = torch.zeros(0, dtype=torch.long)
    model(batch)["loss"].backward()
    grads = [p.grad for p in model.connector.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)


@pytest.mark.parametrize("cross", [True, False])
def test_stage_1_without_cross_attention_names_the_switch(tmp_path: Path, cross: bool) -> None:
    torch.save({"state_dict": tiny(cross=not cross).state_dict()}, tmp_path / "stage1.pth")
    with pytest.raises(PallavaError, match=f"connector.add_cross_attention={not cross}"):
        tiny(cross=cross, pretrained_pth=str(tmp_path / "stage1.pth"))


def test_stage_1_of_another_shape_is_refused(tmp_path: Path) -> None:
    lora = dict(type=LoraConfig, r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.save({"state_dict": tiny(llm_lora=lora).state_dict()}, tmp_path / "stage1.pth")
    with pytest.raises(PallavaError, match="28 reshaped"):
        tiny(pretrained_pth=str(tmp_path / "stage1.pth"))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    model = tiny()
    torch.nn.init.normal_(model.llm.base_model.model.model.layers[0].self_attn.q_proj.lora_B.default.weight)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "stage1.pth")
    opened = tiny(pretrained_pth=str(tmp_path / "stage1.pth"))
    torch.testing.assert_close(opened.state_dict(), model.state_dict())


def test_malicious_pretrained_weights_execute_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    with pytest.raises(PallavaError, match="nothing in it was executed"):
        tiny(pretrained_pth=str(save_malicious(tmp_path / "stage1.pth", proof)))
    assert not proof.exists()


def test_a_misspelt_size_of_the_connector_is_named() -> None:
    with pytest.raises(PallavaError, match="num_layers.*num_hidden_layers"):
        build_connector(24, 16, num_layers=3)


@pytest.mark.parametrize(
    ("width", "heads"),
    [(768, 12), (192, 3), (384, 6), (1024, 16), (1152, 18), (1280, 20), (1536, 24), (24, 12), (40, 10), (97, 1)],
)
def test_heads_follow_the_width_where_a_config_leaves_them_open(width: int, heads: int) -> None:
    """A run's config that leaves them open is read again at conversion: these numbers may not change."""
    assert choose_heads(width) == heads
    config = build_connector(width, 16, num_hidden_layers=1, intermediate_size=8, num_attention_heads=None).config
    assert config.num_attention_heads == heads


def test_heads_that_are_given_are_kept() -> None:
    assert build_connector(24, 16, num_hidden_layers=1, num_attention_heads=4).config.num_attention_heads == 4
    with pytest.raises(PallavaError, match="num_attention_heads must divide the encoder's width 24, got 5"):
        build_connector(24, 16, num_attention_heads=5)


def test_a_language_model_with_code_of_its_own_is_refused() -> None:
    llm = my_base.MyLlama(my_base.MyConfig(**golden.llm().config.to_diff_dict()))
    for part in (llm, {"type": lambda: llm}):
        with pytest.raises(PallavaError, match="MyLlama of its own code"):
            tiny(llm=part)


@pytest.mark.parametrize("attention", [None, "sdpa"])
def test_a_cap_of_attention_is_kept_and_in_the_log(
    attention: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("pallava.training.model.print_log", lambda line, logger: lines.append(line))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=97, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, **sizes)
    torch.manual_seed(0)
    published = Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for layer in published.model.layers:
            layer.self_attn.q_proj.weight.normal_(0, 3)
            layer.self_attn.k_proj.weight.normal_(0, 3)
    published.save_pretrained(tmp_path)
    llm = dict(type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path=str(tmp_path))
    model = tiny(llm={**llm, "attn_implementation": attention}, connector=dict(type="pallava_mlp")).eval()
    row = golden.samples()[0]
    ids = row["input_ids"][row["input_ids"] >= 0][None]
    with torch.no_grad():
        torch.testing.assert_close(model.network(ids).logits, published(ids).logits, atol=1e-4, rtol=0)
    assert ["eager" in line for line in lines] == [True]


def test_the_word_loss_by_hand() -> None:
    """Two images, the words 5 and 6 on one and 5 and 7 on the other: word 5 cannot tell them apart."""
    embeddings = torch.eye(8)
    tokens = torch.zeros(2, 3, 8)
    tokens[0, :, 6], tokens[1, 0, 7] = 2.0, 6.0  # means of 2
    labels = torch.tensor([[-100, 5, 6], [5, 7, -100]])
    scores = torch.tensor([[0.0, 2, 0], [0, 0, 2]]) + torch.tensor([1 / 2, 1 / 4, 1 / 4]).log()  # of words 5, 6, 7
    shares = torch.tensor([[1 / 2, 1 / 2, 0], [1 / 2, 0, 1 / 2]])
    expected = -(shares * scores.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(word_loss(tokens, labels, embeddings), expected)
    torch.testing.assert_close(word_loss(list(tokens), labels, embeddings), expected)  # of different lengths


def test_a_word_of_all_texts_teaches_nothing() -> None:
    tokens = torch.zeros(2, 1, 4, requires_grad=True)
    word_loss(tokens, torch.tensor([[3, 3], [3, -100]]), torch.eye(4)).backward()
    assert not tokens.grad.any()


def words(**changes: Any) -> PALLaVAModel:
    return tiny(objective="words", llm_lora=None, **changes)


def test_word_alignment_trains_the_connector_alone_and_runs_no_layer() -> None:
    model, ran = words().train(), []
    for layer in model.llm.model.layers:
        layer.register_forward_hook(lambda *_: ran.append(None))
    without = {"input_ids": torch.tensor([5, 6]), "labels": torch.tensor([-100, 6]), "tiles": torch.zeros(0, 3, 32, 32)}
    batch = collated([*golden.samples(), without])
    batch["tiles_per_image"] = batch["tiles_per_image"][:-1]
    model(dict(batch))["loss"].backward()
    assert not ran
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"connector"}
    assert all(p.grad.any() for p in model.connector.parameters() if p.dim() > 1)
    model.eval()  # a row without an image changes nothing
    torch.testing.assert_close(model(batch)["loss"], model(collated(golden.samples()))["loss"])


def test_word_alignment_of_two_images_in_a_row() -> None:
    """Each has the row's text: as two rows of one image each."""
    model, (first, second) = words().eval(), golden.samples()[:2]
    text = {"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor([-100, 6, 7])}
    both = {"input_ids": torch.tensor([-200, -200, 5, 6, 7]), "labels": torch.tensor([-100, -100, -100, 6, 7])}
    both["tiles"] = torch.cat([first["tiles"], second["tiles"]])
    batch = golden.batch([both])
    batch["tiles_per_image"] = torch.tensor([len(first["tiles"]), len(second["tiles"])])
    one = {key: torch.cat([torch.tensor([-200 if key == "input_ids" else -100]), ids]) for key, ids in text.items()}
    apart = golden.batch([{**one, "tiles": each["tiles"]} for each in (first, second)])
    torch.testing.assert_close(model(batch)["loss"], model(apart)["loss"])


def test_word_alignment_of_rows_without_images_still_reaches_the_connector() -> None:
    row = {"input_ids": torch.tensor([5, 6]), "labels": torch.tensor([-100, 6]), "tiles": torch.zeros(0, 3, 32, 32)}
    batch = golden.batch([row])
    batch["tiles_per_image"] = torch.zeros(0, dtype=torch.long)
    model = words()
    model(batch)["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.connector.parameters())


def test_stage_1_goes_on_from_a_connector_alone(tmp_path: Path) -> None:
    first = words()
    torch.save({"state_dict": first.state_dict()}, tmp_path / "words.pth")
    assert all(key.startswith("connector.") for key in first.state_dict())
    model = tiny(pretrained_pth=str(tmp_path / "words.pth"))
    torch.testing.assert_close(model.connector.state_dict(), first.connector.state_dict())
    lacking = {key: value for key, value in first.state_dict().items() if "norm" not in key}
    torch.save({"state_dict": lacking}, tmp_path / "words.pth")
    with pytest.raises(PallavaError, match="missing"):
        tiny(pretrained_pth=str(tmp_path / "words.pth"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"objective": "word"}, "objective"), ({"objective": "words"}, "llm_lora=None")],
)
def test_an_objective_that_does_not_fit_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(PallavaError, match=named):
        tiny(**changes)
