#!/usr/bin/env python
"""Does a card do what `benchmarks/flops.py` predicts: memory, step time, kernels, tokens, and every launch?

`steps` trains the published sizes with random weights on one card, a few steps in each way, and generates; `launches`
runs the commands on tiny parts: the plain runner, ZeRO-1 and ZeRO-2, each resumed in the middle, then conversion and a
chat. Without a card only `--small` runs, on the CPU, where no number says anything.

Example:
  python benchmarks/gpu.py                  # some eight minutes on one card of 80 GB
  python benchmarks/gpu.py steps --peak 312 # the published sizes on an A100
  python benchmarks/gpu.py --small          # tiny sizes anywhere, for a test
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flops import BATCH, FULL, MOST_TILES, ROOT, SHARE, TILES, TINY, Sizes, Work, build, make_batch  # finds pallava

from pallava.training.compat import apply
from pallava.training.doctor.memory import Parameters, plain_memory, zero_memory
from pallava.training.doctor.step import count_activations, count_flops
from pallava.training.hooks.chat import as_converted
from pallava.training.model import PALLaVAModel
from pallava.training.optimizer import grouped_adamw


class Way(NamedTuple):
    """A way to train a batch: in DeepSpeed's precision without an optimizer, or in the plain runner's with it."""

    name: str
    is_plain: bool = False
    recomputes: bool = True
    words: int = 150
    tiles: int = TILES
    generates: bool = False


WAYS = (
    Way("bf16, recomputing", generates=True),
    Way("bf16", recomputes=False),
    Way("plain runner, recomputing", is_plain=True, generates=True),
    Way("bf16, recomputing, longest rows", words=1800, tiles=MOST_TILES),
)


def main() -> int:
    """Run what was asked for; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="steps or launches (default: both)")
    parser.add_argument("--small", action="store_true", help="tiny sizes and fewer launches; their numbers say nothing")
    parser.add_argument("--peak", type=float, default=989, help="TFLOPS of the card in bf16 (default: %(default)s)")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.small:
        print("not run: no GPU")
        return 0
    print(describe_machine())
    failures = []
    if not options.parts or "steps" in options.parts:
        failures += measure_ways(TINY if options.small else FULL, options.peak * 1e12, small=options.small)
    if not options.parts or "launches" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            failures += launch_all(Path(folder), small=options.small)
    print(f"\nfailed: {', '.join(failures) or 'nothing'}")
    return int(bool(failures))


def describe_machine() -> str:
    """Return versions, the card, and which work-arounds are on."""
    import deepspeed

    from pallava.devices import device_dtype

    card = "no card"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        kernels = f"sm_{''.join(map(str, torch.cuda.get_device_capability()))} of {torch.cuda.get_arch_list()}"
        card = f"{torch.cuda.get_device_name()}, {kernels}, {total / 1e9:.1f} GB, {(total - free) / 1e9:.2f} taken"
    versions = f"torch {torch.__version__} (CUDA {torch.version.cuda}), deepspeed {deepspeed.__version__}"
    return f"{versions}, {card}\ntrains in {device_dtype()}, work-arounds: {', '.join(apply()) or 'none'}"


def measure_ways(sizes: Sizes, peak: float, *, small: bool) -> list[str]:
    """Print a line for each way; return the names of those that failed."""
    heads = ("TFLOP", "step s", f"at {SHARE:.0%}", "of peak", "peak GB", "predicted")
    print(f"\n{f'a batch of {BATCH}, measured beside predicted':<36}" + "".join(f"{head:>11}" for head in heads))
    failures, notes = [], []
    for way in WAYS:
        try:
            cells, more = measure(sizes, way, peak, small=small)
        except RuntimeError as error:  # of CUDA: too little memory, an unknown kernel
            failures.append(way.name)
            print(f"{way.name:<36} FAILED: {str(error).splitlines()[0][:150]}")
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        print(f"{way.name:<36}" + "".join(f"{cell:>11}" for cell in cells), flush=True)
        notes += [way.name, *(f"  {note}" for note in more)]
    print("\n" + "\n".join(notes))
    return failures


def measure(sizes: Sizes, way: Way, peak: float, *, small: bool) -> tuple[list[str], list[str]]:
    """Train some steps; return the cells of the table, and what was seen beside."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = way.words // 10 if small else way.words
    batch = make_batch(sizes, BATCH, words, taught=words * 11 // 15, tiles=way.tiles)["data"]
    batch["attention_mask"][0, -words // 10 :] = 0  # some padding, as in a real batch
    batch["labels"][0, -words // 10 :] = -100
    flops, expected = predict(sizes, way, batch)
    model = build(sizes, Work(PALLaVAModel, way.recomputes), device, torch.bfloat16)
    model = model.to(device) if way.is_plain else model.to(device, torch.bfloat16)
    batch = {name: value.to(device) for name, value in batch.items()}
    step = make_step(model, batch, way, device)
    for _ in range(2):  # the first ones warm up
        timed(step, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rounds = [timed(step, device) for _ in range(1 if small else 6)]
    if not all(torch.isfinite(loss) for _, loss in rounds):
        raise RuntimeError(f"the losses are {[float(loss) for _, loss in rounds]}")
    taken = statistics.median(seconds for seconds, _ in rounds)
    used = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    numbers = (f"{flops / 1e12:.2f}", f"{taken:.3f}", f"{flops / peak / SHARE:.3f}", f"{flops / taken / peak:.2f}")
    launched, attention = profiled(step, device)
    notes = [f"types: {types_of(model)}", f"a step: {launched}", f"attention: {attention}"]
    if way.generates:
        notes += generated(model, batch, device, 8 if small else 64)
    return [*numbers, f"{used:.2f}", f"{expected / 1e9:.2f}"], notes


def predict(sizes: Sizes, way: Way, batch: dict[str, Any]) -> tuple[int, int]:
    """Return the operations of a step, and the bytes that it takes of torch's allocator, from shapes."""
    model, whole = build(sizes, Work(PALLaVAModel, way.recomputes), "meta").to(torch.bfloat16), {"data": batch}
    step = {"activation_checkpointing": way.recomputes, "activations": count_activations(model, whole)}
    memory = plain_memory(Parameters.of(model), torch.bfloat16, 1, **step)
    if way.is_plain:
        return count_flops(model, whole), memory.total - memory.cuda
    memory = zero_memory(Parameters.of(model), torch.bfloat16, 1, {"stage": 1}, **step)
    return count_flops(model, whole), memory.weights + memory.gradients + memory.activations


def make_step(model: Any, batch: dict[str, Any], way: Way, device: str) -> Callable[[], torch.Tensor]:
    """Return a training step; only the plain runner's has the optimizer, whose states ZeRO spreads over the cards."""
    optimizer = grouped_adamw(model.parameters(), lr=1e-4) if way.is_plain else None

    def step() -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16) if way.is_plain else nullcontext():
            loss = model(batch, mode="loss")["loss"]
        loss.backward()
        if optimizer:
            torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def timed(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Return the seconds of a call on the device, and its result."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - begin, result


def types_of(model: Any) -> str:
    """Return the types of the parts' weights."""
    found: dict[str, set[str]] = {}
    for name, weight in model.named_parameters():
        part = "LoRA" if "lora_" in name else name.split(".")[0]
        found.setdefault(part, set()).add(str(weight.dtype).removeprefix("torch."))
    return ", ".join(f"{part} {'/'.join(sorted(types))}" for part, types in found.items())


def profiled(call: Callable[[], Any], device: str, per: int = 1) -> tuple[str, str]:
    """Profile a call; return how often it launches a kernel and waits for the card, and its kernels of attention."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")) as profiler:
        timed(call, device)
    counts = Counter({event.key: event.count for event in profiler.key_averages()})
    launched = sum(count for name, count in counts.items() if "LaunchKernel" in name) / per
    waits = sum(counts[name] for name in ("cudaStreamSynchronize", "cudaDeviceSynchronize")) / per
    words = ("flash", "efficient_attention", "fmha", "cudnn_attention")
    attention = sorted(name[:70] for name in counts if any(word in name.lower() for word in words))
    return f"{launched:.0f} kernels launched, {waits:.0f} waits", "; ".join(attention[:8]) or "none that is fused"


def generated(model: Any, batch: dict[str, Any], device: str, tokens: int) -> list[str]:
    """Generate an answer with LoRA apart and merged; return the time and the kernels of a token."""
    tiles, notes = int(batch["tiles_per_image"][0]), []
    one = {name: batch[name][1:2] for name in ("input_ids", "attention_mask", "tiles_per_image")}
    one["pixel_values"] = batch["pixel_values"][tiles : 2 * tiles]

    def answer() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return model.network.generate(**one, max_new_tokens=tokens, min_new_tokens=tokens)

    with as_converted(model):
        for kind, prepare in (("LoRA apart", lambda: None), ("LoRA merged", model.llm.merge_adapter)):
            prepare()
            taken = min(timed(answer, device)[0] for _ in range(2))
            notes.append(f"{kind}: {1000 * taken / tokens:.1f} ms, {profiled(answer, device, tokens)[0]} a token")
    return notes


def launch_all(folder: Path, *, small: bool) -> list[str]:
    """Train tiny parts by the commands, resume them, convert, and ask; return what failed."""
    from tests.tiny.training import save_data, save_parts, write_config

    data = save_data(folder, 48)
    config = write_config("pallava_domain_alignment", save_parts(folder), data, folder / "tiny.py", num_steps=12)
    settings = {"ZeRO-1": "pallava_zero1", "ZeRO-2": "pallava_zero2"}
    runners = {"plain": [], **{name: ["--deepspeed", file] for name, file in settings.items()}}
    options = ["train_dataloader.batch_size=2", "optim_wrapper.accumulative_counts=3"]
    failures = []
    for name, words in list(runners.items())[-1:] if small else runners.items():
        run, again = folder / name, folder / f"{name}-again"
        train = ["train", str(config), *words, "--seed", "1024", "--cfg-options", *options, "--work-dir"]
        failures += launch(name, [*train, str(run)], folder)
        failures += launch(f"{name}, resumed", [*train, str(again), "--resume", str(run / "iter_6.pth")], folder)
        files = [each / "probe_0.jsonl" for each in (run, again)]
        lines = [map(json.loads, file.read_text().splitlines()) for file in files if file.exists()]
        losses = [{line["step"]: line["loss"] for line in each if line["kind"] == "step"} for each in lines]
        apart = [abs(losses[0][step] - loss) for step, loss in losses[-1].items()] if len(losses) == 2 else []
        print(f"  losses of {len(apart)} resumed steps differ by at most {max(apart, default=0):.2g}")
    model, picture = str(folder / "model"), str(data["sample"])
    failures += launch("convert", ["convert", str(run / "iter_12.pth"), model, "--merge"], folder)
    question = ["--image", picture, "--question", "what is shown here ?"]
    return failures + launch("chat", ["chat", model, *question], folder)


def launch(name: str, words: list[str], folder: Path) -> list[str]:
    """Run a command of ours and print its seconds; return its name if it failed."""
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    done = subprocess.run(["pallava", *words], cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True)
    print(f"{name:<20}{time.perf_counter() - begin:>7.1f} s, exit code {done.returncode}", flush=True)
    if done.returncode:
        print((done.stdout + done.stderr)[-1500:])
    return [name] * bool(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
