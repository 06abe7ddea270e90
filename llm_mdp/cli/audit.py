"""`llm-mdp audit`: what the functions of a library that people train with are, and those of a file."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from llm_mdp.audit.batches import PROMPTS
from llm_mdp.audit.example import minimal_example
from llm_mdp.audit.library import LIBRARIES, Setting, find_library
from llm_mdp.audit.problems import instances as default_instances
from llm_mdp.audit.run import audit as certificates_of
from llm_mdp.audit.run import whole_of
from llm_mdp.cli.options import (
    check_numbers,
    check_writable,
    command_line,
    for_people,
    one_thread,
    say_written,
    write_json,
)
from llm_mdp.cli.parsing import parse
from llm_mdp.cli.verify import names_first
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.groups import check_group_size
from llm_mdp.exact.instance_files import read_instance
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.files import write_text
from llm_mdp.own import UsageError, is_own
from llm_mdp.report.audit_page import render_audit
from llm_mdp.report.audit_terminal import audit_progress, print_audit, print_libraries
from llm_mdp.report.console import terminal
from llm_mdp.testing import why
from llm_mdp.verify.certify import Certified
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.targets import parse_target
from llm_mdp.verify.weights import EstimatorError

Told = Callable[[int, int, str], None]
"""Called before a piece of work: its number from 1, how many there are, its name."""


@dataclass(frozen=True)
class AuditArguments:
    """Certify the real functions of a library, option by option: is it the gradient that its name says?

    Without a name: which libraries there are, and how to install them. FILE.py:FUNCTION is a function of yours, of
    `rewards` (P, K) or of a `batch`; the exit status is then 1 if it is not unbiased.
    """

    names: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[LIBRARY [OPTION ...] | FILE.py:FUNCTION]")
    ] = ()
    """A library and some of its options (default: all), or functions of your own."""
    target: str | None = None
    """What the gradient should be that of, such as "reward" or "reward - 0.04 kl" (default: what each name says)."""
    group_size: int = 3
    """K, responses to a prompt."""
    prompts: tuple[int, ...] = PROMPTS
    """P, prompts whose groups are in one update: the first for the certificates, several to see whether an error dies
    with the batch."""
    instance: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE ...")] = ()
    """Token MDPs to certify on, from JSON files (default: dense rewards, two prompts, right-or-wrong rewards)."""
    examples: bool = False
    """Find the smallest example of every option that is biased (seconds to a minute each)."""
    json: Path | None = None
    """Write all rows to this file; - is the standard output."""
    html: Path | None = None
    """Write a self-contained page to this file."""


def audit(argv: Sequence[str]) -> int:
    """Run `llm-mdp audit`; the exit status is 1 if a function of a file is not unbiased."""
    command = parse(AuditArguments, names_first(argv), "audit")
    one_thread()
    console, aside = for_people(command.json), terminal(stderr=True)
    check(command)
    if not command.names:
        print_libraries([_about(name) for name in LIBRARIES], console)
        return 0
    own = is_own(command.names[0])
    if not own:
        silence()
    if not own and (warning := find_library(command.names[0]).warning()):
        aside.print(f"llm-mdp: {warning}", soft_wrap=True)
    instances = instances_of(command.instance)
    with audit_progress(aside) as tell:
        rows = own_rows(command, instances, tell) if own else library_rows(command, instances, tell)
    write_json(command.json, rows)
    if command.html:
        write_text(command.html, render_audit(rows, command_line()))
    print_audit(rows, console)
    say_written(console, command.json, command.html)
    return int(own and any(row["verdict"] != "unbiased" for row in rows))


def silence() -> None:
    """What a library says when it is imported (engines that it misses, and the like) is none of the audit."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def check(command: AuditArguments) -> None:
    """Raise UsageError for what cannot be done, before anything is."""
    check_numbers("--group-size", (command.group_size,), 2)
    check_group_size(command.group_size)
    check_numbers("--prompts", command.prompts, 1)
    if not command.prompts:
        raise UsageError("--prompts is empty; give at least one number.")
    if command.target is not None:
        parse_target(command.target)
    for path in (command.json, command.html):
        check_writable(path)
    own = [name for name in command.names if is_own(name)]
    if own and len(own) < len(command.names):
        other = next(name for name in command.names if not is_own(name))
        raise UsageError(f"{own[0]} is a function of yours and {other!r} is none; audit them one after the other.")
    if own and command.examples:
        raise UsageError("--examples is of a library's options; of a function of yours the diagnosis has one.")
    if len(set(command.names)) < len(command.names):
        raise UsageError("the same name is given twice; give each once.")


def instances_of(words: Sequence[str]) -> dict[str, Instance]:
    """The token MDPs of NAME=FILE words; without any those of every audit.

    Raises:
        UsageError: naming what is no NAME=FILE, or a name that is given twice.
    """
    if not words:
        return default_instances()
    found: dict[str, Instance] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not (name and equals and file):
            raise UsageError(f"--instance has {word!r}; write NAME=FILE, such as mine=instance.json.")
        if name in found:
            raise UsageError(f"--instance has the name {name!r} twice; give each once.")
        found[name] = read_instance(file)
    return found


def library_rows(command: AuditArguments, instances: Mapping[str, Instance], tell: Told) -> list[dict[str, Any]]:
    """A library's options as rows, with examples of the biased ones if they are asked for."""
    library, *options = command.names
    found = certificates_of(
        library,
        options,
        target=command.target,
        group_size=command.group_size,
        prompts=command.prompts,
        instances=instances,
        progress=tell,
    )
    rows = [row.to_json() for row in found]
    biased = [number for number, row in enumerate(found) if row.verdict == "biased"] if command.examples else []
    for done, number in enumerate(biased, 1):
        row = found[number]
        tell(done, len(biased), f"example of {row.setting.name}")
        rows[number]["example"] = _example(row.setting, row.target)
    return rows


def _example(setting: Setting, target: str) -> dict[str, Any] | None:
    small = Problem(random_instance(2, 2, seed=1), group_size=2)
    try:
        return minimal_example(whole_of(setting, small), target)
    except (EstimatorError, TooLarge):  # it is tied to a larger batch
        return None


def own_rows(command: AuditArguments, instances: Mapping[str, Instance], tell: Told) -> list[dict[str, Any]]:
    """A user's functions as rows, each with its diagnosis where it is not unbiased."""
    rows = []
    for number, name in enumerate(command.names, 1):
        tell(number, len(command.names), name)
        (row,) = certificates_of(
            name, target=command.target, group_size=command.group_size, prompts=command.prompts, instances=instances
        )
        rows.append(row.to_json())
        wrong = next(place for place, found in row.problems.items() if found.verdict == row.verdict)
        found = row.problems[wrong]
        if row.verdict in ("biased", "proportional") and isinstance(found, Certified):
            rows[-1]["diagnosis"] = {"instance": wrong, "lines": why(found, row.target)}
    return rows


def _about(name: str) -> dict[str, Any]:
    library = find_library(name)
    return {
        "name": name,
        "installed": library.version(),
        "versions": library.versions,
        "install": library.install,
    }
