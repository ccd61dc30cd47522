"""lmms-eval's model "pallava": ``python -m lmms_eval --model pallava --model_args pretrained=FOLDER --tasks ...``.

It implements the chat interface of lmms-eval (docs/guides/model_guide.md there) and is found by its entry point.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from pallava.errors import PallavaError
from pallava.io.processes import batches
from pallava.model import answer, load

_MAX_NEW_TOKENS = 256
_PASSED_ON = ("max_new_tokens", "num_beams", "repetition_penalty", "length_penalty", "min_new_tokens")
_SAMPLING = ("temperature", "top_p", "top_k")


class PALLaVA(lmms):
    """A model folder as lmms-eval asks it.

    Args:
        pretrained: The model folder.
        base_llm: Base language model of a folder with an adapter (default: the one that the folder names).
        device: Name of the device, such as "cuda:0" (default: the GPU of each process, or else the CPU).
        batch_size: Number of questions at once.
        max_batch_size: Not used.
        trust_remote_code: Whether a module that the folder names for its connector may be imported.

    Raises:
        PallavaError: The folder cannot be opened, or the batch size is not a positive number.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        base_llm: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise PallavaError(f"batch_size must be a number such as 16, got {batch_size!r}")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if device is None or self._world_size > 1:  # one device for all processes would be the first GPU's
            device = "auto"
        self._model, self._processor = load(
            str(pretrained), device, base_llm=base_llm, trust_remote_code=trust_remote_code
        )
        self.device = torch.device(self._model.device)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer each request, in order; those with equal options share batches.

        Raises:
            PallavaError: A request has a part that is neither a text nor an image.
        """
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), desc="pallava", disable=self.rank != 0) as bar:
            for numbers in self._batches(requests):
                own = [requests[number].args for number in numbers]
                conversations = [self._conversation(each) for each in own]
                texts = answer(self._model, self._processor, conversations, **_options(own[0][2]))
                for number, arguments, text in zip(numbers, own, texts, strict=True):
                    answers[number] = _cut(text, arguments[2].get("until", ()))
                    self.cache_hook.add_partial("generate_until", (arguments[0], arguments[2]), answers[number])
                bar.update(len(numbers))
        return [answers[number] for number in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse: PA-LLaVA answers in words."""
        raise PallavaError("pallava answers by generation; choose tasks with output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse."""
        raise PallavaError("pallava answers one question at a time; choose tasks with output_type generate_until")

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Yield numbers of requests, those with equal options and texts of similar length together."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(_options(request.args[2]).items())), []).append(number)
        for numbers in groups.values():
            numbers.sort(key=lambda number: -len(requests[number].args[0]))
            yield from batches(numbers, self.batch_size)

    def _conversation(self, arguments: tuple[Any, ...]) -> list[Mapping[str, Any]]:
        _, doc_to_messages, _, doc_id, task, split = arguments
        return doc_to_messages(self.task_dict[task][split][doc_id])


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a task's options to those of transformers' `generate`; sample only where the task asks for it."""
    options = {"max_new_tokens": _MAX_NEW_TOKENS, **{k: given[k] for k in _PASSED_ON if given.get(k) is not None}}
    if (given.get("temperature") or 0) > 0 and given.get("do_sample", True):
        options |= {"do_sample": True, **{k: given[k] for k in _SAMPLING if given.get(k) is not None}}
    return options


def _cut(text: str, until: str | Sequence[str]) -> str:
    """Cut an answer before the first of the task's stop strings."""
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text
