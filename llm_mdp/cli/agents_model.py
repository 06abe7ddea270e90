"""`llm-mdp agents … --model FOLDER`: the certificate of each agent's own defaults on a language model."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.text import Text

from llm_mdp.cli.agents import show
from llm_mdp.cli.agents_listed import named
from llm_mdp.cli.options import for_people, say_written, write_json
from llm_mdp.cli.parsing import parse
from llm_mdp.cli.verify_model import VerifyModelArguments, check, describe, figures_of, norm_of, read
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.report.console import terminal
from llm_mdp.report.rows import number
from llm_mdp.report.terminal import progress_bar
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp_agents.base import Agent
from llm_mdp_agents.certificates import prepared
from llm_mdp_agents.lm.tree_certificate import ModelCertificate, ModelCertifier
from llm_mdp_agents.resolve import agent_class
from llm_mdp_agents.zoo import AGENTS


@dataclass(frozen=True)
class AgentsModelArguments:
    """The certificate of each agent's own default configuration on a language model, in all its parameters: its policy
    restricted to a few tokens, on questions of an environment.

    An agent's other models (critics, reward models, preference models) are small ones, fitted to this policy as the
    agent does it before its first update.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[AGENT ...]")] = ()
    """Only these (default: all)."""
    model: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """A Hugging Face name or folder, or a .gguf file: a causal language model with full attention."""
    tokens: str = "digits"
    """The only tokens that the policy may draw, see llm-mdp verify --model FOLDER --help."""
    env: str = "llm_mdp/Arithmetic-v0"
    """Id of the environment that asks and scores, in words."""
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, such as digits=1."""
    questions: int = 1
    """Different questions of the environment, drawn by --seed and asked equally often."""
    horizon: int = 3
    """T, the longest response in tokens."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Of the model's weights and of its gradients."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto: cuda, if there is one."""
    seed: int = 0
    """Of the questions, and of the agents' other models."""
    json: Path | None = None
    """Write the list to this file; - is the standard output."""


def agents_model(argv: Sequence[str]) -> int:
    """Run `llm-mdp agents … --model`."""
    arguments = parse(AgentsModelArguments, argv, "agents", called="agents --model")
    chosen = [agent_class(name) for name in arguments.names or AGENTS]
    asked_for = {name: value for name, value in vars(arguments).items() if name != "names"}
    command = VerifyModelArguments(**asked_for)
    check(command)
    with progress_bar(terminal(stderr=True), 2 + len(chosen)) as done:
        done("reading the model")
        asked = read(command)
        certifier = ModelCertifier(asked)
        about = describe(command, asked) | {"grad_norm": norm_of(certifier.true_gradient())}
        done("the true gradient")
        listed = []
        for agent in chosen:
            listed.append(on_model(agent, certifier, arguments))
            done(agent.name)
    console = for_people(arguments.json)
    console.print(Text(heading(about)))
    for each in listed:
        show(each, console)
    write_json(arguments.json, about | {"agents": listed})
    say_written(console, arguments.json)
    return 0


def heading(about: dict[str, Any]) -> str:
    """The model, what it is asked, and what of it is certified."""
    questions = "; ".join(" ".join(each.split()) for each in about["questions"])
    return (
        f"{about['name']}, asked: {questions}\nJ = {about['J']:.4g}, |∇J| = {number(about['grad_norm'])}; the "
        f"certificates are of this model, restricted to {len(about['tokens'])} tokens, at most {about['horizon']} a "
        f"response\n"
    )


def on_model(agent: type[Agent], certifier: ModelCertifier, arguments: AgentsModelArguments) -> dict[str, Any]:
    """All that is said of an agent, JSON-able."""
    config, instance = agent.Config(), certifier.asked.problem.instance
    known = named(agent)
    place = f"{Path(arguments.model).name}, K={config.group_size}"
    try:
        with warnings.catch_warnings():
            # What is said of a critic is for those who train with it.
            warnings.simplefilter("ignore")
            found = certifier.certify(prepared(agent, config, instance, arguments.seed))
    except (TooLarge, NothingKept) as error:
        words = f"not computed: {error}"
        return known | {
            "certificate": {"verdict": "not computed", "words": words, "computed_on": place},
            "why_the_default": "",
        }
    certificate = figures_of(found) | {"words": words_of(found), "computed_on": place}
    why = agent.why_the_default if found.certificate.verdict == "biased" else ""
    return known | {"certificate": certificate, "why_the_default": why}


def words_of(found: ModelCertificate) -> str:
    """The verdict, and its figures in the model's parameters."""
    verdict, inside = found.certificate.verdict, found.figures
    if verdict == "undecided" or inside is None:
        return found.certificate.statement
    if verdict == "unbiased":
        return f"unbiased, decided at the logits (relative bias {inside.relative_bias:.1e} in the parameters)"
    return (
        f"{verdict}: relative bias {number(inside.relative_bias)}, scale {number(inside.scale)}, 1 - cosine "
        f"{inside.one_minus_cosine:.2g}"
    )
