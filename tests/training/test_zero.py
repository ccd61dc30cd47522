"""Our settings of DeepSpeed, by two processes over gloo: what they send, add up and skip, beside xtuner's."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import start_processes
from xtuner.configs import cfgs_name_path

from pallava.io.launch import free_port
from pallava.training import compat
from pallava.training.zero import SETTINGS

COUNTS = 6  # gradients that are added up in an optimizer step
NAMES = ("deepspeed_zero2", "pallava_zero1", "pallava_zero2")
SGD = dict(type=torch.optim.SGD, lr=1.0)


def open_engine(name: str, model: nn.Module, counts: int, half: bool, clipping: float = 0.0, **optimizer: Any) -> Any:
    import deepspeed

    settings = json.loads(Path(cfgs_name_path[name]).read_text())
    given = {"gradient_accumulation_steps": counts, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": clipping}
    settings.update(given, bf16={"enabled": half}, fp16={"enabled": False})
    build = {"type": torch.optim.AdamW, "lr": 1e-2, **optimizer}
    return deepspeed.initialize(model=model, optimizer=build.pop("type")(model.parameters(), **build), config=settings)


def run(rank: int, port: int, work: Callable[..., Any], folder: Path) -> None:
    import deepspeed

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo", verbose=False)
    (folder / f"{rank}.json").write_text(json.dumps(work(rank)))
    torch.distributed.destroy_process_group()


def in_two(work: Callable[..., Any], folder: Path) -> list[Any]:
    """Fork, since importing all anew takes seconds; return what each of two processes returns."""
    compat.apply()
    start_processes(run, (free_port(), work, folder), nprocs=2, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def sent_by(name: str, half: bool, rank: int) -> dict[str, Any]:
    """Train a small network, and count what the processes reduce: the bytes of a step, and all losses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    engine, *_ = open_engine(name, model, COUNTS, half)
    reduce, sent, losses = torch.distributed.all_reduce, [0], []

    def count(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent[-1] += tensor.nbytes if tensor.numel() > 1 else 0  # norms and flags apart
        return reduce(tensor, *args, **kwargs)

    generator = torch.Generator().manual_seed(rank)
    with mock.patch.object(torch.distributed, "all_reduce", count):
        for step in range(3 * COUNTS):
            inputs = torch.randn(4, 32, generator=generator).to(next(model.parameters()).dtype)
            loss = nn.functional.cross_entropy(engine(inputs).float(), inputs.argmax(1) % 8)
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
            if step % COUNTS == COUNTS - 1:
                sent.append(0)
    return {"sent": sent[:-1], "losses": losses, "weights": [each.sum().item() for each in model.parameters()]}


def traffic(rank: int) -> dict[str, Any]:
    return {f"{name} {half}": sent_by(name, half, rank) for name in NAMES for half in (False, True)}


def test_gradients_are_sent_once_in_a_step(tmp_path: Path) -> None:
    ours, theirs = in_two(traffic, tmp_path)
    numel = 32 * 64 + 64 + 64 * 8 + 8
    for half in (False, True):
        first = [each[f"deepspeed_zero2 {half}"] for each in (ours, theirs)]
        once = numel * (2 if half else 4)
        assert first[0]["sent"] == [COUNTS * once] * 3
        for name, times in {"pallava_zero1": 1, "pallava_zero2": COUNTS}.items():
            found = [each[f"{name} {half}"] for each in (ours, theirs)]
            assert found[0]["sent"] == found[1]["sent"] == [times * once] * 3, name
            assert found[0]["weights"] == found[1]["weights"], f"{name}: the processes have different weights"
            for mine, stock in zip(found, first, strict=True):
                assert mine["losses"] == pytest.approx(stock["losses"], abs=2e-2 if half else 1e-3), name


def sums(rank: int) -> dict[str, Any]:
    """Descend by the plain gradient: first of the numbers that half precision cannot add up, then of NaN."""
    found = {}
    for name in NAMES:
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        engine, *_ = open_engine(name, model, 4, True, **SGD)
        optimizer = engine.optimizer
        optimizer.check_grad_overflow = True
        moved = []
        for values in ((256.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, float("nan"))):
            for value in values:
                inputs = torch.tensor([[value, value * rank]]) * 4  # both processes, and the second alone
                engine.backward(engine(inputs.bfloat16()).float().sum())
                engine.step()
            moved.append(model.weight.flatten().tolist())
        masters = torch.cat([each.detach() for each in optimizer.single_partition_of_fp32_groups]).tolist()
        found[name] = {"moved": moved, "masters": masters, "skipped": bool(optimizer.overflow)}
    return found


def test_gradients_are_added_up_in_float32(tmp_path: Path) -> None:
    """Of 256 + 1 + 1 + 1 half precision keeps 256. The first stage rounds the sum once, when it is sent."""
    ranks = in_two(sums, tmp_path)
    expected = {"deepspeed_zero2": [256, 128], "pallava_zero1": [260, 130], "pallava_zero2": [259, 129.5]}
    for name, gradient in expected.items():
        found = [each[name] for each in ranks]
        masters = [value for each in found for value in each["masters"]][: len(gradient)]
        assert [-value for value in masters] == gradient, name
        assert found[0]["moved"] == found[1]["moved"]
        assert found[0]["moved"][0] == found[0]["moved"][1], f"{name}: a gradient of NaN has moved the weights"
        assert [each["skipped"] for each in found] == [True, True]


def test_the_names_are_xtuners_beside_its_own() -> None:
    assert "accumulate_in_float32" in compat.apply(), "DeepSpeed has changed: is it still needed?"
    assert {*SETTINGS} == {"pallava_zero1", "pallava_zero2"} < {*cfgs_name_path}
    assert Path(cfgs_name_path["deepspeed_zero2"]).parent.name == "deepspeed"
    for name in SETTINGS:
        ours = json.loads(SETTINGS[name].read_text())
        theirs = json.loads(Path(cfgs_name_path[name.replace("pallava", "deepspeed")]).read_text())
        zero = ours["zero_optimization"]
        assert {key: zero[key] for key in theirs["zero_optimization"]} == theirs["zero_optimization"]
        assert {**ours, "zero_optimization": None} == {
            **theirs,
            "zero_optimization": None,
            "data_types": {"grad_accum_dtype": "fp32"},
        }
        assert 2 * 2 * (5e8 - zero["reduce_bucket_size"]) == 1.8e9  # bytes of two buffers in half precision
