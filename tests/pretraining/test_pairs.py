"""Pairs become a table and shards that open_clip's own readers read, with every picture as a person sees it."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import Image

from pallava.errors import PallavaError
from pallava.pretraining import pairs as module
from pallava.pretraining.pairs import write_pairs
from pallava.pretraining.trainer import read_picture
from tests.tiny.pictures import write_odd_pictures
from tests.tiny.pretraining import save_pairs


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    shown = write_odd_pictures(tmp_path / "images")
    rows = [{"image": path.name, "caption": f"a picture of kind {path.name}"} for path in shown]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_pictures_of_every_kind_from_shards(pictures: Path) -> None:
    write_pairs(pictures / "pairs.jsonl", pictures / "images", pictures / "out", num_shards=2)
    shards, shown = pictures / "out" / "shards", write_odd_pictures(pictures / "images")
    assert json.loads((shards / "sizes.json").read_text()) == {"00000.tar": 7, "00001.tar": 7}
    found = {}
    for shard in sorted(shards.glob("*.tar")):
        for sample in webdataset.DataPipeline(
            webdataset.SimpleShardList(str(shard)), webdataset.tarfile_to_samples(), webdataset.decode(read_picture)
        ):
            picture = next(value for key, value in sample.items() if key in ("png", "jpg"))
            found[sample["txt"].split()[-1]] = np.asarray(picture)
    assert found.keys() == {path.name for path in shown}
    for path, seen in shown.items():
        np.testing.assert_array_equal(found[path.name], np.asarray(seen), err_msg=path.name)


def test_the_same_shards_every_time(pictures: Path) -> None:
    for name in ("a", "b"):
        write_pairs(pictures / "pairs.jsonl", pictures / "images", pictures / name, num_shards=2)
    for shard in (pictures / "a" / "shards").iterdir():
        assert shard.read_bytes() == (pictures / "b" / "shards" / shard.name).read_bytes()
    with tarfile.open(pictures / "a" / "shards" / "00000.tar") as tar:
        copied = tar.extractfile("00000000.png").read()
        assert {(each.mode, each.uname, each.gname, each.mtime) for each in tar} == {(0o644, "", "", 0)}
    assert copied == (pictures / "images" / "alpha.png").read_bytes()
    assert Image.open(io.BytesIO(copied)).mode == "RGBA"


def test_captions_stay_text(tmp_path: Path) -> None:
    save_pairs(tmp_path, 4)
    captions = ["None", "two\nlines\tand a tab", 'said "so", he', "NA"]
    rows = [{"image": f"{number}.png", "caption": caption} for number, caption in enumerate(captions)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    write_pairs(tmp_path / "pairs.json", tmp_path / "images", tmp_path / "out")
    read = pd.read_csv(tmp_path / "out" / "pairs.tsv", sep="\t")  # as open_clip reads it
    assert [str(text).strip() for text in read["title"]] == ["None", "two lines and a tab", 'said "so", he', "NA"]


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    save_pairs(tmp_path, 3)
    broken = tmp_path / "images" / "2.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    rows = json.loads((tmp_path / "pairs.json").read_text())
    rows += [{"image": "none.png", "caption": "gone"}, {"image": "0.png", "caption": " "}]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    num_pairs, left_out = write_pairs(tmp_path / "pairs.json", tmp_path / "images", tmp_path / "out")
    assert (num_pairs, left_out) == (2, {"missing": 1, "unreadable": 1, "empty_caption": 1})


def test_pairs_are_written_again_only_if_something_changed(tmp_path: Path) -> None:
    pairs, _ = save_pairs(tmp_path, 3)
    write_pairs(pairs, tmp_path / "images", tmp_path / "out")
    table = tmp_path / "out" / "pairs.tsv"
    table.write_text("kept")
    assert write_pairs(pairs, tmp_path / "images", tmp_path / "out")[0] == 3
    assert table.read_text() == "kept"
    pairs.write_text(json.dumps(json.loads(pairs.read_text())[:2]))
    assert write_pairs(pairs, tmp_path / "images", tmp_path / "out")[0] == 2
    assert table.read_text() != "kept"


def test_another_number_of_shards_reads_no_picture_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = save_pairs(tmp_path, 4)[0], tmp_path / "images", tmp_path / "out"
    write_pairs(*arguments)
    monkeypatch.setattr(module, "_write_table", None)
    for num_shards in (2, 3, 2):
        assert write_pairs(*arguments, num_shards)[0] == 4
        assert len(json.loads((tmp_path / "out" / "shards" / "sizes.json").read_text())) == num_shards
    monkeypatch.setattr(module, "_members", None)
    assert write_pairs(*arguments, 2)[0] == 4
    with pytest.raises(TypeError):  # cut short, they do not count as written
        write_pairs(*arguments, 3)
    with pytest.raises(TypeError):
        write_pairs(*arguments, 2)


def test_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(PallavaError, match="cannot read the pairs"):
        write_pairs(tmp_path / "none.json", tmp_path / "images", tmp_path / "out")
