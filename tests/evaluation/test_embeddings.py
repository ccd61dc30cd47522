"""Embeddings: nothing is computed twice or lost."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch

from pallava.errors import PallavaError
from pallava.evaluation.encoders import embeddings
from pallava.evaluation.encoders.embeddings import EmbeddingCache, count_reasons, embed_images, embed_texts
from pallava.evaluation.encoders.load import Encoder, load_encoder
from tests.tiny.clips import write_classes, write_hugging_face, write_open_clip
from tests.tiny.pictures import noise


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    root = tmp_path_factory.mktemp("models")
    write_open_clip(root / "plip")
    write_hugging_face(root / "clip")
    return {"open_clip": load_encoder(str(root / "plip")), "hugging_face": load_encoder(str(root / "clip"))}


@pytest.fixture
def encoder(encoders: dict[str, Encoder]) -> Encoder:
    return encoders["open_clip"]


def counting(encoder: Encoder) -> tuple[Encoder, list[int]]:
    """The encoder, and how many images and texts went into it."""
    seen: list[int] = []

    def image(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return encoder.encode_image(pixels)

    def text(texts: list[str]) -> torch.Tensor:
        seen.append(len(texts))
        return encoder.encode_text(texts)

    return dataclasses.replace(encoder, encode_image=image, encode_text=text), seen


def test_pixels_come_from_one_place(encoders: dict[str, Encoder]):
    for encoder in encoders.values():
        for width, height in [(20_000, 8), (8, 20_000)]:
            assert encoder.preprocess(noise(width, height)).shape == (3, 16, 16)


def test_unreadable_images_are_counted(encoder: Encoder, tmp_path: Path):
    write_classes(tmp_path, {"a": 2})
    (tmp_path / "broken.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    names = ["a/0.png", "broken.png", "a/1.png", "empty.png", "none.png"]
    paths = [tmp_path / name for name in names]
    found = embed_images(encoder, paths, EmbeddingCache(tmp_path / "cache", encoder))
    assert found.index == [0, 2]
    assert found.vectors.shape == (2, 16)
    assert set(found.unreadable) == {str(paths[number]) for number in (1, 3, 4)}
    reasons = count_reasons(found.unreadable)
    assert sum(reasons.values()) == 3
    assert not any(str(tmp_path) in reason for reason in reasons)
    with pytest.raises(PallavaError, match="none of 2 images can be read"):
        embed_images(encoder, paths[3:], EmbeddingCache(tmp_path / "cache", encoder))


def test_a_second_run_computes_nothing(encoder: Encoder, tmp_path: Path):
    counted, seen = counting(encoder)
    paths = sorted(write_classes(tmp_path / "data", {"a": 3, "b": 4}).rglob("*.png"))
    (tmp_path / "copy.png").write_bytes(paths[0].read_bytes())
    first = embed_images(
        counted, [*paths, tmp_path / "copy.png"], EmbeddingCache(tmp_path / "c", encoder), batch_size=3
    )
    assert seen == [3, 3, 1]  # the copy is no eighth
    texts = embed_texts(counted, ["mucus", "fat", "mucus"], EmbeddingCache(tmp_path / "c", encoder))
    assert seen[3:] == [2]
    paths[0].rename(tmp_path / "moved.png")
    cache = EmbeddingCache(tmp_path / "c", encoder)
    again = embed_images(counted, [tmp_path / "moved.png", *paths[1:]], cache)
    assert torch.equal(again.vectors, first.vectors[:7])
    assert torch.equal(embed_texts(counted, ["mucus", "fat", "mucus"], cache), texts)
    assert len(seen) == 4
    embed_texts(counted, ["mucus", "stroma"], cache)
    assert seen[4:] == [1]


def test_other_content_and_another_model_are_computed(encoders: dict[str, Encoder], tmp_path: Path):
    path = write_classes(tmp_path / "data", {"a": 1}) / "a" / "0.png"
    one, other = (
        embed_images(encoder, [path], EmbeddingCache(tmp_path / "c", encoder)).vectors for encoder in encoders.values()
    )
    assert not torch.equal(one, other)
    write_classes(tmp_path / "data", {"a": 1}, seed=5)
    encoder = encoders["open_clip"]
    assert not torch.equal(embed_images(encoder, [path], EmbeddingCache(tmp_path / "c", encoder)).vectors, one)


def test_damaged_and_unfinished_files_do_no_harm(encoder: Encoder, tmp_path: Path):
    paths = sorted(write_classes(tmp_path / "data", {"a": 3}).rglob("*.png"))
    first = embed_images(encoder, paths, EmbeddingCache(tmp_path / "c", encoder))
    (whole,) = (tmp_path / "c" / encoder.identity).glob("*.npy")
    content = whole.read_bytes()
    stale = whole.with_name(".stale.npy.0.unfinished")
    stale.touch()
    os.utime(stale, (0, 0))
    for damaged in (content[:-20], content[:5], b"", b"nothing of the kind"):
        whole.write_bytes(damaged)
        counted, seen = counting(encoder)
        again = embed_images(counted, paths, EmbeddingCache(tmp_path / "c", encoder))
        assert sum(seen) == 3
        assert torch.equal(again.vectors, first.vectors)
        (whole,) = (tmp_path / "c" / encoder.identity).glob("*.npy")
    assert not stale.exists()


def test_an_interrupted_run_keeps_what_it_had(encoder: Encoder, tmp_path: Path):
    paths = sorted(write_classes(tmp_path / "data", {"a": 6}).rglob("*.png"))
    calls: list[int] = []

    def interrupted(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encoder.encode_image(pixels)

    broken = dataclasses.replace(encoder, encode_image=interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_images(broken, paths, EmbeddingCache(tmp_path / "c", encoder), batch_size=2)
    counted, seen = counting(encoder)
    embed_images(counted, paths, EmbeddingCache(tmp_path / "c", encoder))
    assert sum(seen) == 2


class Named:
    identity = "x"


@pytest.mark.posix
def test_a_killed_run_leaves_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embeddings, "_SECONDS_BETWEEN_WRITES", 0)
    process = os.fork()  # a fresh interpreter would take seconds to import torch
    if not process:
        replace, calls = Path.replace, []

        def die(self: Path, target: Path) -> Path:
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", die)
        cache = EmbeddingCache(tmp_path, Named())
        for number in range(5):
            cache.add([f"{number:032d}"], torch.full((1, 4), float(number)))
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    assert list((tmp_path / "x").glob("*.unfinished"))
    cache = EmbeddingCache(tmp_path, Named())
    assert cache.get([f"{number:032d}" for number in range(2)])[:, 0].tolist() == [0.0, 0.5]
    assert f"{2:032d}" not in cache


def test_what_is_not_finite_is_told(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_classes(tmp_path / "data", {"a": 1}) / "a" / "0.png"
    broken = dataclasses.replace(encoder, encode_image=lambda pixels: torch.full((len(pixels), 16), torch.nan))
    with pytest.raises(PallavaError, match="not finite"):
        embed_images(broken, [path], EmbeddingCache(tmp_path / "c", encoder))
    (tmp_path / "file").touch()
    with pytest.raises(PallavaError, match="cannot keep embeddings"):
        EmbeddingCache(tmp_path / "file", encoder)
    monkeypatch.setattr(embeddings.np, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(PallavaError, match="No space left"):
        embed_images(encoder, [path], EmbeddingCache(tmp_path / "c", encoder))
