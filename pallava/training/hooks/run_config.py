"""A run's config as JSON beside its checkpoints, which opens them without executing a config."""

from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pallava.io.files import write_json


@HOOKS.register_module()
class RunConfigHook(Hook):
    """Writes ``training_config.json`` into the work directory."""

    @master_only
    def before_run(self, runner: Any) -> None:
        """Write the config as it was loaded and changed by options."""
        values = {**runner.cfg.to_dict(), "config_file": Path(runner.cfg.filename or "").name or None}
        write_json(Path(runner.work_dir, "training_config.json"), values, default=str)
