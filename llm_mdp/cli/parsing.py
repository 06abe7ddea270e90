"""Reading a command line by `tyro`, with a help that a newcomer can read: at most 80 columns, examples first, no
"(default: None)"."""

import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, TextIO, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from llm_mdp.cli.words import examples, narrow, width

T = TypeVar("T")
FLAGS = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
TRUTHS = ("True", "False")
PLACE = "what-this-command-does"


def parse(
    arguments: type[T], argv: Sequence[str], command: str, *, default: Any = None, called: str = "", more: str = ""
) -> T:
    """The arguments of a command as this dataclass has them; help, and what cannot be read, end the program.

    Args:
        command: whose examples the help shows.
        default: an object of the dataclass with other defaults.
        called: the command and what stands before its options, in the help; None: `command`.
        more: further words of the help.
    """
    words = described((get_origin(arguments) or arguments).__doc__ or "", command, more)
    with narrow(), redirect_stdout(cast(TextIO, _Described(sys.stdout, words))):
        return tyro.cli(
            arguments,
            args=with_values(argv, arguments),
            prog=f"llm-mdp {called or command}",
            description=PLACE,
            default=default if default is not None else tyro.MISSING_NONPROP,
            config=FLAGS,
            registry=plainly(),
        )


def described(words: str, command: str, more: str = "") -> str:
    """A docstring and the examples, as a help has them."""
    filled = [textwrap.fill(" ".join(each.split()), width()) for each in (*words.split("\n\n"), more) if each]
    return "\n\n".join([*filled, examples(command)])


class _Described:
    """The standard output; where tyro puts a description, from which it takes the line breaks, it has these words."""

    def __init__(self, out: TextIO, words: str):
        self._out, self._words = out, words

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        return self._out.write(text.replace(PLACE, self._words).replace(" ]", "]"))  # [--quick ]


def with_values(argv: Sequence[str], arguments: Any) -> list[str]:
    """A command line on which a switch that stands alone has its value: `--measure` is `--measure True`."""
    switches, words = switches_of(arguments), []
    for word, following in zip(argv, [*argv[1:], ""]):
        words.append(word)
        if word.startswith("-") and word.strip("-").replace("_", "-") in switches and following not in TRUTHS:
            words.append("True")
    return words


def switches_of(arguments: Any) -> set[str]:
    """The names of the options of a dataclass, and of those in it, that are true or false, and their short forms."""
    kind, parts = get_origin(arguments) or arguments, get_args(arguments)
    found = {name for part in parts for name in (switches_of(part) if is_dataclass(part) else ())}
    hints = get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        hint = hints[each.name]
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        bare = get_args(hint)[0] if extras else hint
        if bool in (bare, *get_args(bare)):
            found.add(each.name.replace("_", "-"))
            found |= {alias.strip("-") for extra in extras for alias in getattr(extra, "aliases", None) or ()}
        elif is_dataclass(bare):
            found |= switches_of(bare)
    return found


def plainly() -> ConstructorRegistry:
    """How `tyro` reads dataclasses, but that the help says neither that None can be given, nor that nothing is the
    default."""
    registry, inside = ConstructorRegistry(), False

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal inside
        if inside or not is_dataclass(info.type):
            return None
        inside = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return replace(spec, fields=tuple(_plain(field) for field in spec.fields))

    return registry


def _plain(field: Any) -> Any:
    """A field whose help has neither "{None}|" nor "(default: None)"; a switch that is off says nothing of values."""
    hint = "" if any(field.default is nothing for nothing in (None, (), False, "")) else None
    given = [each for each in get_args(field.type)[1:] if hasattr(each, "metavar")]
    metavar = None if any(each.metavar for each in given) else _metavar(field.type, field.default)
    kind = field.type
    if hint is not None or metavar is not None:
        kind = Annotated[kind, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)]
    return replace(field, type=kind, helptext=_joined(field.helptext))


def _metavar(kind: Any, default: Any) -> str | None:
    """What stands for a value, where `tyro` would say that it may be None; nothing for a switch that is off."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if bare is bool and default is False:
        return ""
    if type(None) not in get_args(bare):
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(bare, set()))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    said = cast(str, spec.metavar).replace("{None}|", "").replace("{None,", "{").replace("|{None}", "")
    return said[1:-1] if said.startswith("{[") else said


def _joined(words: Any) -> Any:
    """A docstring without its line breaks, read when it is needed."""

    def joined() -> str | None:
        said = words() if isinstance(words, Callable) else words
        return None if said is None else " ".join(said.split())

    return joined
