"""agents/README.md from what the agents' files say.

python -m llm_mdp_agents.zoo            # certificates stay those that the page has
python -m llm_mdp_agents.zoo --certify  # computes them anew, in some minutes
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.certificates import own_certificate
from llm_mdp_agents.zoo import AGENTS

README = Path(__file__).parents[2] / "README.md"
HEAD = """# Agents

<!-- Written by `python -m llm_mdp_agents.zoo`; edit the agents' files, not this page. -->

`llm-mdp train NAME ENV` trains with one, `llm-mdp train NAME --help` shows its options, `llm-mdp agents --certify`
computes the certificate of its defaults, as they train, and what the ledger says of its claims. The certificates below
are exact, against ∇J on a random token MDP of the shape that stands beside them (γ = 0.9, two prompts).

An agent is an estimator of the core (`llm_mdp/estimators/`), the one that is verified, and the models that are trained
beside the policy. A new one is one file in `llm_mdp_agents/zoo/`: a frozen `Config`, a class with a `name` and
`make_estimator`, and `fit` if there is something to train. It is found by itself, and
`llm_mdp_agents.check.check_agent` says in words what it lacks.

Every agent has the options of `AgentConfig`, unless its section says otherwise: SHARED.
"""
WHEN = {
    "reinforce": "The shortest there is: no second response to a prompt, and no model beside the policy.",
    "rloo": "The first to try: unbiased, and no model beside the policy.",
    "remax": "Unbiased with one response to a prompt, at the price of a greedy one beside it.",
    "grpo": "To run what is widely run. `--variant dr-grpo` has the right direction from the same responses.",
    "ppo": "Where a critic can be learned: it takes credit inside a response. `--lam 1` is unbiased whatever it says.",
    "vineppo": "Where tokens of branches are cheap and values from a critic are not to be trusted.",
    "trepo": "Credit inside a response by fresh branches; with `--budget` a pilot says whether they pay.",
    "ma-rlhf": "PPO where responses are long: one value for several tokens.",
    "dpo": "Where preferences are what there is; it stays close to its reference.",
    "iterative-dpo": "DPO that goes further from where it began: pairs come from the policy of the latest iteration.",
    "rto": "Preferences made into a reward for every token, then policy gradients on these.",
    "abc": "A reward model's attention is to say which tokens earned the reward; summed over the response, unbiased.",
    "r3hf": "A model that scores partial responses is there: its score is a baseline for every token.",
    "prime": "Outcomes are right or wrong, and a reward for every token is to be learned from them on the way.",
}
"""When to take an agent, in words; the figures behind them are in docs/variance.md and docs/training.md."""


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
    shared = ", ".join(f"`{each.name}` {each.default!r}" for each in fields(AgentConfig))
    return "\n".join(
        [HEAD.replace("SHARED", shared), *table, "", *(_section(name, agent) for name, agent in AGENTS.items())]
    )


def _section(name: str, agent: type[Agent]) -> str:
    """What an agent's file says of it, its options, and when to take it."""
    parts = [f"## {name}", markdown(inspect.getdoc(sys.modules[agent.__module__]) or "")]
    if name in WHEN:
        parts.append(f"**When to take it.** {WHEN[name]}")
    shared, own = {each.name for each in fields(AgentConfig)}, fields(agent.Config)
    changed = [each for each in own if each.name in shared and each.default != getattr(AgentConfig, each.name)]
    options = [each for each in own if each.name not in shared]
    given = ", ".join(f"`{each.name}` {each.default!r}" for each in [*changed, *options])
    parts.append(f"**Defaults.** {given}; the rest as every agent." if given else "**Defaults.** As every agent.")
    return "\n\n".join(parts) + "\n"


def recorded(page: str) -> Callable[[type[Agent]], str]:
    """What a page says of each agent's certificate; what it does not have is computed."""
    known = dict(re.findall(r"^\| \[`([\w-]+)`\].*\| ([^|]*) \|$", page, re.M))
    return lambda agent: known[agent.name] if agent.name in known else certified(agent)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(docstring: str) -> str:
    """A module's docstring: indented equations become code."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(
        f"```\n{inspect.cleandoc(each)}\n```" if each.startswith("    ") else each for each in paragraphs
    )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm_mdp_agents.zoo", description="Write agents/README.md.")
    parser.add_argument("--certify", action="store_true", help="compute the certificates anew, in some minutes")
    again = parser.parse_args(words).certify
    README.write_text(readme(certified if again else recorded(README.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Written to {README}")


if __name__ == "__main__":
    main()
