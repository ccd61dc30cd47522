"""The registry of connectors, and how the model uses each kind."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from pallava.errors import PallavaError
from pallava.model import (
    ConnectorConfig,
    MLPConnector,
    MLPConnectorConfig,
    PALLaVAConfig,
    PALLaVAForConditionalGeneration,
    ScaleInvariantConnectorConfig,
    ask,
    load,
    load_plip,
    register_connector,
)
from pallava.model.connectors import (
    CONNECTORS,
    check_reopenable,
    describe_connector,
    own_checkpoint_keys,
    own_connector_keys,
)
from tests.tiny import folders, golden
from tests.tiny.my_connector import MyConnector, MyConnectorConfig

WIDTHS = {"visual_hidden_size": 24, "llm_hidden_size": 16}


class PassOnConfig(ConnectorConfig):
    """Of a connector that hands every token on, those of the tiles too."""

    model_type = "test_pass_on"

    def num_visual_tokens(self, tokens_per_tile: int, max_tiles: int) -> int:
        return tokens_per_tile * (1 + max_tiles)


class PassOn(PreTrainedModel):
    config_class = PassOnConfig

    def __init__(self, config: PassOnConfig) -> None:
        super().__init__(config)
        self.out = nn.Linear(config.visual_hidden_size, config.llm_hidden_size)

    def forward(self, overview: Tensor, tiles: Tensor, tile_mask: Tensor) -> list[Tensor]:
        kept = [tokens[mask.bool()] for tokens, mask in zip(tiles, tile_mask, strict=True)]
        return [self.out(torch.cat(each)) for each in zip(overview, kept, strict=True)]


class NarrowConfig(ConnectorConfig):
    model_type = "test_narrow"

    def __init__(self, width: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = 8  # forgets what it was given


class Narrow(PreTrainedModel):
    config_class = NarrowConfig

    def __init__(self, config: NarrowConfig, width: int | None = None) -> None:
        super().__init__(config)
        self.out = nn.Linear(config.visual_hidden_size, width or config.width)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in CONNECTORS if not name.startswith("pallava_")]:
        monkeypatch.delitem(CONNECTORS, name)


def model_with(connector: Any, folder: Path) -> PALLaVAForConditionalGeneration:
    encoder = load_plip(golden.published_plip_folder(folder))
    return PALLaVAForConditionalGeneration.from_parts(golden.llm(), encoder, connector).eval()


def rows_encoded(model: PALLaVAForConditionalGeneration, pixels: Any) -> tuple[int, Any]:
    seen: list[int] = []
    embeddings = model.visual_encoder.vision_model.embeddings
    hook = embeddings.register_forward_hook(lambda _, given, out: seen.append(len(given[0])))
    tokens = model.encode_images(pixels)
    hook.remove()
    return sum(seen), tokens


@pytest.mark.parametrize("kind", ["mlp", "without cross-attention"])
def test_tiles_that_nothing_reads_are_not_encoded(tmp_path: Path, kind: str) -> None:
    connector = MLPConnector(MLPConnectorConfig(**WIDTHS)) if kind == "mlp" else golden.connector(cross=False)
    model = model_with(connector, tmp_path)
    images = [row["tiles"] for row in golden.samples()[:2]]
    with torch.no_grad():
        count, tokens = rows_encoded(model, images)
        assert count == 2
        assert torch.equal(tokens, model.encode_images([image[:1] for image in images]))
        model.config.connector_config = golden.connector().config
    with pytest.raises(PallavaError, match="at least one tile"):
        model.encode_images([image[:1] for image in images])


def test_a_connector_that_does_not_read_tiles_cuts_none(tmp_path: Path) -> None:
    parts = folders.save_parts(tmp_path)
    processor = folders.make_processor(parts)
    processor.reads_tiles = False
    processor.save_pretrained(tmp_path / "model")
    opened = type(processor).from_pretrained(tmp_path / "model")
    inputs = opened("what ?", images=Image.new("RGB", (80, 40)))
    assert inputs["tiles_per_image"].tolist() == [1]
    whole = folders.make_processor(parts)("what ?", images=Image.new("RGB", (80, 40)))
    assert whole["tiles_per_image"].tolist() > [4]
    assert torch.equal(inputs["pixel_values"], whole["pixel_values"][:1])


def test_the_mlp_opens_again(tmp_path: Path) -> None:
    connector = MLPConnector(MLPConnectorConfig(projection_depth=3, **WIDTHS))
    check_reopenable(connector)
    model = model_with(connector, tmp_path / "plip")
    model.save_pretrained(tmp_path / "model")
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(opened.state_dict(), model.state_dict())
    assert opened.config.connector_class is None
    assert "MLP of 3 layers" in (tmp_path / "model" / "README.md").read_text()


def test_images_may_have_different_numbers_of_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = model_with(PassOn(PassOnConfig(**WIDTHS)), tmp_path)
    rows = [row for row in golden.samples() if len(row["tiles"]) != len(golden.samples()[0]["tiles"])][:1]
    rows = [golden.samples()[0], *rows]
    visual = model.encode_images([row["tiles"] for row in rows])
    assert [len(tokens) for tokens in visual] == [4 * len(row["tiles"]) for row in rows]
    assert len(set(map(len, visual))) == 2
    assert model.config.num_visual_tokens == 4 * 9
    for left in (False, True):
        batch = golden.batch(rows, left)
        with torch.no_grad():
            output = model(**batch)
            torch.testing.assert_close(model.compute_loss(**batch), output.loss)
            for index, row in enumerate(rows):
                alone = model(row["input_ids"][None], pixel_values=[row["tiles"]]).logits[0]
                own = output.logits[index][-len(alone) :] if left else output.logits[index][: len(alone)]
                torch.testing.assert_close(own, alone, atol=1e-5, rtol=0)
        batch.pop("labels")
        together = model.generate(**batch, max_new_tokens=4)
        ids = {key: batch[key] for key in ("input_ids", "attention_mask")}
        assert torch.equal(model.generate(**ids, visual_tokens=visual, max_new_tokens=4), together)
        for row, answer in zip(rows, together, strict=True):
            alone = model.generate(row["input_ids"][None], pixel_values=[row["tiles"]], max_new_tokens=4)
            prompt, padded = len(row["input_ids"]), batch["input_ids"].shape[1]
            new = alone[0, prompt:]
            torch.testing.assert_close(new, answer[padded : padded + len(new)])


def test_a_connector_reads_an_encoder_of_another_type(tmp_path: Path) -> None:
    model = model_with(golden.connector(), tmp_path)
    model.visual_encoder.to(torch.bfloat16)
    row = golden.samples()[0]
    with torch.no_grad():
        visual = model.encode_images([row["tiles"]])
    assert visual.dtype == torch.float32
    torch.testing.assert_close(visual[0], row["visual_tokens"].view_as(visual[0]), atol=0.2, rtol=0.2)


def test_the_published_connector_takes_what_it_always_took() -> None:
    config = PALLaVAConfig()
    assert config.num_visual_tokens == 49  # CLIP's default patches of 32 pixels
    config = PALLaVAConfig(vision_config={"patch_size": 16})
    assert config.num_visual_tokens == 196
    old = config.to_dict()
    del old["connector_config"]["model_type"], old["connector_class"]  # a folder from before there was a registry
    assert PALLaVAConfig(**old).connector_config.to_dict() == config.connector_config.to_dict()


def test_a_connector_of_ones_own_opens_with_consent_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connector = MyConnector(MyConnectorConfig(width=8, **WIDTHS))
    check_reopenable(connector)
    model = model_with(connector, tmp_path / "plip")
    model.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "MLP of width 8" in card
    assert "tests.tiny.my_connector.MyConnector" in card
    monkeypatch.delitem(CONNECTORS, "my_mlp")
    monkeypatch.delitem(sys.modules, "tests.tiny.my_connector")
    for opener in (PALLaVAForConditionalGeneration.from_pretrained, PALLaVAConfig.from_pretrained):
        with pytest.raises(PallavaError, match=r"tests\.tiny\.my_connector.*trust_remote_code"):
            opener(tmp_path / "model")
    assert "tests.tiny.my_connector" not in sys.modules
    opened = PALLaVAForConditionalGeneration.from_pretrained(tmp_path / "model", trust_remote_code=True)
    torch.testing.assert_close(opened.state_dict(), model.state_dict())


def test_a_connector_may_have_a_projector_of_its_own() -> None:
    own = {"norm.weight": torch.ones(1), "projector.weight": torch.ones(2), "projector.connector.x": torch.ones(3)}
    checkpoint = {f"connector.{key}": value for key, value in own.items()}
    assert own_connector_keys(checkpoint) == own
    assert own_checkpoint_keys(checkpoint, MyConnectorConfig(), "iter_1.pth") == checkpoint
    with pytest.raises(PallavaError, match=r"norm\.weight under two names"):
        own_connector_keys({"connector.norm.weight": torch.ones(1), "projector.norm.weight": torch.ones(1)})


def test_weights_of_a_connector_of_ones_own_may_be_called_crossattention() -> None:
    checkpoint = {"connector.crossattention.weight": torch.ones(1), "connector.a.crossattention.b": torch.ones(2)}
    assert own_checkpoint_keys(checkpoint, MyConnectorConfig(), "iter_1.pth") == checkpoint
    with pytest.raises(PallavaError, match=r"iter_1\.pth.*add_cross_attention=True"):
        own_checkpoint_keys(checkpoint, ScaleInvariantConnectorConfig(add_cross_attention=False), "iter_1.pth")


def test_what_could_not_be_opened_again_is_refused() -> None:
    class Local(MyConnector):
        config_class = type("LocalConfig", (MyConnectorConfig,), {"model_type": "test_local"})

    for wrong, reason in (
        (Local(Local.config_class(**WIDTHS)), "<locals>"),
        (Narrow(NarrowConfig(width=9, **WIDTHS), 9), r"other weights.*out\.weight"),
        (nn.Linear(2, 2), "config_class"),
    ):
        with pytest.raises(PallavaError, match=reason):
            check_reopenable(wrong)
    with pytest.raises(PallavaError, match="already that of"):
        register_connector(type("Other", (MLPConnector,), {}))


def test_a_connector_that_is_not_known_is_described_by_its_name() -> None:
    assert describe_connector({"model_type": "far"}, "far.Away") == "far; far.Away, which is not part of pallava"
    with pytest.raises(PallavaError, match="far"):
        PALLaVAConfig(connector_config={"model_type": "far"})


def test_load_and_ask(tmp_path: Path) -> None:
    parts = folders.save_parts(tmp_path)
    folder = folders.save(parts, folders.build(parts, folders.open_llm(parts)), tmp_path / "model")
    model, processor = load(folder, "cpu")
    assert not model.training
    image, options = Image.new("RGB", (80, 40), "pink"), {"max_new_tokens": 4}
    first = ask(model, processor, image, "what is shown here ?", **options)
    inputs = processor("what is shown here ?", images=image)
    assert first == folders.answers(model, processor, inputs, **options)[0]
    conversation = [{"from": "human", "value": "<image>\nyes ?"}, {"from": "gpt", "value": "no"}]
    conversation.append({"from": "human", "value": "few nuclei ?"})
    expected = folders.answers(model, processor, processor(conversation, images=image), **options)[0]
    assert ask(model, processor, image, "few nuclei ?", history=[("yes ?", "no")], **options) == expected
    alone = folders.answers(model, processor, processor("yes ?"), **options)[0]
    assert ask(model, processor, None, "yes ?", **options) == alone
    with pytest.raises(PallavaError, match="'nowhere'"):
        load(folder, "nowhere")
