"""Where the program is in a reply.

A reply is read as a person reads it. Thoughts (`<think>…</think>`) are no answer. A reply that goes on where the
prompt stopped is a body: it ends where the function ends, at HumanEval's stop words (a line at the margin: `def`,
`class`, `if`, `print`, a comment, prose). Any other reply is searched for definitions of the entry point, in fenced
blocks and between them: the last one with a body counts, so a discarded draft earns nothing. What it uses is taken from
the other blocks; examples, tests and calls that follow it are left out.

What a reader sees is what is graded: spaces and marks that nobody sees (no-break, zero width, tabs among spaces) are
mended where the program is no Python with them, and nothing else is. The indentation of a body is forgiven, because
templates and tokenizers strip the beginning of a reply.
"""

import ast
import builtins
import re
import symtable
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from llm_mdp_envs.tasks.reply_parts import is_python, mended, passages, without_thoughts

LONGEST = 200_000
"""Characters. A longer text is not searched for what might be a program in it."""
MOST_ENDS = 20
"""Lines at the margin that are tried as the end of a function (a string or a bracket may be open there)."""
MOST_CHUNKS = 200
"""Statements that are looked for between lines that are no program."""

_PROMPTS = re.compile(r"^[ \t]*>>> *(?:@|async def|def|class|import|from)\b", re.MULTILINE)
_STATEMENT = re.compile(
    r"[ \t]*(?:@\w|(?:async[ \t]+)?def[ \t]+\w|class[ \t]+\w|import[ \t]+\w|from[ \t]+[\w.]+[ \t]+import\b"
    r"|\w+[ \t]*(?::[^=\n]+)?=[^=])"
)


def program_of(reply: str, prefix: str, entry_point: str) -> str:
    """The program that a reply makes: the prefix, and what the reply adds to it.

    Args:
        reply: what a model wrote, of any kind; it may be hostile, and is only read here.
        prefix: program text that stands before a completion; it may end in the middle of the entry point (a signature,
            a signature and a docstring). A reply that defines the entry point itself takes the place of that beginning.
        entry_point: the function that is wanted.

    Returns:
        source text. Where the reply holds no program, text that is no right program either.
    """
    text = without_thoughts(reply.replace("\r\n", "\n").replace("\r", "\n"))
    if len(text) > LONGEST:
        return prefix + text
    try:
        found = _program(text, prefix, entry_point)
        if is_python(found) or (legible := mended(text)) == text:
            return found
        again = _program(legible, prefix, entry_point)
    except (RecursionError, MemoryError):  # Python compiles deeper expressions than it makes trees of
        return prefix + text
    return again if is_python(again) else found


def free_names(source: str) -> tuple[set[str], set[str]]:
    """Names that a program binds at its top, and names that it takes from outside of it. It must be Python."""
    top = symtable.symtable(source, "<reply>", "exec")
    binds = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    needs = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        needs |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
        tables += table.get_children()
    return binds, needs - binds


@dataclass(frozen=True, eq=False)
class Unit:
    """A statement, or a few on the same lines.

    Args:
        source: whole lines.
        passage: the number of the part of the reply that it stands in.
        solid: all of that part is a program, not only some of its lines.
        binds, needs: see `free_names`.
        touches: names of objects that it changes (`table[0] = 1`, `table.append(1)`).
        nodes: the statements; none where it is no Python.
    """

    source: str
    passage: int
    solid: bool
    binds: frozenset[str]
    needs: frozenset[str]
    touches: frozenset[str]
    nodes: tuple[ast.stmt, ...]

    @property
    def imports(self) -> bool:
        return bool(self.nodes) and all(isinstance(node, ast.Import | ast.ImportFrom) for node in self.nodes)


def _program(text: str, prefix: str, entry_point: str) -> str:
    """The first that there is of: a body that goes on after the prefix, a definition, a body in a block, the text."""
    text = _unindented(text, entry_point)
    first = next((line for line in text.split("\n") if line.strip()), "")
    if len(_margin(first).expandtabs(4)) > 1 and (body := _body(text, prefix, [text])):
        return _with_helpers(*body)
    parts = list(passages(text))
    units = [unit for number, (_, part) in enumerate(parts) for unit in _units(part, number, entry_point)]
    if (entry := _entry(units, entry_point)) is not None:
        return _joined([_before(prefix, entry_point), *(unit.source for unit in _chosen(units, entry))])
    blocks = [part for fenced, part in reversed(parts) if fenced]
    for part in sorted(blocks, key=lambda part: not re.search(r"\b(?:return|yield)\b", part)) or [text]:
        if body := _body(part, prefix, _indentations(part, prefix)):
            return _with_helpers(*body)
    return prefix + (blocks[0] if blocks else text)


def _unindented(text: str, entry_point: str) -> str:
    """A reply whose first line defines the function, but not at the margin: moved to the margin, if it is Python."""
    lines = text.split("\n")
    first = next((line for line in lines if line.strip()), "")
    margin = _margin(first)
    if not margin or not re.match(rf"\s+(?:async[ \t]+)?def[ \t]+{entry_point}\b", first):
        return text
    if any(re.match(rf"{margin}(?:return|yield)\b", line) for line in lines):  # a function in the function
        return text
    moved = "\n".join(line.removeprefix(margin) for line in lines)
    units = list(_units(moved, 0, entry_point))
    return moved if units and units[0].nodes else text


def _body(text: str, prefix: str, variants: Iterable[str]) -> tuple[str, str] | None:
    """The prefix with the body of its function, up to where that ends, and the rest of the text. None: it is none."""
    for variant in variants:
        lines = variant.split("\n")
        for end in _ends(lines, 0, ""):
            source = prefix + "\n".join(lines[:end]) + ("\n" if end < len(lines) else "")
            if is_python(source):
                return source, "\n".join(lines[end:])
    return None


def _ends(lines: list[str], start: int, margin: str) -> Iterator[int]:
    """Lines before which a statement that begins at `start` may end: no further in than the margin. A comment there
    ends nothing if the statement goes on after it."""
    tried = 0
    after = ""
    following = [""] * len(lines)
    for number in range(len(lines) - 1, start, -1):
        following[number] = after
        if lines[number].strip() and not lines[number].lstrip().startswith("#"):
            after = lines[number]
    for number in range(start + 1, len(lines)):
        line = lines[number]
        if not line.strip() or _is_inside(line, margin):
            continue
        if line.lstrip().startswith("#") and _is_inside(following[number], margin):
            continue
        yield number
        tried += 1
        if tried == MOST_ENDS:
            return
    yield len(lines)
    comments = (number for number in range(start + 1, len(lines)) if lines[number].startswith(f"{margin}#"))
    yield from list(comments)[:1]


def _is_inside(line: str, margin: str) -> bool:
    return len(_margin(line)) > len(margin)


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _indentations(text: str, prefix: str) -> list[str]:
    """A body moved in as a whole, with its first line moved in, and as it is; a text that returns nothing as it is."""
    last = next((line for line in reversed(prefix.split("\n")) if line.strip()), "")
    margin = _margin(last) or "    "
    text = text.lstrip("\n")
    moved = [textwrap.indent(textwrap.dedent(text), margin), margin + text.lstrip()]
    return [*moved, text] if re.search(r"\b(?:return|yield|raise)\b", text) else [text]


def _with_helpers(source: str, rest: str) -> str:
    """A program, and the definitions after it that it needs."""
    binds, needs = free_names(source)
    if not (needs - binds - vars(builtins).keys()):
        return _joined([source])
    units = [unit for number, (_, part) in enumerate(passages(rest)) for unit in _units(part, number, "")]
    whole = Unit(source, -1, True, frozenset(binds), frozenset(needs), frozenset(), ())
    return _joined([unit.source for unit in _chosen([whole, *units], whole)])


@lru_cache(maxsize=1024)
def _before(prefix: str, entry_point: str) -> str:
    """The prefix without the beginning of the entry point, if that alone is no program."""
    if is_python(prefix):
        return prefix
    headers = list(re.finditer(rf"(?:^@.*\n)*^(?:async[ \t]+)?def[ \t]+{entry_point}\b", prefix, re.MULTILINE))
    return prefix[: headers[-1].start()] if headers else prefix


def _joined(parts: Iterable[str]) -> str:
    """One program; `from __future__` goes to its top, where Python wants it."""
    text = ""
    for part in parts:
        text += part if not text or text.endswith("\n") else f"\n{part}"
    if "from __future__" not in text:
        return text
    future = re.findall(r"^from __future__ import .*$", text, re.MULTILINE)
    return "\n".join([*future, re.sub(r"^from __future__ import .*$", "", text, flags=re.MULTILINE)])


def _units(text: str, passage: int, entry_point: str) -> Iterator[Unit]:
    """The statements of a part of a reply: all of them where it is a program, else those among its lines that define
    something."""
    if not text.strip():
        return
    if _PROMPTS.search(text) and not is_python(text):
        prompted = re.findall(r"^[ \t]*(?:>>>|\.\.\.)(?: (.*)|)$", text, re.MULTILINE)
        text = "\n".join(map(str, prompted))
    if is_python(text):
        yield from statements(text, passage)
        return
    lines = text.split("\n")
    number = chunks = 0
    while number < len(lines) and chunks < MOST_CHUNKS:
        if not _STATEMENT.match(lines[number]):
            number += 1
            continue
        chunks += 1
        margin = _margin(lines[number])
        moved = [line.removeprefix(margin) for line in lines]
        ends = list(_ends(lines, number, margin))
        sources = (("\n".join(moved[number:end]) + "\n", end) for end in ends)
        source, end = next(((source, end) for source, end in sources if is_python(source)), ("", ends[0]))
        if source:
            yield from statements(source, passage, solid=False)
        elif end > number + 1 and re.match(
            rf"[ \t]*(?:async[ \t]+)?def {entry_point}\((?:.*:|[^)]*)\s*$", lines[number]
        ):
            broken = "\n".join(moved[number:end])
            yield Unit(broken, passage, False, frozenset({entry_point}), frozenset(), frozenset(), ())
        number = end


def statements(text: str, passage: int = 0, solid: bool = True) -> Iterator[Unit]:
    """The statements of a program, in order."""
    lines = text.split("\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = ast.parse(text).body
    written, group = 0, []
    for node, following in zip(body, [*body[1:], None]):
        group.append(node)
        end = node.end_lineno or node.lineno
        if following is not None and following.lineno <= end:
            continue
        source = "\n".join(lines[written:end]) + "\n"
        binds, needs = free_names(source)
        touches = {name for one in group for name in _touched(one)}
        yield Unit(source, passage, solid, frozenset(binds), frozenset(needs), frozenset(touches), tuple(group))
        written, group = end, []


def _touched(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield from _root(node)
        elif (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Attribute)
        ):
            yield from _root(node.value.func)


def _root(node: ast.expr) -> Iterator[str]:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


def _entry(units: list[Unit], entry_point: str) -> Unit | None:
    """The last definition of the entry point that has a body, or else the last without. An import of it from what is
    not Python's and `fib = fib(10)` define nothing."""
    found = [
        unit
        for unit in units
        if entry_point in unit.binds
        and not (unit.imports and not _is_standard(unit))
        and not any(isinstance(node, ast.Assign) and _calls(node.value, (entry_point,)) for node in unit.nodes)
    ]
    return next((unit for unit in reversed(found) if _has_body(unit, entry_point)), found[-1] if found else None)


def _calls(node: ast.AST, names: Iterable[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _is_usage(unit: Unit, entry: Unit) -> bool:
    """Does it only try the program, ask for its input, or is it a word such as "python" above it?"""
    return bool(unit.nodes) and all(
        isinstance(node, ast.Assert)
        or (
            isinstance(node, ast.Expr)
            and (isinstance(node.value, ast.Name) or _calls(node.value, ("print", *entry.binds)))
        )
        or (
            not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and any(_calls(inner, ("input",)) for inner in ast.walk(node))
        )
        for node in unit.nodes
    )


def _is_standard(unit: Unit) -> bool:
    """Do its imports come with Python?"""
    modules = [
        name
        for node in unit.nodes
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])  # pyright: ignore[reportAttributeAccessIssue]
    ]
    return all(module.partition(".")[0] in sys.stdlib_module_names for module in modules)


def _has_body(unit: Unit, entry_point: str) -> bool:
    definitions = [
        node
        for node in unit.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == entry_point
    ]
    return not definitions or any(
        not (isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)))
        for node in definitions
        for line in node.body
    )


def _chosen(units: list[Unit], entry: Unit) -> list[Unit]:
    """The entry point, what stands before it in its own program, and from everywhere what these need."""
    place = units.index(entry)
    kept = {place}
    for number, unit in enumerate(units):
        star = unit.imports and not unit.binds and _is_standard(unit)
        before = entry.solid and unit.passage == entry.passage and number < place
        if star or (before and not unit.imports and not _is_usage(unit, entry)):
            kept.add(number)
    while True:
        bound = {name for number in kept for name in units[number].binds}
        needed = {name for number in kept for name in units[number].needs} - bound - vars(builtins).keys()
        modules = {name for number in kept if units[number].imports for name in units[number].binds}
        more = {
            number
            for number, unit in enumerate(units)
            if entry.solid and unit.passage == entry.passage and unit.touches & (bound - modules)
        }
        for name in needed:
            binders = [number for number, unit in enumerate(units) if name in unit.binds and unit.nodes]
            own = [number for number in binders if units[number].passage == entry.passage]
            more |= set((own or binders)[-1:])
        if more <= kept:
            return [units[number] for number in sorted(kept)]
        kept |= more
