"""Rows in the format of MBPP (Austin et al. 2021): what is asked, what may be used, what tests it.

A policy is asked for the function by its text and its signature, and sees no test. Classes that the tests need (of the
set-up code, or of the reference solution: those that they name, and those that it answers with objects of) are shown to
it and stand before its program, with the imports; nothing else of the set-up and of the solution does, for it may hold
the answers.
"""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llm_mdp_envs.arguments import shown
from llm_mdp_envs.tasks.problem_tests import Examined
from llm_mdp_envs.tasks.replied_code import Unit, free_names, statements
from llm_mdp_envs.tasks.reply_parts import is_python

CLASS_MAKERS = ("namedtuple", "NamedTuple", "make_dataclass", "Enum", "IntEnum", "TypedDict", "NewType")


class UnfitRow(Exception):
    """This row cannot be a problem here, and why."""


@dataclass(frozen=True)
class Row:
    """A row, taken apart.

    Args:
        task_id: its name.
        prompt: what a policy is asked.
        prefix: what stands before a completion: imports, classes, the signature.
        completion: the reference solution, as a reply.
        examined: the reference solution and its tests.
        classes: names of the classes that are given.
    """

    task_id: str
    prompt: str
    prefix: str
    completion: str
    examined: Examined
    classes: frozenset[str]


def read_row(row: dict[str, Any], place: str, also: frozenset[str] = frozenset()) -> Row:
    """
    Args:
        row: `task_id`, `text` or `prompt`, `code`, `test_list`; perhaps `test_setup_code`, `test_imports`,
            `challenge_test_list`, `entry_point`.
        place: of the row, in words.
        also: classes of the solution that are given though no test names them.

    Raises:
        ValueError: naming the place and what it lacks, or what is of another type.
        UnfitRow: its content makes no problem.
    """
    missing = [name for name in ("task_id", "code", "test_list") if row.get(name) in (None, "", [])]
    missing += [] if row.get("text") or row.get("prompt") else ["text"]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}.")
    asked, code = (_text(row, name, place) for name in ("text" if row.get("text") else "prompt", "code"))
    setup = "\n".join([*_texts(row, "test_imports", place), _text(row, "test_setup_code", place)])
    texts = [*_texts(row, "test_list", place), *_texts(row, "challenge_test_list", place)]
    entry_point = _text(row, "entry_point", place)
    for what, text in (("code", code), ("the set-up code", setup), *((f"the test {shown(one)}", one) for one in texts)):
        if not is_python(text):
            raise UnfitRow(f"{what} is not Python")
    return _taken_apart(str(row["task_id"]), asked.strip(), code, setup, texts, entry_point, also)


def _text(row: dict, name: str, place: str) -> str:
    value = row.get(name) or ""
    if not isinstance(value, str):
        raise ValueError(f"{place}: {name} is {shown(value)}; it must be a text.")
    return value.replace("\r\n", "\n")


def _texts(row: dict, name: str, place: str) -> list[str]:
    value = row.get(name) or []
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{place}: {name} is {shown(value)}; it must be a list of texts.")
    return [one.replace("\r\n", "\n").strip() for one in value]


def _taken_apart(
    task_id: str, asked: str, code: str, setup: str, texts: list[str], entry_point: str, also: frozenset[str]
) -> Row:
    definitions = _definitions(code)
    entry_point = entry_point or _called_first(texts, setup, definitions)
    if entry_point not in definitions:
        raise UnfitRow(f"code does not define a function {entry_point}")
    own, helping = list(statements(code)), list(statements(setup))
    tests = _tests(texts, helping, entry_point)
    signature = f"def {entry_point}({ast.unparse(definitions[entry_point])}):"
    named = {name for text in (setup, *texts) for name in free_names(text)[1]} | also
    others = [unit for unit in own if entry_point not in unit.binds]
    classes = [unit for unit in (*_closure(named, others), *helping) if _is_class(unit)]
    needed = {name for unit in classes for name in unit.needs} | free_names(f"{signature} pass")[1]
    given = [*classes, *_closure(needed, [*others, *helping])]
    public = [unit for unit in helping if unit.imports and "pytest" not in unit.source]
    public += [unit for unit in (*others, *helping) if unit in given and unit not in public]
    shown_classes = "".join(unit.source.strip("\n") + "\n" for unit in public if not unit.imports)
    before = "".join(unit.source.lstrip("\n") for unit in public)
    completion = code if not set(own) & set(public) else "".join(unit.source for unit in own if unit not in public)
    private = "".join(unit.source for unit in helping if unit not in public)
    examined = Examined(entry_point, before + completion, private, tuple(tests))
    prompt = f"{asked}\n{shown_classes}{signature}\n"
    names = frozenset(name for unit in classes for name in unit.binds)
    return Row(task_id, prompt, f"{before}{signature}\n", completion, examined, names)


def _definitions(code: str) -> dict[str, ast.arguments]:
    """The functions of a program, and their arguments."""
    found = {}
    for node in ast.parse(code).body:
        match node:
            case ast.FunctionDef(name=name, args=arguments):
                found[name] = arguments
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Lambda(args=arguments)):
                found[name] = arguments
    return found


def _called_first(texts: Sequence[str], setup: str, definitions: dict[str, ast.arguments]) -> str:
    """The function that the tests are about: the outermost that an assertion calls, or that anything calls, or uses."""
    trees = [ast.parse(text) for text in (*texts, setup)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    asserted = [inner for node in nodes if isinstance(node, ast.Assert) for inner in ast.walk(node)]
    for node in (*asserted, *nodes):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in definitions:
            return node.func.id
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in definitions:
            return node.id
    raise UnfitRow("no test calls a function that code defines")


def _tests(texts: Sequence[str], helping: list[Unit], entry_point: str) -> list[str]:
    """The tests that call the function, each with the statements before it that do not."""
    before, tests = "", []
    for text in texts:
        needs = free_names(text)[1]
        called = needs | {name for unit in _closure(needs, helping) for name in unit.needs}
        if entry_point in called:
            tests.append(before + text)
        else:
            before += f"{text}\n"
    if not tests:
        raise UnfitRow(f"no test calls {entry_point}")
    return tests


def _closure(names: Iterable[str], units: Sequence[Unit]) -> list[Unit]:
    """The units that bind these names, and the names that those need."""
    wanted, found = set(names), []
    while more := [unit for unit in units if unit.binds & wanted and unit not in found]:
        found += more
        wanted |= {name for unit in more for name in unit.needs}
    return found


def _is_class(unit: Unit) -> bool:
    def makes_class(node: ast.stmt) -> bool:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            return isinstance(node, ast.ClassDef)
        return ast.unparse(node.value.func).rpartition(".")[2] in CLASS_MAKERS

    return any(map(makes_class, unit.nodes))
