"""The ``pallava`` command: one file a subcommand, imported only when it is run or asked for help."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from pallava import __version__
from pallava.errors import PallavaError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("pallava.cli.demo", "train a small PA-LLaVA on this computer, and look at what it learnt"),
    "train": ("pallava.cli.train", "train by a config, as `xtuner train` does, with the trainer's true exit code"),
    "convert": ("pallava.cli.convert", "turn a training checkpoint into a model folder"),
    "pretrain": ("pallava.cli.pretrain", "train the encoder, PLIP, by contrast on pairs of image and caption"),
    "encoder convert": ("pallava.cli.encoder_convert", "turn a CLIP into open_clip's, Hugging Face's or PLIP's form"),
    "card": ("pallava.cli.card", "write a model folder's card, or put scores into it"),
    "chat": ("pallava.cli.chat", "ask a model folder about an image"),
    "evaluate": (
        "pallava.cli.evaluate",
        "measure what a model folder or an encoder knows: questions, captions, classes",
    ),
    "judge": ("pallava.cli.judge", "compare generated captions or answers with references, by a model or by words"),
    "look": ("pallava.cli.look", "draw which tiles of an image the model reads, and where a text is true"),
    "data unpack": ("pallava.cli.data_unpack", "unpack a downloaded archive, with checks"),
    "data prepare": ("pallava.cli.data_prepare", "tokenize a training file ahead of training"),
    "data clean": ("pallava.cli.data_clean", "drop what does not belong into training, and say why"),
    "data instruct": ("pallava.cli.data_instruct", "turn sources of questions into one training file"),
    "data check": ("pallava.cli.data_check", "check a training file before training"),
    "data leak": ("pallava.cli.data_leak", "find what training material and an evaluation set share"),
    "config list": ("pallava.cli.config_list", "list the configs"),
    "config copy": ("pallava.cli.config_copy", "copy a config to change it"),
}
_USER_ERROR = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: What stands behind ``pallava``; default: those of this process.

    Returns:
        The exit code: 0, what the subcommand gives, or 2 for bad input.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = _find_command(words)
    if name is None:
        return _explain(words)
    module: ModuleType = importlib.import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(
        prog=f"pallava {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    words = words[len(name.split()) :]
    end = words.index("--") if "--" in words and getattr(module, "PASSES_ON", False) else len(words)
    options = parser.parse_args(words[:end])
    options.words, options.passed_on = words, words[end + 1 :]
    try:
        return int(module.run(options) or 0)
    except PallavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR
    except OSError as error:
        if error.filename is None:
            raise  # nothing that a user can mend by its message
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _find_command(words: list[str]) -> str | None:
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and name in COMMANDS:
            return name
    return None


def _explain(words: list[str]) -> int:
    if words[:1] in (["--version"], ["-V"]):
        print(f"pallava {__version__}")
        return 0
    asked = not words or words[-1] in ("-h", "--help", "help")
    group = words[0] if words and any(name.startswith(words[0] + " ") for name in COMMANDS) else ""
    if not asked and not group:
        print(f"error: there is no command `pallava {words[0]}`.\n", file=sys.stderr)
    print(_usage(group), file=sys.stdout if asked and words else sys.stderr)
    return 0 if asked and words else _USER_ERROR


def _usage(group: str) -> str:
    shown = {name: what for name, (_, what) in COMMANDS.items() if name.startswith(group)}
    rows = "\n".join(f"  {name:<17}{what}" for name, what in shown.items())
    return (
        f"usage: pallava COMMAND ...\n\n{rows}\n\n`pallava COMMAND --help` tells more.\n\n"
        'example: pallava chat demo/model --image slide.png --question "Is necrosis present?"'
    )


if __name__ == "__main__":
    sys.exit(main())
