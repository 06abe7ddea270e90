"""`llm-mdp agents`: the zoo, with the certificate of each agent's own defaults and the ledger's verdicts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from llm_mdp.cli.options import check_writable, for_people, names_model, say_written, write_json
from llm_mdp.cli.parsing import parse

KEPT = Path(__file__).with_name("agents.json")
"""The list of agents without certificates: written by `python -m llm_mdp.cli.agents_listed`."""


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
    arguments = parse(AgentsArguments, argv, "agents")
    check_writable(arguments.json)
    known = {} if arguments.certify else kept()
    if known and all(name in known for name in arguments.names):
        listed = [known[name] for name in arguments.names or known]
    else:
        from llm_mdp.cli import agents_listed

        listed = agents_listed.listed(arguments.names, arguments.certify)
    console = for_people(arguments.json)
    for each in listed:
        show(each, console)
    if not arguments.certify:
        console.print("\nllm-mdp agents --certify computes the certificate of their defaults.", style="dim")
    write_json(arguments.json, listed)
    say_written(console, arguments.json)
    return 0


def kept() -> dict[str, dict[str, Any]]:
    """The agents by their names, as the list that is kept has them; none if their files have changed since."""
    known = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    current = known.get("files") == files_of_agents()
    return {each["name"]: each for each in known["agents"]} if current else {}


def files_of_agents() -> str:
    """A digest of the files that the list is read from."""
    package = files("llm_mdp_agents")
    zoo = sorted(
        (each for each in package.joinpath("zoo").iterdir() if each.name.endswith(".py")), key=lambda f: f.name
    )
    digest = sha256()
    for each in (package.joinpath("base.py"), *zoo):
        digest.update(each.name.encode() + each.read_bytes())
    return digest.hexdigest()


def show(agent: dict[str, Any], console: Console) -> None:
    """One agent in a few lines."""
    certificate, margin = agent.get("certificate"), (0, 0, 0, 15)
    console.print(Text.assemble((f"{agent['name']:<14}", "bold"), f" {agent['paper']}"))
    console.print(Padding(agent["file"], margin), style="dim")
    if certificate is not None:
        from llm_mdp.report.terminal import COLOURS

        words = f"its defaults: {certificate['words']} ({certificate['computed_on']})"
        console.print(Padding(words, margin), style=COLOURS.get(certificate["verdict"], ""))
    if agent.get("why_the_default"):
        console.print(Padding(f"why the default: {agent['why_the_default']}", margin))
    if agent["claims"]:
        verdicts = ", ".join(f"{claim} {verdict or ''}".strip() for claim, verdict in agent["claims"].items())
        console.print(Padding(f"the ledger: {verdicts}", margin), style="dim")
