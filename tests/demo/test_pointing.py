"""The pointing game on attention of known place."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from pallava.demo.micrographs import draw, random_facts
from pallava.demo.pointing import ReadImage, measure, play
from pallava.model import PALLaVAProcessor, load_image_processor
from pallava.tiling import TileSpec
from tests.model.test_encoders import whole_model
from tests.tiny.training import save_parts

SPEC = TileSpec(32, (0.5,) * 3, (0.5,) * 3)
SIZE = (96, 64)  # 3 x 2 tiles exactly; 4 x 4 tokens of 8 pixels each


def evenly() -> torch.Tensor:
    return torch.full((2, 16, 6, 16), 1 / 96)


def on(tile: int, token: int) -> torch.Tensor:
    attention = torch.zeros(2, 16, 6, 16)
    attention[:, :, tile, token] = 1.0
    return attention


def test_even_attention_is_chance() -> None:
    found = play([ReadImage(evenly(), SIZE, ((40.0, 40.0), (5.0, 5.0)))], SPEC)
    expected = {"right_tile": 1 / 6, "tiles": 2 / 6, "tokens": 2 / 96}
    for name, chance in expected.items():
        assert found[name].share.value == pytest.approx(chance)
        assert found[name].chance == pytest.approx(chance)


# (40, 40) lies on the middle tile of the lower row, number 4, and there at (8, 8): token 5 of 4 x 4.
@pytest.mark.parametrize(("tile", "token", "shares"), [(4, 5, (1, 1, 1)), (4, 0, (1, 1, 0)), (1, 5, (0, 0, 0))])
def test_attention_on_one_token(tile: int, token: int, shares: tuple[int, int, int]) -> None:
    found = play([ReadImage(on(tile, token), SIZE, ((40.0, 40.0),))], SPEC)
    values = tuple(found[name].share.value for name in ("right_tile", "tiles", "tokens"))
    assert values == shares
    assert found["hits"].share.value == shares[1]


def test_the_overview_token_over_the_thing_counts_alone() -> None:
    """(40, 40) is 0.42 and 0.63 of the way: column 1, row 2 of the overview's 4 x 4, token 9."""
    attention = on(0, 0)
    attention[:, 9] = on(4, 5)[:, 9]
    found = play([ReadImage(attention, SIZE, ((40.0, 40.0),))], SPEC)
    assert found["right_tile"].share.value == 1
    assert found["tiles"].share.value == pytest.approx(1 / 16)


def test_padding_of_the_canvas_shifts_places() -> None:
    """96 x 44 fills 3 x 2 tiles in width and leaves 10 pixels above and below."""
    (row_above,) = (play([ReadImage(on(1, token), (96, 44), ((40.0, 1.0),))], SPEC) for token in (1 * 4 + 1,))
    assert row_above["tokens"].share.value == 1


def test_attention_of_another_picture() -> None:
    """What always looks at one tile does no better on its own picture than on another's."""
    reads = [ReadImage(on(4, 5), SIZE, ((40.0, 40.0),)), ReadImage(on(4, 5), SIZE, ((5.0, 5.0),))]
    found = play(reads, SPEC)["right_tile"]
    assert found.share.value == found.elsewhere == 0.5
    looking = [reads[0], replace(reads[1], attention=on(0, 0))]
    found = play(looking, SPEC)["right_tile"]
    assert (found.share.value, found.elsewhere) == (1.0, 0.0)


def test_a_drawn_demo(tmp_path: Path) -> None:
    parts = save_parts(tmp_path)
    whole_model("clip", tmp_path / "encoder").save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(parts["llm"])
    PALLaVAProcessor(load_image_processor(tmp_path / "encoder"), tokenizer, "qwen_chat").save_pretrained(
        tmp_path / "model"
    )
    (tmp_path / "data" / "images").mkdir(parents=True)
    records = []
    for number in range(4):
        rng = np.random.default_rng(number)
        facts = replace(random_facts(rng), mitosis=number % 2 == 0)
        micrograph = draw(facts, rng)
        Image.fromarray(micrograph.pixels).save(tmp_path / "data" / "images" / f"{number}.png")
        regions = [asdict(region) for region in micrograph.regions]
        records.append({"name": f"{number}.png", "facts": asdict(facts), "regions": regions, "columns": 3})
    (tmp_path / "data" / "test.json").write_text(json.dumps(records))

    result = measure(tmp_path / "data", tmp_path / "model", lambda line: None)
    found = result["kinds"]
    assert {"mitotic figure", "smudge like one"} <= found.keys()
    assert found["mitotic figure"]["num_pictures"] == 2
    shares = found["mitotic figure"]["right_tile"]
    assert 0 <= shares["share"]["value"] <= 1
    assert shares["chance"] == pytest.approx(1 / 6)
    assert json.loads(json.dumps(result)) == result
    assert result["most_read"].keys() == {f"{number}.png" for number in range(4)}
