"""Pictures and words become the same inputs as in training, and survive the folder."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, PreTrainedTokenizerBase

from pallava.errors import PallavaError
from pallava.model import PALLaVAProcessor
from pallava.prompts import IMAGE_TOKEN_INDEX, TEMPLATES, Turn, encode_prompt, get_template
from pallava.tiling import TileSpec, make_tiles


@pytest.fixture(scope="module")
def processor(smollm2_tokenizer: PreTrainedTokenizerBase) -> PALLaVAProcessor:
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return PALLaVAProcessor(image_processor, smollm2_tokenizer, "qwen_chat")


def picture(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 60).convert("RGB")


def test_one_question_about_one_image(processor: PALLaVAProcessor) -> None:
    image = picture(90, 60)
    inputs = processor("Is necrosis present?", images=image)
    turn = Turn("<image>\nIs necrosis present?")
    assert inputs["input_ids"][0].tolist() == encode_prompt([turn], processor.tokenizer, get_template("qwen_chat"))
    expected = make_tiles(image, TileSpec.from_image_processor(processor.image_processor))
    torch.testing.assert_close(inputs["pixel_values"], expected)
    assert inputs["tiles_per_image"].tolist() == [len(expected)]


def test_a_batch_is_padded_on_the_left(processor: PALLaVAProcessor) -> None:
    inputs = processor(["Short?", "A much longer question about this?"], images=[picture(90, 60), picture(60, 90)])
    mask = inputs["attention_mask"]
    assert mask[0, 0] == 0
    assert mask[:, -1].all()
    assert ((inputs["input_ids"] == IMAGE_TOKEN_INDEX) & mask.bool()).sum(1).tolist() == [1, 1]
    alone = processor("Short?", images=picture(90, 60))["input_ids"][0]
    assert inputs["input_ids"][0, -len(alone) :].tolist() == alone.tolist()


def test_several_images_of_one_question(processor: PALLaVAProcessor) -> None:
    inputs = processor("Which is darker?", images=[picture(90, 60), picture(60, 90)])
    assert (inputs["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 2
    assert len(inputs["tiles_per_image"]) == 2


def test_a_conversation(processor: PALLaVAProcessor) -> None:
    conversation = [
        {"from": "human", "value": "<image>\nIs it H&E?"},
        {"from": "gpt", "value": "yes"},
        {"from": "human", "value": "Why?"},
    ]
    ids = processor(conversation, images=picture(90, 60), system="Be brief.")["input_ids"][0]
    text = processor.tokenizer.decode(ids[ids != IMAGE_TOKEN_INDEX])
    assert "Be brief." in text
    assert text.index("yes") < text.index("Why?")


def test_without_images(processor: PALLaVAProcessor) -> None:
    assert set(processor("What does PAS stain?")) == {"input_ids", "attention_mask"}


def test_each_text_has_its_own_images(processor: PALLaVAProcessor) -> None:
    """Three markers and three images in the batch, but not in each text."""
    picture = Image.new("RGB", (64, 32))
    with pytest.raises(PallavaError, match=r"text 1 .*2 image marker.*1 image"):
        processor(["<image><image>\nq ?", "<image>\nq ?"], images=[[picture], [picture, picture]])
    with pytest.raises(PallavaError, match=r"text 1 .*1 image marker.*2 image"):
        processor("<image>\nq ?", images=[picture, picture])
    inputs = processor(["<image><image>\nq ?", "<image>\nq ?"], images=[[picture, picture], [picture]])
    assert len(inputs["tiles_per_image"]) == 3


def test_images_that_cannot_be_shared_out(processor: PALLaVAProcessor) -> None:
    with pytest.raises(PallavaError, match="2 images .* 3 questions"):
        processor(["a", "b", "c"], images=[picture(9, 9)] * 2)


def test_the_folder_keeps_template_and_preprocessing(processor: PALLaVAProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    opened = PALLaVAProcessor.from_pretrained(tmp_path)
    assert opened.template == TEMPLATES["qwen_chat"]
    assert opened.tile_spec == processor.tile_spec
    assert opened.end_token_ids == processor.end_token_ids
    image = picture(70, 40)
    torch.testing.assert_close(dict(opened("Why?", images=image)), dict(processor("Why?", images=image)))


@pytest.mark.parametrize("name", ["llama3_chat", "qwen_chat", "vicuna"])
def test_the_chat_template_writes_the_same_text(processor: PALLaVAProcessor, name: str) -> None:
    writer = PALLaVAProcessor(processor.image_processor, processor.tokenizer, name)
    template = get_template(name)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    text = processor.tokenizer.apply_chat_template(messages, chat_template=writer.chat_template, tokenize=False)
    expected = template.system.format(system="S") + template.instruction.format(input="Q", round=1)
    assert text == expected
