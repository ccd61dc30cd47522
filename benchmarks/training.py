#!/usr/bin/env python
"""How long is a step of training, beside the published order of work and two other recipes for the same parts?

Every contestant has an encoder of PLIP's sizes, a 6-layer connector or what it has in its place, and SmolLM2-135M's
sizes with LoRA of rank 128, all with random weights and without dropout. A step is one forward and one backward pass
over the same two samples; the optimizer, which is the same for all, is left out. They run in turns, the matrix product
with them, so that whatever else the computer does falls on each alike. A ratio is taken within a round; what is printed
is the median over the rounds. What must be equal, the losses and gradients of the published order and ours, is checked
first.

Each computes as its own users have it: on some CPUs, ours multiplies matrices by oneDNN (`pallava.matmul`), the others
by torch's MKL. What the order of work alone is worth is said by ours with MKL, too. A share is one of the peak of the
contestant's own product.

Example:
  python benchmarks/training.py                    # some 8 minutes on two cores
  python benchmarks/training.py --sweep sweep.json # the cost against tiles, text and batch, too: some 4 minutes more
  python benchmarks/training.py --small            # tiny parts in seconds, for a test; its numbers say nothing
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers.activations import ACT2FN

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED, NEXT, XTUNER = "published order of work", "LLaVA-NeXT (transformers)", "LLaVA (xtuner), overview alone"
OURS, RECOMPUTING, CACHED = "ours", "ours, recomputing activations", "ours, encoder's tokens cached"
BY_MKL = "ours, with MKL"
RATIOS = (
    (OURS, PUBLISHED, 2.4),
    (RECOMPUTING, PUBLISHED, 1.8),
    (CACHED, PUBLISHED, 3.5),
    (OURS, NEXT, 1.3),
    (BY_MKL, PUBLISHED, 2.2),
)
"""One of ours, what it is compared with, and how many times as fast it must be; with MKL, what it was at b135031."""
MIN_SHARE = 0.70
"""Minimum share of MKL's peak that ours reaches with it."""
SWEPT = {PUBLISHED: "published", OURS: "ours", RECOMPUTING: "ours_recomputing"}
MKL, ONEDNN = "MKL", "oneDNN"
FULL = {
    "llm": dict(vocab=49152, hidden_size=576, intermediate_size=1536, layers=30, heads=9, kv_heads=3),
    "vision": dict(hidden_size=768, intermediate_size=3072, layers=12, heads=12, image_size=224, patch_size=16),
    "connector": dict(num_hidden_layers=6, intermediate_size=3072),
    "rank": 128,
}
TINY = {
    "llm": dict(vocab=512, hidden_size=64, intermediate_size=128, layers=2, heads=4, kv_heads=2),
    "vision": dict(hidden_size=64, intermediate_size=128, layers=3, heads=2, image_size=32, patch_size=8),
    "connector": dict(num_hidden_layers=2, intermediate_size=128),
    "rank": 8,
}
GRIDS = {4: (2, 2), 5: (1, 5), 6: (2, 3), 8: (2, 4)}  # rows and columns of a canvas by its number of tiles

_aten = torch.ops.aten
CPU_KERNELS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *s, **_: sdpa_backward_flop_count(*s[:4]),
}
"""Attention on a CPU for torch's counter, which has the formulas of CUDA's kernels alone."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch: for each sample its number of tiles, the overview not counted, and of words."""

    tiles: tuple[int, ...] = (5, 8)
    text: tuple[int, ...] = (60, 120)


def main() -> int:
    """Measure, print the tables, and return 1 if a ratio or the share of the peak is below its minimum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny parts; their numbers say nothing")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--sweep", metavar="FILE", type=Path, help="JSON file of costs by tiles, text and batch")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from pallava.matmul import use_onednn

    if not use_onednn():
        print("MKL multiplies for all: oneDNN would not be faster on this CPU")
    sizes = TINY if options.small else FULL
    torch.manual_seed(0)
    model = build_ours(sizes)
    batch = make_batch(sizes, Shape())
    ours = own_steps(model, batch)
    check_equal(model, ours, batch)
    steps = {**ours, NEXT: build_next(sizes), XTUNER: build_xtuner(sizes)}
    rounds = 2 if options.small else options.rounds
    failed = report(measure(steps, batch, rounds), {name: count_flops(step, batch) for name, step in steps.items()})
    if options.sweep:
        points = list(sweep(ours, sizes))
        options.sweep.write_text(json.dumps(points, indent=1))
    return 0 if options.small else failed


Step = Callable[[dict[str, Tensor]], Tensor]


def own_steps(model: Any, batch: dict[str, Tensor]) -> dict[str, Step]:
    """Return the steps that compute one and the same loss."""
    encoder = keep_scores(model.visual_encoder)
    return {
        PUBLISHED: lambda batch: published_loss(model, batch, encoder),
        OURS: lambda batch: own_loss(model, batch),
        BY_MKL: lambda batch: own_loss(model, batch),
        RECOMPUTING: lambda batch: own_loss(model, batch, recompute=True),
        CACHED: cached(model, batch),
    }


def build_llm(sizes: dict[str, Any]) -> Any:
    """Build a Llama of SmolLM2's kind."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(llama_config(LlamaConfig, sizes["llm"]))


def llama_config(config_class: Any, llm: dict[str, int]) -> Any:
    """Return the configuration of the language model."""
    return config_class(
        vocab_size=llm["vocab"],
        hidden_size=llm["hidden_size"],
        intermediate_size=llm["intermediate_size"],
        num_hidden_layers=llm["layers"],
        num_attention_heads=llm["heads"],
        num_key_value_heads=llm["kv_heads"],
        tie_word_embeddings=True,
    )


def vision_config(vision: dict[str, int]) -> Any:
    """Return the configuration of the encoder."""
    from transformers import CLIPVisionConfig

    sizes = {"num_hidden_layers": vision["layers"], "num_attention_heads": vision["heads"]}
    return CLIPVisionConfig(**{k: v for k, v in vision.items() if k not in ("layers", "heads")}, **sizes)


def lora(sizes: dict[str, Any], **options: Any) -> Any:
    """Return LoRA's configuration: every linear layer of the language model."""
    from peft import LoraConfig

    rank = sizes["rank"]
    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, task_type="CAUSAL_LM", **options)


def build_ours(sizes: dict[str, Any]) -> Any:
    """Build the model as the configs do."""
    from transformers import CLIPVisionModel

    from pallava.training.model import PALLaVAModel

    encoder = CLIPVisionModel(vision_config(sizes["vision"])).eval()
    return PALLaVAModel(
        build_llm(sizes),
        encoder,
        dict(sizes["connector"], dropout=0.0),
        llm_lora=lora(sizes, target_modules="all-linear"),
        use_activation_checkpointing=False,
    )


def make_batch(sizes: dict[str, Any], shape: Shape) -> dict[str, Tensor]:
    """Make samples with one image each, the second half of whose words is taught, as `collate` pads them."""
    from pallava.prompts import IGNORE_INDEX, IMAGE_TOKEN_INDEX

    side, length = sizes["vision"]["image_size"], max(shape.text) + 1
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, sizes["llm"]["vocab"], (len(shape.text), length), generator=draw)
    ids[:, 3] = IMAGE_TOKEN_INDEX
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row, words in enumerate(shape.text):
        labels[row, : words // 2] = IGNORE_INDEX
        labels[row, words + 1 :], mask[row, words + 1 :], ids[row, words + 1 :] = IGNORE_INDEX, 0, 0
    counts = torch.tensor(shape.tiles) + 1
    pixels = torch.randn(int(counts.sum()), 3, side, side, generator=draw)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": pixels,
        "tiles_per_image": counts,
    }


def own_loss(model: Any, batch: dict[str, Tensor], recompute: bool = False) -> Tensor:
    """Return the loss as `pallava train` computes it."""
    with recomputing(model) if recompute else nullcontext():
        return model(batch, mode="loss")["loss"]


def cached(model: Any, batch: dict[str, Tensor]) -> Step:
    """Return a step whose encoder's tokens have been computed before."""
    network = model.network
    with torch.no_grad():
        tokens = network.encode_tiles(batch["pixel_values"])
    counts = batch["tiles_per_image"].tolist()
    words = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    return lambda _: network.compute_loss(**words, visual_tokens=network.connect(tokens, counts))


def published_loss(model: Any, batch: dict[str, Tensor], encoder: Any = None) -> Tensor:
    """Return the loss by the order of work of https://github.com/ddw2AIGROUP2CQUPT/PA-LLaVA (xtuner_add/pallava).

    Every image is padded to the most tiles by its last one; all of the encoder's layers run, in training mode and with
    gradients of its input, since checkpointing asked for them; its attention and the connector's keep their scores; the
    language model scores every position. All three recompute their activations. The mask of the tiles, one tile too
    long there, is right here, so that the loss can be compared.
    """
    from xtuner.model.utils import prepare_inputs_labels_for_multimodal

    images = batch["pixel_values"].split(batch["tiles_per_image"].tolist())
    most = max(map(len, images))
    padded = torch.cat([torch.cat([image, image[-1:].expand(most - len(image), -1, -1, -1)]) for image in images])
    encoder = encoder or model.visual_encoder
    with recomputing(model, encoder):
        hidden = encoder(padded, output_hidden_states=True).hidden_states[-2][:, 1:]
        tokens = hidden.unflatten(0, (len(images), most))  # (B, 1+N, T, D)
        mask = (torch.arange(1, most) < batch["tiles_per_image"][:, None]).repeat_interleave(tokens.shape[2], 1)
        visual = checkpoint(_connect, model.connector, tokens, mask.long(), use_reentrant=False)
        words = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        return model.llm(**prepare_inputs_labels_for_multimodal(model.llm, pixel_values=visual, **words)).loss


def _connect(connector: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """Run the connector's layers as transformers does."""
    overview, tiles = tokens[:, 0], tokens[:, 1:].flatten(1, 2)
    read = connector.qformer(overview, encoder_hidden_states=tiles, encoder_attention_mask=mask).last_hidden_state
    return connector.projection(connector.norm(overview + read))


@contextmanager
def recomputing(model: Any, encoder: Any = None) -> Iterator[None]:
    """Recompute activations of the language model, the connector and maybe the encoder while a loss is computed.

    The flags stay as they are set here until the backward pass: what is recomputed does not ask for them again.
    """
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    model.llm.gradient_checkpointing_enable(**options)
    model.connector.gradient_checkpointing = True
    hook = None
    if encoder is not None:
        encoder.gradient_checkpointing_enable(**options)
        encoder.train()
        embeddings = encoder.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
    yield
    model.llm.gradient_checkpointing_disable()
    model.connector.gradient_checkpointing = False
    if hook is not None:
        hook.remove()
        encoder.gradient_checkpointing_disable()
        encoder.eval()


def keep_scores(encoder: Any) -> Any:
    """Return a copy of a CLIP whose attention computes in three steps, as transformers' did before it used sdpa."""
    from transformers.models.clip.modeling_clip import CLIPAttention

    encoder = copy.deepcopy(encoder)
    for layer in encoder.vision_model.encoder.layers:
        layer.self_attn.__class__ = CLIPAttention
        layer.mlp.activation_fn = ACT2FN[encoder.config.hidden_act]
    return encoder


def build_next(sizes: dict[str, Any]) -> Step:
    """Build transformers' LLaVA-NeXT, whose language model reads the tokens of all tiles."""
    from peft import get_peft_model
    from transformers import LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    side = sizes["vision"]["image_size"]
    config = LlavaNextConfig(
        vision_config(sizes["vision"]),
        llama_config(LlamaConfig, sizes["llm"]),
        image_token_index=1,
        image_grid_pinpoints=[[rows * side, columns * side] for rows, columns in GRIDS.values()],
    )
    model: Any = LlavaNextForConditionalGeneration(config).train()
    model.requires_grad_(False)
    model.vision_tower.eval()
    model.language_model = get_peft_model(model.language_model, lora(sizes, target_modules="all-linear"))
    for part in (model.multi_modal_projector, model.image_newline):
        part.requires_grad_(True)
    return lambda batch: model(**next_inputs(batch, sizes, model.config.image_token_index), use_cache=False).loss


def next_inputs(batch: dict[str, Tensor], sizes: dict[str, Any], marker: int) -> dict[str, Tensor]:
    """Write the batch as LLaVA-NeXT takes it: a marker for each visual token, a padded tensor of tiles."""
    from torch.nn.utils.rnn import pad_sequence

    side, grid = sizes["vision"]["image_size"], sizes["vision"]["image_size"] // sizes["vision"]["patch_size"]
    canvases = [GRIDS[int(count) - 1] for count in batch["tiles_per_image"]]
    markers = [grid**2 + rows * grid * (columns * grid + 1) for rows, columns in canvases]
    rows_of: dict[str, list[Tensor]] = {"input_ids": [], "labels": []}
    words = (batch[key] for key in ("input_ids", "labels", "attention_mask"))
    for ids, labels, mask, count in zip(*words, markers, strict=True):
        for name, values, filling in (("input_ids", ids, marker), ("labels", labels, -100)):
            real = values[mask.bool()]
            rows_of[name].append(torch.cat([real[:3], real.new_full((count,), filling), real[4:]]))
    images = batch["pixel_values"].split(batch["tiles_per_image"].tolist())
    return {
        "input_ids": pad_sequence(rows_of["input_ids"], batch_first=True),
        "labels": pad_sequence(rows_of["labels"], batch_first=True, padding_value=-100),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in rows_of["input_ids"]], batch_first=True),
        "pixel_values": pad_sequence(list(images), batch_first=True),
        "image_sizes": torch.tensor(canvases) * side,
    }


def build_xtuner(sizes: dict[str, Any]) -> Step:
    """Build xtuner's own LLaVA, which reads one image of one tile a sample."""
    from transformers import CLIPVisionModel
    from xtuner.model import LLaVAModel

    encoder = CLIPVisionModel(vision_config(sizes["vision"])).eval()
    options = {"freeze_llm": True, "freeze_visual_encoder": True, "llm_lora": lora(sizes)}
    model: nn.Module = LLaVAModel(build_llm(sizes), encoder, use_activation_checkpointing=False, **options)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        first = [0, *batch["tiles_per_image"].cumsum(0)[:-1].tolist()]
        words = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        return model({**words, "pixel_values": batch["pixel_values"][first]}, mode="loss")["loss"]

    return loss


def check_equal(model: Any, steps: dict[str, Step], batch: dict[str, Tensor]) -> None:
    """Refuse to compare steps with other losses or gradients."""
    found = {}
    for name, step in steps.items():
        run(step, batch, product_of(name))
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        found[name] = (step(batch).detach(), torch.cat(gradients))
        model.zero_grad()
    loss, gradient = found[OURS]
    for name, (other_loss, other_gradient) in found.items():
        torch.testing.assert_close(other_loss, loss, atol=1e-5, rtol=1e-5, msg=f"{name}: another loss than {OURS}")
        error = float((other_gradient - gradient).norm() / gradient.norm())
        if not error < 1e-4:
            raise SystemExit(f"{name}: the gradients differ from those of {OURS} by {error:.1e} of their norm")


def run(step: Step, batch: dict[str, Tensor], product: str) -> float:
    """Return the seconds of a forward and a backward pass."""
    with multiplying(product):
        begin = time.perf_counter()
        step(batch).backward()
        return time.perf_counter() - begin


def product_of(name: str) -> str:
    """Return the library that multiplies matrices for a contestant."""
    return ONEDNN if name in (OURS, RECOMPUTING, CACHED) else MKL


@contextmanager
def multiplying(product: str) -> Iterator[None]:
    """Have a library multiply matrices; oneDNN only where `use_onednn` found it to be the faster one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no TF32, whenever a flag is set
        with torch.backends.mkldnn.flags(enabled=product == ONEDNN):
            yield


def measure(steps: dict[str, Step], batch: dict[str, Tensor], rounds: int) -> dict[str, list[float]]:
    """Return seconds of each step, one a round, and of a floating point operation of both libraries' products."""
    size, names = 1024, list(steps)
    left, right = torch.randn(2, size, size)

    def peak(product: str) -> float:  # a product is short: the best of many is the peak
        times = []
        with multiplying(product):
            for _ in range(10):
                begin = time.perf_counter()
                torch.mm(left, right)
                times.append(time.perf_counter() - begin)
        return min(times) / (2 * size**3)

    seconds: dict[str, list[float]] = {name: [] for name in (*names, MKL, ONEDNN)}
    for number in range(rounds):
        turn = number % len(names)
        peaks: dict[str, list[float]] = {MKL: [], ONEDNN: []}
        for name in names[turn:] + names[:turn]:
            for product, found in peaks.items():
                found.append(peak(product))
            seconds[name].append(run(steps[name], batch, product_of(name)))
        for product, found in peaks.items():
            seconds[product].append(min(found))
    return seconds


def count_flops(step: Step, batch: dict[str, Tensor]) -> float:
    """Return the floating point operations of a step, as torch counts them."""
    with FlopCounterMode(display=False, custom_mapping=CPU_KERNELS) as counter:
        run(step, batch, MKL)
    return float(counter.get_total_flops())


def report(seconds: dict[str, list[float]], flops: dict[str, float]) -> int:
    """Print the tables; return 1 if a ratio or the share of the peak is below its minimum."""
    rounds = len(seconds[MKL])
    speeds = (f"{1e-9 / statistics.median(seconds[product]):.0f} GFLOP/s by {product}" for product in (MKL, ONEDNN))
    print(f"{torch.get_num_threads()} threads, {rounds} rounds, matrix product {', '.join(speeds)}\n")
    print(f"{'':<34}{'s a step':>9}{'from':>8}{'to':>8}{'TFLOP':>8}{'of peak':>9}")
    shares = {}
    for name, work in flops.items():
        times = seconds[name]
        shares[name] = statistics.median(
            work / taken * unit for taken, unit in zip(times, seconds[product_of(name)], strict=True)
        )
        row = f"{statistics.median(times):>9.2f}{min(times):>8.2f}{max(times):>8.2f}{work / 1e12:>8.3f}"
        print(f"{name:<34}{row}{shares[name]:>9.2f}")
    print()
    failed = not shares[BY_MKL] >= MIN_SHARE
    print(f"share of the peak, {BY_MKL}: {shares[BY_MKL]:.2f} (at least {MIN_SHARE}: {'NOT ' * failed}kept)")
    for name, other, least in RATIOS:
        ratios = [b / a for a, b in zip(seconds[name], seconds[other], strict=True)]
        ratio = statistics.median(ratios)
        is_kept = ratio >= least
        failed |= not is_kept
        spread = f"rounds from {min(ratios):.2f} to {max(ratios):.2f}"
        verdict = f"at least {least}: {'' if is_kept else 'NOT '}kept"
        print(f"{name} against {other}: {ratio:.2f} times as fast ({spread}; {verdict})")
    return int(failed)


def sweep(steps: dict[str, Step], sizes: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Yield the cost of a step at other numbers of tiles, words and samples than the ordinary ones."""
    middle = Shape((6, 6), (120, 120))
    shapes = [middle, *(Shape((n, n), middle.text) for n in (4, 8)), *(Shape(middle.tiles, (n, n)) for n in (60, 480))]
    shapes += [Shape((6,) * n, (120,) * n) for n in (1, 4)]
    for shape in shapes:
        batch = make_batch(sizes, shape)
        seconds = {f"{key}_s": run(steps[name], batch, product_of(name)) for name, key in SWEPT.items()}
        yield {"tiles": shape.tiles[0], "text": shape.text[0], "batch": len(shape.tiles), **seconds}


if __name__ == "__main__":
    sys.exit(main())
