"""Trainings as users launch them, on parts so small that starting Python takes the time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from xtuner.configs import cfgs_name_path

from pallava.io.launch import free_port
from pallava.model.convert import convert
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).parents[2]
ZERO2 = ("--deepspeed", "deepspeed_zero2")
STEPS = 8
METRICS = {"iteration", "time", "loss", "lr", "connector_lr", "grad_norm", "skipped_steps", "samples_per_second"}
METRICS |= {"tokens_per_second", "padding_share", "uneven_share", "waiting_share", "memory"}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Stage 2's config (connector at half the rate) with tiny parts; a third of the rows have no image."""
    folder = tmp_path_factory.mktemp("tiny")
    data = save_data(folder, num_rows=24, num_without_image=8)
    return write_config("pallava_instruction_tuning", save_parts(folder), data, folder / "tiny.py", num_steps=STEPS)


def start(config: Path, work_dir: Path, *arguments: str, command=("pallava",), **variables: str) -> subprocess.Popen:
    words = [*command, "train", str(config), "--work-dir", str(work_dir), *arguments]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, env=environment(**variables), cwd=config.parent, **output)


def environment(**variables: str) -> dict[str, str]:
    """Ours, with this interpreter's commands first, as `xtuner` runs `python` and `torchrun` by name."""
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths, "OMP_NUM_THREADS": "1", **variables}


def train(config: Path, work_dir: Path, *arguments: str, **options) -> None:
    process = start(config, work_dir, *arguments, **options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]


def read(work_dir: Path, kind: str, rank: int = 0) -> list[dict]:
    records = map(json.loads, (work_dir / f"probe_{rank}.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def losses(work_dir: Path, rank: int = 0) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read(work_dir, "step", rank)}


def assert_resumes(config: Path, work_dir: Path, resumed: Path, *arguments: str, ranks: int = 1, **options) -> None:
    """Resumed in the middle, every process's losses go on as they would have."""
    train(config, resumed, "--resume", str(work_dir / f"iter_{STEPS // 2}.pth"), *arguments, **options)
    for rank in range(ranks):
        expected = {step: loss for step, loss in losses(work_dir, rank).items() if step > STEPS // 2}
        assert losses(resumed, rank) == expected
        assert len(expected) == STEPS // 2


@pytest.fixture(scope="module")
def zero2_run(config, tmp_path_factory) -> Path:
    """Two processes under ZeRO-2, by the command of the paper's authors; they fill a feature cache."""
    work_dir = tmp_path_factory.mktemp("zero2") / "run"
    train(config, work_dir, *ZERO2, "--seed", "1024", *cached(config), command=("xtuner",), NPROC_PER_NODE="2")
    return work_dir


def cached(config: Path) -> tuple[str, str]:
    return "--cfg-options", f"train_dataloader.dataset.features.folder={config.parent / 'features'}"


def test_two_processes_under_zero2(zero2_run):
    start_of, end_of = ([read(zero2_run, kind, rank)[0] for rank in (0, 1)] for kind in ("start", "end"))
    assert start_of[0] == start_of[1], "the ranks start with different weights"
    assert end_of[0]["connector"] == end_of[1]["connector"] != start_of[0]["connector"]
    assert end_of[0]["frozen"] == start_of[0]["frozen"], "the encoder or the base language model was changed"
    images = [[record["images"] for record in read(zero2_run, "step", rank)] for rank in (0, 1)]
    assert any(a != b for a, b in zip(*images, strict=True)), "no step had a rank without images beside one with some"
    (update,) = read(zero2_run, "update")
    assert update["connector"] / update["lora_B"] == pytest.approx(0.5, rel=0.02)
    kept = json.loads((zero2_run / "training_config.json").read_text())
    assert kept["optim_wrapper"]["optimizer"]["lr_mults"] == {"connector": 0.5}


def test_every_step_is_measured(zero2_run):
    check_metrics(zero2_run, ranks=2)


def check_metrics(work_dir: Path, ranks: int = 1) -> None:
    """The main process wrote a line for each step, which the log and TensorBoard show, too."""
    (file,) = work_dir.glob("*/vis_data/metrics.jsonl")
    lines = [json.loads(line, parse_constant=pytest.fail) for line in file.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [*range(1, STEPS + 1)]
    means = [sum(losses(work_dir, rank)[line["iteration"]] for rank in range(ranks)) / ranks for line in lines]
    assert [line["loss"] for line in lines] == pytest.approx(means, rel=1e-6)
    for line in lines:
        assert line.keys() == METRICS
        assert line["connector_lr"] == pytest.approx(line["lr"] / 2)
        assert line["grad_norm"] > 0
        assert line["skipped_steps"] == line["padding_share"] == 0  # of one row a process
        assert 0 < line["samples_per_second"] < line["tokens_per_second"]
        assert 0 < line["waiting_share"] < 1
        assert 0 <= line["uneven_share"] < (ranks > 1) * 0.5 + 1e-9
        assert 100 < line["memory"] < 100_000
    assert len({line["grad_norm"] for line in lines}) == STEPS
    log, shown = next(work_dir.glob("*/*.log")).read_text(), ("samples_per_second", "waiting_share", "grad_norm")
    assert all(f"{name}: " in log for name in (*shown, "connector_lr", "skipped_steps", "memory"))
    events = EventAccumulator(str(file.parent)).Reload()
    assert {*shown, "connector_lr", "padding_share", "tokens_per_second"} <= {*events.Tags()["scalars"]}
    assert [event.value for event in events.Scalars("connector_lr")] == pytest.approx(
        [line["connector_lr"] for line in lines]
    )


def test_zero2_resumes(config, zero2_run, tmp_path):
    """Images that the first run encoded are read from its feature cache, to the same losses."""
    options = (*ZERO2, *cached(config))
    assert_resumes(config, zero2_run, tmp_path / "resumed", *options, ranks=2, NPROC_PER_NODE="2")
    shares = [
        {step["cached"] for rank in (0, 1) for step in read(run, "step", rank) if step["images"]}
        for run in (zero2_run, tmp_path / "resumed")
    ]
    assert shares == [{0}, {1}]


def test_zero2_converts_exactly(config, zero2_run, tmp_path):
    """xtuner's own converter of a DeepSpeed folder loses no bit."""
    checkpoint = zero2_run / f"iter_{STEPS}.pth"
    words = ["xtuner", "convert", "pth_to_hf", str(zero2_run / config.name), str(checkpoint), str(tmp_path), "--fp32"]
    process = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert (tmp_path / "config.json").is_file(), process.stderr[-3000:]
    trained = torch.load(checkpoint / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    written = {key: value for file in tmp_path.rglob("*.safetensors") for key, value in load_file(file).items()}
    for key, value in trained.items():
        name = key.removeprefix("llm.").replace(".default.weight", ".weight")
        assert torch.equal(written[name], value), name


@pytest.mark.slow  # test_own_connector trains and resumes in one process as well
def test_one_process(config, tmp_path):
    train(config, tmp_path / "run", "--seed", "1024")
    check_metrics(tmp_path / "run")
    assert_resumes(config, tmp_path / "run", tmp_path / "resumed")


@pytest.mark.slow
def test_one_process_under_zero2(config, tmp_path):
    train(config, tmp_path / "run", *ZERO2, "--seed", "1024")
    assert_resumes(config, tmp_path / "run", tmp_path / "resumed", *ZERO2)


@pytest.mark.slow
def test_two_processes(config, tmp_path):
    train(config, tmp_path / "run", "--seed", "1024", NPROC_PER_NODE="2")
    assert read(tmp_path / "run", "start", 0) == read(tmp_path / "run", "start", 1)
    assert_resumes(config, tmp_path / "run", tmp_path / "resumed", ranks=2, NPROC_PER_NODE="2")


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [(), ZERO2], ids=["plain", "zero2"])
def test_two_nodes(config, tmp_path, deepspeed):
    nodes = {"NNODES": "2", "ADDR": "127.0.0.1"}
    for run, arguments in {
        "run": ("--seed", "1024"),
        "resumed": ("--resume", str(tmp_path / "run" / f"iter_{STEPS // 2}.pth")),
    }.items():
        nodes["PORT"] = str(free_port())
        launched = [
            start(config, tmp_path / run, *deepspeed, *arguments, NODE_RANK=str(rank), **nodes) for rank in (0, 1)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in launched]
        assert [process.returncode for process in launched] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    for rank in (0, 1):
        whole = losses(tmp_path / "run", rank)
        assert losses(tmp_path / "resumed", rank) == {step: whole[step] for step in range(STEPS // 2 + 1, STEPS + 1)}


@pytest.mark.slow
def test_word_alignment_by_two_processes_and_stage_1_behind_it(config, tmp_path):
    """Some batches have no image; a run that resumes goes on as it would have."""
    words = Config.fromfile(config)
    words.model.update(objective="words", llm_lora=None)
    words.default_hooks.sample_chat.images = []
    words.dump(config.parent / "words.py")
    two = {"NPROC_PER_NODE": "2", "ranks": 2}
    train(config.parent / "words.py", tmp_path / "run", "--seed", "1024", NPROC_PER_NODE="2")
    assert 0 in losses(tmp_path / "run").values()
    assert_resumes(config.parent / "words.py", tmp_path / "run", tmp_path / "resumed", **two)
    start, end = read(tmp_path / "run", "start")[0], read(tmp_path / "run", "end")[0]
    assert start["connector"] != end["connector"]
    assert start["frozen"] == end["frozen"]
    behind = ["--cfg-options", f"model.pretrained_pth={tmp_path / 'run'}"]
    train(config, tmp_path / "behind", "--seed", "1024", *behind)
    assert read(tmp_path / "behind", "start")[0]["connector"] == end["connector"]


@pytest.mark.slow
def test_seeds(config, tmp_path):
    for run, seed in {"first": "1024", "again": "1024", "other": "7"}.items():
        train(config, tmp_path / run, "--seed", seed)
    assert losses(tmp_path / "first") == losses(tmp_path / "again")
    assert losses(tmp_path / "first") != losses(tmp_path / "other")


@pytest.mark.slow
def test_another_number_of_processes_is_refused(config, tmp_path):
    """DeepSpeed's optimizer is cut into as many pieces as there were processes."""
    train(config, tmp_path / "run", *ZERO2, NPROC_PER_NODE="2")
    process = start(config, tmp_path / "other", *ZERO2, "--resume", str(tmp_path / "run" / f"iter_{STEPS}.pth"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in output
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert all(fact in error for fact in ("processes=2", "got 1", "NPROC_PER_NODE"))


@pytest.mark.slow
def test_a_run_in_half_precision_is_converted_from_its_masters(config, tmp_path):
    """DeepSpeed computes in bf16 on a CPU, too, where its JSON insists on it."""
    settings = json.loads(Path(cfgs_name_path["deepspeed_zero2"]).read_text())
    settings.update(bf16={"enabled": True}, fp16={"enabled": False})
    (tmp_path / "bf16.json").write_text(json.dumps(settings))
    train(config, tmp_path / "run", "--deepspeed", str(tmp_path / "bf16.json"), NPROC_PER_NODE="2")
    checkpoint = tmp_path / "run" / f"iter_{STEPS}.pth"
    rounded = torch.load(checkpoint / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    written = load_file(
        convert(checkpoint, tmp_path / "model", dtype=torch.float32) / "adapter/adapter_model.safetensors"
    )
    lora = {key: value for key, value in rounded.items() if "lora_B" in key}
    assert lora
    for key, value in lora.items():
        master = written[key.removeprefix("llm.").replace(".default.weight", ".weight")]
        assert torch.equal(master.to(torch.bfloat16), value)
        assert not torch.equal(master, value.float()), key


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [(), ZERO2], ids=["plain", "zero2"])
def test_two_jobs_under_slurm_train_on_one_node_at_once(config, tmp_path, deepspeed):
    """Each of two tasks; neither a port nor an address is given but by Slurm's variables and the first node's name."""
    tasks = []
    for job in ("48213", "48214"):
        for rank in ("0", "1"):
            names = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": "2", "SLURM_NODELIST": "here"}
            names |= {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "MASTER_ADDR": "127.0.0.1"}
            arguments = ("--launcher", "slurm", *deepspeed, "--seed", "1024")
            tasks.append(start(config, tmp_path / job, *arguments, **names))
    outputs = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0] * 4, outputs[0][-2000:] + outputs[-1][-2000:]
    for rank in (0, 1):
        assert losses(tmp_path / "48213", rank) == losses(tmp_path / "48214", rank)
        assert len(losses(tmp_path / "48213", rank)) == STEPS
