"""`llm-mdp agents`: the zoo, with the certificate of each agent's own defaults and the ledger's verdicts."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from llm_mdp.cli.options import check_writable, for_people, names_model, one_thread, say_written, write_json
from llm_mdp.cli.parsing import parse
from llm_mdp.exact.instances import random_instance
from llm_mdp.report.console import terminal
from llm_mdp.report.terminal import COLOURS, progress_bar
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.ledger import run_ledger
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.base import Agent
from llm_mdp_agents.certificates import own_certificate
from llm_mdp_agents.resolve import agent_class
from llm_mdp_agents.zoo import AGENTS


@dataclass(frozen=True)
class AgentsArguments:
    """List the agents: algorithm, paper, file, and the ids of its claims in the ledger.

    With --certify two things are computed: the certificate of each agent's own default configuration, as it trains, and
    the verdicts of the ledger about its claims. With --model FOLDER the certificates are on a language model, in all
    its parameters, with options of their own (llm-mdp agents --model FOLDER --help).
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[AGENT ...]")] = ()
    """Only these (default: all)."""
    certify: bool = False
    """Compute certificates and verdicts, some minutes for all."""
    json: Path | None = None
    """Write the list to this file; - is the standard output."""


def agents(argv: Sequence[str]) -> int:
    """Run `llm-mdp agents`."""
    if names_model(argv):
        from llm_mdp.cli.agents_model import agents_model

        return agents_model(argv)
    one_thread()
    arguments = parse(AgentsArguments, argv, "agents")
    check_writable(arguments.json)
    chosen = [agent_class(name) for name in arguments.names or AGENTS]
    listed = certified(chosen) if arguments.certify else [named(agent) for agent in chosen]
    console = for_people(arguments.json)
    for each in listed:
        show(each, console)
    if not arguments.certify:
        console.print("\nllm-mdp agents --certify computes the certificate of their defaults.", style="dim")
    write_json(arguments.json, listed)
    say_written(console, arguments.json)
    return 0


def certified(agents: Sequence[type[Agent]]) -> list[dict[str, Any]]:
    """All that is said of agents, with what the ledger finds about their claims."""
    claims = tuple(claim for claim in CLAIMS if any(claim.id in agent.claims for agent in agents))
    listed = []
    with progress_bar(terminal(stderr=True), len(claims) + len(agents)) as done:
        rows = run_ledger(Problem(random_instance(3, 4, gamma=0.9)), claims, progress=done)["claims"]
        for agent in agents:
            listed.append(described(agent) | {"claims": {claim: rows[claim]["verdict"] for claim in agent.claims}})
            done(agent.name)
    return listed


def described(agent: type[Agent]) -> dict[str, Any]:
    """All that is said of an agent, JSON-able."""
    own = own_certificate(agent)
    return named(agent) | {
        "certificate": asdict(own.certificate) | {"words": str(own.certificate), "computed_on": own.place},
        "why_the_default": agent.why_the_default if own.certificate.verdict == "biased" else "",
    }


def named(agent: type[Agent]) -> dict[str, Any]:
    """Where an agent comes from and stands."""
    file = f"agents/llm_mdp_agents/zoo/{Path(inspect.getfile(agent)).name}"
    options = [each.name for each in fields(agent.Config)]
    return {
        "name": agent.name,
        "paper": agent.paper,
        "file": file,
        "options": options,
        "claims": dict.fromkeys(agent.claims),
    }


def show(agent: dict[str, Any], console: Console) -> None:
    """One agent in a few lines."""
    certificate, margin = agent.get("certificate"), (0, 0, 0, 15)
    console.print(Text.assemble((f"{agent['name']:<14}", "bold"), f" {agent['paper']}"))
    console.print(Padding(agent["file"], margin), style="dim")
    if certificate is not None:
        words = f"its defaults: {certificate['words']} ({certificate['computed_on']})"
        console.print(Padding(words, margin), style=COLOURS.get(certificate["verdict"], ""))
    if agent.get("why_the_default"):
        console.print(Padding(f"why the default: {agent['why_the_default']}", margin))
    if agent["claims"]:
        verdicts = ", ".join(f"{claim} {verdict or ''}".strip() for claim, verdict in agent["claims"].items())
        console.print(Padding(f"the ledger: {verdicts}", margin), style="dim")
