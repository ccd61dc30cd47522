"""The worked examples of CONTRIBUTING.md run, and are as short as it is promised."""

import json
import re
from pathlib import Path

from pallava.cli import main
from pallava.data.sources import SOURCES
from pallava.evaluation.answers import scores
from pallava.evaluation.answers.items import Answer, Item
from tests.tiny import my_connector
from tests.tiny.records import save_picture

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python\n# ([^\n]+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def num_lines(name: str) -> int:
    return len(BLOCKS[name].splitlines())


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def save_captions(folder: Path, name: str, header: str, delimiter: str) -> None:
    (folder / "images").mkdir(parents=True)
    rows = [header]
    for index in range(2):
        save_picture(folder / "images" / f"{index}.png", seed=index)
        rows.append(f"{index}.png{delimiter}{' '.join(['a human gland of the colon'] * 5)} {index}")
    (folder / name).write_text("\n".join([*rows, ""]))


def test_captions_from_a_table(tmp_path):
    save_captions(tmp_path / "own", "captions.csv", "file,text", ",")
    source = ["--source", f"csv={tmp_path / 'own' / 'captions.csv'}", "--columns", "image=file,caption=text"]
    assert main(["data", "clean", str(tmp_path / "clean"), *source, "--filters", "words"]) == 0
    assert len(read_lines(tmp_path / "clean" / "kept.jsonl")) == 2


def test_a_data_set_is_one_file(tmp_path):
    name = "pallava/data/sources/slide_atlas.py"
    assert num_lines(name) <= 35
    try:
        exec(compile(BLOCKS[name], name, "exec"), {"__name__": "slide_atlas"})
        save_captions(tmp_path / "atlas", "atlas.tsv", "name\tcaption", "\t")
        source = f"slide-atlas={tmp_path / 'atlas'}"
        assert main(["data", "clean", str(tmp_path / "clean"), "--source", source, "--filters", "words"]) == 0
        kept = read_lines(tmp_path / "clean" / "kept.jsonl")
        assert [row["image"] for row in kept] == ["images/0.png", "images/1.png"]
    finally:
        SOURCES.pop("slide-atlas", None)


def test_a_score_is_one_entry(monkeypatch):
    assert num_lines("an entry of SCORES") <= 10
    added = eval("{" + BLOCKS["an entry of SCORES"] + "}", {"Score": scores.Score})
    monkeypatch.setattr(scores, "SCORES", {**scores.SCORES, **added})
    score = scores.SCORES["begins_right_closed"]
    item = Item("1", "", "Is it there?", "yes", "closed")
    assert [score.rule(Answer(item, text)) for text in ("Yes, it is", "no", "")] == [1, 0, 0]


def test_the_connector_is_the_one_that_is_tested():
    assert BLOCKS["my_connector.py"] == Path(my_connector.__file__).read_text()
    assert num_lines("my_connector.py") <= 60
