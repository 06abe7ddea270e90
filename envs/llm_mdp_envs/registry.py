"""Every environment of this package, in one list; importing `llm_mdp_envs` registers them with Gymnasium.

    python -m llm_mdp_envs.registry          # writes envs/README.md

A task is imported when an environment is made, so that nobody needs the extras of tasks they do not use.
"""

import argparse
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from llm_mdp.own import UsageError, did_you_mean, load
from llm_mdp_envs.arguments import shown
from llm_mdp_envs.task import PAD, Task
from llm_mdp_envs.token_env import TokenEnv
from llm_mdp_envs.vector_env import TokenVectorEnv

README = Path(__file__).parent.parent / "README.md"


@dataclass(frozen=True)
class Entry:
    """One line of the list."""

    id: str
    task: str
    """module:class."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the task; `gym.make(id, …)` overrides them."""
    extra: str = ""
    """The optional dependency group of this project that the task needs."""


ENTRIES: tuple[Entry, ...] = (
    Entry("llm_mdp/Tabular-v0", "llm_mdp_envs.tasks.synthetic:Tabular"),
    Entry("llm_mdp/Ngram-v0", "llm_mdp_envs.tasks.synthetic:Ngram"),
    Entry("llm_mdp/Needle-v0", "llm_mdp_envs.tasks.diagnostics:Needle"),
    Entry("llm_mdp/Credit-v0", "llm_mdp_envs.tasks.diagnostics:Credit"),
    Entry("llm_mdp/Forked-v0", "llm_mdp_envs.tasks.diagnostics:Forked"),
    Entry("llm_mdp/LengthBias-v0", "llm_mdp_envs.tasks.diagnostics:LengthBias"),
    Entry("llm_mdp/RareSuccess-v0", "llm_mdp_envs.tasks.diagnostics:RareSuccess"),
    Entry("llm_mdp/Arithmetic-v0", "llm_mdp_envs.tasks.arithmetic:Arithmetic"),
    Entry("llm_mdp/ReasoningGym-v0", "llm_mdp_envs.tasks.reasoning:ReasoningGym", extra="reasoning"),
    Entry("llm_mdp/Math-v0", "llm_mdp_envs.tasks.math_problems:Math", extra="math"),
    Entry("llm_mdp/Code-v0", "llm_mdp_envs.tasks.code:Code", extra="code"),
    Entry("llm_mdp/Consultation-v0", "llm_mdp_envs.tasks.consultation:Consultation"),
    Entry("llm_mdp/GuessNumber-v0", "llm_mdp_envs.tasks.guess_number:GuessNumber"),
    Entry("llm_mdp/Calculator-v0", "llm_mdp_envs.tasks.calculator:Calculator"),
    Entry("llm_mdp/Documents-v0", "llm_mdp_envs.tasks.documents:Documents"),
)


@dataclass(frozen=True)
class Registered:
    """What there is to know about a registered environment, with its default arguments."""

    id: str
    task: type[Task] | None
    """The task's class; None if it cannot be imported here."""
    turns: int = 1
    vocab_size: int = 0
    horizon: int = 0
    reward_parts: tuple[str, ...] = ()
    """Graded parts that `info["parts"]` reports; empty: the reward is one number."""
    separates: str = ""
    unavailable: str = ""
    """Why it cannot be made here and what to install; empty if it can."""


def registered() -> Iterator[Registered]:
    """All environments, in the order of the list. Those that lack a dependency come with `unavailable` in words."""
    for entry in ENTRIES:
        try:
            task = make_task(entry.task, **entry.kwargs)
            listing = describe(entry.id, task)
            task.close()
        except (ImportError, OSError, RuntimeError) as error:
            listing = Registered(entry.id, None, unavailable=_what_is_missing(entry, error))
        yield listing


def describe(id: str, task: Task) -> Registered:
    """The listing of a task. Its reward parts are read off one empty response, scored."""
    tokens = np.full((1, task.horizon), 0 if task.eos is None else PAD, dtype=np.int64)
    tokens[0, 0] = 0 if task.eos is None else task.eos
    scores = task.score([task.question(np.random.default_rng(0))], tokens, tokens != PAD)
    return Registered(
        id, type(task), task.max_turns, task.vocab_size, task.horizon, tuple(scores.parts), task.separates
    )


def make_env(task: str, render_mode: str | None = None, **kwargs: Any) -> TokenEnv:
    """What `gym.make` calls: the environment of the task at `module:class`, made with these arguments."""
    return TokenEnv(make_task(task, **kwargs), render_mode)


def make_vector_env(task: str, num_envs: int = 1, render_mode: str | None = None, **kwargs: Any) -> TokenVectorEnv:
    """What `gym.make_vec` calls."""
    return TokenVectorEnv(make_task(task, **kwargs), num_envs, render_mode)


def task_class(path: str) -> type[Task]:
    """The class at `module:class`, imported.

    Raises:
        ImportError: something that the task needs is not installed.
        UsageError: there is no such module or class; for those that have moved, where they are.
    """
    module, _, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not module or not name:
        raise UsageError(f"task is {shown(path)}; it must be module:class, as in the list of this registry.")
    moved = module.replace("llm_mdp_envs.", "llm_mdp_envs.tasks.", 1)
    if module.count(".") == 1 and importlib.util.find_spec(module) is None and importlib.util.find_spec(moved):
        raise UsageError(f"there is no module {module} any more; write {moved}:{name}, as tasks are in a folder now.")
    return load(path)


def face_of(factory: Any, arguments: Mapping[str, Any]) -> Any:
    """The class that makes a task with these arguments: with text=True, of those that have one, the face for language
    models."""
    face = getattr(factory, "text_face", "")
    return load(face) if face and arguments.get("text") is True else factory


def make_task(path: str, **kwargs: Any) -> Task:
    """The task at `module:class`.

    Raises:
        ImportError: something that the task needs is not installed.
        TypeError: an argument that the task does not have.
    """
    factory = face_of(task_class(path), kwargs)
    if factory is not task_class(path):
        del kwargs["text"]
    parameters = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for argument in kwargs:
            if argument not in parameters:
                takes = f"it takes {', '.join(parameters) or 'none'}"
                meant = did_you_mean(argument, parameters, "")
                raise TypeError(
                    f"{factory.__name__} has no argument {argument!r}; {takes}{'; ' if meant else '.'}{meant}"
                )
    return factory(**kwargs)


def register_all() -> None:
    """Register every entry with Gymnasium, single and vectorised."""
    for entry in ENTRIES:
        gymnasium.register(
            entry.id,
            entry_point="llm_mdp_envs.registry:make_env",
            vector_entry_point="llm_mdp_envs.registry:make_vector_env",
            kwargs={"task": entry.task, **entry.kwargs},
        )


def _what_is_missing(entry: Entry, error: Exception) -> str:
    named = "pip install" in str(error) or not entry.extra or not isinstance(error, ImportError)
    return str(error) if named else f"{error}; pip install 'llm-mdp[{entry.extra}]'"


# --- envs/README.md ---------------------------------------------------------------------------------------------------

HEAD = """# Environments

<!-- Written by `python -m llm_mdp_envs.registry`; edit the tasks, not this page. -->

`gym.make(id, …)` makes one, `gym.make_vec(id, num_envs=…)` many that are stepped as arrays; both after
`import llm_mdp_envs`. The action is the next token; the observation is prompt and response so far; the reward comes at
the end. Hidden token rewards stay hidden.
"""


def readme() -> str:
    """The text of envs/README.md."""
    listed = list(registered())
    table = ["| id | turns | vocabulary | horizon | reward parts | what it separates |", "|---|---:|---:|---:|---|---|"]
    for one in listed:
        if one.unavailable:
            table.append(f"| `{one.id}` | | | | | not available here: {one.unavailable} |")
        else:
            parts = ", ".join(one.reward_parts) or "–"
            table.append(f"| `{one.id}` | {one.turns} | {one.vocab_size} | {one.horizon} | {parts} | {one.separates} |")
    sections = [_section(one.id, one.task) for one in listed if one.task is not None]
    return "\n".join([HEAD, *table, "", "Figures are those of the default arguments.", "", *sections])


def _section(id: str, task: type[Task]) -> str:
    call = f'gym.make("{id}", {_arguments(task)})' if _arguments(task) else f'gym.make("{id}")'
    return f"## {id}\n\n```python\n{call}\n```\n\n{_plain(inspect.getdoc(task) or '')}\n"


def _arguments(task: type[Task]) -> str:
    parameters = inspect.signature(task).parameters.values()
    return ", ".join(f"{p.name}={p.default!r}" if p.default is not p.empty else f"{p.name}=…" for p in parameters)


def _plain(docstring: str) -> str:
    """A docstring as Markdown: its sections of arguments and errors become lists."""
    lines, inside = [], False
    for line in docstring.splitlines():
        if line in ("Args:", "Raises:"):
            inside = True
            lines += [f"**{line}**", ""]
        elif inside and line.startswith("    ") and not line.startswith("     "):
            lines.append(f"- {line.strip()}")
        else:
            lines.append(f"  {line.strip()}" if inside and line.strip() else line)
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write envs/README.md from the registry.")
    parser.add_argument("--output", type=Path, default=README)
    output = parser.parse_args().output
    if output == README and README.parent.name != "envs":
        parser.error(
            f"this package is installed in {README.parent}, not in a checkout; say where to write with --output FILE"
        )
    output.write_text(readme(), encoding="utf-8")
    print(f"Written to {output}")


if __name__ == "__main__":
    main()
