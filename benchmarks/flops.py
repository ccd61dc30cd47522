#!/usr/bin/env python
"""What do both trainings of the published sizes cost, in the published order of work and in ours?

Nothing is computed at these sizes: the code of the model runs on the meta device, where tensors have shapes alone, and
torch's counter counts. What it counts is compared first with a tiny model that really runs. Hours follow from the
operations at 40 % of an H100's peak, and from how long ranks wait for each other: the order of the rows is the
sampler's own, their lengths are drawn.

Example:
  python benchmarks/flops.py            # half a minute
  python benchmarks/flops.py --small    # the comparison and tiny sizes alone, for a test
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import init_empty_weights
from mmengine.dataset import DefaultSampler
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training import CPU_KERNELS, published_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pallava.prompts import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pallava.training.doctor.memory import Memory, Parameters, read_zero_settings, zero_memory
from pallava.training.doctor.step import count_activations, count_flops
from pallava.training.model import PALLaVAModel
from pallava.training.sampler import LengthSampler

ROOT = Path(__file__).resolve().parents[1]
PEAK, SHARE, CARD_GB, CARDS = 989e12, 0.4, 80, (1, 8, 16)  # of an H100 in bf16
MAX_ERROR, MAX_HOURS = 0.02, 2.5
"""Largest difference between a prediction and what the counter finds; hours of stage 1 on the most cards."""
BATCH, TILES, MOST_TILES, CONTEXT, NUM_VISUAL = 6, 6, 8, 2048, 196
Cost, Sizes = Callable[[np.ndarray], np.ndarray], dict[str, dict[str, Any]]
LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
FULL: Sizes = {
    "llm": {**LLAMA, "vocab_size": 128_256, "num_key_value_heads": 8, "rope_theta": 5e5},
    "vision": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16},
    "connector": {"num_hidden_layers": 6, "intermediate_size": 3072},
    "lora": {"r": 128, "lora_alpha": 256},
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY: Sizes = {
    "llm": {**SMALL, "vocab_size": 512, "num_key_value_heads": 2},
    "vision": {**SMALL, "hidden_size": 48, "image_size": 32, "patch_size": 8},
    "connector": {"num_hidden_layers": 1, "intermediate_size": 96, "num_attention_heads": 2},
    "lora": {"r": 4, "lora_alpha": 8},
}


class Stage(NamedTuple):
    """A training; `words` are the text tokens of a mean row, of which the last are taught."""

    name: str
    rows: int
    epochs: int
    accumulation: int
    words: int
    taught: int
    sigma: float


STAGES = (
    Stage("1, domain alignment", 518_413, 9, 6, 150, 110, 0.6),
    Stage("2, instruction tuning", 35_543, 12, 4, 80, 20, 0.45),
)


class AllLogits(PALLaVAModel):
    """Ours, but for the scores of the vocabulary, which every position gets."""

    def forward(self, data: dict[str, Tensor], data_samples: object = None, mode: str = "loss") -> Any:
        """Return the loss of a batch."""
        return {"loss": self.network(**data).loss}


class PublishedOrder(PALLaVAModel):
    """The published order of work."""

    def forward(self, data: dict[str, Tensor], data_samples: object = None, mode: str = "loss") -> Any:
        """Return the loss of a batch."""
        return {"loss": published_loss(self, data)}


class Work(NamedTuple):
    """What a step computes."""

    model: type[PALLaVAModel]
    recomputes: bool = True
    num_tiles: int = TILES


class Order(NamedTuple):
    """An order of work; each changes one thing of the one before."""

    name: str
    work: Work
    is_grouped: bool = False


ORDERS = (
    Order("published", Work(PublishedOrder, num_tiles=MOST_TILES)),
    Order("+ encoder to layer -2, no gradients, real tiles", Work(AllLogits)),
    Order("+ scores of taught positions alone", Work(PALLaVAModel)),
    Order("+ rows grouped by length", Work(PALLaVAModel), is_grouped=True),
    Order("+ nothing recomputed where that fits: ours", Work(PALLaVAModel, recomputes=False), is_grouped=True),
)
ASSUMPTIONS = f"""Assumed: {TILES} tiles and an overview a row, in the published order {MOST_TILES}, padded to the most
of a batch; text as drawn; bf16; all cards wait for the slowest in each micro-step; {SHARE:.0%} of
{PEAK / 1e12:g} TFLOPS, whatever is computed. Published: rows in any order in both stages, all parts recomputed, ZeRO-2
as xtuner's JSON has it. Ours: pallava_zero1; of all batches only those too long for
{CARD_GB} GB are recomputed. Not counted: optimizer, communication, reading of images, checkpoints, chats."""


def main() -> int:
    """Check, count and print the tables; return 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes and few rows; their hours say nothing")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # mmengine's, of each sampler
    error = max(abs(predicted - counted) / counted for predicted, counted in compare_tiny().values())
    print(f"FLOPs of a tiny model, predicted against counted: {error:.2%} off (at most {MAX_ERROR:.0%})")
    costs = Costs(TINY if options.small else FULL)
    report_memory(costs)
    hours = [report(costs, stage, 2_000 if options.small else stage.rows) for stage in STAGES]
    theirs, ours = (sum(stage[number] for stage in hours) for number in (0, -1))
    print(f"\n{CARDS[-1]} cards, both stages: published {theirs:.1f} hours, ours {ours:.1f}: {theirs / ours:.2f} times")
    print(f"{CARDS[-1]} cards, stage 1: ours {hours[0][-1]:.2f} hours (at most {MAX_HOURS:g})\n\n{ASSUMPTIONS}")
    return int(error > MAX_ERROR or (hours[0][-1] > MAX_HOURS and not options.small))


def build(sizes: Sizes, work: Work, device: str, llm_dtype: torch.dtype = torch.float32) -> Any:
    """Build a model of these sizes with new weights, or on the meta device without any."""
    from peft import LoraConfig
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    lora = LoraConfig(**sizes["lora"], lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    options: dict[str, Any] = {"llm_lora": lora, "use_activation_checkpointing": work.recomputes}
    with init_empty_weights() if device == "meta" else torch.device(device):
        llm = LlamaForCausalLM._from_config(LlamaConfig(**sizes["llm"]), torch_dtype=llm_dtype)
        encoder = CLIPVisionModel(CLIPVisionConfig(**sizes["vision"])).eval()
        return work.model(llm, encoder, dict(sizes["connector"], dropout=0.1), **options)


def make_batch(sizes: Sizes, rows: int, words: int, taught: int, tiles: int) -> dict[str, Any]:
    """Make rows of one image each, all of the same length, as the collate function does."""
    ids = torch.randint(5, 500, (rows, words + 1))
    ids[:, 1] = IMAGE_TOKEN_INDEX
    labels = torch.where(torch.arange(words + 1) > words - taught, ids, IGNORE_INDEX)
    side = sizes["vision"].get("image_size", 224)
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    data["pixel_values"] = torch.randn(rows * (tiles + 1), 3, side, side)
    return {"data": {**data, "tiles_per_image": torch.full((rows,), tiles + 1)}}


def compare_tiny() -> dict[Work, tuple[int, int]]:
    """Return the operations of a step of a tiny model as `count_flops` predicts them, and as they are counted in it."""
    found, batch = {}, make_batch(TINY, 3, words=40, taught=20, tiles=4)
    for work in dict.fromkeys(order.work for order in ORDERS):
        with FlopCounterMode(display=False, custom_mapping=CPU_KERNELS) as counter:
            build(TINY, work, "cpu")(batch["data"], mode="loss")["loss"].backward()
        found[work] = count_flops(build(TINY, work, "meta"), batch), counter.get_total_flops()
    return found


class Costs:
    """Operations and memory of a card at some sizes; what is counted is counted once."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.build = cache(lambda work: build(sizes, work, "meta").to(torch.bfloat16))
        self.flops = cache(self._flops)
        self.activations = cache(lambda work, *of: count_activations(self.build(work), self.batch(work, *of)))

    def batch(self, work: Work, stage: Stage, rows: int, words: int) -> dict[str, Any]:
        """Make a batch of rows of so many text tokens, whose taught share is the stage's."""
        return make_batch(self.sizes, rows, words, words * stage.taught // stage.words, work.num_tiles)

    def _flops(self, work: Work, stage: Stage) -> Cost:
        """Return a function from text tokens to the operations of a row: the parabola through three counted rows."""
        words = [stage.words // 2, 2 * stage.words, 4 * stage.words]
        counts = [count_flops(self.build(work), self.batch(work, stage, 1, each)) for each in words]
        return np.poly1d(np.polyfit(words, counts, 2))

    def memory(self, work: Work, stage: Stage, words: int, cards: int) -> Memory:
        """Return the memory of a card in a batch of rows of so many text tokens."""
        step = {"activation_checkpointing": work.recomputes, "activations": self.activations(work, stage, BATCH, words)}
        xtuners = {"zero_optimization": {"overlap_comm": True}}
        zero = read_zero_settings(xtuners, 2) if work.model is PublishedOrder else read_zero_settings(None, 1)
        return zero_memory(Parameters.of(self.build(work)), torch.bfloat16, cards, *zero, **step)

    def most_words(self, work: Work, stage: Stage, cards: int) -> int:
        """Return the text tokens of the longest rows whose batch fits a card, from the line through two batches."""
        short, long = stage.words, 4 * stage.words
        low, high = (self.memory(work, stage, words, cards).total for words in (short, long))
        return int(short + (CARD_GB * 1e9 - low) * (long - short) / (high - low))

    def cost(self, work: Work, stage: Stage, cards: int) -> Cost:
        """Return a function from text tokens to the operations of a row, recomputed where its batch does not fit."""
        if work.recomputes:
            return self.flops(work, stage)
        most, kept = self.most_words(work, stage, cards), self.flops(work, stage)
        recomputed = self.flops(work._replace(recomputes=True), stage)
        return lambda words: np.where(words <= most, kept(words), recomputed(words))


class Lengths(list[int]):
    """Lengths of rows, in the place of the data set that samplers ask for them."""

    modality_length = property(list)


def deal(words: np.ndarray, cards: int, *, is_grouped: bool) -> np.ndarray:
    """Return the text tokens of the rows (micro-steps, B, cards) of an epoch, as the sampler deals them."""
    rows: Any = Lengths((words + NUM_VISUAL).tolist())
    order = np.fromiter(DefaultSampler(rows, shuffle=True, seed=0), int)  # of one process; several take turns in it
    ranks = [order[rank::cards] for rank in range(cards)]
    if is_grouped:
        sampler = LengthSampler(rows, BATCH, seed=0)
        sampler.world_size = cards
        for sampler.rank in range(cards):
            ranks[sampler.rank] = np.fromiter(sampler, int)
    whole = len(words) // (BATCH * cards) * BATCH
    return np.stack([words[rank[:whole]].reshape(-1, BATCH) for rank in ranks], axis=2)


def useful_share(dealt: np.ndarray, cost: Cost) -> float:
    """Return the share of the cards' time that goes neither into padding nor into waiting for the slowest card."""
    spent = cost(dealt.max(1)).max(1).sum() * dealt.shape[1] * dealt.shape[2]
    return float(cost(dealt).sum() / spent)


def report_memory(costs: Costs) -> None:
    """Print the number of parameters, and where the memory of a card goes."""
    stage, parts = STAGES[0], ("weights", "gradients", "optimizer", "buffers", "activations", "cuda", "total")
    parameters = Parameters.of(costs.build(ORDERS[-1].work))
    print(f"parameters: {parameters.total / 1e9:.2f} B, of which {parameters.trained / 1e6:.1f} M are trained\n")
    print(f"{'GB on each of 16 cards, stage 1, mean batch':<50}" + "".join(f"{part:>12}" for part in parts))
    for order in (ORDERS[0], ORDERS[-2], ORDERS[-1]):
        memory = costs.memory(order.work, stage, stage.words, CARDS[-1])
        print(f"{order.name:<50}" + "".join(f"{getattr(memory, part) / 1e9:>12.2f}" for part in parts))


def report(costs: Costs, stage: Stage, num_rows: int) -> list[float]:
    """Print the table of a stage; return the hours of each order on the most cards."""
    drawn = np.random.default_rng(0).lognormal(math.log(stage.words) - stage.sigma**2 / 2, stage.sigma, num_rows)
    words, hours = drawn.round().clip(16, CONTEXT - NUM_VISUAL).astype(int), []
    deals = cache(lambda cards, is_grouped: deal(words, cards, is_grouped=is_grouped))
    print(f"\nstage {stage.name}: {stage.rows:,} rows x {stage.epochs} epochs, batch {BATCH} x {stage.accumulation};")
    print(f"text: {stage.words} tokens on average, log-normal, sigma {stage.sigma:g}, {stage.taught} of them taught\n")
    heads = [f"{title} x {cards}" for title in ("GB", "useful", "hours") for cards in CARDS]
    print(f"{'a card, on so many cards':<50}{'TFLOP/row':>10}" + "".join(f"{head:>12}" for head in heads))
    for order in ORDERS:
        cells: list[list[str]] = [[], [], []]
        for cards in CARDS:
            cost, memory = costs.cost(order.work, stage, cards), costs.memory(order.work, stage, stage.words, cards)
            flops, share = cost(words).mean(), useful_share(deals(cards, order.is_grouped), cost)
            spent = flops * stage.rows * stage.epochs / (PEAK * SHARE * cards * share * 3600)
            for column, text in zip(cells, (f"{memory.total / 1e9:.1f}", f"{share:.2f}", f"{spent:.2f}"), strict=True):
                column.append(f"{text:>12}")
        print(f"{order.name:<50}{flops / 1e12:>10.2f}" + "".join(map("".join, cells)))
        hours.append(spent)
    longest = costs.most_words(ORDERS[-1].work, stage, CARDS[-1])
    print(
        f"fits {CARD_GB} GB without recomputing: rows of {longest:,} tokens; {np.mean(words > longest):.2%} are longer"
    )
    return hours


if __name__ == "__main__":
    sys.exit(main())
