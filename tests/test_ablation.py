"""The ablation: its parts, its configs, and the numbers of its report, by hand."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from pallava.errors import PallavaError
from pallava.evaluation.answers.items import Answer, Item
from pallava.model.connectors import build_connector

FOLDER = Path(__file__).parents[1] / "benchmarks" / "ablation"
sys.path.insert(0, str(FOLDER))
parts, report, variants = (importlib.import_module(f"ablation_{name}") for name in ("parts", "report", "variants"))


@pytest.mark.parametrize("kind", ["AveragedTiles", "AllTiles"])
def test_padding_of_tiles_changes_no_visual_token(kind: str) -> None:
    connector = build_connector(8, 12, getattr(parts, kind))
    overview, tiles = torch.randn(2, 4, 8), torch.randn(2, 12, 8)
    mask = torch.tensor([[1] * 12, [1] * 8 + [0] * 4])
    together = connector(overview, tiles, mask)
    alone = connector(overview[1:], tiles[1:, :8], mask[1:, :8])
    torch.testing.assert_close(together[1], alone[0])
    assert [len(tokens) for tokens in together] == ([16, 12] if kind == "AllTiles" else [4, 4])
    other = connector(overview, tiles + mask[..., None], mask)
    assert all((a != b).any() for a, b in zip(together, other, strict=True))  # both read the tiles


def test_all_tiles_are_as_many_tokens_as_announced() -> None:
    assert parts.AllTilesConfig(8, 12).num_visual_tokens(4, 2) == 12


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_variant_differs_in_its_connector_alone(name: str, tmp_path: Path) -> None:
    variants.write_configs(variants.VARIANTS["cross-attention"], tmp_path)
    expected = {stem: Config.fromfile(tmp_path / f"{stem}.py").to_dict() for stem in ("words", "questions")}
    variants.write_configs(variants.VARIANTS[name], tmp_path)
    for stem, values in expected.items():
        config = Config.fromfile(tmp_path / f"{stem}.py").to_dict()
        connector = config["model"].pop("connector")
        assert config["train_dataloader"]["dataset"].pop("connector") == connector
        standard = values["model"]["connector"]
        others = {k: v for k, v in values["model"].items() if k != "connector"}
        assert config["model"] == others
        assert config["optim_wrapper"] == values["optim_wrapper"]
        assert config["train_cfg"] == values["train_cfg"]
        assert (connector == standard) == (not variants.VARIANTS[name].connector)
    assert expected["questions"]["model"]["pretrained_pth"] == "./demo/words"


def test_captions_are_shuffled_and_pictures_are_not(tmp_path: Path) -> None:
    (tmp_path / "views").mkdir()
    views = [{"image": f"{n}.png", "caption": f"caption {n}"} for n in range(20)]
    (tmp_path / "views.json").write_text(json.dumps(views))
    variants.shuffle_captions(tmp_path, tmp_path / "own", seed=1)
    shuffled = json.loads((tmp_path / "own" / "views.json").read_text())
    assert [view["image"] for view in shuffled] == [view["image"] for view in views]
    captions = [view["caption"] for view in shuffled]
    assert sorted(captions) == sorted(view["caption"] for view in views)
    assert captions != [view["caption"] for view in views]


def make_run(folder: Path, name: str, seed: int, answers: dict[str, str]) -> Any:
    """A run that is done: six questions on two images, with these answers to some and the right ones to the others."""
    run = report.Run(name, seed, folder / f"{variants.VARIANTS[name].slug}-{seed}")
    demo = run.folder / "demo"
    (demo / "evaluation").mkdir(parents=True)
    (demo / "changed").mkdir()
    records = []
    for number, (group, kind) in enumerate([("mitosis", "closed"), ("stain", "closed"), ("glands", "open")] * 2):
        item = Item(str(number), f"{number // 3}.png", "Is it?", "yes", kind, group=group)
        records.append(Answer(item, answers.get(str(number), "yes")).as_record())
    (demo / "evaluation" / "predictions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (demo / report.WITHOUT_TILES).write_text(json.dumps([Answer(item, "no").as_record()]))
    control = {"shuffled images": {"exact_match_closed": {"value": 0.5}}}
    results = {"data": {"questions": {"controls": control}}}
    (demo / "evaluation" / "results.json").write_text(json.dumps(results))
    same = {"half_size": {"value": 0.75}, "double_size": {"value": 0.25}}
    (demo / "changed" / "results.json").write_text(json.dumps({"data": {"changed": {"consistency": {"same": same}}}}))
    return run


def test_the_report_by_hand(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "cross-attention", 1, {}),
        make_run(tmp_path, "cross-attention", 2, {"0": "no"}),
        make_run(tmp_path, "tiles averaged", 1, {"0": "no", "3": "no", "4": "no"}),
        report.Run("tiles passed on", 1, tmp_path / "not-run"),
    ]
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- written by `make ablation` -->\nold\n<!-- end -->\n\nReading.\n")
    report.write_report(runs, page)
    text = page.read_text()
    assert (
        "| cross-attention | 2 | 75.0 ± 35.4 | 0.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 50.0 ± 0.0 | 75.0 ± 0.0 |"
        in text
    )
    assert "| tiles averaged | 1 | 0.0 | 0.0 | 50.0 | 100.0 | 50.0 | 75.0 | 25.0 |" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| tiles averaged | -"))
    fine, closed, opened = line.split("|")[2:5]
    assert fine.strip().startswith("-75.0 [-100.0, -50.0]")
    assert closed.strip().startswith("-50.0 [-100.0, +0.0]")
    assert opened.strip() == "+0.0 [+0.0, +0.0]"
    assert "- **tiles averaged**: an MLP" in text
    assert "passed on" not in text
    assert text.startswith("# Title")
    assert text.endswith("Reading.\n")
    assert "old" not in text
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(PallavaError, match="no run"):
        report.write_report([report.Run("tiles averaged", 1, tmp_path)], tmp_path / "page.md")
