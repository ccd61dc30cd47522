"""Attention to the tiles, computed beside the model: it is the model's own, and adds up."""

from pathlib import Path

import pytest
import torch

from pallava.errors import PallavaError
from pallava.model import ScaleInvariantConnector, ScaleInvariantConnectorConfig
from pallava.model.attention import attention_entropy, cross_attention, embed_patches, load_eyes, read_tiles
from tests.model.test_encoders import pixels_of, whole_model
from tests.tiny import golden


def connector() -> ScaleInvariantConnector:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    config = ScaleInvariantConnectorConfig(8, 16, cross_attention_layers=[0, 2], initializer_range=0.5, **sizes)
    return ScaleInvariantConnector(config).eval()


def test_attention_by_hand() -> None:
    """Of the first layer: softmax of the scaled products of queries and keys, averaged over the heads."""
    model, overview, tiles = connector(), torch.randn(1, 4, 8), torch.randn(1, 12, 8)
    attention = cross_attention(model, overview, tiles)
    assert attention.shape == (1, 2, 4, 12)  # two of three layers read tiles
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 2, 4))
    layer = model.qformer.encoder.layer[0]
    hidden = layer.attention(model.qformer.layernorm(overview))[0]
    cross = layer.crossattention.attention
    query, key = cross.query(hidden).view(4, 2, 4), cross.key(tiles).view(12, 2, 4)
    scores = torch.einsum("qhd,khd->hqk", query, key) / 4**0.5
    torch.testing.assert_close(attention[0, 0], scores.softmax(-1).mean(0))


def test_entropy_of_attention() -> None:
    """1 where all tokens are read alike, 0 where one is, and that of each head in between."""
    model, overview, tiles = connector().train(), torch.randn(1, 4, 8), torch.randn(1, 12, 8)
    keys = [model.qformer.encoder.layer[index].crossattention.attention.key for index in (0, 2)]
    with torch.no_grad():
        for key in keys:
            key.weight.zero_()
    torch.testing.assert_close(attention_entropy(model, overview, tiles), torch.ones(2))
    assert model.training
    with torch.no_grad():
        keys[1].weight.normal_(std=1000)
    even, on_one = attention_entropy(model, overview, tiles)
    assert even == pytest.approx(1)
    assert on_one < 0.05
    heads = connector().qformer(query_embeds=overview, encoder_hidden_states=tiles, output_attentions=True)
    expected = [-(layer * layer.log()).sum(-1).mean() / torch.tensor(12.0).log() for layer in heads.cross_attentions]
    torch.testing.assert_close(attention_entropy(connector(), overview, tiles), torch.stack(expected))


def test_the_ordinary_path_keeps_no_scores() -> None:
    """It equals transformers' eager attention, which does, in what comes out and in every gradient."""
    model, overview, tiles = connector(), torch.randn(2, 5, 8), torch.randn(2, 12, 8)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    scores = ((5, 5), (5, 12))
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: shapes.append(kept.shape) or kept, lambda kept: kept):
        shapes: list[torch.Size] = []
        own = model(overview, tiles, mask)
        assert shapes
        assert not [shape for shape in shapes if shape[-2:] in scores]
        read = model.qformer(overview, encoder_hidden_states=tiles, encoder_attention_mask=mask).last_hidden_state
        assert {shape[-2:] for shape in shapes} >= set(scores)
    theirs = model.projection(model.norm(overview + read))
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)
    parameters = [each for each in model.parameters() if each.requires_grad]
    expected = torch.autograd.grad(theirs.square().sum(), parameters)
    for gradient, other in zip(torch.autograd.grad(own.square().sum(), parameters), expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)


def test_attention_is_dropped_in_training_alone() -> None:
    model, overview, tiles = connector(), torch.randn(1, 4, 8), torch.randn(1, 12, 8)
    assert torch.equal(model(overview, tiles), model(overview, tiles))
    for block in (layer for layer in model.qformer.encoder.layer):
        block.attention.attention.dropout.p = 0.9
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p < 0.9:
            module.p = 0.0
    model.train()
    assert not torch.allclose(model(overview, tiles), model(overview, tiles))


def test_a_tile_that_is_attended_to_changes_the_picture() -> None:
    """Tiles keep their order: the attention on a tile follows it to another place."""
    model = connector()
    overview, tiles = torch.randn(1, 4, 8), torch.randn(1, 3, 4, 8)
    here = cross_attention(model, overview, tiles.flatten(1, 2)).unflatten(-1, (3, 4))
    there = cross_attention(model, overview, tiles[:, [2, 0, 1]].flatten(1, 2)).unflatten(-1, (3, 4))
    torch.testing.assert_close(there, here[..., [2, 0, 1], :])


@pytest.mark.parametrize("kind", ["clip", "timm_folder"])
def test_eyes_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    model = whole_model(kind, tmp_path / "encoder")
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    eyes = load_eyes(tmp_path / "model")
    pixels = pixels_of(4)
    attention = read_tiles(eyes, pixels)
    own = read_tiles(model, pixels)
    assert attention.shape == (1, 16, 3, 16)
    torch.testing.assert_close(attention, own)
    torch.testing.assert_close(attention.sum((-1, -2)), torch.ones(1, 16))


def test_without_cross_attention_there_is_nothing_to_see(tmp_path: Path) -> None:
    golden.model(tmp_path / "plip", cross=False).save_pretrained(tmp_path / "model")
    with pytest.raises(PallavaError, match="cross-attention"):
        read_tiles(load_eyes(tmp_path / "model"), golden.samples()[0]["tiles"])
    with pytest.raises(PallavaError, match="not a model folder"):
        load_eyes(tmp_path)


def test_patches_in_the_space_of_the_texts() -> None:
    """A patch passes on its own value: another patch of the tile changes it through earlier layers alone."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(num_hidden_layers=1, projection_dim=12, **sizes)).eval()
    pixels = pixels_of(1)
    changed = pixels.clone()
    changed[..., :8, :8] += 1
    before, after = embed_patches(tower, pixels), embed_patches(tower, changed)
    assert before.shape == (1, 16, 12)
    torch.testing.assert_close(before.norm(dim=-1), torch.ones(1, 16))
    assert not torch.allclose(before[:, 0], after[:, 0])
    torch.testing.assert_close(before[:, 1:], after[:, 1:])  # the one layer's attention is left out
