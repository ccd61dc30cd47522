#!/usr/bin/env python
"""How many answers a second does a PA-LLaVA give, 16 questions at once against one by one, and where does the time go?

The same 16 questions on 16 different images, answered both ways in turns, so that whatever else the computer does falls
on both alike. Long answers have 64 new tokens each, forced; short ones are as PathVQA's: half of them end at once, the
others after two to eight tokens, each question's length drawn once. A ratio is one round's; what is printed is the
median over the rounds. Encoder is tiles to visual tokens; prefill is up to the first new token; decode all that follow.

The small model is made on the spot; the other has the language model of the demo (SmolLM2-135M) and the shape of its
encoder and connector, random. With --model the answers of a trained model are timed, too, which end where it ends them.

Example:
  python benchmarks/generate.py                        # some minutes on two cores
  python benchmarks/generate.py --model demo/model     # with real short answers
  python benchmarks/generate.py --small                # the small model in seconds, for a test; its numbers say nothing
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TARGET = 3.0
"""Times as many answers a second in a batch, with forced tokens, that are promised for the larger model."""
BATCH, FORCED = 16, 64
QUESTIONS = ("Is necrosis present?", "How many glands do you see in this section?", "What is the stain?")
PARTS = ("encoder", "prefill", "decode")


@dataclass
class Times:
    """Seconds of each round: of 16 answers at once, of the same one by one, and of the parts of both."""

    batched: list[dict[str, float]] = field(default_factory=list)
    alone: list[dict[str, float]] = field(default_factory=list)


def main() -> int:
    """Measure, print the tables, and return 1 if the promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small model only, for a test")
    parser.add_argument("--model", type=Path, help="model folder, whose own answers are timed as well")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = 2 if options.small else options.rounds
    forced = 8 if options.small else FORCED
    print(f"{options.threads} threads, {BATCH} questions at once against one by one, {rounds} rounds\n")
    ratio = 0.0
    for name, build in {"small": build_small, "SmolLM2-135M": build_smollm2}.items():
        if options.small and name != "small":
            continue
        model, processor = build()
        ratio = report(f"{name}, {forced} tokens forced", measure(model, processor, rounds, [forced] * BATCH))
        report(f"{name}, short answers", measure(model, processor, rounds, short_lengths()))
    if options.model:
        report(f"{options.model}, its own answers", measure(*open_folder(options.model), rounds, None))
    kept = ratio >= TARGET
    print(
        f"with {forced} forced tokens {ratio:.2f} times as many answers a second (at least {TARGET:g}: "
        f"{'kept' if kept else 'NOT kept'})"
    )
    return 0 if options.small or kept else 1


def build_small() -> tuple[Any, Any]:
    """Build a language model of four layers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    return with_images(LlamaForCausalLM(LlamaConfig(vocab_size=49152, num_key_value_heads=2, **sizes)))


def build_smollm2(*, is_published: bool = False) -> tuple[Any, Any]:
    """SmolLM2-135M as the demo has it, or with encoder and connector of the published shape."""
    from transformers import AutoModelForCausalLM

    from pallava.demo.fetch import fetch_smollm2

    return with_images(AutoModelForCausalLM.from_pretrained(fetch_smollm2()), is_published=is_published)


def with_images(llm: Any, *, is_published: bool = False) -> tuple[Any, Any]:
    """Put the demo's shape of encoder and connector around a language model, or the published one."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    from pallava.demo import PLIP_MODEL
    from pallava.demo.fetch import fetch_smollm2
    from pallava.model import (
        PALLaVAForConditionalGeneration,
        PALLaVAProcessor,
        ScaleInvariantConnector,
        ScaleInvariantConnectorConfig,
    )

    published = {"layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "image_size": 224}
    vision = published if is_published else PLIP_MODEL["vision_cfg"]
    width, side = vision["width"], vision["image_size"]
    encoder = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=vision["layers"],
        num_attention_heads=width // vision["head_width"],
        image_size=side,
        patch_size=vision["patch_size"],
    )
    demo = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 768}
    sizes: dict[str, int] = {} if is_published else demo
    connector = ScaleInvariantConnectorConfig(visual_hidden_size=width, llm_hidden_size=llm.config.hidden_size, **sizes)
    parts = CLIPVisionModel(encoder), ScaleInvariantConnector(connector)
    model = PALLaVAForConditionalGeneration.from_parts(llm, *parts).eval()
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    tokenizer = AutoTokenizer.from_pretrained(fetch_smollm2())
    processor = PALLaVAProcessor(CLIPImageProcessor(**size), tokenizer, "qwen_chat")
    model.use_end_tokens(processor.end_token_ids)
    return model, processor


def open_folder(folder: Path) -> tuple[Any, Any]:
    """Open a model in float32: in fewer bits a batch can answer otherwise than each question alone."""
    from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor

    model = PALLaVAForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32)
    return model.eval(), PALLaVAProcessor.from_pretrained(folder)


def short_lengths() -> list[int]:
    """Draw the number of new tokens of each answer."""
    draw = random.Random(0)
    return [1 if number % 2 else draw.randint(2, 8) for number in range(BATCH)]


def measure(model: Any, processor: Any, rounds: int, lengths: Sequence[int] | None) -> Times:
    """Answer the questions both ways, in turns.

    Args:
        model: The model.
        processor: Its processor.
        rounds: How often; a round before them warms up.
        lengths: New tokens of each answer; None where the model ends it.
    """
    from pallava.evaluation.answers.generation import Answerer
    from pallava.evaluation.answers.items import Item

    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        items = [Item(str(n), write_picture(Path(folder), n), QUESTIONS[n % len(QUESTIONS)], "") for n in range(BATCH)]
        answerer = Answerer(model, processor, FORCED)
        together = answerer.prepare(items)
        single = [answerer.prepare([item]) for item in items]
    tasks: list[Callable[[], tuple[list[dict[str, float]], list[str]]]] = [
        lambda: run(model, processor, [together], lengths and [list(lengths)]),
        lambda: run(model, processor, single, lengths and [[length] for length in lengths]),
    ]
    for number in range(-1, rounds):
        order = (0, 1) if number % 2 else (1, 0)
        done = {which: tasks[which]() for which in order}
        if done[0][1] != done[1][1]:
            raise SystemExit("answers in a batch are not those of each alone: there is nothing to compare")
        if number >= 0:
            times.batched.append(added(done[0][0]))
            times.alone.append(added(done[1][0]))
    return times


def run(
    model: Any, processor: Any, batches: Sequence[Any], lengths: Sequence[list[int]] | None
) -> tuple[list[dict[str, float]], list[str]]:
    """Seconds of the parts of each batch, and all answers."""
    parts, answers = [], []
    for number, batch in enumerate(batches):
        seconds, ids = timed(model, batch, lengths[number] if lengths else None)
        parts.append(seconds)
        answers += processor.batch_decode(ids)
    return parts, answers


@torch.inference_mode()
def timed(model: Any, batch: Any, lengths: list[int] | None) -> tuple[dict[str, float], Tensor]:
    """Answer a batch; the first pass of the language model is separated from the others by a hook."""
    from pallava.model.loading import is_adapted

    marks: list[float] = []
    # An adapted model's `generate` calls the model inside it, and not itself.
    llm = model.llm.get_base_model() if is_adapted(model.llm) else model.llm
    hook = llm.register_forward_hook(lambda *passed: marks.append(time.perf_counter()))
    options: dict[str, Any] = {"max_new_tokens": FORCED}
    if lengths is not None:
        end = model.generation_config.eos_token_id
        options = {"max_new_tokens": max(lengths), "logits_processor": [EndAt(lengths, end)]}
    begin = time.perf_counter()
    visual = model.encode_images(batch.tiles)
    encoded = time.perf_counter()
    ids = model.generate(**batch.prompts, visual_tokens=visual, **options)[:, batch.prompts["input_ids"].shape[1] :]
    finished = time.perf_counter()
    hook.remove()
    return {"encoder": encoded - begin, "prefill": marks[0] - encoded, "decode": finished - marks[0]}, ids


class EndAt:
    """Forces each answer of a batch to its length, end token included."""

    def __init__(self, lengths: Sequence[int], end: int | list[int]) -> None:
        self._lengths, self._end, self._step = torch.tensor(lengths), [end] if isinstance(end, int) else end, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) of the next token, of which the end is the only one or none."""
        self._step += 1
        ends = (self._step >= self._lengths)[:, None]
        scores = scores.clone()
        kept = scores[:, self._end]
        scores.masked_fill_(ends, -torch.inf)
        scores[:, self._end] = torch.where(ends, kept, -torch.inf)
        return scores


def write_picture(folder: Path, number: int) -> str:
    """Write an image of six tiles, as most of PathVQA's have."""
    from PIL import Image

    random.seed(number)
    path = folder / f"{number}.png"
    Image.effect_noise((384, 256), 60).convert("RGB").save(path)
    return str(path)


def added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seconds of each part over all batches."""
    return {name: sum(each[name] for each in parts) for name in PARTS}


def report(title: str, times: Times) -> float:
    """Print a table.

    Returns:
        How many times as many answers a second a batch gives.
    """
    print(f"{title:<34}{'answers/s':>10}" + "".join(f"{f'{name} ms':>13}" for name in PARTS))
    for name, rounds in (("one by one", times.alone), (f"{BATCH} at once", times.batched)):
        rate = statistics.median(BATCH / sum(seconds.values()) for seconds in rounds)
        parts = [statistics.median(seconds[part] for seconds in rounds) * 1000 / BATCH for part in PARTS]
        print(f"  {name:<32}{rate:>10.2f}" + "".join(f"{value:>13.1f}" for value in parts))
    ratios = [
        sum(alone.values()) / sum(batched.values()) for alone, batched in zip(times.alone, times.batched, strict=True)
    ]
    ratio = statistics.median(ratios)
    print(f"  {'ratio':<32}{ratio:>10.2f}   rounds from {min(ratios):.2f} to {max(ratios):.2f}\n")
    return ratio


if __name__ == "__main__":
    sys.exit(main())
