"""`llm-mdp eval`: rewards of a policy."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from llm_mdp.cli.options import FLAGS, check_model_choice, check_seed, check_writable, env_arguments, one_thread
from llm_mdp.files import write_text
from llm_mdp.own import UsageError
from llm_mdp.report.console import terminal
from llm_mdp_agents.resolve import ModelConfig
from llm_mdp_agents.training.evaluation import evaluate as figures_of
from llm_mdp_agents.training.evaluation import samples
from llm_mdp_agents.training.trained import load_policy_of_run


@dataclass(frozen=True)
class EvalArguments:
    """Rewards of a policy: drawn, greedy, and the expectation itself on small token MDPs."""

    env: Annotated[str | None, tyro.conf.Positional] = None
    """Id of the environment; with --run, that of the run."""
    run: Path | None = None
    """Evaluate the policy that this run trained, on its environment."""
    model: ModelConfig = ModelConfig()
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, such as digits=1 reward=outcome."""
    prompts: int = 256
    """Number of prompts."""
    seed: int = 0
    """Of prompts and responses."""
    samples: int = 5
    """Responses to show."""
    json: Path | None = None
    """Write figures and samples to this file."""


def evaluate(argv: Sequence[str]) -> int:
    """Run `llm-mdp eval`."""
    one_thread()
    arguments = tyro.cli(EvalArguments, args=argv, prog="llm-mdp eval", config=FLAGS)
    check_writable(arguments.json)
    check_seed(arguments.seed)
    if arguments.run is None and arguments.env is None:
        raise UsageError("name an environment, or a run with --run runs/NAME.")
    check_model_choice(arguments.run, arguments.model)
    if arguments.samples < 0:
        raise UsageError(f"--samples is {arguments.samples}; it must be at least 0.")
    policy, task = load_policy_of_run(
        arguments.run, arguments.env, env_arguments(arguments.env_args), arguments.model, arguments.seed
    )
    figures = figures_of(policy, task, arguments.prompts, arguments.seed)
    shown = samples(policy, task, arguments.samples, arguments.seed) if arguments.samples else []
    console = terminal()
    reward, low, high = (figures[f"eval/{name}"] for name in ("reward", "reward_low", "reward_high"))
    greedy = figures["eval/greedy_reward"]
    console.print(
        f"reward {reward:.3f} (95 %: {low:.3f} … {high:.3f}, {arguments.prompts} prompts), greedy {greedy:.3f}"
    )
    if "eval/exact_reward" in figures:
        console.print(f"expected reward {figures['eval/exact_reward']:.6f}, exactly")
    for sample in shown:
        said = f"  {sample['prompt']} → {sample['response']}"
        console.print(Text.assemble("\n", (f"{sample['reward']:.3f}", "dim"), said))
    if arguments.json:
        write_text(arguments.json, json.dumps({**figures, "samples": shown}, indent=1) + "\n")
    return 0
