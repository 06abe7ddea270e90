"""`llm-mdp envs`: the environments, a paragraph each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.padding import Padding

from llm_mdp.cli.options import check_writable
from llm_mdp.files import write_text
from llm_mdp_envs.registry import registered


@dataclass(frozen=True)
class EnvsArguments:
    """List the Gymnasium environments: turns, vocabulary, graded parts of the reward, and what each separates."""

    json: Path | None = None
    """Write the list to this file."""


def envs(argv: Sequence[str]) -> int:
    """Run `llm-mdp envs`."""
    command = tyro.cli(EnvsArguments, args=argv, prog="llm-mdp envs")
    check_writable(command.json)
    console, listed = Console(highlight=False), list(registered())
    for one in listed:
        turns = "one turn" if one.turns == 1 else f"{one.turns} turns"
        parts = f" · reward: {', '.join(one.reward_parts)}" if one.reward_parts else ""
        figures = f"{turns} · {one.vocab_size:,} tokens · horizon {one.horizon}{parts}"
        console.print(f"[bold]{one.id:<26}[/] {figures if one.task else 'not available here'}")
        console.print(Padding(one.unavailable or one.separates, (0, 0, 0, 4)), style="dim", markup=False)
    if command.json:
        write_text(
            command.json,
            json.dumps([{**vars(one), "task": one.task and one.task.__name__} for one in listed], indent=1) + "\n",
        )
    return 0
