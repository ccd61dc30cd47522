"""Sample questions to the model in training, as a user will ask the finished one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.visualization import MLflowVisBackend
from torch import nn
from torch.nn.functional import pad
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.io.files import write_text
from pallava.model import PALLaVAProcessor
from pallava.prompts import PromptTemplate
from pallava.tiling import TileSpec, choose_canvas, denormalize, make_tiles
from pallava.training.hooks.random_state import get_random_state, set_random_state
from pallava.training.model import build

_SHORT = 50  # new tokens before training, where an answer is noise
_GAP = 4  # pixels between the tiles of a picture


@HOOKS.register_module()
class SampleChatHook(Hook):
    """Answers sample questions before training (shortly), every so many iterations, and after it.

    The answers are those of the model folder converted at this iteration: the same processor, all tiles, greedy, in
    evaluation mode. The training does not change: modes and random states are put back. They go to the log, to
    ``vis_data/sample_chat_ITERATION.txt`` and to TensorBoard; the pictures, once, to the visualizer. The processes
    share the questions, and each answers its own in one batch, since all wait for the last. A signal that ends the
    training cuts answers short, since the checkpoint must be written in the time that a scheduler gives.

    Args:
        tokenizer: The language model's tokenizer, or its config.
        image_processor: The encoder's image processor, or its config.
        images: Paths, one for each question, or one for all; an empty list switches the hook off.
        questions: The questions; an empty list switches the hook off.
        prompt_template: Prompt template of the training (default: the tokenizer's).
        every_n_iters: Number of iterations from one chat to the next.
        max_new_tokens: Largest number of tokens in an answer.
        system: System message before each question; only if the training has it.

    Raises:
        PallavaError: An image is missing or unreadable, or the images are neither one nor as many as the questions.
    """

    priority = "LOW"

    def __init__(
        self,
        tokenizer: Mapping[str, Any] | PreTrainedTokenizerBase,
        image_processor: Mapping[str, Any] | BaseImageProcessor,
        images: Sequence[str | Path],
        questions: Sequence[str],
        prompt_template: str | Mapping[str, Any] | PromptTemplate | None = None,
        every_n_iters: int = 1000,
        max_new_tokens: int = 64,
        system: str | None = None,
    ) -> None:
        self.questions = list(questions) if images else []
        self.every_n_iters, self.max_new_tokens, self.system = every_n_iters, max_new_tokens, system
        self._last_step: int | None = None
        if not self.questions:
            return
        if len(images) not in (1, len(self.questions)):
            found = f"got {len(images)} for {len(self.questions)} questions"
            raise PallavaError(f"the sample chat's images must be one for each question, or one for all, {found}")
        try:
            self.pictures = [open_image(path) for path in images]
        except PallavaError as error:
            raise PallavaError(f"sample image of the chat: {error}; set sample_images, or [] for no chat") from error
        self.images = self.pictures * (len(self.questions) // len(images))  # one for each question
        self.processor = PALLaVAProcessor(build(image_processor), build(tokenizer), prompt_template)

    def before_train(self, runner: Any) -> None:
        """Ask the untrained model, and store the pictures."""
        if self.questions and is_main_process():
            for index, image in enumerate(self.pictures):
                _show(runner, f"sample_chat_{index}", contact_sheet(image, self.processor.tile_spec))
        self._chat(runner, runner.iter, min(_SHORT, self.max_new_tokens))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Ask where it is due."""
        if self.every_n_train_iters(runner, self.every_n_iters):
            self._chat(runner, runner.iter + 1, self.max_new_tokens)

    def after_train(self, runner: Any) -> None:
        """Ask the trained model, unless its last iteration did."""
        if runner.iter != self._last_step:
            self._chat(runner, runner.iter, self.max_new_tokens)

    def _chat(self, runner: Any, step: int, max_new_tokens: int) -> None:
        if not self.questions:
            return
        if step:  # answers before training are short
            self._last_step = step
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        rank, num_processes = get_dist_info()
        own, answers = range(rank, len(self.questions), num_processes), list[str]()
        if own and not _is_interrupted(runner):
            with as_converted(model):
                answers = self._answer(
                    model.network, own, StoppingCriteriaList([_StopOnSignal(runner)]), max_new_tokens
                )
        gathered = all_gather_object(dict(zip(own, answers, strict=False)))  # by each process, signal or none
        if is_main_process():
            found = sorted({number: answer for each in gathered for number, answer in each.items()}.items())
            texts = [f"Question: {self.questions[number]}\nAnswer: {answer}" for number, answer in found]
            _write(runner, step, "\n\n".join(texts))

    @torch.no_grad()
    def _answer(self, network: Any, own: Sequence[int], until: StoppingCriteriaList, max_new_tokens: int) -> list[str]:
        """Answer the questions of these numbers in one batch, in which each different image is encoded once."""
        questions, pictures = [self.questions[i] for i in own], [self.images[i] for i in own]
        inputs = self.processor(questions, images=pictures, system=self.system).to(network.device)
        tiles = inputs.pop("pixel_values").split(inputs.pop("tiles_per_image").tolist())
        first = [next(i for i, each in enumerate(pictures) if each is picture) for picture in pictures]
        different = sorted(set(first))
        tokens, image_of = network.encode_images([tiles[i] for i in different]), [different.index(i) for i in first]
        network.use_end_tokens(self.processor.end_token_ids)  # as conversion does
        images = {"visual_tokens": tokens, "image_of": image_of}
        ids = network.generate(**inputs, **images, max_new_tokens=max_new_tokens, stopping_criteria=until)
        return self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])


class _StopOnSignal(StoppingCriteria):
    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore
        return torch.full((len(input_ids),), _is_interrupted(self._runner), device=input_ids.device)  # (B,)


def _is_interrupted(runner: Any) -> bool:
    interrupts = getattr(getattr(runner, "train_loop", None), "interrupts", None)  # mmengine's own loops have none
    return interrupts is not None and bool(interrupts.received)


@contextmanager
def as_converted(model: nn.Module) -> Iterator[None]:
    """Put a model in training into the state that it is used in, and everything back afterwards."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    checkpointing = [module for module in modules if getattr(module, "gradient_checkpointing", False) is True]
    config: Any = model.llm.config  # type: ignore[union-attr]
    use_cache, random_state = config.use_cache, get_random_state()
    try:
        model.eval()
        for module in checkpointing:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        config.use_cache = True
        yield
    finally:
        config.use_cache = use_cache
        for module in checkpointing:
            module.gradient_checkpointing = True  # type: ignore[assignment]
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        set_random_state(random_state)


def contact_sheet(image: Any, spec: TileSpec) -> np.ndarray:
    """Draw what the model sees of an image: its overview on the left, its tiles in their places on the right."""
    tiles = denormalize(make_tiles(image, spec), spec)  # (1+N, 3, P, P)
    tiles = pad(tiles, (0, _GAP, 0, _GAP), value=255)
    columns, rows = (side // spec.size for side in choose_canvas(image.size, spec.size))
    side = spec.size + _GAP
    grid = tiles[1:].view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4).reshape(3, rows * side, columns * side)
    overview = pad(tiles[0], (0, 0, 0, grid.shape[1] - side), value=255)
    return torch.cat([overview, grid], dim=2).permute(1, 2, 0).contiguous().numpy()


def _show(runner: Any, name: str, picture: np.ndarray) -> None:
    for backend in runner.visualizer._vis_backends.values():
        ending = ".png" if isinstance(backend, MLflowVisBackend) else ""  # which saves a file of this name
        backend.add_image(name + ending, picture, runner.iter)


def _write(runner: Any, step: int, text: str) -> None:
    runner.logger.info(f"Sample chat at iteration {step}:\n{text}\n")
    path = Path(runner.log_dir, "vis_data", f"sample_chat_{step}.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")
    # mmengine's visualizer knows no text and keeps its list of backends to itself.
    for backend in runner.visualizer._vis_backends.values():
        if hasattr(backend.experiment, "add_text"):
            backend.experiment.add_text("sample_chat", text.replace("\n", "  \n"), step)
