"""What `llm-mdp agents` reads in the agents' own files, and what it computes of them.

python -m llm_mdp.cli.agents_listed    # keeps the list, so that nobody waits for torch to see it
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from llm_mdp.cli.agents import KEPT, files_of_agents
from llm_mdp.cli.options import one_thread
from llm_mdp.exact.instances import random_instance
from llm_mdp.files import write_text
from llm_mdp.own import name_of
from llm_mdp.report.console import terminal
from llm_mdp.report.terminal import progress_bar
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.ledger import run_ledger
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.base import Agent
from llm_mdp_agents.certificates import own_certificate
from llm_mdp_agents.resolve import agent_class
from llm_mdp_agents.zoo import AGENTS


def listed(names: Sequence[str], certify: bool = False) -> list[dict[str, Any]]:
    """All that is said of these agents (none: of all), JSON-able."""
    chosen = [agent_class(name) for name in names or AGENTS]
    if not certify:
        return [named(agent) for agent in chosen]
    one_thread()
    return certified(chosen)


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
    file = name_of(agent)
    if AGENTS.get(agent.name) is agent:
        file = f"agents/llm_mdp_agents/zoo/{Path(inspect.getfile(agent)).name}"
    options = [each.name for each in fields(agent.Config)]
    return {
        "name": agent.name,
        "paper": agent.paper,
        "file": file,
        "options": options,
        "claims": dict.fromkeys(agent.claims),
    }


def keep() -> None:
    """Write the list."""
    write_text(KEPT, json.dumps({"files": files_of_agents(), "agents": listed(())}, indent=1) + "\n")


if __name__ == "__main__":
    keep()
