#!/usr/bin/env python
"""How many requests a second does `pallava serve` answer, and how soon does an answer begin in a second turn?

Clients ask over loopback, each about an image of its own, by OpenAI's chat completions in pieces, and ask again once
they have their answer. The server, which answers what waits in one batch, is compared with one that takes one request
after the other. Both take turns in each round, no image is shown twice, and answers have 32 new tokens. First it is
checked that both answer as `pallava chat` does. A ratio is one round's; what is printed is the median of the rounds.

The language model is the demo's (SmolLM2-135M), with the shape of its encoder and connector, random. A second turn is
also timed behind encoder and connector of the published shape, which is what it saves: those of the demo take less time
than a token of its language model.

Example:
  python benchmarks/serve.py            # some minutes on two cores
  python benchmarks/serve.py --small    # a small model in seconds, for a test; its numbers say nothing
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from generate import QUESTIONS, build_small, build_smollm2
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CLIENTS = (1, 4, 16)
NEW_TOKENS = 32
THROUGHPUT, SECOND_TURN = 3.0, 3.0
"""What is promised: times as many answers with 16 clients as one by one, and times as soon a second turn begins."""


def main() -> int:
    """Measure, print the tables, and return 1 if a promise is not kept."""
    from pallava.matmul import use_onednn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small model, for a test")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    use_onednn()  # as `pallava serve` does
    parts, rounds = (build_small(), 2) if options.small else (build_smollm2(), options.rounds)
    with serving(*parts, max_batch=max(CLIENTS)) as batched, serving(*parts, max_batch=1) as alone:
        check_answers(parts, (batched, alone))
        print(f"{options.threads} threads, {rounds} rounds, {NEW_TOKENS} new tokens an answer; requests a second\n")
        ratios = {clients: compare(clients, (batched, alone), rounds) for clients in CLIENTS}
        compare_turns("the demo's encoder", batched, 2 * rounds)
    parts = build_small() if options.small else build_smollm2(is_published=True)
    with serving(*parts) as published:
        sooner = compare_turns("PLIP's shape", published, 2 * rounds, side=1344)
    promises = {
        f"with {max(CLIENTS)} clients {ratios[max(CLIENTS)]:.2f} times as many answers": (ratios[16], THROUGHPUT),
        f"a second turn behind an encoder of PLIP's shape begins {sooner:.2f} times as soon": (sooner, SECOND_TURN),
    }
    for text, (found, least) in promises.items():
        print(f"{text} (at least {least:g}: {'kept' if found >= least else 'NOT kept'})")
    return 0 if options.small or all(found >= least for found, least in promises.values()) else 1


@contextmanager
def serving(model: Any, processor: Any, **options: Any) -> Iterator[str]:
    """Serve in a thread; yield the URL."""
    from pallava.serving.options import ServeOptions
    from pallava.serving.server import Server

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = Server(model, processor, "model", ServeOptions(**options))
        thread = threading.Thread(target=server.run, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
        server.stop()
        thread.join()


def picture(seed: int, side: int = 384) -> Image.Image:
    """Return an image of six tiles, as most of PathVQA's have."""
    pixels = random.Random(seed).randbytes(96 * 64)
    return Image.frombytes("L", (96, 64), pixels).resize((side, side * 2 // 3)).convert("RGB")


def question(seed: int, side: int = 384) -> list[dict[str, Any]]:
    """Return the messages of a question about the image of a seed."""
    out = io.BytesIO()
    picture(seed, side).save(out, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    text = QUESTIONS[seed % len(QUESTIONS)]
    return [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]}
    ]


def ask(url: str, messages: Sequence[Any]) -> tuple[str, float]:
    """Ask; return the answer, and the seconds to its first word."""
    begin, first, text = time.perf_counter(), 0.0, ""
    body = {"messages": messages, "max_tokens": NEW_TOKENS, "stream": True}
    with httpx.stream("POST", url, json=body, timeout=600) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                first = first or (time.perf_counter() - begin if text else 0.0)
    return text, first


def check_answers(parts: Any, urls: Sequence[str]) -> None:
    """Check that many at once, and one after the other, are answered as in the terminal."""
    from pallava.serving.session import Session

    seeds = range(max(CLIENTS))
    expected = [
        Session(*parts, picture(seed)).ask(QUESTIONS[seed % len(QUESTIONS)], max_new_tokens=NEW_TOKENS)
        for seed in seeds
    ]
    for url in urls:
        with ThreadPoolExecutor(len(seeds)) as pool:
            found = [text for text, _ in pool.map(partial(ask, url), map(question, seeds))]
        if found != expected:
            raise SystemExit("the server does not answer as the terminal does: there is nothing to compare")


def compare(clients: int, urls: Sequence[str], rounds: int) -> float:
    """Print the rates of both servers with a number of clients; return the median ratio."""
    asked = max(2 * clients, 4)
    rates: list[list[float]] = [[] for _ in urls]
    waits: list[list[float]] = [[] for _ in urls]
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            first = 1000 * (2 * number + which + 1) + 100_000 * clients
            messages = [question(first + each) for each in range(asked)]
            begin = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                found = list(pool.map(partial(ask, urls[which]), messages))
            rates[which].append(asked / (time.perf_counter() - begin))
            waits[which] += [wait for _, wait in found]
    for name, rate, wait in zip(("in batches", "one by one"), rates, waits, strict=True):
        seconds = f"first word after {statistics.median(wait):.2f} s"
        print(f"{clients:>3} clients, {name:<12}{statistics.median(rate):>8.2f}   {seconds}")
    ratios = [batched / alone for batched, alone in zip(*rates, strict=True)]
    print(f"{'ratio':>23}{statistics.median(ratios):>9.2f}   rounds from {min(ratios):.2f} to {max(ratios):.2f}\n")
    return statistics.median(ratios)


def compare_turns(name: str, url: str, rounds: int, side: int = 384) -> float:
    """Print how soon the answers of two turns on one image begin; return the median ratio."""
    first, second = [], []
    for number in range(rounds):
        messages = question(10_000_000 + number, side)
        text, seconds = ask(url, messages)
        first.append(seconds)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "How many nuclei are there?"}]
        second.append(ask(url, messages)[1])
    ratio = statistics.median(one / other for one, other in zip(first, second, strict=True))
    seconds = f"{statistics.median(first):.3f} s, in the second {statistics.median(second):.3f} s"
    print(f"{name}: first word of the first turn after {seconds}\n{'ratio':>23}{ratio:>9.2f}\n")
    return ratio


if __name__ == "__main__":
    sys.exit(main())
