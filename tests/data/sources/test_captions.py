"""PubMedVision, PMC-OA and Quilt-1M: each documented layout and quirk."""

import csv
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pallava.data.sources import files, open_source
from pallava.data.sources.base import Pair
from pallava.data.sources.captions import parse_literal
from pallava.errors import PallavaError
from pallava.io import records
from tests.tiny.trees import read, touch, write_csv, write_json, write_lines


def alignment_row(number: int, images: Any, answer: str = "Glands.", **extra: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": answer}]
    return {"id": f"row_{number}", "image": images, "conversations": turns, **extra}


PUBMEDVISION = [
    alignment_row(0, ["images/pmc_1_0.jpg"], body_part="Skin", modality="Microscopy Images"),
    alignment_row(1, [f"images/pmc_2_{i}.jpg" for i in range(29)]),
    alignment_row(1, ["images/pmc_3_0.jpg"], " An id that is there twice. "),
    alignment_row(3, ["images/pmc_4_0.jpg"], " "),
    alignment_row(4, []),
    alignment_row(5, ["../pmc_5_0.jpg"]),
    {"id": "6", "image": ["images/pmc_6_0.jpg"]},
    {"id": "7", "image": ["images/pmc_6_0.jpg"], "conversations": [{"from": "human", "value": "No answer?"}]},
    alignment_row(8, [["images/pmc_6_0.jpg"]]),
    None,
]
DROPPED = {"empty_caption": 1, "malformed": 5, "outside_folder": 1}


def test_pubmedvision(tmp_path: Path):
    write_json(tmp_path / "PubMedVision_Alignment_VQA.json", PUBMEDVISION)
    write_json(tmp_path / "PubMedVision_InstructionTuning_VQA.json", [])
    records, dropped = read("pubmedvision", tmp_path)
    metadata = {"row_id": "row_0", "body_part": "Skin", "modality": "Microscopy Images", "num_images": 1}
    assert records[0] == Pair("pubmedvision", "0000000", "images/pmc_1_0.jpg", "Glands.", metadata)
    assert records[1].metadata == {"row_id": "row_1", "num_images": 29}  # as older copies are
    assert [record.text for record in records] == ["Glands.", "Glands.", "An id that is there twice."]
    assert dropped == DROPPED


def test_pubmedvision_image_policies(tmp_path: Path):
    write_json(tmp_path / "PubMedVision_Alignment_VQA.json", PUBMEDVISION)
    first, _ = read("pubmedvision", tmp_path, image_policy="first")
    each, each_dropped = read("pubmedvision", tmp_path, image_policy="each")
    single, single_dropped = read("pubmedvision", tmp_path, image_policy="single-only")
    assert [record.image for record in first][1] == "images/pmc_2_0.jpg"
    assert len(each) == 31
    assert (each[29].id, each[29].image) == ("0000001-28", "images/pmc_2_28.jpg")
    assert [record.id for record in single] == ["0000000", "0000002"]
    assert each_dropped == DROPPED
    assert single_dropped == DROPPED | {"several_images": 1}


@pytest.mark.parametrize("folder", ["", "images/", "PubMedVision/"])
def test_pubmedvision_unpacked_into_another_folder(tmp_path: Path, folder: str):
    write_json(tmp_path / "PubMedVision_Alignment_VQA.json", PUBMEDVISION[:3])
    touch(tmp_path, f"{folder}images/pmc_3_0.jpg")
    assert read("pubmedvision", tmp_path)[0][2].image == f"{folder}images/pmc_3_0.jpg"


def test_no_splits(tmp_path: Path):
    write_json(tmp_path / "PubMedVision_Alignment_VQA.json", [])
    with pytest.raises(PallavaError, match="split 'train'"):
        open_source("pubmedvision", tmp_path, split="train")


PMC_OA = [
    {"image": "PMC1_Fig1_0.jpg", "caption": " Glands. ", "pmcid": "PMC1", "url_name": "1.jpg"},
    {"image": "PMC1_Fig1_1.jpg", "caption": "Glands."},  # sub-figures share their caption
    "{broken\n",
    "\n",
    {"image": "PMC1_Fig1_2.jpg", "caption": ""},
    {"image": "PMC1_Fig1_2.jpg"},
    {"image": "../PMC1.jpg", "caption": "Outside."},
    '{"image": "PMC1_Fig1_3.jpg", "caption": "' + "[" * 9 + '"}\n',
    "[" * 100_000 + "\n",
]


@pytest.mark.parametrize("name", ["pmc_oa.jsonl", "pmc_oa_beta.jsonl"])
def test_pmc_oa(tmp_path: Path, name: str):
    write_lines(tmp_path / name, PMC_OA)
    (tmp_path / name).open("ab").write(
        b'{"image": "\xff.jpg", "caption": "no UTF-8"}\n{"image": "a.jpg", "caption": "e"}'
    )
    records, dropped = read("pmc-oa", tmp_path)
    folder = "caption_T060_filtered_top4_sep_v0_subfigures"
    metadata = {"pmcid": "PMC1", "url_name": "1.jpg"}
    assert records[0] == Pair("pmc-oa", "0000000", f"{folder}/PMC1_Fig1_0.jpg", "Glands.", metadata)
    assert [record.id for record in records] == ["0000000", "0000001", "0000006", "0000009"]
    assert dropped == {"malformed": 4, "empty_caption": 1, "outside_folder": 1}
    source = open_source("pmc-oa", tmp_path)
    list(source)
    assert source.tally.examples["malformed"][0].startswith(f"{name}, line 3")


def test_pmc_oa_old_release(tmp_path: Path):
    for split in ("train", "valid", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [{"image": f"{split}.jpg", "caption": "Glands."}] * 2)
    records, _ = read("pmc-oa", tmp_path)
    assert [record.id for record in records][1:3] == ["train-0000001", "valid-0000000"]
    assert [record.id for record in read("pmc-oa", tmp_path, split="val")[0]] == ["valid-0000000", "valid-0000001"]
    with pytest.raises(PallavaError, match="train, valid, test"):
        open_source("pmc-oa", tmp_path, split="dev")


SUBFIGURES = "caption_T060_filtered_top4_sep_v0_subfigures/"


@pytest.mark.parametrize("folder", [SUBFIGURES, SUBFIGURES * 2, f"images/{SUBFIGURES}", "images/", ""])
def test_pmc_oa_layouts(tmp_path: Path, folder: str):
    write_lines(tmp_path / "pmc_oa.jsonl", PMC_OA)
    (tmp_path / "images").mkdir()
    touch(tmp_path, f"{folder}PMC1_Fig1_1.jpg")
    assert [record.image for record in read("pmc-oa", tmp_path)[0]][:2] == [
        f"{folder}PMC1_Fig1_0.jpg",  # not there: the image filter says so
        f"{folder}PMC1_Fig1_1.jpg",
    ]


def test_a_line_without_end_costs_itself(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(records, "_MAX_RECORD", 100)
    rows = [{"image": "a.jpg", "caption": "x" * 500}, {"image": "b.jpg", "caption": "Glands."}]
    write_lines(tmp_path / "pmc_oa.jsonl", rows)
    pairs, dropped = read("pmc-oa", tmp_path)
    assert ([pair.text for pair in pairs], dropped) == (["Glands."], {"malformed": 1})


OLD_COLUMNS = [
    "",
    "caption",
    "image_path",
    "subset",
    "split",
    "pathology",
    "roi_text",
    "noisy_text",
    "corrected_text",
    "med_umls_ids",
    "magnification",
    "height",
    "width",
]
NEW_COLUMNS = [*OLD_COLUMNS, "not_histology", "single_wsi"]


def quilt_row(caption: str, image: str = "a.jpg", *flags: Any, pathology: str = "['Skin', \"Paget's\"]") -> list[Any]:
    lists = [pathology, "[['a nest', 'of cells'], []]", "noisy, text", "text", "[['C0001']]"]
    return ["7", caption, image, "quilt", "train", *lists, "1.0", "700", "900", *flags]


def test_quilt(tmp_path: Path):
    rows = [
        quilt_row('Glands, "back to\nback".', "a.jpg", 0, 1),
        quilt_row("The same picture, another caption.", "a.jpg", "0.0", "0.0"),
        quilt_row("A slide of the speaker.", "b.jpg", 1, 0),
        quilt_row("", "c.jpg", 0, 0),
        quilt_row("No list.", "d.jpg", 0, 0, pathology="Skin"),
        quilt_row("A cell too few.", "d.jpg", 0),
        quilt_row("Outside.", "/d.jpg", 0, 0),
    ]
    write_csv(tmp_path / "quilt_1M_lookup.csv", NEW_COLUMNS, rows)
    records, dropped = read("quilt-1m", tmp_path)
    assert records[0] == Pair(
        "quilt-1m",
        "0000000",
        "quilt_1m/a.jpg",
        'Glands, "back to\nback".',
        {
            "subset": "quilt",
            "split": "train",
            "magnification": 1,
            "height": 700,
            "width": 900,
            "single_wsi": 1,
            "pathology": ["Skin", "Paget's"],
            "roi_text": [["a nest", "of cells"], []],
            "med_umls_ids": [["C0001"]],
        },
    )
    assert records[1].image == "quilt_1m/a.jpg"
    assert records[2].metadata["pathology"] == "Skin"
    assert dropped == {"not_histology": 1, "empty_caption": 1, "malformed": 1, "outside_folder": 1}
    source = open_source("quilt-1m", tmp_path)
    list(source)
    assert source.tally.examples["malformed"] == [
        "quilt_1M_lookup.csv, line 8: 14 cells where the first line has 15"  # the first caption takes two lines
    ]


def test_quilt_old_copy(tmp_path: Path):
    write_csv(tmp_path / "quilt_1M_lookup.csv", OLD_COLUMNS, [quilt_row("Glands.")])
    touch(tmp_path, "quilt_1m/quilt_1m/a.jpg")
    records, dropped = read("quilt-1m", tmp_path)
    assert [record.image for record in records] == ["quilt_1m/quilt_1m/a.jpg"]
    assert not dropped


def test_quilt_split(tmp_path: Path):
    rows = [quilt_row("Glands."), quilt_row("Held out.")]
    rows[1][4] = "val"
    write_csv(tmp_path / "quilt_1M_lookup.csv", OLD_COLUMNS, rows)
    records, dropped = read("quilt-1m", tmp_path, split="val")
    assert ([record.text for record in records], dropped) == (["Held out."], {"other_split": 1})


def test_quilt_without_a_column(tmp_path: Path):
    write_csv(tmp_path / "quilt_1M_lookup.csv", ["", "caption", "path"], [])
    with pytest.raises(PallavaError, match=r"'image_path'.*, caption, path"):
        list(open_source("quilt-1m", tmp_path))


def test_long_cells_and_a_forgotten_quote(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_ROW", 400_000)
    limit = csv.field_size_limit(131_072)
    try:
        rows = [quilt_row("word " * 60_000), quilt_row("Glands.")]  # more than csv's own limit
        write_csv(tmp_path / "quilt_1M_lookup.csv", OLD_COLUMNS, rows)
        with (tmp_path / "quilt_1M_lookup.csv").open("a") as file:
            file.write('8,"a quote that nobody closes' + "\nmore text, line by line" * 30_000)
        records, dropped = read("quilt-1m", tmp_path)
    finally:
        csv.field_size_limit(limit)
    assert [len(record.text) for record in records] == [299_999, 7]
    assert dropped["malformed"] > 1  # the broken row, and the lines after it that are no rows


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getcwd()",
        "[" * 10_000,
        "['x'",
        "{'a': 1}",
        "[b'x']",
        "[x]",
        "[NaN]",
        "[1e999]",
        "['" + "x" * 70_000 + "']",
    ],
)
def test_other_literals_stay_text(text: str):
    assert parse_literal(text) == text


@pytest.mark.parametrize("value", [[], ["a, b", "c"], ["it's"], ['a "b"'], ["\\"], ["\t"], [["é"], [1, 2.5]], ["'"]])
def test_literals(value: list[Any]):
    assert parse_literal(repr(value)) == value


def test_damaged_text_costs_its_row_and_marks_cost_nothing(tmp_path: Path):
    header, rows = (
        b"\xef\xbb\xbf,caption,image_path\n",
        [b'"Gl\xffands",a.jpg', b"N/A,b.jpg", b"a\0b,c.jpg", b"nan,d.jpg"],
    )
    joined = [*rows, header[:-1], b'\xef\xbb\xbf"\xef\xbb\xbfa, b\xef\xbb\xbf",e.jpg']
    numbered = (line if line.endswith(b"path") else b"%d,%s" % each for each in enumerate(joined) for line in each[1:])
    (tmp_path / "quilt_1M_lookup.csv").write_bytes(header + b"\n".join(numbered))
    records, dropped = read("quilt-1m", tmp_path)
    assert [record.text for record in records] == ["N/A", "a, b"]
    assert dropped == {"malformed": 3, "empty_caption": 1}
    source = open_source("quilt-1m", tmp_path)
    list(source)
    assert ["line 2" in source.tally.examples["malformed"][0], "0xff" in source.tally.examples["malformed"][0]] == [
        True
    ] * 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_another_encoding_is_refused(tmp_path: Path, encoding: str):
    text = "caption,image_path\na \u00b5m,b.jpg\n"
    (tmp_path / "quilt_1M_lookup.csv").write_bytes(text.encode(encoding))
    with pytest.raises(PallavaError, match=encoding.upper() if encoding != "utf-16-le" else "quilt_1M_lookup.csv"):
        read("quilt-1m", tmp_path)


@pytest.mark.parametrize("name", ["pubmedvision", "pmc-oa", "quilt-1m"])
def test_large_files_are_streamed(tmp_path: Path, name: str):
    text = "word " * 2000
    if name == "pubmedvision":
        write_json(
            tmp_path / "PubMedVision_Alignment_VQA.json", [alignment_row(i, ["a.jpg"], text) for i in range(2500)]
        )
    elif name == "pmc-oa":
        write_lines(tmp_path / "pmc_oa.jsonl", ({"image": "a.jpg", "caption": text} for _ in range(2500)))
    else:
        write_csv(tmp_path / "quilt_1M_lookup.csv", NEW_COLUMNS, (quilt_row(text, "a.jpg", 0, 1) for _ in range(2500)))
    source = open_source(name, tmp_path)
    assert source.num_bytes > 25_000_000
    tracemalloc.start()
    progress = [source.num_bytes_read for _ in source]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(progress) == 2500
    assert progress == sorted(progress)
    assert progress[1250] < 0.7 * source.num_bytes
    assert peak < 12_000_000
