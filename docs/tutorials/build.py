"""The tutorials as pages: `python docs/tutorials/build.py [NAME …]`, all of them without a name.

A tutorial is a script beside this one, in percent format: `# %% [markdown]` begins a cell of words, `# %%` one of code,
so that editors and Jupyter open it as a notebook. Each is run cell by cell in a process of its own and written to
NAME.md, with what every cell printed and the figures that it left open, as figures/NAME-1.svg and so on. The same
versions on the same machine write the same bytes: nothing that a tutorial prints may depend on the time.
"""

import contextlib
import io
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
FIGURES = "figures"


@dataclass(frozen=True)
class Cell:
    """What stands between two marks, without comment signs if it is of words."""

    text: str
    is_code: bool
    line: int
    """Of its first line in the script, from 1."""


def cells(script: str) -> list[Cell]:
    """The cells of a script; those in which nothing stands are left out.

    Raises:
        ValueError: for code before the first mark, a mark of another kind, or code in a cell of words.
    """
    lines = script.splitlines()
    marks = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    if not marks or "".join(lines[: marks[0]]).strip():
        raise ValueError("a tutorial begins with a mark, # %% or # %% [markdown], and nothing before it.")
    found = []
    for first, last in zip(marks, [*marks[1:], len(lines)]):
        if lines[first] not in ("# %%", "# %% [markdown]"):
            raise ValueError(f"line {first + 1} is {lines[first]!r}; write # %% or # %% [markdown].")
        is_code, body = lines[first] == "# %%", lines[first + 1 : last]
        for number, line in enumerate(body, first + 2):
            if not is_code and line and line != "#" and not line.startswith("# "):
                raise ValueError(f"line {number} is {line!r}; in a cell of words every line begins with # and a space.")
        text = "\n".join(body if is_code else [line[2:] for line in body]).strip("\n")
        if text:
            found.append(Cell(text, is_code, first + 2))
    return found


def page(name: str, parts: Sequence[tuple[Cell, str]]) -> str:
    """The page of a tutorial: its cells, each with what came of it as Markdown."""
    head = f"<!-- Written by `python docs/tutorials/build.py` from {name}.py; edit that. -->"
    way = f"*This page is [{name}.py]({name}.py), as it ran. `jupytext --to ipynb {name}.py` makes a notebook of it.*"
    title, *rest = [(f"```python\n{cell.text}\n```" if cell.is_code else cell.text, came) for cell, came in parts]
    blocks = [head, title[0], way, *(block for both in rest for block in both if block)]
    return "\n\n".join(blocks) + "\n"


def run(name: str) -> str:
    """Run a tutorial in this process; returns its page, and writes its figures."""
    path = HERE / f"{name}.py"
    module = ModuleType("tutorial")
    sys.modules[module.__name__] = module
    parts, drawn = [], 0
    for cell in cells(path.read_text(encoding="utf-8")):
        came = []
        if cell.is_code:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * (cell.line - 1) + cell.text, str(path), "exec"), module.__dict__)
            if printed.getvalue().strip():
                came.append(f"```text\n{printed.getvalue().rstrip()}\n```")
            for figure, words in open_figures():
                drawn += 1
                file = f"{FIGURES}/{name}-{drawn}.svg"
                figure.savefig(HERE / file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
                came.append(f"![{words}]({file})")
        parts.append((cell, "\n\n".join(came)))
    return page(name, parts)


def open_figures() -> list:
    """The figures that a cell left open, each with its title, and then none is."""
    from matplotlib import pyplot

    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    pyplot.close("all")
    titles = [[each.get_title(loc) for each in figure.axes for loc in ("left", "center")] for figure in figures]
    return [(figure, re.sub(r"\s+", " ", next(filter(None, said)))) for figure, said in zip(figures, titles)]


def build(name: str) -> None:
    """Run a tutorial and write its page; figures that it has no more are removed."""
    text = run(name)
    (HERE / f"{name}.md").write_text(text, encoding="utf-8")
    for figure in (HERE / FIGURES).glob(f"{name}-*.svg"):
        if f"({FIGURES}/{figure.name})" not in text:
            figure.unlink()


if __name__ == "__main__":
    os.environ |= {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    names = sys.argv[1:] or sorted(each.stem for each in HERE.glob("*.py") if not each.samefile(__file__))
    (HERE / FIGURES).mkdir(exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as one:
        for name in names:
            print(name, flush=True)
            one.apply(build, (name,))
