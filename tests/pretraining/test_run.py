"""What the command does before and after the trainer; a Python one-liner stands for the trainer."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
from open_clip_train.params import parse_args

from pallava.cli import main
from pallava.errors import PallavaError
from pallava.io.launch import Launch
from pallava.pretraining.pairs import count_steps
from pallava.pretraining.run import Pretraining, TrainerFailed, pretrain
from tests.tiny.pretraining import save_pairs

TRAINS = """
import sys, pathlib
out = pathlib.Path(sys.argv[3])
for name in ("run/checkpoints/epoch_latest.pt", "encoder/config.json"):
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).touch()
print("words:", *sys.argv[1:], sep="|")
"""


def settings(folder: Path, *options: str, **changes) -> Pretraining:
    if not (folder / "pairs.json").is_file():
        save_pairs(folder)
    values = {"model": str(folder / "tiny.json"), "pretrained": "", **changes}
    options = ("--batch-size", "4", "--epochs", "20", "--workers", "0", *options)
    return Pretraining(folder / "pairs.json", folder / "images", folder / "out", options=options, **values)


def launch(code: str = TRAINS, processes: int = 1) -> Launch:
    return Launch((sys.executable, "-c", code), os.environ, processes)


def words_of(settings: Pretraining, processes: int = 1) -> list[str]:
    lines: list[str] = []
    pretrain(settings, launch(processes=processes), lines.append)
    return next(line for line in lines if line.startswith("words:")).strip().split("|")


def value(words: list[str], flag: str) -> str:
    """What the last of an option's values is, as argparse reads it."""
    return words[len(words) - words[::-1].index(flag)]


def test_what_the_trainer_is_told(tmp_path: Path) -> None:
    words = words_of(settings(tmp_path, "--siglip", "--lr", "1e-5", "--lock-text", augment=True))
    assert "--augment" in words
    assert "--siglip" in words
    assert value(words, "--lr") == "1e-5"
    assert value(words, "--model") == "tiny"
    assert value(words, "--train-data") == str(tmp_path / "out" / "pairs.tsv")
    assert value(words, "--warmup") == "4"  # a tenth of 2 batches in 20 epochs
    assert "--lock-text-freeze-layer-norm" in words
    assert "--pretrained" not in words


def test_the_published_shape_from_clip_is_the_default(tmp_path: Path) -> None:
    save_pairs(tmp_path)
    default = Pretraining(tmp_path / "pairs.json", tmp_path / "images", tmp_path / "out", options=("--batch-size", "4"))
    words = words_of(default)
    assert (value(words, "--model"), value(words, "--pretrained")) == ("ViT-B-16-quickgelu", "openai")


def test_shards(tmp_path: Path) -> None:
    words = words_of(settings(tmp_path, shards=3))
    assert value(words, "--train-data") == str(tmp_path / "out" / "shards") + "/{00000..00002}.tar"
    assert value(words, "--dataset-type") == "webdataset"
    (tmp_path / "out" / "run" / "checkpoints" / "epoch_latest.pt").unlink()
    (tmp_path / "out" / "encoder" / "config.json").unlink()
    with pytest.raises(PallavaError, match="3 shards .* 4 readers"):
        pretrain(settings(tmp_path, "--workers", "4", shards=3), launch(), lambda line: None)


@pytest.mark.parametrize(
    ("num_pairs", "batch", "workers", "processes", "shards", "least"),
    [
        (8, 4, 1, 1, 3, 8),  # the only reader has them all
        (8, 4, 2, 1, 2, 4),
        (8, 4, 2, 1, 3, 2),  # one reader has one of the shards, which hold 3, 3 and 2
        (11, 5, 2, 1, 4, 5),  # two of 3, 3, 3 and 2
        (8, 4, 0, 2, 2, 4),
        (7, 4, 0, 2, 2, 3),
        (12, 4, 2, 2, 4, 3),
    ],
)
def test_every_reader_of_shards_needs_a_batch(
    num_pairs: int, batch: int, workers: int, processes: int, shards: int, least: int
) -> None:
    options = ["--batch-size", str(batch), "--workers", str(workers)]
    if least >= batch:
        assert count_steps(num_pairs, parse_args(options), processes, shards) > 0
        return
    with pytest.raises(PallavaError, match=f"a reader only {least}, fewer than a batch"):
        count_steps(num_pairs, parse_args(options), processes, shards)
    # Drawn with replacement, the shards of a reader never end.
    assert count_steps(num_pairs, parse_args([*options, "--dataset-resampled"]), processes, shards) > 0


def test_shards_for_every_process(tmp_path: Path) -> None:
    with pytest.raises(PallavaError, match="1 shards .* 2 readers"):
        pretrain(settings(tmp_path, shards=1), launch(processes=2), lambda line: None)


def test_a_finished_training_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    words_of(settings(tmp_path))
    lines: list[str] = []
    assert pretrain(settings(tmp_path), launch("raise SystemExit(1)"), lines.append) == tmp_path / "out" / "encoder"
    assert str(tmp_path / "out" / "encoder") in lines[0]
    with pytest.raises(PallavaError, match="augment was False and is True"):
        pretrain(settings(tmp_path, augment=True), launch(), lines.append)
    with pytest.raises(PallavaError, match="processes was 1 and is 2"):
        pretrain(settings(tmp_path), launch(processes=2), lines.append)


def test_other_pairs_are_another_training(tmp_path: Path) -> None:
    words_of(settings(tmp_path))
    (tmp_path / "out" / "encoder" / "config.json").unlink()
    rows = json.loads((tmp_path / "pairs.json").read_text())
    (tmp_path / "pairs.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(PallavaError, match="pairs was"):
        pretrain(settings(tmp_path), launch(), lambda line: None)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    save_pairs(tmp_path)
    (tmp_path / "images" / "0.png").unlink()
    lines: list[str] = []
    pretrain(settings(tmp_path), launch(), lines.append)
    assert lines[:2] == ["1 pairs are left out: missing\n", "7 pairs, 20 steps in 20 epochs of 4\n"]


def test_before_the_first_epoch_the_settings_may_change(tmp_path: Path) -> None:
    with pytest.raises(TrainerFailed):
        pretrain(settings(tmp_path), launch("raise SystemExit(1)"), lambda line: None)
    words_of(settings(tmp_path, augment=True))


def test_one_run_at_a_time(tmp_path: Path) -> None:
    told: list[str] = []

    def start_another(line: str) -> None:
        if not told:
            with pytest.raises(PallavaError, match="another run trains in '.*out'"):
                pretrain(settings(tmp_path), launch(), lambda line: None)
        told.append(line)

    pretrain(settings(tmp_path), launch(), start_another)
    assert told
    assert pretrain(settings(tmp_path), launch(), lambda line: None)


def test_the_nodes_of_a_training_share_its_folder(tmp_path: Path) -> None:
    lines: list[str] = []
    other = dataclasses.replace(launch(), node=1)
    pretrain(settings(tmp_path), launch(), lambda line: lines or pretrain(settings(tmp_path), other, lines.append))
    assert any(line.startswith("words:") for line in lines)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(PallavaError, match="out' is not empty"):
        pretrain(settings(tmp_path), launch(), lambda line: None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--learning-rate", "1"], "unrecognized arguments: --learning-rate"),
        (["--name", "mine"], "--name cannot follow the `--`"),
        (["--resum", "none.pt"], "--resume cannot follow"),  # argparse takes beginnings of names
        (["--model", "ViT-L-14"], "--model cannot follow .*--model-name before"),
        (["--image-resize-mode", "longest"], "shortest.* or squash"),
        (["--force-image-size", "32", "48"], r"square, but image_size is \[32, 48\]"),
        (["--batch-size", "9"], "8 pairs are fewer than a batch"),
        (["--accum-freq", "3"], "8 pairs are fewer than a batch"),
    ],
)
def test_mistakes_in_the_options(tmp_path: Path, options: list[str], reason: str) -> None:
    with pytest.raises(PallavaError, match=reason):
        pretrain(settings(tmp_path, *options), launch(), lambda line: None)


def test_mistakes_in_the_model_are_told_before_a_picture_is_read(tmp_path: Path) -> None:
    save_pairs(tmp_path)
    with pytest.raises(PallavaError, match="'none.pt' of tiny"):
        pretrain(settings(tmp_path, pretrained="none.pt"), launch(), lambda line: None)
    with pytest.raises(PallavaError, match="CLIP ViT"):
        pretrain(settings(tmp_path, model="RN50"), launch(), lambda line: None)
    assert not (tmp_path / "out").exists()


def test_two_processes_need_a_batch_each(tmp_path: Path) -> None:
    with pytest.raises(PallavaError, match="2 processes take 5 each"):
        pretrain(settings(tmp_path, "--batch-size", "5"), launch(processes=2), lambda line: None)


def test_a_failure_of_the_trainers_gives_its_code_and_last_lines(tmp_path: Path) -> None:
    code = "print('one', 'two', 'three', sep=chr(10)); raise SystemExit(7)"
    with pytest.raises(TrainerFailed, match=r"exit code 7; its last lines:\none\ntwo\nthree") as failed:
        pretrain(settings(tmp_path), launch(code), lambda line: None)
    assert failed.value.code == 7
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(TrainerFailed) as failed:
        pretrain(settings(tmp_path), launch(code), lambda line: None)
    assert failed.value.code == 137


def test_torchruns_own_account_is_no_last_line(tmp_path: Path) -> None:
    code = "print('ValueError: why'); print('E1124 torch/distributed/elastic/api.py:9] failed'); print('====')"
    with pytest.raises(TrainerFailed, match="last lines:\nValueError: why$"):
        pretrain(settings(tmp_path), launch(code + "; raise SystemExit(1)"), lambda line: None)


def test_a_mistake_found_by_the_trainer_is_its_sentence(tmp_path: Path) -> None:
    code = "print('error: image a.png is broken'); print('torchrun says more'); raise SystemExit(1)"
    with pytest.raises(PallavaError, match="^image a.png is broken$"):
        pretrain(settings(tmp_path), launch(code), lambda line: None)


def test_the_command_tells_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pairs(tmp_path)
    words = ["pretrain", str(tmp_path / "pairs.json"), str(tmp_path / "out"), "--image-folder", str(tmp_path)]
    assert main([*words, "--model-name", "none.json"]) == 2
    assert "none.json" in capsys.readouterr().err
    assert main([*words, "--", "--nonsense"]) == 2
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err
