"""Our hooks reach into open_clip's trainer where they should, and what stood there is still called."""

import json
from pathlib import Path
from types import SimpleNamespace

import open_clip
import open_clip_train.data as reading
import open_clip_train.main as training
import pytest
import torch
import webdataset
from open_clip import factory
from PIL import Image

from pallava.errors import PallavaError
from pallava.pretraining.trainer import DataParallelOnCPU, install_hooks
from pallava.transforms import PathologyAugmentation
from tests.tiny.pretraining import MODEL, save_pairs


@pytest.fixture
def originals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back afterwards what `install` replaces."""
    monkeypatch.setattr(factory, "load_state_dict", factory.load_state_dict)
    monkeypatch.setattr(reading, "CsvDataset", reading.CsvDataset)
    monkeypatch.setattr(webdataset, "decode", webdataset.decode)
    monkeypatch.setattr(training, "create_model_and_transforms", training.create_model_and_transforms)
    parallel = torch.nn.parallel.DistributedDataParallel
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", parallel)


@pytest.mark.usefixtures("originals")
@pytest.mark.parametrize("aug_cfg", [{}, {"use_timm": True}])
def test_the_augmentation_stands_before_the_normalization(tmp_path: Path, aug_cfg: dict) -> None:
    (tmp_path / "hooked.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path / "hooked.json")
    seen: list[object] = []
    augmentation = PathologyAugmentation()
    install_hooks(augmentation=augmentation, on_cpu=True, on_model=seen.append)
    model, train, val = training.create_model_and_transforms("hooked", aug_cfg=aug_cfg)
    assert seen == [model]
    steps = train.transforms
    place = steps.index(augmentation)
    assert type(steps[place + 1]).__name__ == "Normalize"
    assert augmentation not in val.transforms
    assert train(Image.new("RGB", (40, 50), (200, 120, 160))).shape == (3, 32, 32)
    assert torch.nn.parallel.DistributedDataParallel is DataParallelOnCPU


@pytest.mark.usefixtures("originals")
def test_without_augmentation_or_cpu_they_stay_out(tmp_path: Path) -> None:
    (tmp_path / "hooked.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path / "hooked.json")
    before = torch.nn.parallel.DistributedDataParallel
    steps = len(training.create_model_and_transforms("hooked")[1].transforms)
    install_hooks(augmentation=None, on_cpu=False, on_model=lambda model: None)
    assert len(training.create_model_and_transforms("hooked")[1].transforms) == steps
    assert torch.nn.parallel.DistributedDataParallel is before


@pytest.mark.usefixtures("originals")
def test_the_trainer_reads_a_table_through_our_reader(tmp_path: Path) -> None:
    save_pairs(tmp_path, 2)
    image = Image.new("RGBA", (32, 32), (10, 200, 30, 0))  # transparent: white to a person, green to Pillow
    image.save(tmp_path / "images" / "0.png")
    (tmp_path / "pairs.tsv").write_text(f"filepath\ttitle\n{tmp_path}/images/0.png\ta clear slide\n")
    install_hooks(augmentation=None, on_cpu=True, on_model=lambda model: None)
    settings = SimpleNamespace(
        train_data=str(tmp_path / "pairs.tsv"),
        csv_img_key="filepath",
        csv_caption_key="title",
        csv_separator="\t",
        distributed=False,
        batch_size=1,
        workers=0,
    )
    transform = open_clip.transform.image_transform(32, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    data = reading.get_csv_dataset(settings, transform, is_train=True, tokenizer=open_clip.SimpleTokenizer())
    pixels, texts = next(iter(data.dataloader))
    assert pixels.min() == 1.0
    assert texts.shape == (1, 77)


@pytest.mark.usefixtures("originals")
def test_weights_of_a_compiled_model_are_read_and_others_refused(tmp_path: Path) -> None:
    (tmp_path / "hooked.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path / "hooked.json")
    state = open_clip.create_model("hooked").state_dict()
    torch.save({f"_orig_mod.{key}": value for key, value in state.items()}, tmp_path / "compiled.pt")
    torch.save({"epoch": 1, "state_dict": {"other": torch.ones(1)}}, tmp_path / "other.pt")
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04cut")
    install_hooks(augmentation=None, on_cpu=True, on_model=lambda model: None)
    model, _, _ = training.create_model_and_transforms("hooked", str(tmp_path / "compiled.pt"))
    torch.testing.assert_close(dict(model.state_dict()), dict(state))
    for name in ("other.pt", "damaged.pt"):
        with pytest.raises(PallavaError, match=rf"{name}.*hooked") as error:
            training.create_model_and_transforms("hooked", str(tmp_path / name))
        assert len(str(error.value).replace(str(tmp_path), "")) < 300
