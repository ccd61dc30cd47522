"""The xtuner plugin. Importing it applies the work-arounds and registers our parts."""

from pallava.io.processes import end_with_parent
from pallava.training import compat, failures

end_with_parent()
failures.print_sentences()
failures.refuse_ineffective_options()
compat.apply()  # before the imports below: peft must not meet a broken bitsandbytes

from xtuner.registry import BUILDER  # noqa: E402

from pallava.model import load_encoder, load_image_processor, load_plip  # noqa: E402
from pallava.training import collate, dataset, llm, model, optimizer  # noqa: E402
from pallava.training.hooks import random_state  # noqa: E402

for __part in (load_encoder, load_plip, load_image_processor):  # pallava.model knows nothing of xtuner
    BUILDER.register_module(module=__part)

__all__ = ["collate", "compat", "dataset", "llm", "model", "optimizer", "random_state"]
