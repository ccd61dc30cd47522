"""A training of whose images 1 % cannot be opened: it ends, counts them right, and resumes exactly."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.smoke.test_training import losses, start, train
from tests.tiny.pictures import break_pictures
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = pytest.mark.smoke
NUM_ROWS, BATCH = 800, 16
STEPS = NUM_ROWS // BATCH  # one epoch


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """The training of 800 rows, eight of which are broken, each in another way, read by two worker processes."""
    folder = tmp_path_factory.mktemp("bad")
    data = save_data(folder, num_rows=8)
    rows = [json.loads(line) for line in data["rows"].read_text().splitlines()]
    bad = [*break_pictures(data["images"])]
    with data["rows"].open("w") as file:
        for index in range(NUM_ROWS):
            name = bad[index // 100] if index % 100 == 50 else f"{index % 8}.png"
            file.write(json.dumps({**rows[index % 8], "id": f"row {index}", "image": name}) + "\n")
    parts = save_parts(folder)
    path = write_config("pallava_instruction_tuning", parts, data, folder / "tiny.py", num_steps=STEPS)
    config = Config.fromfile(path)
    config.train_dataloader.update(batch_size=BATCH, num_workers=2)
    config.train_dataloader.dataset.update(on_bad_image="skip", max_bad_images=0.01)
    config.default_hooks.sample_chat.images = []
    config.dump(path)
    return path


def listed(work_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "bad_images.jsonl").read_text().splitlines()]


def test_it_ends_counts_and_resumes(config, tmp_path):
    train(config, tmp_path / "run", "--seed", "1")
    bad = listed(tmp_path / "run")
    assert sorted(each["index"] for each in bad) == [*range(50, NUM_ROWS, 100)]
    assert all(each["id"] == f"row {each['index']}" for each in bad)
    log = next((tmp_path / "run").glob("*/*.log")).read_text()
    for fact in (
        f"8 of {NUM_ROWS} rows",
        "2 damaged or unsupported",
        "2 not a picture of a known format",
        "1 is too large",
    ):
        assert fact in log
    train(config, tmp_path / "resumed", "--resume", str(tmp_path / "run" / f"iter_{STEPS // 2}.pth"))
    whole = losses(tmp_path / "run")
    assert losses(tmp_path / "resumed") == {step: whole[step] for step in range(STEPS // 2 + 1, STEPS + 1)}
    assert listed(tmp_path / "resumed") == bad


@pytest.mark.slow
def test_it_stops_over_the_budget(config, tmp_path):
    """Both processes, though each has met only some of the bad images."""
    option = ("--cfg-options", "train_dataloader.dataset.max_bad_images=0.005")
    process = start(config, tmp_path / "run", "--seed", "1", *option, NPROC_PER_NODE="2")
    output, _ = process.communicate(timeout=300)
    bad = listed(tmp_path / "run")
    assert process.returncode == 1, output[-4000:]
    assert len(bad) > 4
    assert f"error: {len(bad)} of {NUM_ROWS} rows" in output
    assert "max_bad_images=0.005 allows 4" in output
    assert "Traceback" not in output
    assert output.count(f"error: {len(bad)} of {NUM_ROWS} rows") == 2, output[-3000:]
