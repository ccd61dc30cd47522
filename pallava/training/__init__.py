"""The xtuner plugin. Importing it applies the work-arounds and registers our parts."""

import sys

from pallava.config_files import check_can_train
from pallava.io.processes import end_with_parent

check_can_train()  # before the imports below, which would not say what to do

from pallava.training import compat, failures  # noqa: E402

end_with_parent()
failures.print_sentences()
failures.refuse_ineffective_options()
failures.refuse_other_launches()
compat.apply()  # before the imports below: peft must not meet a broken bitsandbytes

from xtuner.registry import BUILDER  # noqa: E402

from pallava.model import load_encoder, load_image_processor, load_plip, loading  # noqa: E402
from pallava.model.connectors import build_connector  # noqa: E402
from pallava.training import dataset, model, optimizer  # noqa: E402
from pallava.training.hooks import chat, random_state  # noqa: E402

# pallava.model knows nothing of xtuner.
_PARTS = (load_encoder, load_plip, load_image_processor, loading.load_llm, loading.load_tokenizer, build_connector)
for __part in _PARTS:
    BUILDER.register_module(module=__part)

# Configs and checkpoints from before these modules were moved name them.
_MOVED = {"collate": dataset, "llm": loading, "chat_hook": chat, "random_state_hook": random_state}
sys.modules.update({f"{__name__}.{name}": module for name, module in _MOVED.items()})

__all__ = ["chat", "compat", "dataset", "model", "optimizer", "random_state"]
