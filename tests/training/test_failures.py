"""Whose fault an error is: a user's is one sentence, any other keeps its traceback."""

import sys
from datetime import timedelta
from functools import partial
from threading import Thread

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR
from torch import distributed
from torch.utils.data import DataLoader, Dataset
from xtuner.registry import BUILDER
from xtuner.tools.utils import get_seed_from_checkpoint

from pallava.errors import PallavaError
from pallava.training.failures import check_launch, resume_newest, user_message


def caught(call):
    try:
        call()
    except Exception as error:
        return user_message(error, error.__traceback__)
    raise AssertionError


def build_wrongly(**settings):
    raise TypeError("build_wrongly() got an unexpected keyword argument 'x'")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"type": "PALLaVAModel", "freze_llm": True}, "unexpected keyword argument 'freze_llm'"),
        ({"type": "PALLaVAModl"}, "PALLaVAModl is not in the"),
    ],
)
def test_a_part_that_the_config_describes_wrongly(settings, said):
    sentence = caught(lambda: BUILDER.build(settings))
    assert said in sentence
    assert sentence.startswith("a part of the config cannot be built: ")


def test_a_path_that_is_not_there():
    assert "nowhere.pth'" in caught(lambda: open("nowhere.pth"))  # noqa: PTH123, SIM115


def test_deepspeed_settings_that_are_not_there():
    assert "pallava_zero2" in user_message(FileNotFoundError("Cannot find pallava_zero3"))


@pytest.mark.parametrize("content", [{"w": torch.ones(1)}, {"meta": {"epoch": 1}}, [1], torch.ones(2)])
def test_a_file_to_resume_that_no_training_wrote(content, tmp_path):
    torch.save(content, tmp_path / "foreign.pth")
    sentence = caught(lambda: get_seed_from_checkpoint(str(tmp_path / "foreign.pth")))
    assert "foreign.pth' is not a checkpoint of a training" in sentence


def test_a_checkpoint_of_another_model():
    optimizers = [torch.optim.SGD(torch.nn.Linear(1, 1, bias).parameters(), lr=1.0) for bias in (True, False)]
    assert "config" in caught(lambda: optimizers[0].load_state_dict(optimizers[1].state_dict()))


DEEPSPEED, PLAIN = ({"optim_wrapper": {"type": kind}} for kind in ("DeepSpeedOptimWrapper", "AmpOptimWrapper"))


LAUNCH = {"processes": 2, "batch_size": 6, "accumulative_counts": 3}  # that wrote both
HERE = {"train_dataloader": {"batch_size": 6}}


@pytest.fixture
def written(tmp_path):
    """Checkpoints of two processes, under ZeRO-2 and without DeepSpeed, as two folders of runs."""
    content = {"meta": {"seed": 3, "launch": LAUNCH}}
    for name in ("mp_rank_00_model_states", *(f"zero_pp_rank_{rank}_mp_rank_00_optim_states" for rank in (0, 1))):
        path = tmp_path / "zero2" / "iter_2.pth" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    (tmp_path / "plain").mkdir()
    torch.save(content, tmp_path / "plain" / "iter_2.pth")
    return tmp_path


def check(config):
    """Check a launch as it is done before anything is built."""
    config = Config({**HERE, **config})
    resume_newest(config)
    check_launch(config)


def with_counts(launch, counts):
    """Return a config that accumulates in the way of its runner."""
    if launch is PLAIN:
        return {"optim_wrapper": {**PLAIN["optim_wrapper"], "accumulative_counts": counts}}
    return {**DEEPSPEED, "strategy": {"gradient_accumulation_steps": counts}}


@pytest.mark.parametrize("how", ["given", "text", "latest"])
@pytest.mark.parametrize(
    ("launch", "run", "processes", "facts"),
    [
        (PLAIN, "zero2", "2", ["--deepspeed"]),
        (DEEPSPEED, "plain", "1", ["--deepspeed"]),
        (DEEPSPEED, "zero2", "1", ["processes=2", "got 1"]),
        (DEEPSPEED, "zero2", "3", ["processes=2", "got 3"]),
        (PLAIN, "plain", "1", ["processes=2", "got 1"]),
    ],
)
def test_a_checkpoint_of_another_launch(written, monkeypatch, how, launch, run, processes, facts):
    monkeypatch.setenv("WORLD_SIZE", processes)
    path = str(written / run / "iter_2.pth")
    ways = {"given": {"resume": True, "load_from": path}, "text": {"resume": path}, "latest": {"resume": True}}
    with pytest.raises(PallavaError) as refused:
        check({**with_counts(launch, 3), "work_dir": str(written / run), **ways[how]})
    assert all(fact in str(refused.value) for fact in [path, *facts])


@pytest.mark.parametrize(("launch", "run"), [(DEEPSPEED, "zero2"), (PLAIN, "plain")])
@pytest.mark.parametrize(
    ("batch_size", "counts", "fact"), [(5, 3, "batch_size=6"), (6, 4, "accumulative_counts=3"), (6, 3, None)]
)
def test_batches_of_another_size(written, monkeypatch, launch, run, batch_size, counts, fact):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = {**with_counts(launch, counts), "train_dataloader": {"batch_size": batch_size}, "work_dir": "x"}
    config |= {"resume": True, "load_from": str(written / run / "iter_2.pth")}
    if fact is None:
        check(config)
        return
    with pytest.raises(PallavaError, match=fact):
        check(config)


def test_what_only_weights_are_taken_from_may_be_of_any_number_of_processes(written, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    config = {**DEEPSPEED, "work_dir": str(written), "load_from": str(written / "zero2" / "iter_2.pth")}
    check(config)
    check({**config, "load_from": None, "resume": True})
    check({**config, "load_from": "https://host/iter_2.pth"})
    with pytest.raises(PallavaError, match="--deepspeed"):
        check({**config, **PLAIN, "load_from": config["load_from"] + "/mp_rank_00_model_states.pt"})


def test_the_launch_is_checked_before_anything_is_built(written):
    from mmengine.runner import FlexibleRunner, Runner

    path = written / "zero2" / "iter_2.pth"
    config = Config({"work_dir": str(written), "resume": True, "load_from": str(path)})
    with pytest.raises(PallavaError, match="with --deepspeed"):
        Runner.from_cfg(Config({**config, **PLAIN}))
    with pytest.raises(PallavaError, match="processes=2.* got 1"):
        FlexibleRunner.from_cfg(Config({**config, **DEEPSPEED}))


@pytest.mark.parametrize("run", ["plain", "zero2"])
def test_a_damaged_checkpoint_is_refused_before_anything_is_built(written, run):
    from mmengine.runner import FlexibleRunner, Runner

    path = written / run / "iter_2.pth"
    file = path / "zero_pp_rank_1_mp_rank_00_optim_states.pt" if run == "zero2" else path
    file.write_bytes(file.read_bytes()[:-100])
    runner, launch = (FlexibleRunner, DEEPSPEED) if run == "zero2" else (Runner, PLAIN)
    with pytest.raises(PallavaError, match="iter_2.pth' is not a whole checkpoint"):
        runner.from_cfg(Config({**launch, "work_dir": str(written), "resume": True, "load_from": str(path)}))


def test_a_run_that_is_shorter_than_its_warm_up():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    build = partial(LinearLR.build_iter_from_epoch, optimizer, start_factor=0.1, begin=0, end=0.03, epoch_length=9)
    assert "warmup_ratio" in caught(build)


def test_a_user_message_ours():
    def fail():
        raise PallavaError("no such thing")

    assert caught(fail) == "no such thing"


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise PallavaError("row '7', image 'a.png': broken")


def test_an_error_of_ours_in_a_data_loaders_worker():
    assert caught(lambda: next(iter(DataLoader(Broken(), num_workers=1)))) == "row '7', image 'a.png': broken"


def test_a_process_that_ended_while_another_waits_for_it():
    store, groups, seconds = distributed.HashStore(), {}, timedelta(seconds=20)

    def join(rank):
        groups[rank] = distributed.ProcessGroupGloo(store, rank, 2, seconds)

    threads = [Thread(target=join, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del groups[1]
    assert "another process" in caught(lambda: groups[0].allreduce([torch.ones(1)]).wait())


@pytest.mark.parametrize("call", [lambda: BUILDER.build({"type": build_wrongly}), lambda: {}["key"], lambda: 1 / 0])
def test_other_errors_keep_their_traceback(call):
    assert caught(call) is None


def test_python_tells_it(capsys):
    """Whoever has set a hook of his own since: torch.distributed's calls the one before."""
    sys.excepthook(PallavaError, PallavaError("no such thing"), None)
    assert capsys.readouterr().err.endswith("error: no such thing\n")
