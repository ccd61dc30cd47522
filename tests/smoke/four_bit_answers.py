"""What folders of a run in 4 bit compute, in an environment that has a bitsandbytes for it.

`python -m tests.smoke.four_bit_answers LLM MERGED ADAPTER FILE` writes tensors and facts to a file.
"""

import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import transformers.integrations.bitsandbytes as integration
from peft import PeftModel

from pallava.four_bit import SETTINGS, round_weights
from pallava.model import load
from pallava.model.loading import ADAPTER_FOLDER, load_llm, open_llm
from pallava.model.versions import need_bitsandbytes
from tests.tiny.server import picture


def fault_of_transformers() -> str:
    """What transformers itself says to a bitsandbytes on a CPU, before `need_bitsandbytes`."""
    try:
        integration._validate_bnb_multi_backend_availability(True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def rounding(folder: str, dtype: torch.dtype) -> bool:
    """Whether our own rounding gives every bit that transformers has in 4 bit."""
    theirs = load_llm(folder, dtype, load_in_4bit=True).dequantize()
    ours = open_llm(folder, torch_dtype=dtype)
    round_weights(ours, SETTINGS)
    pairs = zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def main(base: str, merged: str, adapter: str, file: str) -> None:
    found: dict[str, Any] = {"fault": fault_of_transformers()}
    need_bitsandbytes()
    found["rounding"] = {str(dtype): rounding(base, dtype) for dtype in (torch.float32, torch.bfloat16)}
    folders = {
        "merged": load(merged, "cpu"),
        "adapter": load(adapter, "cpu"),
        "in 4 bit": load(merged, "cpu", load_in_4bit=True),
        "by hand": load(adapter, "cpu"),
    }
    dequantized = load_llm(base, load_in_4bit=True).dequantize()
    folders["by hand"][0].llm = PeftModel.from_pretrained(dequantized, str(Path(adapter, ADAPTER_FOLDER)))
    turn = {
        "role": "user",
        "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "what is shown ?"}],
    }
    found["logits"], found["kinds"] = {}, {}
    for name, (model, processor) in folders.items():
        inputs = processor.apply_chat_template([[turn]], tokenize=True, return_dict=True)
        with torch.no_grad():
            found["logits"][name] = model(**inputs).logits
        quantized = (each for each, layer in model.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit))
        found["kinds"][name] = sorted(quantized)
    torch.save(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
