import json

import pytest

from pallava.data.clean.published_index import PublishedIndexFilter, _read_names
from pallava.errors import PallavaError
from tests.tiny.records import item, pair


@pytest.mark.parametrize(
    "text",
    [
        '["a/b.jpg", "c.png"]',
        '[{"image": "a/b.jpg"}, {"image": ["c.png"]}]',
        '[{"image_id": "a/b.jpg", "caption": "x"}, {"name": "./c.png"}]',
        '{"image": "a/b.jpg"}\n{"image": "c.png"}\n',
        '"a/b.jpg"\n"c.png"\n',
        "a/b.jpg\n\n c.png \n",
        "\ufeffa\\b.jpg\nc.png",
        '{"a/b.jpg": {"caption": "x"}, "c.png": ["x", "y"]}',
        '{"0": "a/b.jpg", "1": {"image": "c.png"}}',
        '{\n"image": ["a/b.jpg", "c.png"],\n"caption": ["x", "y"]}',
        '[["a/b.jpg", "c.png"]]',
        '[{"id": 7, "image_id": 8, "image": "a/b.jpg"}, {"image": ["a/b.jpg", "c.png"]}]',
    ],
)
def test_every_layout(tmp_path, text):
    path = tmp_path / "list"
    path.write_text(text, encoding="utf-8")
    names, unread = _read_names(path)
    assert [name for _, name in names] == ["a/b.jpg", "c.png"]
    assert unread == []


def test_a_dict_by_source(tmp_path):
    path = tmp_path / "list.json"
    for parts in (
        {"Quilt_1M": ["a.jpg"], "PMC-OA": [{"image": "b.jpg"}]},
        {"Quilt_1M": {"a.jpg": "a caption"}, "PMC-OA": {"0": "b.jpg"}},
        {"Quilt_1M": {"train": ["a.jpg"]}, "PMC-OA": {"7": {"image": "b.jpg", "caption": "x"}}},
    ):
        path.write_text(json.dumps(parts))
        assert _read_names(path) == ([("Quilt_1M", "a.jpg"), ("PMC-OA", "b.jpg")], [])


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        (
            '["a.jpg", null, 7, {"image": 8}, {"caption": "x"}, [], "b.jpg"]',
            ["null", "7", '{"image": 8}', "caption", "[]"],
        ),
        ('["a.jpg", ["b.jpg", null]]', ['record 2 (line 1, column 11): ["b.jpg", null]']),
        ('{"image": "a.jpg"}\n{"image"\n{"image": "b.jpg"}', ["list, line 2"]),
        (
            '{"quilt": ["a.jpg", null], "oa": null, "pv": {"0": "b.jpg", "1": true}}',
            ["entry 2", "'oa': null", "'1': true"],
        ),
    ],
)
def test_an_entry_without_a_name_costs_itself(tmp_path, text, unread):
    path = tmp_path / "list"
    path.write_text(text)
    names, found = _read_names(path)
    assert [name for _, name in names] == ["a.jpg", "b.jpg"]
    assert len(found) == len(unread)
    assert all(part in entry for part, entry in zip(unread, found, strict=True))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.tar.gz", "", "unpack it"),
        ("list.json", "[]", "no image name"),
        ("list.json", '[{"caption": "x"}]', r"no image name.*list\.json.*record 1.*caption"),
        ("list.json", '["a", ', "not JSON"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PallavaError, match=message):
        PublishedIndexFilter(tmp_path / name)


def test_a_missing_file(tmp_path):
    with pytest.raises(PallavaError, match="No such file"):
        PublishedIndexFilter(tmp_path / "none")


def surveyed(tmp_path, names, *images: tuple[str, str]):
    """The filter, and what it keeps of (source, image)."""
    (tmp_path / "list.json").write_text(json.dumps(names))
    index = PublishedIndexFilter(tmp_path / "list.json")
    items = [item(pair(0, source=source, image=image)) for source, image in images]
    for each in items:
        index.survey(each)
    verdicts = [index.decide(each, score) for each, score in zip(items, index.score(items), strict=True)]
    return index, [verdict.keep for verdict in verdicts]


@pytest.mark.parametrize(
    ("listed", "image", "keep"),
    [
        ("images/a.jpg", "images/a.jpg", True),
        ("quilt/images/a.jpg", "a.jpg", True),
        ("a.jpg", "quilt_1m/a.jpg", True),
        ("a", "x/a.jpg", True),
        ("a.png", "x/a.jpg", True),
        ("a_1.5", "a_1.5.jpg", True),
        ("a_1", "a_1.5.jpg", False),
        ("a", "ab.jpg", False),
        ("A", "a.jpg", False),
    ],
)
def test_path_then_base_name_then_no_ending(tmp_path, listed, image, keep):
    index, kept = surveyed(tmp_path, [listed], ("quilt-1m", image))
    assert kept == [keep]
    assert list(index.unmatched()) == ([] if keep else [listed])


def test_a_better_match_takes_the_name(tmp_path):
    """Whatever the order, and in another source too."""
    images = [("pmc-oa", "other/a.jpg"), ("quilt-1m", "here/a.jpg"), ("pmc-oa", "a.png")]
    index, kept = surveyed(tmp_path, ["here/a.jpg"], *images)
    assert kept == [False, True, False]
    assert list(index.ambiguous()) == []


def test_several_sources_are_kept_and_reported(tmp_path):
    images = [("quilt-1m", "x/a.jpg"), ("pmc-oa", "y/a.jpg"), ("pmc-oa", "y/a.jpg"), ("pmc-oa", "b.jpg")]
    index, kept = surveyed(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], *images)
    assert kept == [True, True, True, True]
    assert list(index.ambiguous()) == [("a.jpg", ["pmc-oa", "quilt-1m"])]
    assert list(index.unmatched()) == ["c.jpg"]


def test_a_named_source_is_believed(tmp_path):
    names = {"PubMedVision_Alignment": ["a.jpg"], "whatever": ["b.jpg"]}
    sources = ["pubmedvision", "quilt-1m", "pairs-2"]
    _, kept = surveyed(tmp_path, names, *[(source, image) for image in ("a.jpg", "b.jpg") for source in sources])
    assert kept == [True, False, True, True, True, True]
