"""The language model as a config names it: its precision, and what is said where there is none."""

import pytest
import torch

from pallava.devices import device_dtype
from pallava.errors import PallavaError
from pallava.model.loading import load_llm, load_tokenizer
from tests.tiny.training import save_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_parts(tmp_path_factory.mktemp("parts"))["llm"])


def test_precision(folder):
    assert load_llm(folder).dtype == device_dtype()
    assert load_llm(folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_tokenizer(folder, padding_side="right").padding_side == "right"


@pytest.mark.parametrize("load", [load_llm, load_tokenizer])
def test_no_such_folder(load):
    with pytest.raises(PallavaError, match=r"(language model|tokenizer) '\./nowhere' does not exist"):
        load("./nowhere")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(PallavaError, match="language model .* cannot be opened"):
        load_llm(str(tmp_path))
