"""Whose fault an error is: a user's is one sentence, any other keeps its traceback."""

import sys
from functools import partial

import pytest
import torch
from mmengine.optim import LinearLR
from torch.utils.data import DataLoader, Dataset
from xtuner.registry import BUILDER

from pallava.errors import PallavaError
from pallava.training.failures import user_message


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


@pytest.mark.parametrize("call", [lambda: BUILDER.build({"type": build_wrongly}), lambda: {}["key"], lambda: 1 / 0])
def test_other_errors_keep_their_traceback(call):
    assert caught(call) is None


def test_python_tells_it(capsys):
    """Whoever has set a hook of his own since: torch.distributed's calls the one before."""
    sys.excepthook(PallavaError, PallavaError("no such thing"), None)
    assert capsys.readouterr().err.endswith("error: no such thing\n")
