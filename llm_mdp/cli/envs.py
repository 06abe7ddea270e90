"""`llm-mdp envs`: the environments, a paragraph each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from llm_mdp.cli.options import check_writable, for_people, say_written, write_json
from llm_mdp.cli.parsing import parse
from llm_mdp_envs.figures import Figures, machine, read_kept
from llm_mdp_envs.registry import ENTRIES, Registered, as_json, listed, measured

FOOT = (
    "best: the optimum, or what right answers earn. random: the mean reward where all allowed tokens are equally "
    "likely: exact, or sampled (seed 0), with half of the mean's 95 % interval, or how many episodes had the commonest "
    "reward. A step: one environment, grading and resets included, on {machine}; --measure measures here."
)


@dataclass(frozen=True)
class EnvsArguments:
    """List the Gymnasium environments: turns, vocabulary, graded parts of the reward, what each separates, and what
    there is to earn."""

    json: Path | None = None
    """Write the list to this file; - is the standard output."""
    measure: bool = False
    """Measure here what there is to earn, in a minute or two, in place of the figures that are kept."""


def envs(argv: Sequence[str]) -> int:
    """Run `llm-mdp envs`."""
    command = parse(EnvsArguments, argv, "envs")
    check_writable(command.json)
    console, found = for_people(command.json), []
    for one in measured() if command.measure else listed():
        found.append(one)
        _show(console, one)
    console.print(Padding(FOOT.format(machine=machine() if command.measure else read_kept()["machine"]), (1, 0, 0, 0)))
    write_json(command.json, [_as_json(one) for one in found])
    say_written(console, command.json)
    return 0


def _show(console: Console, one: Registered) -> None:
    if one.unavailable:
        console.print(Text.assemble((f"{one.id:<26}", "bold"), " not available here"))
        console.print(Padding(one.unavailable, (0, 0, 0, 4)), style="dim")
        return
    turns = "one turn" if one.turns == 1 else f"{one.turns} turns"
    parts = f" · reward: {', '.join(one.reward_parts)}" if one.reward_parts else ""
    facts = f" {turns} · {one.vocab_size:,} tokens · horizon {one.horizon}{parts}"
    console.print(Text.assemble((f"{one.id:<26}", "bold"), facts))
    console.print(Padding(one.separates, (0, 0, 0, 4)), style="dim")
    if one.figures is not None:
        console.print(Padding(_earned(one.figures), (0, 0, 0, 4)))


def _earned(figures: Figures) -> str:
    best, random, step = figures.words
    by = " (right answers)" if figures.best_by == "right answers" else ""
    return f"best {best}{by} · random {random} · {step} a step"


def _as_json(one: Registered) -> dict:
    task = None if one.unavailable else next(entry.task.partition(":")[2] for entry in ENTRIES if entry.id == one.id)
    return {"id": one.id, "task": task, "unavailable": one.unavailable, **as_json(one)}
