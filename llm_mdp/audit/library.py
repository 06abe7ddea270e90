"""Libraries that are audited: what their options are called, what is said about them, and how to call them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from types import FunctionType

from torch import Tensor

from llm_mdp.audit.batch import Batch
from llm_mdp.own import UsageError, did_you_mean, whole_file

LIBRARIES = {
    "trl": "llm_mdp.audit.trl",
    "verl": "llm_mdp.audit.verl",
    "openrlhf": "llm_mdp.audit.openrlhf",
    "skyrl": "llm_mdp.audit.skyrl",
    "areal": "llm_mdp.audit.areal",
    "ms-swift": "llm_mdp.audit.ms_swift",
    "tinker": "llm_mdp.audit.tinker",
    "torchtune": "llm_mdp.audit.torchtune",
}
"""Where each adapter is; it has a `LIBRARY`, and imports the library itself only when its settings are asked for."""

YOURS = "yours"
"""What stands in place of a library's name for a function that somebody brings."""


@dataclass(frozen=True)
class Setting:
    """One choice among a library's options, with what the library says of it."""

    name: str
    """The option as a user writes it: "adv_estimator=rloo"; unique within the library."""
    claim: str
    """What the library calls it or says about it, in our words, one short sentence."""
    place: str
    """Where it says so: "trl/trainer/grpo_config.py, scale_rewards"."""
    loss: Callable[[Batch], Tensor] | None
    """The whole loss, as the library's trainer minimises it; None: there are advantages only."""
    advantages: Callable[[Batch], Tensor] | None = None
    """The advantages alone; None: they cannot be had apart from the loss."""
    target: str = "reward"
    """What the name promises a gradient of, an expression of `verify.targets`."""
    repair: str | None = None
    """In the library's own options: 'set scale_rewards="none"'; shown where the row is not what it is called."""
    since: str = ""
    """First version known to behave so; usually the one that was tried."""
    is_default: bool = False
    note: str = ""
    """A caveat that belongs beside the row: "first update; ratio 1"."""

    def __post_init__(self) -> None:
        if self.loss is None and self.advantages is None:
            raise ValueError(f"setting {self.name!r} has neither a loss nor advantages; give one of them.")


@dataclass(frozen=True)
class Library:
    """What an adapter knows of a library."""

    name: str
    """As it is asked for: "trl"."""
    distribution: str
    """As pip calls it."""
    versions: str
    """The versions that the adapter knows: ">=1.16,<1.17"."""
    install: str
    """Arguments of pip install that are enough for the audit."""
    settings: Callable[[], Sequence[Setting]]
    """Imports the library; raises UsageError, one sentence, where its layout is unknown."""

    def version(self) -> str | None:
        """The installed one; None: it is not installed."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None

    def warning(self) -> str | None:
        """What to know of the installed version; None: the adapter was written for it.

        Raises:
            UsageError: it is not installed.
        """
        version = self.version()
        if version is None:
            raise UsageError(f"{self.name} is not installed; pip install {self.install}")
        if within(version, self.versions):
            return None
        return (
            f"{self.name} {version} is installed, and the adapter was tried with {self.versions}; its rows may differ."
        )


def find_library(name: str) -> Library:
    """The adapter of a library.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in LIBRARIES:
        otherwise = f"choose one of {', '.join(LIBRARIES)}, or give FILE.py:FUNCTION."
        hint = whole_file(name, FunctionType) or did_you_mean(name, LIBRARIES, otherwise)
        raise UsageError(f"there is no library {name!r} to audit; {hint}")
    return import_module(LIBRARIES[name]).LIBRARY


def choose(settings: Sequence[Setting], options: Sequence[str], library: str) -> list[Setting]:
    """The settings of these names, or that hold such an option ("scale_rewards=none", or "beta" for its every value)
    among others; all of them without any.

    Raises:
        UsageError: there is none of this name.
    """
    chosen: list[Setting] = []
    for option in options:
        found = [each for each in settings if option == each.name]
        found = found or [each for each in settings if _holds_option(each, option)]
        if not found:
            keys = list(dict.fromkeys(part.partition("=")[0] for each in settings for part in _parts(each)))
            near = did_you_mean(option, [*keys, *(each.name for each in settings)], f"it has {', '.join(keys)}.")
            raise UsageError(f"{library} has no setting {option!r}; {near}")
        chosen += [each for each in found if each not in chosen]
    return chosen if options else list(settings)


def _holds_option(setting: Setting, option: str) -> bool:
    return any(option in (part, part.partition("=")[0]) for part in _parts(setting))


def _parts(setting: Setting) -> list[str]:
    """The options that a name is made of; a comma within a value is inside brackets, or followed by a space."""
    return re.split(r",(?! )(?![^()]*\))", setting.name)


def within(version: str, specifier: str) -> bool:
    """Is a version one of ">=1.16,<1.17"? Numbers only; what follows them (rc1, .post2) is not looked at."""
    return all(_holds(version, part.strip()) for part in specifier.split(",") if part.strip())


def _holds(version: str, clause: str) -> bool:
    found = re.fullmatch(r"(>=|<=|==|<|>)\s*(\d+(?:\.\d+)*)", clause)
    if found is None:
        raise ValueError(f"{clause!r} is no clause about versions; write >=1.2, <2 or ==1.2.3.")
    ours, theirs = _numbers(version), _numbers(found[2])
    length = max(len(ours), len(theirs))
    left, right = (each + (0,) * (length - len(each)) for each in (ours, theirs))
    return {
        ">=": left >= right, "<=": left <= right, "==": left == right, "<": left < right, ">": left > right,
    }[found[1]]  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
