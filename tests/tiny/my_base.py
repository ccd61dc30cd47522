"""Language models and a tokenizer of a user's own, beside the files of a tiny one."""

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OWN_CODE = {
    "llm": {
        "model_type": "my_llama",
        "auto_map": {"AutoConfig": "my_base.MyConfig", "AutoModelForCausalLM": "my_base.MyLlama"},
    },
    "tokenizer": {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": [None, "my_base.MyTokenizer"]}},
}
"""What makes transformers take its classes from this file, in `config.json` and `tokenizer_config.json`."""


class MyConfig(LlamaConfig):
    """A configuration that does not come with transformers."""

    model_type = "my_llama"


class MyLlama(LlamaForCausalLM):
    """A language model that does not come with transformers."""

    config_class = MyConfig


class MyTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that does not come with transformers."""


def open_larger(folder: str) -> Any:
    """Opens a language model, and gives it eight more embeddings."""
    llm = AutoModelForCausalLM.from_pretrained(folder)
    llm.resize_token_embeddings(llm.config.vocab_size + 8)
    return llm


def build_nameless(folder: str) -> Any:
    """Builds a language model that says nothing of its origin."""
    llm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    llm.config._name_or_path = ""
    return llm
