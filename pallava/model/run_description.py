"""What a training was, as a model card tells it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# As the paper describes its data, https://arxiv.org/abs/2408.09530.
PUBLISHED_TRAINING: Mapping[str, Any] = {
    "data": (
        {"name": "PCaption-0.5M: captions of PubMedVision, PMC-OA and Quilt-1M, cleaned", "num_records": 518_413},
        {"name": "PathVQA, training questions", "num_records": 19_755},
        {"name": "PMC-VQA, questions on pathology", "num_records": 15_788},
    ),
    "source": "weights without a config, as PA-LLaVA's authors publish theirs; the data are those of their paper",
}


def describe_run(cfg: Any) -> dict[str, Any]:
    """A run's data and settings, read off its config; what a config does not have is left out.

    Args:
        cfg: The run's config.

    Returns:
        For `pallava.model.model_card.write_model_card`.
    """
    dataset = cfg.train_dataloader.dataset
    optimizer = cfg.get("optim_wrapper", {}).get("optimizer", {})
    lora = cfg.model.get("llm_lora") or {}
    loop = cfg.get("train_cfg", {})
    settings = {
        "config": Path(cfg.filename).name if cfg.filename else None,
        "started from": Path(cfg.model.pretrained_pth).name if cfg.model.get("pretrained_pth") else None,
        "epochs": loop.get("max_epochs"),
        "steps": loop.get("max_iters"),
        "batch size of a process": cfg.train_dataloader.get("batch_size"),
        "learning rate": optimizer.get("lr"),
        "LoRA rank": lora.get("r"),
        "prompt template": dataset.get("prompt_template"),
        "context length": dataset.get("context_length"),
    }
    data = [dataset.data_path] if dataset.get("data_path") else []
    return {"data": data, **{name: value for name, value in settings.items() if value is not None}}
