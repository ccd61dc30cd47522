"""The pieces of a reply, put together, are the reply, whatever the tokenizer makes of its tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, CLIPImageProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pallava.model import PALLaVAProcessor
from pallava.serving.replies import ChatRequest, Reply, Writer

TEXTS = [
    "a 'so called' cell",
    "cells ' nuclei, don't , do n't",
    "x 'm y 's",
    "a ' b . c ?",
    "µm 𝛼 👩‍🔬 é",
    "a \ufffd b",
]


def write(processor: PALLaVAProcessor, ids: list[int], **how: Any) -> tuple[list[str], Reply]:
    """The pieces that a writer gives, and the reply."""
    pieces: list[str] = []
    request = ChatRequest("q", [1], [], len(ids), on_text=pieces.append, **how)
    writer = Writer([request], processor, [])
    for token in ids:
        writer.note_scores(torch.empty(0), torch.zeros(1, len(processor.tokenizer)))
        writer.put(torch.tensor([token]))
    return pieces, writer.replies[0]


def processor_of(tokenizer: PreTrainedTokenizerBase) -> PALLaVAProcessor:
    return PALLaVAProcessor(CLIPImageProcessor(), tokenizer, "qwen_chat")


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_hard_texts(smollm2_folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder, clean_up_tokenization_spaces=True)
    processor = processor_of(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces, reply = write(processor, ids)
    assert "".join(pieces) == reply.text == text == processor.batch_decode(torch.tensor([ids]))[0]
    assert len(pieces) > 1


def test_pieces_of_broken_bytes() -> None:
    """Where a tokenizer falls back to bytes, one that is broken breaks those before it."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {name: number for number, name in enumerate([*names, "a", "<unk>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    processor = processor_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<unk>"))
    for ids in ([256, *"é".encode(), 0xFF, 256], [256, *"é👩".encode(), 0xF0]):
        pieces, reply = write(processor, ids)
        assert "".join(pieces) == reply.text
        assert reply.text.startswith("aé")
