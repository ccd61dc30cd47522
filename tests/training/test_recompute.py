"""What is computed twice, by choice: the same losses and gradients, and "auto" takes what fits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from peft import LoraConfig

from pallava.errors import PallavaError
from pallava.training.doctor import DoctorSettings, _judge_memory, auto
from pallava.training.doctor.auto import choose, settle
from pallava.training.doctor.case import Case
from pallava.training.hooks.chat import as_converted
from pallava.training.model import build
from pallava.training.recompute import NAMED, Choice, choice_of, count_positions
from tests.tiny import golden
from tests.tiny.training import save_data, save_parts, write_config
from tests.training.test_model import tiny

LORA = dict(type=LoraConfig, r=4, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM")
# By choice, how often a step runs the connector and each of the language model's two layers.
PASSES = {"none": (1, 1, 1), "connector": (2, 1, 1), "llm": (1, 2, 2), "all": (2, 2, 2), 1: (2, 2, 2), 2: (2, 2, 1)}


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], tuple[int, ...]]:
    """Return loss, gradients, and how often connector and layers ran."""
    passes = [0, 0, 0]

    def count(place: int) -> Any:
        return lambda *_: passes.__setitem__(place, passes[place] + 1)

    parts = (model.connector.norm, *model.llm.get_base_model().model.layers)
    hooks = [part.register_forward_pre_hook(count(place)) for place, part in enumerate(parts)]
    torch.manual_seed(1)
    model.zero_grad()
    loss = model(golden.batch(golden.samples()))["loss"]
    loss.backward()
    for hook in hooks:
        hook.remove()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, tuple(passes)


def test_losses_and_gradients_are_those_of_no_recomputation() -> None:
    """With dropout, whose random numbers are drawn again."""
    torch.manual_seed(0)
    model = tiny(llm_lora=LORA, activation_checkpointing="none")
    assert model.connector.qformer.encoder.layer[0].attention.output.dropout.p > 0
    loss, gradients, _ = step(model)
    assert step(model)[0] == loss
    for choice, passes in PASSES.items():
        model.recompute(choice)
        model.train()
        found = step(model)
        assert found[2] == passes, choice
        assert found[0] == loss, choice
        torch.testing.assert_close(found[1], gradients)


def test_every_second_layer_of_a_frozen_model_and_none_while_it_answers() -> None:
    model = tiny(llm_lora=None, activation_checkpointing=2).train()
    counted: list[int] = []
    for index, layer in enumerate(model.llm.model.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: counted.append(index))
    batch = golden.batch(golden.samples())
    model(batch)["loss"].backward()
    assert sorted(counted) == [0, 0, 1]
    with as_converted(model):
        assert not model.llm.is_gradient_checkpointing
    counted.clear()
    model(batch)["loss"].backward()
    assert sorted(counted) == [0, 0, 1]


@pytest.mark.parametrize("settings", [{}, {"use_activation_checkpointing": True}, {"activation_checkpointing": "all"}])
def test_the_choice_of_old_configs(settings: dict[str, Any]) -> None:
    assert choice_of(settings) == tiny(**settings).activation_checkpointing == "all"
    assert choice_of({**settings, "use_activation_checkpointing": False}) == "none"


@pytest.mark.parametrize("choice", ["some", 0, -1, True, None, 1.5])
def test_a_choice_that_does_not_exist(choice: Any) -> None:
    with pytest.raises(PallavaError, match=f"none, connector, llm, all, auto .*{choice!r}"):
        tiny(activation_checkpointing=choice)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    path = write_config("pallava_domain_alignment", save_parts(folder), save_data(folder), folder / "tiny.py")
    changed = Config.fromfile(path)
    changed.model.activation_checkpointing = "auto"
    changed.train_dataloader.batch_size = 4
    changed.dump(path)
    return path


def taken(config: Path, monkeypatch: pytest.MonkeyPatch, free: float) -> tuple[Choice, str]:
    """Let a training of this config start on a CPU with so much free memory, in bytes."""
    settings = Config.fromfile(config)
    model, lines = build(settings.model), list[str]()
    loader = Runner.build_dataloader(settings.train_dataloader, seed=0)
    monkeypatch.setattr(auto, "_free_memory", lambda: free)
    monkeypatch.setattr(auto, "print_log", lambda line, logger: lines.append(line))
    assert model.activation_checkpointing == "auto"
    assert model.llm.is_gradient_checkpointing
    random_state = torch.get_rng_state()
    settle(SimpleNamespace(model=model, cfg=settings), loader)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.llm.is_gradient_checkpointing == (model.activation_checkpointing not in ("none", "connector"))
    (line,) = lines
    return model.activation_checkpointing, line


def test_auto_takes_the_least_that_fits_as_doctor_does(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DoctorSettings(str(config), cfg_options=("optim_wrapper.precision=float32",))
    case = Case(options)
    plans = {choice: auto.plan_step(case, "plain", choice) for choice in ("none", "connector", 2, "all")}
    totals = [each.total for each in plans.values()]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > totals[1]
    for choice in ("none", "connector"):
        wanted = plans[choice]
        monkeypatch.setattr(Case, "card_bytes", wanted.total / 0.9 + 10)
        assert choose(case).activation_checkpointing == choice
        status, text = _judge_memory(case, [])
        assert status == "ok"
        assert repr(choice) in text
        found, line = taken(config, monkeypatch, (wanted.total - wanted.weights - wanted.cuda) / 0.9 + 10)
        assert found == choice
        assert repr(choice) in line
        assert "plain" in line
    assert taken(config, monkeypatch, 0)[0] == "all"  # what needs least, though it does not fit


def test_auto_recomputes_long_batches_alone(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the estimate says of a batch that just fits is what it says of any batch so long."""
    case = Case(DoctorSettings(str(config), cfg_options=("optim_wrapper.precision=float32",)))
    words = {key: case.longest_batch["data"][key][:, :-10] for key in ("input_ids", "attention_mask", "labels")}
    case.opened["half_batch"] = {"data": {**case.longest_batch["data"], **words}}
    needs = [auto.plan_step(case, "plain", "none", batch).total for batch in ("half_batch", "longest_batch")]
    tokens = case.model.network.config.num_visual_tokens
    sizes = [count_positions(batch["data"], tokens) for batch in (case.half_batch, case.longest_batch)]
    assert sizes[0] < sizes[1]
    for need, size in zip(needs, sizes, strict=True):
        monkeypatch.setattr(Case, "card_bytes", need / 0.9)
        assert auto.most_positions(case) == pytest.approx(size, abs=1)
    monkeypatch.setattr(Case, "card_bytes", sum(needs) / 2 / 0.9)
    middle = auto.most_positions(case)
    assert middle == pytest.approx(sum(sizes) / 2, abs=1)
    assert f"{middle:,} positions" in _judge_memory(case, [])[1]


def test_only_long_batches_are_recomputed() -> None:
    torch.manual_seed(0)
    model = tiny(llm_lora=LORA, activation_checkpointing="none")
    loss, _, passes = step(model)
    positions = count_positions(golden.batch(golden.samples()), model.network.config.num_visual_tokens)
    for above, expected in ((positions - 1, PASSES["all"]), (positions, passes), (positions - 1, PASSES["all"])):
        model.recompute("all", above)
        found = step(model)
        assert found[2] == expected
        assert found[0] == loss
    model.recompute("all", positions)
    assert step(model)[2] == passes
    model.recompute("all")
    assert step(model)[2] == PASSES["all"]


def test_auto_without_an_estimate_recomputes_all(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise PallavaError("a part that is not known")

    monkeypatch.setattr(auto, "count_activations", fail)
    choice, line = taken(config, monkeypatch, 1e12)
    assert choice == "all"
    assert "a part that is not known" in line


def test_a_choice_that_is_given_stays() -> None:
    for choice in (*NAMED, 3):
        model = tiny(activation_checkpointing=choice)
        settle(SimpleNamespace(model=model), None)
        assert model.activation_checkpointing == choice


def test_batches_of_the_longest_rows_and_of_those_half_as_long() -> None:
    """Of as many rows as a real training has: looking at all of them for each would take hours."""
    num_rows = 300_000
    rows = type("Rows", (list,), {"modality_length": [*range(1, num_rows), -num_rows]})(range(num_rows))
    case: Any = Case.__new__(Case)
    loader = SimpleNamespace(dataset=rows, collate_fn=list)
    case.opened = {"loader": loader, "first_batch": {"data": {"input_ids": torch.zeros(2, 1)}}}
    assert case.longest_batch == [num_rows - 1, num_rows - 2]
    assert case.half_batch == [num_rows // 2 - 1, num_rows // 2 - 2]
