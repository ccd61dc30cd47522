"""What the whole model does with images and text, beyond the recorded numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CohereForCausalLM, Gemma2ForCausalLM, GenerationConfig, GraniteForCausalLM

from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration
from pallava.model.encoders import patch_tokens
from tests.tiny import golden


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PALLaVAForConditionalGeneration:
    return golden.model(tmp_path_factory.mktemp("plip"))


def logits_of(model: PALLaVAForConditionalGeneration, rows: list[dict[str, Tensor]]) -> list[Tensor]:
    with torch.no_grad():
        logits = model(**golden.batch(rows)).logits
    return [row_logits[: row["logits"].shape[1]] for row_logits, row in zip(logits, rows, strict=True)]


def with_one_pixel_changed(rows: list[dict[str, Tensor]], index: int) -> list[dict[str, Tensor]]:
    tiles = rows[index]["tiles"].clone()
    tiles[-1, 0, 5, 5] += 3.0
    return [{**row, "tiles": tiles} if i == index else row for i, row in enumerate(rows)]


@pytest.mark.parametrize("index", range(golden.NUM_SAMPLES))
def test_one_pixel_of_one_tile_changes_its_sample_alone(model: PALLaVAForConditionalGeneration, index: int) -> None:
    rows = golden.samples()
    before, after = logits_of(model, rows), logits_of(model, with_one_pixel_changed(rows, index))
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [i == index for i in range(golden.NUM_SAMPLES)]


def test_without_cross_attention_the_tiles_change_nothing(tmp_path: Path) -> None:
    model = golden.model(tmp_path, cross=False)
    rows = golden.samples()
    before, after = logits_of(model, rows), logits_of(model, with_one_pixel_changed(rows, 1))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_cross_attention_is_told_by_the_folder(tmp_path: Path) -> None:
    for cross in (True, False):
        folder = tmp_path / str(cross)
        golden.model(tmp_path / "plip", cross).save_pretrained(folder)
        opened = PALLaVAForConditionalGeneration.from_pretrained(folder)
        assert opened.config.connector_config.add_cross_attention is cross
        assert any("crossattention" in name for name, _ in opened.named_parameters()) is cross


@pytest.mark.parametrize("text", ["[]", '"text"', "3", "null"])
def test_a_description_that_is_not_an_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for consent in (True, False):
        with pytest.raises(PallavaError, match=r"config\.json.*got"):
            PALLaVAForConditionalGeneration.from_pretrained(tmp_path, trust_remote_code=consent)


def test_text_alone_equals_the_language_model(model: PALLaVAForConditionalGeneration) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, golden.llm()(ids).logits)


def test_a_sample_without_image_in_a_batch(model: PALLaVAForConditionalGeneration) -> None:
    text = {"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor([-100, 6, 7])}
    row = golden.samples()[0]
    batch = golden.batch([{**text, "tiles": row["tiles"][:0]}, row])
    batch["tiles_per_image"] = batch["tiles_per_image"][1:]
    with torch.no_grad():
        logits = model(**batch).logits
        alone = model(text["input_ids"][None]).logits[0]
    torch.testing.assert_close(logits[0, :3], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1], row["logits"][0], atol=1e-5, rtol=0)


def test_several_images_stand_in_the_order_of_their_markers(model: PALLaVAForConditionalGeneration) -> None:
    tiles = [row["tiles"] for row in golden.samples()[:2]]
    ids = torch.tensor([[4, -200, 5, -200, 6]])
    with torch.no_grad():
        fused = model.fuse(ids, model.encode_images(tiles))["inputs_embeds"]
        first, second = (model.encode_images([image])[0] for image in tiles)
    torch.testing.assert_close(fused[0, 1:5], first)
    torch.testing.assert_close(fused[0, 6:10], second)
    assert fused.shape[1] == 3 + 2 * 4


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_markers_and_images_must_agree(model: PALLaVAForConditionalGeneration, num_images: int) -> None:
    tiles = [row["tiles"] for row in golden.samples()[:num_images]]
    with pytest.raises(PallavaError, match=rf"2 image marker.*{num_images} image"):
        model(torch.tensor([[4, -200, 5, -200]]), pixel_values=tiles)


def test_tiles_must_add_up(model: PALLaVAForConditionalGeneration) -> None:
    with pytest.raises(PallavaError, match=r"7 rows.*\[3, 3\]"):
        model.encode_images(torch.zeros(7, 3, 32, 32), [3, 3])
    with pytest.raises(PallavaError, match="at least one tile"):
        model.encode_images([torch.zeros(1, 3, 32, 32)])


def test_greedy_answers_of_a_batch_equal_those_alone(model: PALLaVAForConditionalGeneration) -> None:
    rows = golden.samples()
    batch = golden.batch(rows, left=True)
    batch.pop("labels")
    together = model.generate(**batch, max_new_tokens=6)
    for row, answer in zip(rows, together, strict=True):
        alone = model.generate(row["input_ids"][None], pixel_values=[row["tiles"]], max_new_tokens=6)
        answer = answer[batch["input_ids"].shape[1] - len(row["input_ids"]) :]
        torch.testing.assert_close(alone[0], answer[: alone.shape[1]])


def test_padding_side_does_not_change_answers(model: PALLaVAForConditionalGeneration) -> None:
    answers = []
    for left in (False, True):
        batch = golden.batch(golden.samples(), left=left)
        batch.pop("labels")
        answers.append(model.generate(**batch, max_new_tokens=6)[:, batch["input_ids"].shape[1] :])
    torch.testing.assert_close(*answers)


def test_every_end_token_ends_an_answer(model: PALLaVAForConditionalGeneration) -> None:
    row = golden.samples()[0]
    prompt = row["input_ids"].tolist()
    whole = model.generate(row["input_ids"][None], pixel_values=[row["tiles"]], max_new_tokens=5)[0].tolist()
    free = whole[len(prompt) :]
    before = GenerationConfig.from_dict(model.generation_config.to_dict())
    for end in (free[0], free[1]):
        model.use_end_tokens([end, 96])
        stopped = model.generate(row["input_ids"][None], pixel_values=[row["tiles"]], max_new_tokens=5)[0].tolist()
        assert stopped == prompt + free[: free.index(end) + 1]
        model.generation_config = GenerationConfig.from_dict(before.to_dict())


def test_end_tokens_survive_the_folder(model: PALLaVAForConditionalGeneration, tmp_path: Path) -> None:
    before = model.generation_config.eos_token_id
    model.use_end_tokens([11, 12])
    model.save_pretrained(tmp_path)
    model.generation_config.eos_token_id = before
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path)
    assert opened.generation_config.eos_token_id[:2] == [11, 12]
    assert opened.generation_config.do_sample is False


def test_only_the_layers_that_are_read_run(model: PALLaVAForConditionalGeneration) -> None:
    ran = []
    layers = model.visual_encoder.vision_model.encoder.layers
    hooks = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(layers)]
    patch_tokens(model.visual_encoder, torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1, 2]
    assert len(model.visual_encoder.vision_model.encoder.layers) == 4


def test_parts_of_other_widths_are_refused() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    encoder = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    )
    with pytest.raises(PallavaError, match="encoder must be 24 wide.*got 16"):
        PALLaVAForConditionalGeneration.from_parts(golden.llm(), encoder, golden.connector())


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PallavaError, match="not a model folder"):
        PALLaVAForConditionalGeneration.from_pretrained(tmp_path)
    for name in ("none/", "my model/none"):
        with pytest.raises(PallavaError, match="neither a folder"):
            PALLaVAForConditionalGeneration.from_pretrained(name)


@pytest.mark.parametrize("left", [False, True])
def test_the_loss_alone_equals_that_beside_logits(model: PALLaVAForConditionalGeneration, left: bool) -> None:
    batch = golden.batch(golden.samples(), left)
    torch.testing.assert_close(model.compute_loss(**batch), model(**batch).loss)


_TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("llm_class", "change"),
    [
        (Gemma2ForCausalLM, {"final_logit_softcapping": 0.1, "attn_implementation": "eager", "head_dim": 8}),
        (CohereForCausalLM, {"logit_scale": 7.0}),
        (GraniteForCausalLM, {"logits_scaling": 0.2}),
    ],
)
def test_the_loss_of_a_language_model_that_changes_its_scores(
    tmp_path: Path, llm_class: Any, change: dict[str, Any]
) -> None:
    """Gemma 2 caps its logits, Cohere and Granite scale them: what is learnt must be what is answered by."""
    torch.manual_seed(0)
    llm = llm_class(llm_class.config_class(**_TINY, **_HEADS, **change))
    parts = golden.model(tmp_path)
    model = PALLaVAForConditionalGeneration.from_parts(llm, parts.visual_encoder, parts.connector).eval()
    batch = golden.batch(golden.samples())
    batch = {**batch, "input_ids": batch["input_ids"].clamp(max=63), "labels": batch["labels"].clamp(max=63)}
    torch.testing.assert_close(model.compute_loss(**batch), model(**batch).loss)
