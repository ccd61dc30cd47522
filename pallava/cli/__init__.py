"""The ``pallava`` command; the module of a subcommand is imported only when it is run or asked for help."""

import argparse
import difflib
import importlib
import inspect
import io
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from pallava import __version__
from pallava.cli.options import add_parameters
from pallava.errors import PallavaError, cap_message
from pallava.io.files import read_package_data
from pallava.io.texts import find_damage

COMMANDS: dict[str, list[str]] = read_package_data(__file__)
"""Module and help of each command, by its words."""

_PASSES_ON = ("pretrain",)  # what follows ``--`` is for another program
_STARTS_AGAIN = ("evaluate",)  # in several processes
_USER_ERROR = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command by the words after ``pallava`` (default: those of this process), and return its exit code.

    That is the subcommand's own, 2 for bad input, 130 for an interruption.
    """
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # one byte that the other side cannot encode costs no more than itself
            stream.reconfigure(errors=errors)
    _silence_libraries()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if damaged := next(filter(find_damage, words), ""):
        print(f"error: an argument must be UTF-8 text: {find_damage(damaged)}", file=sys.stderr)
        return _USER_ERROR
    name = _find_command(words)
    if name is None:
        return _explain(words)
    try:
        return _run(name, words[len(name.split()) :])
    except PallavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR
    except OSError as error:
        if error.filename is None:
            raise  # its message would not help a user
        print(cap_message(f"error: {error.strerror}: {error.filename}"), file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _run(name: str, words: list[str]) -> int:
    add_arguments, run, description = load_command(name)
    parser = _Parser(
        prog=f"pallava {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    end = words.index("--") if "--" in words and name in _PASSES_ON else len(words)
    values = vars(parser.parse_args(words[:end]))
    if name in _PASSES_ON:
        values["passed_on"] = words[end + 1 :]
    if name in _STARTS_AGAIN:
        values["words"] = words
    return int(run(**values) or 0)


def _silence_libraries() -> None:
    """Leave out what libraries say on every machine without a GPU while they are imported."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


def load_command(name: str) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[..., Any], str]:
    """Return what declares a command's arguments, what runs it by their values, and its description.

    That is `add_NAME_arguments`, or else the parameters of `run_NAME`; `run_NAME`; and the docstring of that, followed
    by the text in the data file of its module.
    """
    module, suffix = importlib.import_module(f"pallava.cli.{COMMANDS[name][0]}"), name.replace(" ", "_")
    run = getattr(module, f"run_{suffix}")
    add = getattr(module, f"add_{suffix}_arguments", partial(add_parameters, function=run))
    return add, run, f"{inspect.getdoc(run)}\n\n{read_package_data(str(module.__file__))[name]}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(cap_message(message))


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
        print(cap_message(f"error: `pallava {name}` is not a command{advice}") + "\n", file=sys.stderr)
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
