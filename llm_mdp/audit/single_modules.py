"""Single modules of a library, imported without the stack that the whole library needs.

What trains on clusters imports ray, vllm, deepspeed, … at the top of files that hold pure functions of tensors. Here
names of such modules are replaced by stand-ins while a few modules are imported; afterwards nothing of it is left in
`sys.modules`, so that nobody else meets a stand-in, and the library can still be imported as it is.
"""

import importlib
import sys
from abc import ABCMeta
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from llm_mdp.own import UsageError


class _Anything(ABCMeta):
    """A class that has every attribute, is empty and false (`if ray.is_initialized()`), and as a decorator gives back
    what it decorates. What is set on it or deleted from it is forgotten."""

    def __getattr__(cls, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        return _stand_in(name)

    def __setattr__(cls, name: str, value: object) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        pass

    def __call__(cls, *args, **kwargs):
        return args[0] if len(args) == 1 and isinstance(args[0], (type, FunctionType)) else cls

    def __getitem__(cls, item):
        return cls

    def __iter__(cls) -> Iterator:
        return iter(())

    def __bool__(cls) -> bool:
        return False

    def __enter__(cls):
        return cls

    def __exit__(cls, *_) -> None:
        pass


def _stand_in(name: str) -> _Anything:
    """In place of whatever a replaced module holds: a class to derive from, a decorator, a function, a constant. Each
    is another class, as one class may derive from several."""
    return type.__call__(_Anything, name, (), {})


class _StandInModule(ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)


class _StandIns(MetaPathFinder, Loader):
    """Finds the replaced modules and everything below them; and packages as shells, whose own file does nothing."""

    def __init__(self, names: Sequence[str], shells: Mapping[str, list[str]]):
        self.names, self.shells = tuple(names), shells

    def covers(self, name: str) -> bool:
        return any(name == each or name.startswith(each + ".") for each in self.names)

    def find_spec(self, fullname, path=None, target=None):
        if fullname in self.shells:
            spec = ModuleSpec(fullname, self, is_package=True)
            spec.submodule_search_locations = self.shells[fullname]
            return spec
        return ModuleSpec(fullname, self, is_package=True) if self.covers(fullname) else None

    def create_module(self, spec):
        return None if spec.name in self.shells else _StandInModule(spec.name)

    def exec_module(self, module):
        pass


@contextmanager
def _set_aside(library: str, finder: _StandIns) -> Iterator[None]:
    """With the finder first, and without what was imported of the library or of what is replaced."""
    ours = {name for name in sys.modules if finder.covers(name) or name.split(".")[0] == library}
    aside = {name: sys.modules.pop(name) for name in ours}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if finder.covers(name) or name.split(".")[0] == library]:
            del sys.modules[name]
        sys.modules.update(aside)


def import_alone(
    library: str, modules: Sequence[str], stand_ins: Sequence[str], shells: Sequence[str] = ()
) -> list[Any]:
    """These modules of an installed library, the `stand_ins` (names of modules, the library's own or others) replaced.

    The modules are private copies: changing them changes nobody else's.

    Args: shells: packages of the library, itself among them, whose `__init__.py` is left out.

    Raises:
        UsageError: if the library is not installed or a module cannot be imported, in one sentence.
    """
    found = find_spec(library)
    if found is None:
        raise UsageError(f"{library} is not installed; install it, or audit another library.")
    roots = [Path(each) for each in found.submodule_search_locations or []]
    folders = {name: [str(root.joinpath(*name.split(".")[1:])) for root in roots] for name in shells}
    with _set_aside(library, _StandIns(stand_ins, folders)):
        try:
            return [importlib.import_module(name) for name in modules]
        except Exception as error:
            raise UsageError(
                f"{library} has a layout that this adapter does not know ({type(error).__name__}: {error}); install a "
                f"version that it knows, see docs/audit.md."
            ) from error
