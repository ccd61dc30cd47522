"""What this machine or this trainer cannot do: refused before the model is read and before processes wait for others.

By itself, a training that is slow, rounded or hangs says nothing.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pallava.devices import device_dtype
from pallava.errors import PallavaError
from pallava.four_bit import find_settings

_DEVICES = Path("/dev")
_SLURM_CARDS = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")
_NO_CARDS = ("", "-1", "NoDevFiles")  # the last is Slurm's, for a step without GPUs
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)[af]?")  # such as sm_75, compute_120
_HALF = ("bfloat16", "float16")


def check(config: Mapping[str, Any]) -> None:
    """Check that this machine's GPUs and DeepSpeed's settings can train what a config describes.

    Raises:
        PallavaError: torch cannot use a GPU that exists, ZeRO's stage is neither 1 nor 2, or the language model would
            not be trained in the config's precision.
    """
    check_stage(config)
    check_cards()
    check_precision(config)


def check_cards() -> None:
    """Check that torch sees the GPUs of this machine and has kernels for them.

    An empty CUDA_VISIBLE_DEVICES, or -1, asks for the CPU.

    Raises:
        PallavaError: It does not see them, or has no kernels.
    """
    if not torch.cuda.is_available():
        if sign := _sign_of_card():
            raise PallavaError(
                f"{sign} means a GPU, but torch cannot use one: {_reason()}; correct that, or set "
                "CUDA_VISIBLE_DEVICES='' to train on the CPU"
            )
        return
    names = torch.cuda.get_arch_list()
    if torch.version.hip or not names:
        return
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not any(_runs_on(name, capability) for name in names):
            raise PallavaError(
                f"GPU {index} has the compute capability {'.'.join(map(str, capability))}, for which this torch has no "
                f"kernels, only {', '.join(names)}; install a build of torch that has them, or set CUDA_VISIBLE_DEVICES"
            )


def _sign_of_card() -> str | None:
    """Return what says that this process should have a GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return None if visible.strip() in _NO_CARDS else f"CUDA_VISIBLE_DEVICES={visible}"
    if found := sorted(_DEVICES.glob("nvidia[0-9]*")):
        return f"'{found[0]}'"
    given = {name: os.environ.get(name, "") for name in _SLURM_CARDS}
    if given["SLURM_GPUS_ON_NODE"] == "0":  # a number; in the others, 0 is the first card
        given["SLURM_GPUS_ON_NODE"] = ""
    return next((f"{name}={value}" for name, value in given.items() if value), None)


def _reason() -> str:
    """Return torch's own words for why it sees no card."""
    try:
        torch.cuda.init()
    except Exception as error:  # a RuntimeError, or an AssertionError of a build without CUDA
        words = " ".join(str(error).split())
        code = words.find("Error ")  # what follows a general first sentence
        return words[max(code, 0) :].split(". ")[0].rstrip(".")[:150]
    return "it finds none"


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Return whether code for an architecture runs on a card: the same major version, or compiled when loaded."""
    parts = _ARCHITECTURE.fullmatch(architecture)
    if parts is None:
        return False
    built = int(parts[2]), int(parts[3])
    return built <= capability and (parts[1] == "compute" or built[0] == capability[0])


def check_stage(config: Mapping[str, Any]) -> None:
    """Check that DeepSpeed cuts the optimizer and no more: the trainer cannot work with weights that are cut.

    Raises:
        PallavaError: ZeRO's stage is neither 1 nor 2.
    """
    settings = deepspeed_settings(config)
    stage = str((settings.get("zero_optimization") or {}).get("stage", 0))
    if settings and stage not in ("1", "2"):
        reason = "processes hang and checkpoints cannot be converted" if stage == "3" else "no step with NaN is skipped"
        raise PallavaError(
            f"--deepspeed must be of ZeRO's stage 1 or 2, got stage {stage}, under which {reason}; choose "
            "pallava_zero1, deepspeed_zero1 or deepspeed_zero2"
        )


def check_precision(config: Mapping[str, Any]) -> None:
    """Check that the language model is read in the precision of the training, and that its own weights can move in it.

    Raises:
        PallavaError: DeepSpeed does not follow the config's `precision`, the language model would be read in another
            one, or weights would be trained that are in 4 bit, or rounded and without float32 masters.
    """
    model = config.get("model")
    llm = model.get("llm") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(llm, Mapping):
        return
    if find_settings(llm) and not model.get("freeze_llm", True):
        raise PallavaError(
            "freeze_llm=False would train weights in 4 bit, which cannot move; set llm_in_4bit=False, or "
            "freeze_llm=True with LoRA"
        )
    trained, read = trained_precision(config), _dtype_of(llm)
    if _is_automatic(llm) and read in _HALF and read != trained:
        raise PallavaError(
            f"the language model would be read in {read} and trained in {trained}; set precision='{trained}', and give "
            "model.llm the same by torch_dtype"
        )
    if not has_deepspeed(config) and not model.get("freeze_llm", True) and read in _HALF:
        raise PallavaError(
            f"freeze_llm=False would train weights in {read}, most of which are too coarse to move; add --deepspeed "
            "pallava_zero1 or deepspeed_zero2, which keep them in float32, too, or set model.llm.torch_dtype=float32"
        )


def trained_precision(config: Mapping[str, Any]) -> str:
    """Return the type that a training computes in; refuse DeepSpeed's where the config asks for another one."""
    if not has_deepspeed(config):
        return _resolve((config.get("optim_wrapper") or {}).get("precision", "auto"))
    settings = deepspeed_settings(config)
    enabled = {name for name in ("bf16", "fp16") if (settings.get(name) or {}).get("enabled") is True}
    trained = "bfloat16" if "bf16" in enabled else "float16" if enabled else "float32"
    asked = config.get("precision", "auto")  # the name at the config's top: all that xtuner leaves
    if asked not in ("auto", trained):
        raise PallavaError(
            f"precision='{asked}' does not fit --deepspeed, which would train in {trained}; set precision='auto', or "
            "enable what you want in DeepSpeed's JSON (bf16, fp16)"
        )
    return trained


def has_deepspeed(config: Mapping[str, Any]) -> bool:
    """Return whether a config, as the trainer has changed it, trains under DeepSpeed."""
    return "DeepSpeed" in str((config.get("optim_wrapper") or {}).get("type"))


def deepspeed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return DeepSpeed's JSON, as `--deepspeed` or a dumped config put it into the strategy."""
    strategy = config.get("strategy") or {}
    found = strategy.get("config") or {}
    if isinstance(found, str):
        found = json.loads(Path(found).read_text(encoding="utf-8"))
    return {**found, **{key: strategy[key] for key in ("zero_optimization", "bf16", "fp16") if strategy.get(key)}}


def _is_automatic(llm: Mapping[str, Any]) -> bool:
    """Return whether our loader chooses the type by the device; one that is given is the user's will."""
    kind = llm.get("type")
    is_ours = str(getattr(kind, "__name__", kind)).rpartition(".")[2] == "load_llm"
    return is_ours and llm.get("torch_dtype", "auto") == "auto"


def _dtype_of(llm: Mapping[str, Any]) -> str:
    """Return the type that the language model is read in; transformers' own "auto" is known only from the files."""
    if _is_automatic(llm):
        return _resolve("auto")
    return str(llm.get("torch_dtype") or "float32").removeprefix("torch.")


def _resolve(precision: str) -> str:
    return str(device_dtype()).removeprefix("torch.") if precision == "auto" else precision
