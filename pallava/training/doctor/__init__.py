"""Examine a training before a cluster is booked for it: what would fail, what a card holds, how long it takes."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from pallava.errors import cap_message
from pallava.training.doctor.auto import choose, describe_choice, most_positions, plan_step
from pallava.training.doctor.case import Case, DoctorSettings, NotChecked
from pallava.training.doctor.checks import CHECKS, Check, Found
from pallava.training.doctor.memory import CARDS_GB, Memory
from pallava.training.doctor.step import count_flops
from pallava.training.failures import user_message
from pallava.training.recompute import TRIED

__all__ = ["CARDS_GB", "DoctorSettings", "Finding", "Report", "examine"]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    status: str  # "ok", "warn", "fail", or "skipped" where a part is missing
    text: str


@dataclass
class Report:
    """What was found of a training."""

    config: str
    findings: list[Finding] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    compute: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Return 1 if something would fail, or else 0."""
        return int(any(finding.status == "fail" for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "config": self.config,
            "exit_code": self.exit_code,
            "findings": [asdict(finding) for finding in self.findings],
            "memory": [plan.to_dict() for plan in self.memory],
            "compute": self.compute,
        }


def examine(settings: DoctorSettings) -> Report:
    """Examine a training, without a card and without reading its weights; nothing is downloaded.

    Raises:
        PallavaError: The config does not exist or cannot be read, or an option would change nothing.
    """
    case = Case(settings)
    report = Report(str(case.path))

    def check_memory(case: Case) -> Iterator[Found]:
        report.memory = plan_memory(case)
        yield _judge_memory(case, report.memory)

    def check_compute(case: Case) -> Iterator[Found]:
        report.compute = _estimate_compute(case)
        yield "ok", _describe_compute(report.compute)

    for name, check in {**CHECKS, "memory": check_memory, "compute": check_compute}.items():
        report.findings += [Finding(name, status, cap_message(text)) for status, text in _run(check, case)]
    return report


def _run(check: Check, case: Case) -> Iterator[Found]:
    try:
        yield from check(case)
    except NotChecked as missing:
        yield "skipped", str(missing)
    except Exception as error:  # a config may name anything, and the other checks are still worth their while
        reason = " ".join(str(error).split()) or "no reason given"
        yield "fail", user_message(error, error.__traceback__) or f"{type(error).__name__}: {reason}"


def plan_memory(case: Case) -> list[Memory]:
    """Return the memory of a card under each runner, with each choice of activation checkpointing."""
    choices = list(reversed(TRIED))
    if case.choice not in (*choices, "auto"):
        choices.append(case.choice)
    return [plan_step(case, runner, choice) for choice in choices for runner in ("plain", "ZeRO-1", "ZeRO-2")]


def _judge_memory(case: Case, plans: list[Memory]) -> Found:
    """Return whether the plan of the config and the launch fits the card, and if not what to do."""
    if case.deepspeed is not None and case.zero_stage not in (1, 2):
        return "warn", f"the memory of {case.runner_name} is not known"
    own = choose(case) if case.choice == "auto" else plan_step(case, case.runner_name, case.choice)
    text = f"{own.describe()} of a card of {case.card_bytes / 1e9:.3g} GB in the longest batch"
    if case.choice == "auto":
        above = 0 if own.activation_checkpointing == "none" else most_positions(case)
        text = f"{describe_choice(own.activation_checkpointing, above)}: {text}"
    if case.fits(own):
        return "ok", text
    if fitting := [each for each in plans if case.fits(each)]:
        return "fail", f"{text}; {fitting[0].describe()}"
    if own.total - own.activations - own.buffers > case.card_bytes:
        return "fail", f"{text}; take larger cards, or a smaller language model"
    advice = f"lower batch_size or context_length (activations: {own.activations / 1e9:.1f} GB)"
    if case.deepspeed is not None:
        advice += f", or reduce_bucket_size in a JSON of your own (buffers: {own.buffers / 1e9:.1f} GB)"
    return "fail", f"{text}; {advice}"


def _estimate_compute(case: Case) -> dict[str, float]:
    """Return FLOPs of a sample of the first batch, and hours, with all recomputed and with nothing."""
    settings, num_rows = case.settings, len(case.first_batch["data"]["input_ids"])
    samples = case.num_epochs * len(case.loader.dataset)
    speed = settings.num_processes * settings.peak_tflops * 1e12 * settings.share
    found = {"samples": samples, "cards": settings.num_processes, "flops_per_second": speed}
    for name, choice in (("with", "all"), ("without", "none")):
        flops = count_flops(case.outline(choice), case.first_batch) / num_rows
        found[f"flops_per_sample_{name}_checkpointing"] = flops
        found[f"hours_{name}_checkpointing"] = flops * samples / speed / 3600
    return found


def _describe_compute(found: dict[str, float]) -> str:
    texts = [
        f"{found[f'flops_per_sample_{name}_checkpointing'] / 1e12:.3g} TFLOPs a sample and "
        f"{found[f'hours_{name}_checkpointing']:.3g} hours {name} activation checkpointing"
        for name in ("with", "without")
    ]
    speed = f"{found['cards']:g} x {found['flops_per_second'] / found['cards'] / 1e12:.4g} TFLOPS"
    return f"{', '.join(texts)}, at {speed}; waiting is not counted"
