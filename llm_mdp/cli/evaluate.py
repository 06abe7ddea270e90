"""`llm-mdp eval`: rewards of a policy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from llm_mdp.cli.options import (
    check_model_choice,
    check_no_run,
    check_seed,
    check_writable,
    env_arguments,
    for_people,
    one_thread,
    say_written,
    write_json,
)
from llm_mdp.cli.parsing import parse
from llm_mdp.own import UsageError
from llm_mdp_agents.resolve import ModelConfig
from llm_mdp_agents.training.evaluation import evaluation
from llm_mdp_agents.training.parts import questions_of
from llm_mdp_agents.training.questions import eval_questions
from llm_mdp_agents.training.run_config import run_config_of
from llm_mdp_agents.training.trained import load_policy_of_run


@dataclass(frozen=True)
class EvalArguments:
    """Rewards of a policy: drawn, greedy, and the expectation itself on small token MDPs."""

    env: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[ENV]")] = None
    """Id of the environment; with --run, that of the run."""
    run: Path | None = None
    """Evaluate the policy that this run trained, on its environment."""
    model: ModelConfig = ModelConfig()
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, such as digits=1 reward=outcome."""
    prompts: int | None = None
    """Most questions; by default 256, with --run as many as its evaluations ask. They are those of the run's
    evaluations, which it never trained on, where it had enough."""
    seed: int | None = None
    """Of the responses, and without --run of the questions; by default 0, with --run that of the run."""
    samples: int = 5
    """Responses to show."""
    json: Path | None = None
    """Write figures and samples to this file; - is the standard output."""


def evaluate(argv: Sequence[str]) -> int:
    """Run `llm-mdp eval`."""
    one_thread()
    arguments = parse(EvalArguments, argv, "eval")
    check_writable(arguments.json)
    check_seed(arguments.seed or 0)
    if arguments.prompts is not None and arguments.prompts < 1:
        raise UsageError(f"prompts is {arguments.prompts}; an evaluation asks at least 1.")
    if arguments.run is None and arguments.env is None:
        raise UsageError("name an environment, or a run with --run runs/NAME.")
    check_model_choice(arguments.run, arguments.model)
    check_no_run(arguments.env, "environment")
    if arguments.samples < 0:
        raise UsageError(f"--samples is {arguments.samples}; it must be at least 0.")
    own = run_config_of(arguments.run) if arguments.run else None
    seed = arguments.seed if arguments.seed is not None else own.train.seed if own else 0
    chosen = env_arguments(arguments.env_args)
    policy, task = load_policy_of_run(arguments.run, arguments.env, chosen, arguments.model, seed)
    if own is None or arguments.env not in (None, own.env):
        own = None
        asked = eval_questions(task, arguments.prompts or 256, seed)
    else:
        # Named again, the environment has the arguments that are given, else those of the run.
        given = chosen if arguments.env else own.env_arguments | chosen
        asked = questions_of(replace(own, env_arguments=given), task, arguments.prompts)
    found = evaluation(policy, asked, seed, arguments.samples)
    figures, shown = found.figures, found.samples
    console = for_people(arguments.json)
    responses, prompts = len(asked.questions), int(figures["eval/prompts"])
    different = f"{prompts:,} prompt{'s' if prompts > 1 else ''}"
    if own is not None and asked.held_out:
        different += " that training never asked"
    of = different if responses == prompts else f"{responses:,} responses to {different}"
    console.print(f"reward {_figure(figures, 'reward', of)}")
    console.print(f"greedy {_figure(figures, 'greedy_reward', different)}")
    if "eval/exact_reward" in figures:
        console.print(f"expected reward {figures['eval/exact_reward']:.6f}, exactly")
    for sample in shown:
        said = f"  {sample['prompt']} → {sample['response']}"
        console.print(Text.assemble("\n", (f"{sample['reward']:.3f}", "dim"), said))
    write_json(arguments.json, {**figures, "samples": shown})
    say_written(console, arguments.json)
    return 0


def _figure(figures: dict[str, float], name: str, of: str = "") -> str:
    """A mean reward with its interval, where there is one, and what it is the mean of."""
    edges = [figures.get(f"eval/{name}_{edge}") for edge in ("low", "high")]
    known = [] if None in edges else [f"95 %: {edges[0]:.3f} … {edges[1]:.3f}"]
    brackets = ", ".join([*known, of] if of else known)
    return f"{figures[f'eval/{name}']:.3f}{f' ({brackets})' if brackets else ''}"
