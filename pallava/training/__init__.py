"""The xtuner plugin. Importing it applies the work-arounds and registers our parts."""

from pallava.training import compat

compat.apply()  # before the imports below: peft must not meet a broken bitsandbytes

from pallava.training import collate, dataset, llm, model, optimizer, random_state_hook  # noqa: E402

__all__ = ["collate", "compat", "dataset", "llm", "model", "optimizer", "random_state_hook"]
