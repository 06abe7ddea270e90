"""`llm-mdp inspect`: what a person types, made into a page of responses whose tokens show what each estimator made of
them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.text import Text

import llm_mdp
from llm_mdp.cli.options import (
    check_model_choice,
    check_no_run,
    check_seed,
    check_writable,
    command_line,
    env_arguments,
    for_people,
    one_thread,
    say_written,
    write_json,
)
from llm_mdp.cli.parsing import parse
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import CATALOGUE, find_entry
from llm_mdp.files import write_text
from llm_mdp.inspection import SHOWN, Subject, Surroundings, exact_value, named_subject, own_subject
from llm_mdp.inspection import inspect as look
from llm_mdp.own import UsageError
from llm_mdp.report.console import terminal
from llm_mdp.report.inspect_page import CreditRow, credit_rows, render_inspection, token_label
from llm_mdp.report.terminal import progress_bar
from llm_mdp.sampling.policies import Policy
from llm_mdp.verify.check import load_estimator
from llm_mdp_agents.resolve import ModelConfig, is_named
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_agents.training.run_config import run_config_of
from llm_mdp_agents.training.trained import policy_and_task
from llm_mdp_agents.training.warm_start import warm_up
from llm_mdp_envs.task import PAD, Task

DEFAULT_ENV = "llm_mdp/Tabular-v0"
DRAWS = 32
"""Responses from every prefix that estimate an advantage which is not known exactly, with a small policy."""
LARGE = 10_000_000
"""Parameters from which a policy is large."""
SEGMENT = 8
"""Tokens from boundary to boundary for a large policy."""
GAIN, LOSS, PAPER = (15, 118, 110), (194, 87, 12), (244, 242, 236)
"""Colours of the page in a terminal."""


@dataclass(frozen=True)
class InspectArguments:
    """See what each estimator makes of the same responses, token by token.

    Writes one HTML page: responses with every token shaded by the weight that each estimator gives it, beside the
    hidden token reward and the exact advantage where they are known.
    """

    env: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[ENV]")] = None
    """Id of the environment (default: llm_mdp/Tabular-v0); with --run, that of the run."""
    run: Path | None = None
    """Look at the policy that this run trained, on its environment."""
    model: ModelConfig = ModelConfig()
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, such as digits=1 reward=outcome."""
    estimators: tuple[str, ...] = ()
    """reinforce, rloo, remax, grpo, dr-grpo, trepo, trepo-paper, vineppo, ppo, any other of the catalogue, or
    FILE.py:CLASS; by default those nine, as far as they can be had."""
    group_size: int = 4
    """K, responses to each prompt."""
    prompts: int = 3
    """Number of prompts."""
    branches: int | None = None
    """Where the exact advantage is not known, estimate it by this many draws from every prefix; 0: leave it out. By
    default 32, and 0 from ten million parameters on."""
    samples: int = 4
    """M, draws from each boundary, of TRePO and VinePPO."""
    every: int | None = None
    """Tokens from boundary to boundary of TRePO (VinePPO: twice as many); by default 1, and 8 from ten million
    parameters on."""
    warm_start: int | None = None
    """Supervised batches on the task's own answers first; by default 200 for a small transformer from scratch, where
    there are answers."""
    seed: int = 0
    """Of prompts, responses and branches."""
    html: Path = Path("inspect.html")
    """Write the page to this file."""
    json: Path | None = None
    """Write its data to this file; - is the standard output."""


def inspect(argv: Sequence[str]) -> int:
    """Run `llm-mdp inspect`."""
    one_thread()
    arguments = parse(InspectArguments, argv, "inspect")
    check_seed(arguments.seed)
    _check(arguments)
    own = load_own(arguments.estimators)
    env = arguments.env if arguments.run or arguments.env else DEFAULT_ENV
    policy, task = policy_and_task(
        arguments.run, env, env_arguments(arguments.env_args), arguments.model, arguments.seed
    )
    assert isinstance(policy, torch.nn.Module)
    large = sum(parameter.numel() for parameter in policy.parameters()) > LARGE
    mdp = task.mdp
    critic = None if mdp is None else exact_value(policy, mdp)
    every = (SEGMENT if large else 1) if arguments.every is None else arguments.every
    draws = (0 if large else DRAWS) if arguments.branches is None else arguments.branches
    subjects = find_subjects(arguments.estimators, own, Surroundings(task.horizon, critic, arguments.samples, every))
    with terminal(stderr=True).status("warm start"):
        model = None if arguments.run else arguments.model.model
        warm_up(policy, task, model, arguments.warm_start, arguments.seed)
    sampler = TaskSampler(
        policy,
        task,
        torch.Generator().manual_seed(arguments.seed),
        np.random.default_rng([arguments.seed, 1]),
        arguments.prompts,
    )
    with progress_bar(terminal(stderr=True), len(subjects)) as done:
        found = look(
            sampler, subjects, arguments.group_size, task.decode, eos=task.eos,
            hidden=_knows_token_rewards(task), critic=critic, draws=draws, progress=done,
        )  # fmt: skip
    document = {
        "command": command_line(),
        "version": llm_mdp.__version__,
        "seed": arguments.seed,
        "task": _task_name(arguments, task),
        "policy": _policy_name(arguments, policy),
        **found,
    }
    write_text(arguments.html, render_inspection(document))
    write_json(arguments.json, document)
    task.close()
    console = for_people(arguments.json)
    print_first(document, console)
    console.print()
    say_written(console, arguments.html, arguments.json)
    return 0


def load_own(names: Sequence[str]) -> dict[str, Estimator]:
    """The estimators of FILE.py:CLASS among these names.

    Raises:
        ValueError: if there is no such file or class, it is malformed, or another name is no estimator's.
    """
    for name in names:
        if ":" not in name:
            find_entry(name, SHOWN)
    return {name: load_estimator(name) for name in names if ":" in name}


def find_subjects(names: Sequence[str], own: dict[str, Estimator], here: Surroundings) -> list[Subject]:
    """The estimators with these names; without names all that can be had.

    Raises:
        ValueError: naming the one that there is not.
    """
    names = names or [name for name in SHOWN if here.knows(CATALOGUE[name])]
    return [own_subject(name, own[name]) if name in own else named_subject(name, here) for name in names]


def print_first(document: dict[str, Any], console: Console) -> None:
    """The first response in colours, a line an estimator, and how well each agrees with the truth."""
    group = document["groups"][0]
    response, rows = group["responses"][0], credit_rows(document)
    console.print(
        Text("Credit", style="bold").append(f"   {document['task']} · {document['policy']}", style="not bold dim")
    )
    console.print(Text(" ".join(group["prompt"].split())[-console.width :], style="dim"))
    console.print(Text(f"response 1 of {document['group_size']}, reward {response['reward']:.3f}"))
    for line in _lines(response["tokens"], document.get("eos"), rows, console.width):
        console.print()
        for each in line:
            console.print(each, no_wrap=True, crop=True)
    known = [(each["label"], each["agreement"]) for each in document["estimators"] if each["agreement"] is not None]
    if known:
        truth = next(each["label"] for each in document["truth"] if each["name"] == "advantage")
        said = ", ".join(f"{label} {value:.2f}" for label, value in sorted(known, key=lambda pair: -pair[1]))
        console.print(Text(f"\nagreement with the {truth} (correlation over all tokens): {said}"))


def _lines(tokens: list[dict[str, Any]], eos: int | None, rows: list[CreditRow], width: int) -> list[list[Text]]:
    """Blocks of lines, each as wide as the terminal: the tokens, then a line of figures for every row."""
    label_width = max(len(row.label) for row in rows) + 1
    columns = []
    for token in tokens:
        head, values = token_label(token, eos), [row.value(token) for row in rows]
        figures = ["" if value is None else row.figure(value) for row, value in zip(rows, values)]
        room = max(map(len, (head, *figures))) + 2
        shades = [None if value is None else row.shade(value) for row, value in zip(rows, values)]
        columns.append((room, head, list(zip(figures, shades))))
    blocks, start = [], 0
    while start < len(columns):
        stop, used = start + 1, label_width + columns[start][0] + 1
        while stop < len(columns) and used + columns[stop][0] + 1 <= width:
            used, stop = used + columns[stop][0] + 1, stop + 1
        part = columns[start:stop]
        block = [
            Text(" " * label_width) + Text(" ").join(Text(head.center(room), style="bold") for room, head, _ in part)
        ]
        for k, row in enumerate(rows):
            cells = [Text(cells[k][0].center(room), style=_style(cells[k][1])) for room, _, cells in part]
            block.append(
                Text(row.label.ljust(label_width), style="italic" if row.kind == "truth" else "")
                + Text(" ").join(cells)
            )
        blocks.append(block)
        start = stop
    return blocks


def _style(shade: float | None) -> str:
    """Letters and background of a figure."""
    if shade is None:
        return ""
    end = GAIN if shade > 0 else LOSS
    colour = [round(paper + abs(shade) * (full - paper)) for paper, full in zip(PAPER, end)]
    return f"{'white' if abs(shade) > 0.9 else 'black'} on rgb({colour[0]},{colour[1]},{colour[2]})"


def _check(arguments: InspectArguments) -> None:
    """Raise UsageError, in words, before any work starts."""
    for path in (arguments.html, arguments.json):
        check_writable(path)
    check_model_choice(arguments.run, arguments.model, arguments.warm_start)
    check_no_run(arguments.env, "environment")
    for name in arguments.estimators:
        check_no_run(name, "estimator")
    if arguments.model.engine != "hf":
        raise UsageError(
            f"--engine is {arguments.model.engine}, but a page of responses needs no other engine; leave it out."
        )
    for name, least in (
        ("prompts", 1),
        ("group_size", 2),
        ("samples", 1),
        ("every", 1),
        ("seed", 0),
    ):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}.")
    if arguments.branches is not None and (arguments.branches < 0 or arguments.branches == 1):
        raise UsageError(f"--branches is {arguments.branches}; give at least 2, or 0 to leave the advantage out.")


def _knows_token_rewards(task: Task) -> bool:
    nothing = np.full((1, task.horizon), PAD)
    return task.token_rewards(task.questions(np.random.default_rng(0), 1), nothing, nothing != PAD) is not None


def _task_name(arguments: InspectArguments, task: Task) -> str:
    env = arguments.env or (run_config_of(arguments.run).env if arguments.run else DEFAULT_ENV)
    return " ".join([str(env), *arguments.env_args])


def _policy_name(arguments: InspectArguments, policy: Policy) -> str:
    kind = getattr(policy, "kind", type(policy).__name__)
    if arguments.run is not None:
        return f"{kind}, trained in {arguments.run}"
    return f"{kind} {Path(arguments.model.model).name}" if is_named(arguments.model.model) else kind
