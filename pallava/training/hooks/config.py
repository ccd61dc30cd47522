"""The config of a run beside its checkpoints, for `pallava convert`."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pallava.model.convert import training_config, write_training_config
from pallava.prompts import OWN_TEMPLATE, check_vocabulary, choose_template
from pallava.training.dataset import check_connectors
from pallava.training.model import build


@HOOKS.register_module()
class TrainingConfigHook(Hook):
    """Write the config as JSON into the work directory, which a conversion reads and does not execute."""

    def before_run(self, runner: Any) -> None:
        """Check that the config names one connector, then write the file, on the main process.

        Raises:
            PallavaError: The data are made for another connector than the model's.
        """
        check_connectors(runner.cfg.to_dict())
        if is_main_process():
            write_training_config(runner.work_dir, _with_template(runner.cfg), runner.cfg.filename)

    def before_train(self, runner: Any) -> None:
        """Refuse a tokenizer with ids that the language model has no embedding for."""
        model, dataset = getattr(runner.model, "module", runner.model), runner.cfg.train_dataloader.dataset
        if "tokenizer" in dataset:
            check_vocabulary(build(dataset.tokenizer), model.llm.get_input_embeddings().num_embeddings)


def _with_template(config: Config) -> dict[str, Any]:
    """Return the config with the marks of the tokenizer's chat template, of which another version may have others."""
    values, dataset = config.to_dict(), config.train_dataloader.dataset
    if dataset.get("prompt_template") == OWN_TEMPLATE and "tokenizer" in dataset:
        template = choose_template(OWN_TEMPLATE, build(dataset.tokenizer))
        values["train_dataloader"]["dataset"]["prompt_template"] = template.to_dict()
    return values


def load_config(path: str | Path) -> dict[str, Any]:
    """Execute a config in Python, and return it as `pallava.model.convert.convert` takes it."""
    return training_config(Config.fromfile(path).to_dict(), path)
