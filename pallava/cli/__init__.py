"""The ``pallava`` command; the module of a subcommand is imported only when it is run or asked for help."""

import argparse
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pallava import __version__
from pallava.errors import PallavaError

COMMANDS: dict[str, tuple[str, str]] = {  # words: (module, or module:suffix of its functions; help)
    "demo": ("pallava.cli.demo", "train a small PA-LLaVA on this computer, and look at what it learnt"),
    "train": (
        "pallava.cli.train:train",
        "train by a config, as `xtuner train` does, with the trainer's true exit code",
    ),
    "convert": ("pallava.cli.model:convert", "turn a training checkpoint into a model folder"),
    "pretrain": ("pallava.cli.train:pretrain", "train the encoder, PLIP, by contrast on pairs of image and caption"),
    "encoder convert": (
        "pallava.cli.model:encoder_convert",
        "turn a CLIP into another form: open_clip's, Hugging Face's or PLIP's",
    ),
    "card": ("pallava.cli.model:card", "write a model folder's card, or put scores into it"),
    "chat": ("pallava.cli.chat", "ask a model folder about an image"),
    "evaluate": (
        "pallava.cli.evaluate",
        "measure what a model folder or an encoder knows: questions, captions, classes",
    ),
    "judge": ("pallava.cli.judge", "compare generated captions or answers with references, by a model or by words"),
    "look": ("pallava.cli.look", "draw which tiles of an image the model reads, and where a text is true"),
    "data unpack": ("pallava.cli.data:unpack", "unpack a downloaded archive, with checks"),
    "data prepare": ("pallava.cli.data:prepare", "tokenize a training file ahead of training"),
    "data clean": ("pallava.cli.data_clean", "drop what does not belong into training, and say why"),
    "data instruct": ("pallava.cli.data:instruct", "turn sources of questions into one training file"),
    "data check": ("pallava.cli.data:check", "check a training file before training"),
    "data leak": ("pallava.cli.data:leak", "find what training material and an evaluation set share"),
    "config list": ("pallava.cli.train:config_list", "list the configs"),
    "config copy": ("pallava.cli.train:config_copy", "copy a config to change it"),
}
_PASSES_ON = ("pretrain",)  # what follows ``--`` is for another program
_USER_ERROR = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Words after ``pallava`` (default: those of this process).

    Returns:
        The exit code: that of the subcommand, 2 for bad input, 130 for an interruption.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = _find_command(words)
    if name is None:
        return _explain(words)
    add_arguments, run, description = load_command(name)
    parser = argparse.ArgumentParser(
        prog=f"pallava {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    words = words[len(name.split()) :]
    end = words.index("--") if "--" in words and name in _PASSES_ON else len(words)
    options = parser.parse_args(words[:end])
    options.words, options.passed_on = words, words[end + 1 :]
    try:
        return int(run(options) or 0)
    except PallavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR
    except OSError as error:
        if error.filename is None:
            raise  # its message would not help a user
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def load_command(name: str) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[..., Any], str]:
    """Import a command.

    A module of one command has `add_arguments` and `run`, and its docstring is the description; a module of several has
    `add_NAME_arguments` and `run_NAME`, whose docstring is.

    Args:
        name: A key of `COMMANDS`.

    Returns:
        The function that declares the arguments, the one that runs the command, and the description.
    """
    path, _, suffix = COMMANDS[name][0].partition(":")
    module = importlib.import_module(path)
    if not suffix:
        return module.add_arguments, module.run, module.__doc__ or ""
    run = getattr(module, f"run_{suffix}")
    return getattr(module, f"add_{suffix}_arguments"), run, inspect.getdoc(run) or ""


def _find_command(words: list[str]) -> str | None:
    names = (" ".join(words[:count]) for count in (2, 1) if len(words) >= count)
    return next((name for name in names if name in COMMANDS), None)


def _explain(words: list[str]) -> int:
    if words[:1] in (["--version"], ["-V"]):
        print(f"pallava {__version__}")
        return 0
    is_help = bool(words) and words[-1] in ("-h", "--help", "help")
    group = words[0] if words and any(name.startswith(words[0] + " ") for name in COMMANDS) else ""
    if words and not is_help and (not group or len(words) > 1):
        name = " ".join(words[: 2 if group else 1])
        near = difflib.get_close_matches(name, COMMANDS, 1)
        advice = f"; did you mean `pallava {near[0]}`?" if near else ""
        print(f"error: `pallava {name}` is not a command{advice}\n", file=sys.stderr)
    print(_usage(group), file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else _USER_ERROR


def _usage(group: str) -> str:
    rows = "\n".join(f"  {name:<17}{text}" for name, (_, text) in COMMANDS.items() if name.startswith(group))
    return (
        f"usage: pallava COMMAND ...\n\n{rows}\n\n`pallava COMMAND --help` describes a command.\n\n"
        'example: pallava chat demo/model --image slide.png --question "Is necrosis present?"'
    )


if __name__ == "__main__":
    sys.exit(main())
