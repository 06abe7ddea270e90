"""The zoo: every agent by its name. `python -m llm_mdp_agents.zoo` writes agents/README.md from what the agents' files
say."""

import inspect
import sys
from pathlib import Path

from llm_mdp_agents.base import Agent
from llm_mdp_agents.zoo.abc import ABC
from llm_mdp_agents.zoo.dpo import DPO
from llm_mdp_agents.zoo.grpo import GRPO
from llm_mdp_agents.zoo.iterative_dpo import IterativeDPO
from llm_mdp_agents.zoo.ma_rlhf import MARLHF
from llm_mdp_agents.zoo.ppo import PPO
from llm_mdp_agents.zoo.prime import PRIME
from llm_mdp_agents.zoo.r3hf import R3HF
from llm_mdp_agents.zoo.reinforce import REINFORCE
from llm_mdp_agents.zoo.remax import ReMax
from llm_mdp_agents.zoo.rloo import RLOO
from llm_mdp_agents.zoo.rto import RTO
from llm_mdp_agents.zoo.trepo import TRePO
from llm_mdp_agents.zoo.vineppo import VinePPO

AGENTS: dict[str, type[Agent]] = {
    agent.name: agent
    for agent in (REINFORCE, RLOO, ReMax, GRPO, PPO, VinePPO, TRePO, MARLHF, DPO, IterativeDPO, RTO, ABC, R3HF, PRIME)
}
"""In the paper's order."""

README = Path(__file__).parents[2] / "README.md"
HEAD = """# Agents

<!-- Written by `python -m llm_mdp_agents.zoo`; edit the agents' files, not this page. -->

`llm-mdp train NAME ENV` trains with one, `llm-mdp train NAME --help` shows its options, `llm-mdp agents` computes what the ledger says of
its claims. An agent is an estimator of the core (`llm_mdp/estimators/algorithms.py`), the one that is verified, and the models that are trained beside
the policy. A new one is one file: a frozen `Config`, a class with `make_estimator`, and `fit` if there is something to train.
"""


def readme() -> str:
    """The text of agents/README.md."""
    table = ["| name | paper | claims |", "|---|---|---|"]
    sections = []
    for name, agent in AGENTS.items():
        module = sys.modules[agent.__module__]
        file = f"llm_mdp_agents/zoo/{Path(inspect.getfile(agent)).name}"
        table.append(f"| [`{name}`]({file}) | {agent.paper} | {', '.join(f'`{claim}`' for claim in agent.claims)} |")
        sections.append(f"## {name}\n\n{_markdown(inspect.getdoc(module) or '')}\n")
    return "\n".join([HEAD, *table, "", *sections])


def _markdown(docstring: str) -> str:
    """A module's docstring: indented equations become code."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(
        f"```\n{inspect.cleandoc(each)}\n```" if each.startswith("    ") else each for each in paragraphs
    )


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
    print(f"Written to {README}")
