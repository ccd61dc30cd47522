"""Tokens of the frozen encoder on disk: equal losses, and never the tokens of something else."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from torch.utils.data import DataLoader

from pallava.errors import PallavaError
from pallava.model import load_encoder
from pallava.model.connectors import build_connector
from pallava.model.loading import load_llm, load_tokenizer
from pallava.tiling import TileSpec
from pallava.training.dataset import PALLaVADataset, collate
from pallava.training.features import FeatureCache, FeatureWriter, connected_features, hash_encoder
from pallava.training.model import PALLaVAModel
from tests.tiny.training import TILE, save_data, save_parts

ROWS = 6
SPEC = TileSpec(TILE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def model(parts) -> PALLaVAModel:
    torch.manual_seed(0)
    return make_model(parts).eval()  # without dropout


def make_model(parts, **options) -> PALLaVAModel:
    connector = dict(type=build_connector, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    lora = dict(type=LoraConfig, r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    llm = dict(type=load_llm, pretrained_model_name_or_path=str(parts["llm"]), torch_dtype="float32")
    encoder = dict(type=load_encoder, source=str(parts["plip"]))
    return PALLaVAModel(llm=llm, visual_encoder=encoder, connector=connector, llm_lora=lora, **options)


@pytest.fixture
def data(tmp_path) -> dict[str, Path]:
    return save_data(tmp_path, num_rows=ROWS, num_without_image=1)


def make_dataset(parts, data, **features) -> PALLaVADataset:
    return PALLaVADataset(
        data["rows"],
        data["images"],
        load_tokenizer(str(parts["llm"])),
        dict(type="load_image_processor", source=str(parts["plip"])),
        prompt_template="qwen_chat",
        context_length=64,
        num_proc=1,
        cache_dir=data["cache"],
        features=dict(type="pallava.training.features.FeatureCache", **features) if features else None,
    )


def run_epoch(model, dataset, num_workers=0) -> tuple[list[float], list[float]]:
    """Losses and shares of cached images, batch for batch; the last batch has a row without an image."""
    with torch.no_grad(), connected_features(dataset, model):
        outputs = [model(**batch) for batch in DataLoader(dataset, 2, collate_fn=collate, num_workers=num_workers)]
    return [float(each["loss"]) for each in outputs], [float(each.get("cached_share", -1)) for each in outputs]


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_losses_are_those_without_a_cache(parts, model, data, tmp_path):
    plain, _ = run_epoch(model, make_dataset(parts, data))
    folder = tmp_path / "features"
    cold, cold_shares = run_epoch(model, make_dataset(parts, data, folder=folder))
    warm, warm_shares = run_epoch(model, make_dataset(parts, data, folder=str(folder)), num_workers=1)
    assert len(entries(folder)) == ROWS - 1
    assert (cold_shares, warm_shares) == ([0.0] * 3, [1.0] * 3)
    assert cold == plain
    assert warm == plain
    entries(folder)[0].unlink()
    mixed, shares = run_epoch(model, make_dataset(parts, data, folder=folder))
    assert sorted(shares) != warm_shares
    assert mixed == pytest.approx(plain, rel=1e-6)


def test_rounded_losses_do_not_depend_on_what_is_cached(parts, model, data, tmp_path):
    plain, _ = run_epoch(model, make_dataset(parts, data))
    options = {"folder": tmp_path / "features", "dtype": "bfloat16"}
    cold, _ = run_epoch(model, make_dataset(parts, data, **options))
    warm, shares = run_epoch(model, make_dataset(parts, data, **options))
    assert shares == [1.0] * 3
    assert warm == cold
    assert warm != plain
    assert warm == pytest.approx(plain, rel=1e-2)


def test_gradients_are_those_without_a_cache(parts, data, tmp_path):
    torch.manual_seed(0)
    model = make_model(parts, use_activation_checkpointing=False).eval()
    gradients = []
    for features in ({}, {"folder": tmp_path / "features"}, {"folder": tmp_path / "features"}):
        dataset = make_dataset(parts, data, **features)
        with connected_features(dataset, model):
            model(**collate([dataset[0], dataset[1]]))["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.connector.parameters() if p.grad is not None]))
        model.zero_grad()
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_a_hit_decodes_nothing(parts, model, data, tmp_path, monkeypatch):
    run_epoch(model, make_dataset(parts, data, folder=tmp_path / "features"))
    monkeypatch.setattr("pallava.training.dataset.open_image", pytest.fail)
    _, shares = run_epoch(model, make_dataset(parts, data, folder=tmp_path / "features"))
    assert shares == [1.0] * 3


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:-9] + b"\0" + b[-8:], lambda b: b"0" * 64]
)
def test_a_damaged_entry_is_encoded_anew(damage, parts, model, data, tmp_path):
    folder = tmp_path / "features"
    plain, _ = run_epoch(model, make_dataset(parts, data, folder=folder))
    good = {path: path.read_bytes() for path in entries(folder)}
    for path, content in good.items():
        path.write_bytes(damage(content))
    again, shares = run_epoch(model, make_dataset(parts, data, folder=folder))
    assert again == plain
    assert shares == [0.0] * 3
    assert {path: path.read_bytes() for path in entries(folder)} == good


def opened(folder, encoder, **changes) -> FeatureCache:
    cache = FeatureCache(folder, dtype=changes.pop("dtype", "auto"))
    cache.open(encoder, **{"layer": -2, "spec": SPEC, "precision": "None", **changes})
    return cache


def store(cache: FeatureCache, image: Path, tokens: torch.Tensor) -> None:
    writer = FeatureWriter(cache, 10**9)
    writer.put(cache.find(image), tokens)
    writer.close()


def test_only_what_is_the_same_is_found(parts, data, tmp_path):
    folder, image = tmp_path / "features", data["images"] / "0.png"
    encoder, tokens = load_encoder(parts["plip"]), torch.randn(3, 4, 24)
    store(opened(folder, encoder), image, tokens)
    assert torch.equal(opened(folder, load_encoder(parts["plip"])).find(image), tokens)
    spec = TileSpec(SPEC.size, SPEC.mean, SPEC.std, overview_only=True)
    changes = {"layer": -1, "spec": spec, "precision": "torch.float16", "dtype": "float32"}
    for name, value in changes.items():
        assert isinstance(opened(folder, encoder, **{name: value}).find(image), str), name
    other = load_encoder(parts["plip"])
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert isinstance(opened(folder, other).find(image), str)
    assert isinstance(opened(folder, encoder).find(data["images"] / "1.png"), str)
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(image)
    assert isinstance(opened(folder, encoder).find(image), str)


def test_the_same_image_under_another_name_is_found(parts, data, tmp_path):
    image, copy = data["images"] / "0.png", data["images"] / "copy.png"
    cache, tokens = opened(tmp_path / "features", load_encoder(parts["plip"])), torch.randn(3, 4, 24)
    store(cache, image, tokens)
    copy.write_bytes(image.read_bytes())
    assert torch.equal(cache.find(copy), tokens)


def test_an_encoder_is_known_by_its_weights(parts):
    encoder = load_encoder(parts["plip"])
    first = hash_encoder(encoder)
    assert hash_encoder(load_encoder(parts["plip"])) == first
    hashes = {first, hash_encoder(load_encoder(parts["plip"]).bfloat16())}
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    hashes.add(hash_encoder(encoder))
    other = load_encoder(parts["plip"])
    other.config.layer_norm_eps *= 2
    assert len({*hashes, hash_encoder(other)}) == 4


def test_a_full_folder_is_read_and_not_written(parts, model, data, tmp_path):
    folder = tmp_path / "features"
    run_epoch(model, make_dataset(parts, data, folder=folder))
    sizes = sum(path.stat().st_size for path in entries(folder))
    for path in entries(folder)[1:]:
        path.unlink()
    for _ in range(2):
        _, shares = run_epoch(model, make_dataset(parts, data, folder=folder, max_gb=0.7 * sizes / 1e9))
    kept = sum(path.stat().st_size for path in entries(folder))
    assert sizes / 3 < kept <= 0.7 * sizes
    assert 0 < sum(shares) < 3


def test_a_disk_that_fails_ends_nothing(parts, model, data, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    plain, _ = run_epoch(model, make_dataset(parts, data))
    monkeypatch.setattr("pallava.training.features.write_bytes", fail)
    assert run_epoch(model, make_dataset(parts, data, folder=tmp_path / "features"))[0] == plain
    assert entries(tmp_path / "features") == []


def write_all(cache: FeatureCache, names: list[str], images: list[Path]) -> None:
    for number in range(200):
        which = number % len(names)
        writer = FeatureWriter(cache, 10**9)
        writer.put(names[which], torch.full((9, 16, 64), float(which)))
        writer.close()
        found = cache.find(images[which])
        assert isinstance(found, str) or (found == which).all()
        (cache.entries / names[which][:2] / names[which][2:]).unlink(missing_ok=True)
    for which, name in enumerate(names):
        writer = FeatureWriter(cache, 10**9)
        writer.put(name, torch.full((9, 16, 64), float(which)))
        writer.close()


def test_two_processes_write_at_once(parts, data, tmp_path):
    cache = opened(tmp_path / "features", load_encoder(parts["plip"]))
    images = [data["images"] / f"{number}.png" for number in range(ROWS - 1)]
    names = [cache.find(image) for image in images]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_all, args=(cache, names, images)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert not [path for path in entries(tmp_path / "features") if path.name.endswith(".unfinished")]
    assert all((cache.find(image) == number).all() for number, image in enumerate(images))


def test_processes_share_the_room(parts, model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("pallava.training.features.get_world_size", lambda: 10**9)
    run_epoch(model, make_dataset(parts, data, folder=tmp_path / "features", max_gb=1e-3))
    assert entries(tmp_path / "features") == []


@pytest.mark.parametrize(
    ("options", "fact"),
    [({"max_gb": 0}, "got 0"), ({"dtype": "int8"}, "'int8'"), ({"folder": __file__}, "test_features")],
)
def test_refuses_what_cannot_be(options, fact, parts, model, data, tmp_path):
    with pytest.raises(PallavaError, match=fact):
        run_epoch(model, make_dataset(parts, data, **{"folder": tmp_path / "features", **options}))


def test_refuses_an_encoder_that_learns(parts, data, tmp_path):
    dataset = make_dataset(parts, data, folder=tmp_path / "features")
    with (
        pytest.raises(PallavaError, match="freeze_visual_encoder"),
        connected_features(dataset, make_model(parts, freeze_visual_encoder=False)),
    ):
        pass


def test_a_missing_image_is_reported_as_without_a_cache(parts, model, data, tmp_path):
    (data["images"] / "2.png").unlink()
    with pytest.raises(PallavaError, match="row '2', image .*2.png"):
        run_epoch(model, make_dataset(parts, data, folder=tmp_path / "features"))
