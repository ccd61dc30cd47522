"""Hashes: fixed values, since stored keys and published outputs depend on them."""

from pallava.io.hashing import hash_bytes, hash_file, hash_folder, hash_json, hash_text, short_hash


def test_values(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_bytes(b"abc") == hash_file(tmp_path / "file") == sha
    assert hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1}) != hash_json({"a": 2, "b": 2})
    assert hash_text("a", "b") != hash_text("a\0b", "") != hash_text("ab")
    assert len(hash_text("\ud800")) == 32  # half a surrogate pair
    assert short_hash("0:0").hex() == "d56c9c7e6769d062"


def test_a_folder(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "a.json").write_text("{}")
    first = hash_folder(tmp_path / "one")
    assert first == hash_folder(tmp_path / "two")
    (tmp_path / "two" / "card.md").write_text("words")
    assert first == hash_folder(tmp_path / "two", ["*.json"]) != hash_folder(tmp_path / "two")
    (tmp_path / "two" / "deep" / "a.json").rename(tmp_path / "two" / "deep" / "b.json")
    assert first != hash_folder(tmp_path / "two", ["*.json"])
