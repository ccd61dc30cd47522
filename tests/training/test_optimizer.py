"""Two learning rates, in the plain runner and under DeepSpeed alike."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from torch import nn

from pallava.errors import PallavaError
from pallava.training.optimizer import FiniteOptimWrapper, grouped_adamw, precise_optim_wrapper


def model(connector=True, llm=True):
    parts = nn.ModuleDict({"llm": nn.Linear(2, 2), "connector": nn.Linear(2, 2), "visual_encoder": nn.Linear(2, 2)})
    for name, parameter in parts.named_parameters():
        parameter.lr_group = name.split(".")[0]
        parameter.requires_grad_({"llm": llm, "connector": connector}.get(parameter.lr_group, False))
    return parts


OPTIMIZER = {"type": grouped_adamw, "lr": 2e-4, "lr_mults": {"connector": 0.5}, "betas": (0.9, 0.99)}


def test_groups_by_tag():
    optimizer = grouped_adamw(model().parameters(), lr=2e-4, lr_mults={"connector": 0.5}, weight_decay=0.0)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert list(rates.items()) == [("llm", 2e-4), ("connector", 1e-4)]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert type(optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("frozen", ["llm", "connector"])
def test_no_group_is_empty(frozen):
    optimizer = grouped_adamw(model(**{frozen: False}).parameters(), lr=1.0, lr_mults={"connector": 0.5})
    assert [group["name"] for group in optimizer.param_groups] == [{"llm": "connector", "connector": "llm"}[frozen]]


def test_nothing_to_train():
    with pytest.raises(PallavaError, match="freeze|unfrozen"):
        grouped_adamw(model(llm=False, connector=False).parameters(), lr=1.0)


def test_a_setting_that_adamw_has_not():
    with pytest.raises(PallavaError, match="'weight_deca'"):
        grouped_adamw(model().parameters(), lr=1.0, weight_deca=0.1)


@pytest.mark.parametrize("name", [grouped_adamw, "grouped_adamw", "pallava.training.optimizer.grouped_adamw"])
@pytest.mark.parametrize("wrapper", ["precise_optim_wrapper", "DeepSpeedOptimWrapper"])
def test_both_runners_give_two_groups(name, wrapper):
    import mmengine._strategy  # noqa: F401  registers the second

    built = build_optim_wrapper(model(), ConfigDict(type=wrapper, optimizer={**OPTIMIZER, "type": name}))
    assert [group["lr"] for group in built.optimizer.param_groups] == [2e-4, 1e-4]
    assert built.optimizer.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_precision_without_a_gpu():
    adamw = grouped_adamw(model().parameters(), lr=1.0)
    wrapper = precise_optim_wrapper(adamw, accumulative_counts=3, clip_grad={"max_norm": 1})
    assert type(wrapper) is FiniteOptimWrapper
    assert wrapper._accumulative_counts == 3
    with pytest.raises(PallavaError, match="needs a GPU"):
        precise_optim_wrapper(adamw, precision="bfloat16")
    with pytest.raises(PallavaError, match="auto, bfloat16"):
        precise_optim_wrapper(adamw, precision="fp16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_precision_with_a_gpu():
    adamw = grouped_adamw(model().cuda().parameters(), lr=1.0)
    assert precise_optim_wrapper(adamw, precision="float16").loss_scaler.is_enabled()
    wrapper = precise_optim_wrapper(adamw, precision="bfloat16")
    assert (wrapper.cast_dtype, wrapper.loss_scaler.is_enabled()) == (torch.bfloat16, False)
