"""`python -m llm_mdp_agents.zoo`: agents/README.md from what the agents' files say."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from llm_mdp_agents.base import Agent
from llm_mdp_agents.certificates import own_certificate
from llm_mdp_agents.zoo import AGENTS

README = Path(__file__).parents[2] / "README.md"
HEAD = """# Agents

<!-- Written by `python -m llm_mdp_agents.zoo`; edit the agents' files, not this page. -->

`llm-mdp train NAME ENV` trains with one, `llm-mdp train NAME --help` shows its options, `llm-mdp agents` computes
the certificate of its defaults, as they train, and what the ledger says of its claims. The certificates below are
exact, against ∇J on a random token MDP of the shape that stands beside them (γ = 0.9, two prompts).

An agent is an estimator of the core (`llm_mdp/estimators/`), the one that is verified, and the models that are trained
beside the policy. A new one is one file in `llm_mdp_agents/zoo/`: a frozen `Config`, a class with a `name` and
`make_estimator`, and `fit` if there is something to train. It is found by itself, and
`llm_mdp_agents.check.check_agent` says in words what it lacks.
"""


def certified(agent: type[Agent]) -> str:
    """The certificate of the default options, where it was computed, and why a biased default is the default."""
    own = own_certificate(agent)
    why = f"; why the default: {agent.why_the_default}" if own.certificate.verdict == "biased" else ""
    return f"{own.certificate} ({own.place}){why}"


def readme(certificate: Callable[[type[Agent]], str] = certified) -> str:
    """The text of agents/README.md: a table, then what each agent's file says of it.

    Args: certificate: what the table says of an agent's defaults.
    """
    columns: dict[str, Callable[[type[Agent]], str]] = {
        "name": lambda agent: f"[`{agent.name}`](llm_mdp_agents/zoo/{Path(inspect.getfile(agent)).name})",
        "paper": lambda agent: agent.paper,
        "claims": lambda agent: ", ".join(f"`{claim}`" for claim in agent.claims),
        "its defaults, certified": certificate,
    }
    table = [_row(list(columns)), "|---" * len(columns) + "|"]
    table += [_row([cell(agent) for cell in columns.values()]) for agent in AGENTS.values()]
    sections = [
        f"## {name}\n\n{markdown(inspect.getdoc(sys.modules[agent.__module__]) or '')}\n"
        for name, agent in AGENTS.items()
    ]
    return "\n".join([HEAD, *table, "", *sections])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(docstring: str) -> str:
    """A module's docstring: indented equations become code."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(
        f"```\n{inspect.cleandoc(each)}\n```" if each.startswith("    ") else each for each in paragraphs
    )


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
    print(f"Written to {README}")
