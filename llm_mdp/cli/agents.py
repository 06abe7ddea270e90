"""`llm-mdp agents`: the zoo, with what the ledger says of each agent."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import tyro
from rich.console import Console
from rich.padding import Padding

from llm_mdp.cli.options import FLAGS, check_writable, one_thread
from llm_mdp.exact.instances import random_instance
from llm_mdp.files import write_text
from llm_mdp.report.terminal import progress_bar
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.ledger import run_ledger
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.zoo import AGENTS


@dataclass(frozen=True)
class AgentsArguments:
    """List the agents: algorithm, paper, file, and the verdicts of the ledger about them, computed now on one
    instance."""

    json: Path | None = None
    """Write the list to this file."""


def agents(argv: Sequence[str]) -> int:
    """Run `llm-mdp agents`."""
    one_thread()
    arguments = tyro.cli(AgentsArguments, args=argv, prog="llm-mdp agents", config=FLAGS)
    check_writable(arguments.json)
    named = {claim for agent in AGENTS.values() for claim in agent.claims}
    claims = tuple(claim for claim in CLAIMS if claim.id in named)
    with progress_bar(Console(stderr=True), len(claims)) as done:
        rows = run_ledger(Problem(random_instance(3, 4, gamma=0.9)), claims, progress=done)["claims"]
    console, listed = Console(highlight=False), []
    for name, agent in AGENTS.items():
        file = f"agents/llm_mdp_agents/zoo/{Path(inspect.getfile(agent)).name}"
        verdicts = {claim: rows[claim]["verdict"] for claim in agent.claims}
        options = [each.name for each in fields(agent.Config)]
        listed.append({"name": name, "paper": agent.paper, "file": file, "claims": verdicts, "options": options})
        console.print(f"[bold]{name:<14}[/] {agent.paper}")
        console.print(Padding(file, (0, 0, 0, 15)), style="dim")
        console.print(Padding(", ".join(f"{claim} {verdict}" for claim, verdict in verdicts.items()), (0, 0, 0, 15)))
    if arguments.json:
        write_text(arguments.json, json.dumps(listed, indent=1) + "\n")
    return 0
