"""What people name and bring: FILE.py:CLASS, names with a "did you mean", and sentences for what cannot be done."""

import importlib
import importlib.util
import sys
import sysconfig
import traceback
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

PACKAGES = ("llm_mdp", "llm_mdp_agents", "llm_mdp_envs")
TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2028\u2029\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of what follows, or end lines in ways that few expect."""

LOADED: WeakKeyDictionary[type, str] = WeakKeyDictionary()
"""Where classes come from that `load` found: two files may have the same name, and so may their modules."""


class UsageError(ValueError):
    """Something was asked for that cannot be done; the message says what to write instead."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or what else to do."""
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else otherwise


def visible(text: str) -> str:
    """A text as it can be shown on a terminal, where some characters are commands: control characters but line breaks
    and tabs, marks that turn the direction of writing, and halves of characters become escapes such as \\x1b."""
    if text.isprintable():
        return text
    return "".join(each if each in "\n\t" or not _commands(each) else ascii(each)[1:-1] for each in text)


def _commands(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in TURNING


def is_own(name: str) -> bool:
    """Is this FILE.py:CLASS or MODULE:CLASS rather than a name of ours?"""
    return ":" in name


def absolute(name: str) -> str:
    """FILE, or FILE:NAME, so that it is found from anywhere; what names no file or folder stays."""
    place, colon, attribute = name.rpartition(":")
    place, rest = (place, colon + attribute) if colon else (name, "")
    return f"{Path(place).resolve()}{rest}" if place and Path(place).exists() else name


def name_of(kind: type) -> str | None:
    """FILE.py:CLASS or MODULE:CLASS, which `load` finds; None: the class is of the running program or of a notebook."""
    if kind in LOADED:
        return LOADED[kind]
    module = sys.modules.get(kind.__module__)
    if kind.__module__ == "__main__" or getattr(module, kind.__qualname__, None) is not kind:
        return None
    return f"{kind.__module__}:{kind.__qualname__}"


def load(name: str) -> Any:
    """What stands at FILE.py:NAME or MODULE:NAME.

    Raises:
        UsageError: if there is no such file, module or name.
    """
    place, _, attribute = name.rpartition(":")
    module = load_module(place)
    if not hasattr(module, attribute):
        raise UsageError(f"{place} has no {attribute!r}; it defines {', '.join(_defined(module)) or NOTHING}.")
    found = getattr(module, attribute)
    if isinstance(found, type):
        LOADED[found] = absolute(name)
    return found


NOTHING = "no class and no function"


def _defined(module: ModuleType, kind: type = object) -> list[str]:
    """The names of the classes and functions that a module defines itself: classes of a kind, or what is of a kind."""
    own = {key: each for key, each in vars(module).items() if isinstance(each, type | FunctionType)}
    here = {key: each for key, each in own.items() if each.__module__ == module.__name__}
    return sorted(key for key, each in here.items() if issubclass(each if isinstance(each, type) else type(each), kind))


def whole_file(name: str, kind: type) -> str:
    """The end of a sentence about FILE.py that stands where FILE.py:NAME belongs: what to write of what the file
    defines; "" for the name of no Python file.

    Args: kind: of the classes that can be meant, or `FunctionType`. If there are none, all that there is is named.
    """
    if not name.endswith(".py"):
        return ""
    if not Path(name).is_file():
        return "nor is there a file of that name."
    module = load_module(name)
    if not (there := _defined(module, kind) or _defined(module)):
        return f"{name} defines {NOTHING}."
    return f"{name} defines {', '.join(there)}; write {' or '.join(f'{name}:{each}' for each in there)}"


def load_module(place: str) -> ModuleType:
    """Import FILE.py, which finds what lies beside it as `python FILE.py` does, or a module by its name.

    Raises:
        UsageError: if there is none, it is not Python, or it imports something of ours that has moved.
    """
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise UsageError(f"there is no file {place}.")
        # Last, so that nothing installed is hidden; for good, as files import when they run, too.
        if (folder := str(path.resolve().parent)) not in sys.path:
            sys.path.append(folder)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    except SystemExit as error:
        raise UsageError(
            f"{place} ends the program when it is imported (sys.exit({error.code!r})); put that under "
            'if __name__ == "__main__":'
        ) from error
    except SyntaxError as error:
        raise UsageError(f"{place} cannot be read as Python: {error}") from error
    except ImportError as error:
        if (error.name or "").split(".")[0] in PACKAGES:
            raise UsageError(
                f"{place}: {error}; modules have moved since 0.1, import public names from llm_mdp itself: from "
                f"llm_mdp import Estimator."
            ) from error
        if isinstance(error, ModuleNotFoundError) and error.name == place:
            raise UsageError(
                f"module {place!r} cannot be imported ({error}); a file is written FILE.py:CLASS."
            ) from error
        raise


def place_in_own_code(error: BaseException) -> str | None:
    """Where in a user's file an error arose, `my_file.py, line 7, in Mine.advantages`; None: in no file of theirs."""
    codes = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    users = [(code, line) for code, line in codes if _is_users(code.co_filename)]
    if not users:
        return None
    code, line = users[-1]
    return f"{Path(code.co_filename).name}, line {line}, in {code.co_qualname.rpartition('<locals>.')[2]}"


def error_in_own_code(error: BaseException) -> str | None:
    """An error that arose in a user's file, as theirs: `my_file.py, line 7, in Mine.advantages: KeyError: 'answer'`;
    None: it arose in no file of theirs."""
    place = place_in_own_code(error)
    return place and f"{place}: {type(error).__name__}: {error}"


def _is_users(file: str) -> bool:
    """Is this file neither ours nor Python's nor a package's?"""
    path = Path(file).resolve()
    elsewhere = {*places_of_ours(), *sysconfig.get_paths().values(), sys.prefix, sys.base_prefix}
    return path.is_file() and not any(path.is_relative_to(Path(place).resolve()) for place in elsewhere)


def places_of_ours() -> list[str]:
    """The folders of our packages."""
    return [place for name in PACKAGES if name in sys.modules for place in sys.modules[name].__path__]
