"""Arguments of a command from the signature of a function or a dataclass: names, types, defaults and help texts."""

import argparse
import inspect
from collections.abc import Callable, Collection, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Workers = Annotated[int, "number of processes (default: one for each core, at most 16)", "--workers"]
TrustRemoteCode = Annotated[
    bool, "permission to import the module of a connector that does not come with pallava (default: refuse)"
]

LoadIn4bit = Annotated[bool, "language model in 4 bit: a quarter of the memory, other answers; slow on a CPU"]


def add_parameters(
    parser: argparse.ArgumentParser, function: Callable[..., Any], names: Collection[str] | None = None
) -> None:
    """Add an argument for each parameter that has a help text, of all or of some names.

    A parameter is ``Annotated[type, help, *more]``, where more are flags other than its name, or a dictionary of
    further settings for argparse. What has a default, or is keyword-only, becomes an option; the help shows the default
    if the text does not. An argument that is not given is left out of the result of parsing, so that the function alone
    has the defaults.
    """
    hints = get_type_hints(function, include_extras=True)
    for each in inspect.signature(function).parameters.values():
        if get_origin(hints[each.name]) is Annotated and (names is None or each.name in names):
            _add_argument(parser, each, *get_args(hints[each.name]))


def _add_argument(
    parser: argparse.ArgumentParser, parameter: inspect.Parameter, hint: Any, text: str, *more: str | dict[str, Any]
) -> None:
    name, default = parameter.name, parameter.default
    has_default = default is not parameter.empty
    if has_default and hint is not bool and default not in (None, "", ()) and "(default: " not in text:
        text += f" (default: {f'{default:g}' if isinstance(default, float) else default})"
    settings = {**_read_type(hint), "help": text}
    for each in more:
        settings |= each if isinstance(each, dict) else {}
    if settings.get("nargs") == "?" or not (has_default or parameter.kind is parameter.KEYWORD_ONLY):
        parser.add_argument(name, default=argparse.SUPPRESS, **settings)
        return
    flags = [each for each in more if isinstance(each, str)] or [f"--{name.replace('_', '-')}"]
    if settings.get("action") != "store_true" and "choices" not in settings:
        settings.setdefault("metavar", flags[0].strip("-").replace("-", "_").upper())
    parser.add_argument(*flags, dest=name, default=argparse.SUPPRESS, required=not has_default, **settings)


def _read_type(hint: Any) -> dict[str, Any]:
    """Return what argparse must know of a type: a sequence is a repeatable option, a list takes several words."""
    if get_origin(hint) in (Union, UnionType):  # with None, or with what only Python can give
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is list:
        return {"nargs": "+", "type": get_args(hint)[0]}
    if get_origin(hint) is Sequence:
        return {"action": "append", "type": get_args(hint)[0]}
    return {"action": "store_true"} if hint is bool else {"type": hint}
