"""Judges of pathology and species: a source's own metadata, a CLIP, and models behind an endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pallava.data.clean.filters import KEEP, Candidate, Decision, Filter, Findings
from pallava.devices import find_device
from pallava.errors import PallavaError
from pallava.images import ImageError, open_image
from pallava.io.hashing import hash_file, hash_json
from pallava.io.processes import batches, num_cores
from pallava.judging.endpoint import MAX_REPLY, Endpoint, Request
from pallava.judging.prompts import CLIP_VERSION, OTHER_CAPTIONS, PATHOLOGY, PATHOLOGY_CAPTIONS, SPECIES, JudgePrompt
from pallava.open_clip_weights import made_with_quick_gelu, read_wrapped_keys

if TYPE_CHECKING:
    import torch

CLIP_THRESHOLD = 0.5
"""Images for which the pathology captions get less than half of the probability are dropped."""

_MICROSCOPY = ("microscop", "histo", "patholog", "cytolog")
_YES = {"1", "1.0", "true", "yes"}
_BATCH_SIZE = 32  # images that go through a CLIP at a time
_NAMES_WITH_WEIGHTS = ("hf-hub:", "local-dir:")
_MAX_READERS = 8  # threads; Pillow decodes outside of Python's lock


class PathologyMetadata(Filter):
    """Filter "pathology" by metadata: PubMedVision's `modality`, Quilt-1M's `not_histology`.

    A modality other than microscopy, and a row marked as not histology, are dropped; where nothing is known, as in
    older copies of both sets and in all others, the image is kept.
    """

    name = "pathology"
    key = "pathology-metadata-1"

    def item_key(self, candidate: Candidate) -> str:
        return hash_json(_fields(candidate))

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        """Return ``{"modality": text or None, "not_histology": bool or None}``; None if the source does not say."""
        return [_fields(each) for each in candidates]

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        if findings["not_histology"]:
            return Decision("not_histology")
        is_other = findings["modality"] and not any(part in findings["modality"].lower() for part in _MICROSCOPY)
        return Decision("not_microscopy") if is_other else KEEP


def _fields(candidate: Candidate) -> Findings:
    values = [candidate.record.metadata.get(name) for name in ("modality", "not_histology")]
    modality, flag = ("" if value is None else str(value).strip() for value in values)
    return {"modality": modality or None, "not_histology": flag.lower() in _YES if flag else None}


class PathologyClip(Filter):
    """Filter "pathology": the share of a softmax over `judging.prompts`' captions that those of pathology get.

    Findings are ``{"pathology": share}``, from 0 to 1, or None for an image that cannot be opened. The threshold is
    applied to stored findings, so that another one judges nothing again.
    """

    name = "pathology"
    sees_image = True
    share = _BATCH_SIZE  # so that an image shares its batch with the same others on every engine
    loads_model = True

    def __init__(
        self, model_name: str, pretrained: str | Path | None = None, *, threshold: float = CLIP_THRESHOLD
    ) -> None:
        """Keep open_clip's names of a model and its weights; they are loaded with the first image.

        Weights may be a checkpoint, too. They are not needed if the name includes their place.
        """
        if not pretrained and not model_name.startswith(_NAMES_WITH_WEIGHTS):
            raise PallavaError(
                f"the CLIP '{model_name}' needs weights (--pretrained): a tag of open_clip's, or a checkpoint"
            )
        if not 0 <= threshold <= 1:
            raise PallavaError(f"the threshold of the CLIP judge must be between 0 and 1, got {threshold}")
        self._model_name, self._pretrained, self._threshold = model_name, str(pretrained or ""), threshold
        self._num_readers = num_cores(at_most=_MAX_READERS)
        checkpoint = Path(self._pretrained)
        weights = hash_file(checkpoint) if checkpoint.is_file() else self._pretrained  # a file may be replaced
        self.key = f"pathology-clip-2/{model_name}/{weights}/captions-{CLIP_VERSION}"

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        network, preprocess, captions = self._model

        def read(candidate: Candidate) -> torch.Tensor | None:  # (3, P, P)
            try:
                return preprocess(open_image(candidate.path))
            except ImageError:
                return None

        findings: list[Findings] = []
        with ThreadPoolExecutor(self._num_readers) as pool:
            for batch in batches(candidates, _BATCH_SIZE):
                pixels = list(pool.map(read, batch))
                shares = iter(_compute_shares(network, captions, [each for each in pixels if each is not None]))
                findings += [{"pathology": None if each is None else round(next(shares), 6)} for each in pixels]
        return findings

    def use_cores(self, count: int) -> None:
        self._num_readers = min(count, _MAX_READERS)

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        share = findings["pathology"]
        if share is None:
            return Decision("unreadable_image")
        return Decision("" if share >= self._threshold else "not_pathology", share)

    @cached_property
    def _model(self) -> tuple[Any, Any, torch.Tensor]:
        """Load the network, its preprocessing, and the embedded captions (C, D), those of pathology first."""
        import open_clip  # takes seconds
        import torch

        name, pretrained, device = self._model_name, self._pretrained or None, find_device("auto")
        read_wrapped_keys()
        try:
            # open_clip reads checkpoints with weights_only, which runs no code of theirs.
            network, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained, device=device, force_quick_gelu=made_with_quick_gelu(name, pretrained)
            )
            tokens = open_clip.get_tokenizer(name)([*PATHOLOGY_CAPTIONS, *OTHER_CAPTIONS])
        except Exception as error:  # RuntimeError, FileNotFoundError, UnpicklingError, KeyError and others
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise PallavaError(
                f"cannot load the CLIP '{name}' with the weights '{pretrained or ''}': {reason}; "
                "open_clip.list_pretrained() names models and their weights"
            ) from None
        network.eval()
        with torch.inference_mode():
            return network, preprocess, network.encode_text(tokens.to(device), normalize=True)


def _compute_shares(network: Any, captions: torch.Tensor, pixels: list[torch.Tensor]) -> list[float]:
    """Return the share of each of B images, (3, P, P) each, that the pathology captions get."""
    import torch

    if not pixels:
        return []
    with torch.inference_mode():
        images = network.encode_image(torch.stack(pixels).to(captions.device), normalize=True)  # (B, D)
        logits = network.logit_scale.exp() * images @ captions.T  # (B, C)
        return logits.float().softmax(-1)[:, : len(PATHOLOGY_CAPTIONS)].sum(-1).tolist()


class _EndpointJudge(Filter):
    """Ask one prompt about each candidate.

    Findings are ``{"answer": label, "reply": text}``; the label is one of the prompt's, "unreadable" for another reply,
    or "refused" by the server. All are stored, so that nothing is asked twice. A request that failed for a passing
    reason leaves none, and a later run asks it again.
    """

    is_costly = True
    _prompt: JudgePrompt
    _wanted: str
    _drop_reason: str

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        side = f"/side-{endpoint.image_side}" if self.sees_image else ""
        self.key = f"{self.name}-endpoint/{endpoint.model}/prompt-{self._prompt.version}{side}"

    def iter_scores(self, candidates: Sequence[Candidate]) -> Iterator[tuple[int, Findings]]:
        images = [each.path if self.sees_image else None for each in candidates]
        texts = [self._prompt.fill(text=each.text) for each in candidates]
        for index, answer in self._endpoint.iter_settled(list(map(Request, texts, images))):
            label = "refused" if answer.failure else self._prompt.read(answer.text) or "unreadable"
            yield index, {"answer": label, "reply": answer.text[:MAX_REPLY]}

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        reasons = {self._wanted: "", "unreadable": "unreadable_reply", "refused": "refused_by_server"}
        return Decision(reasons.get(findings["answer"], self._drop_reason))


class SpeciesEndpoint(_EndpointJudge):
    """Filter "species": a language model reads the caption (the paper asked Qwen2-7B)."""

    name = "species"
    _prompt, _wanted, _drop_reason = SPECIES, "human", "non_human"


class PathologyEndpoint(_EndpointJudge):
    """Filter "pathology": a vision-language model looks at the image (the paper asked GLM-4V-9B)."""

    name = "pathology"
    sees_image = True
    _prompt, _wanted, _drop_reason = PATHOLOGY, "yes", "not_pathology"
