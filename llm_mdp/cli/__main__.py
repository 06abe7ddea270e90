"""`llm-mdp`: the command line. The composition root: the only place that may import agents, and only when they are
asked for."""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from llm_mdp.files import write_text

if TYPE_CHECKING:
    from llm_mdp.estimators.algorithms import Estimator
    from llm_mdp.exact.instances import Instance
    from llm_mdp.verify.claims import Claim

PolicyKind = Literal["tabular", "ngram", "transformer"]


@dataclass(frozen=True)
class Verify:
    """Check which estimators of the policy gradient are unbiased, merely proportional, or biased, and why.

    Without options: every claim of the ledger on several random token MDPs and policies. With --instance, or any of
    --vocab,
    --horizon, --gamma: on that one.
    """

    claims: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[ID | FILE.py:CLASS | MODULE:CLASS ...]")
    ] = ()
    """Ids of claims (default: all), or estimators of your own."""
    instance: Path | None = None
    """Read the token MDP, policy, reference and critic from this JSON file."""
    vocab: int | None = None
    """V, number of tokens of a random instance."""
    horizon: int | None = None
    """T, longest response of a random instance."""
    gamma: float | None = None
    """Discount in (0, 1] of a random instance."""
    seed: int = 0
    """Of random instances and of samples."""
    group_size: int = 3
    """K, responses to a prompt, of the group estimators."""
    beta: float = 0.7
    """β of DPO, RTO and PRIME."""
    policy: PolicyKind | None = None
    """Kind of policy (default: the instance's table; in the run over several instances, all three kinds)."""
    sampled: int | None = None
    """Draw this many responses for every claim instead of enumerating all."""
    quick: bool = False
    """One instance instead of several."""
    json: Path | None = None
    """Write all results to this file."""
    save_instance: Path | None = None
    """Write the instance in use to this file."""
    html: Path | None = None
    """Write a self-contained page to this file."""


@dataclass(frozen=True)
class Envs:
    """List the Gymnasium environments: turns, vocabulary, graded parts of the reward, and what each separates."""

    json: Path | None = None
    """Write the list to this file."""


@dataclass(frozen=True)
class Agents:
    """List the agents: algorithm, paper, file, claims and their verdicts."""


@dataclass(frozen=True)
class Train:
    """Train a policy: llm-mdp train AGENT ENV [options]. `llm-mdp train --help` says more."""


@dataclass(frozen=True)
class Eval:
    """Rewards of a policy: llm-mdp eval ENV [--model …] or llm-mdp eval --run runs/NAME."""


@dataclass(frozen=True)
class Variance:
    """How noisy each estimator is, and what a token of sampling buys: llm-mdp variance [ESTIMATOR …] [--env ENV]
    [options]."""


@dataclass(frozen=True)
class Inspect:
    """A page of responses, every token shaded by the advantage that each estimator gave it: llm-mdp inspect [ENV]
    [options]."""


@dataclass(frozen=True)
class Version:
    """Print the versions in use."""


class UsageError(ValueError):
    """The command line asks for something that cannot be done; the message says what to write instead."""


def main() -> None:
    """Entry point of the `llm-mdp` command."""
    if sys.argv[1:2] and sys.argv[1] in ELSEWHERE:
        sys.exit(_guarded(lambda: _command_elsewhere(sys.argv[1], sys.argv[2:])))
    command = tyro.cli(
        Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Envs, tyro.conf.subcommand("envs")]
        | Annotated[Agents, tyro.conf.subcommand("agents")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Eval, tyro.conf.subcommand("eval")]
        | Annotated[Variance, tyro.conf.subcommand("variance")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
        | Annotated[Version, tyro.conf.subcommand("version")],
        prog="llm-mdp",
        description="The gradient check for reinforcement learning on language models.",
    )
    match command:
        case Verify():
            sys.exit(_guarded(lambda: verify(command)))
        case Envs():
            sys.exit(_guarded(lambda: envs(command)))
        case _:
            sys.exit(_guarded(version))


ELSEWHERE = {
    "train": "train:train", "eval": "train:evaluate", "agents": "train:agents", "variance": "variance:variance",
    "inspect": "inspect:inspect",
}  # fmt: skip
"""Subcommands of the package of agents, which read their own options."""


def _command_elsewhere(name: str, argv: Sequence[str]) -> int:
    module, _, function = ELSEWHERE[name].partition(":")
    try:
        found = importlib.import_module(f"llm_mdp.cli.{module}")
    except ImportError as error:
        raise UsageError(f'{error}; this command needs more packages: pip install "llm-mdp[train]"') from error
    return getattr(found, function)(argv)


def _guarded(job: Callable[[], int]) -> int:
    """The exit status; what cannot be done is said in one line."""
    try:
        return job()
    except (ValueError, OSError, ImportError) as error:
        print(f"llm-mdp: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def version() -> int:
    """Run `llm-mdp version`."""
    import numpy
    import torch

    import llm_mdp

    print(
        f"llm-mdp {llm_mdp.__version__}, torch {torch.__version__}, numpy {numpy.__version__}, Python "
        f"{sys.version.split()[0]}"
    )
    return 0


def verify(command: Verify) -> int:
    """Run `llm-mdp verify`; the exit status is 1 if any verdict differs from the expected one."""
    import torch
    from rich.console import Console

    from llm_mdp.report.page import render_page
    from llm_mdp.report.terminal import print_report, progress
    from llm_mdp.verify.ledger import exit_status, run_ledger
    from llm_mdp.verify.problem import Problem

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # many small tensors: more threads only wait for one another
    for path in (command.json, command.save_instance, command.html):
        check_writable(path)
    claims = find_claims(command.claims)
    instances = find_instances(command)
    if command.save_instance and len(instances) > 1:
        raise UsageError(
            "--save-instance writes one instance, but this run has several; choose one with --vocab, --horizon, "
            "--gamma or --quick."
        )
    problems = [Problem(instance, command.group_size, command.beta) for instance in instances]
    confidence = 1 - 0.01 / (len(claims) * len(problems))

    with progress(Console(stderr=True), len(claims) * len(problems)) as done:
        runs = [
            run_ledger(
                problem, claims, sampled=command.sampled, seed=command.seed, confidence=confidence, progress=done
            )
            | {"command": command_line()}
            for problem in problems
        ]
    document = runs[0] if len(runs) == 1 else {"instances": runs}

    if command.save_instance:
        from llm_mdp.exact.instances import write_instance

        write_instance(instances[0], command.save_instance)
    if command.json:
        write_text(command.json, json.dumps(document, indent=1, allow_nan=False) + "\n")
    if command.html:
        write_text(command.html, render_page(document))
    print_report(document, Console())
    return exit_status(document)


def envs(command: Envs) -> int:
    """Run `llm-mdp envs`."""
    from rich.console import Console
    from rich.padding import Padding

    from llm_mdp_envs.registry import registered

    check_writable(command.json)
    console, listed = Console(highlight=False), list(registered())
    for one in listed:
        turns = "one turn" if one.turns == 1 else f"{one.turns} turns"
        parts = f" · reward: {', '.join(one.reward_parts)}" if one.reward_parts else ""
        figures = f"{turns} · {one.vocab_size:,} tokens · horizon {one.horizon}{parts}"
        console.print(f"[bold]{one.id:<26}[/] {figures if one.task else 'not available here'}")
        console.print(Padding(one.unavailable or one.separates, (0, 0, 0, 4)), style="dim", markup=False)
    if command.json:
        write_text(
            command.json,
            json.dumps([{**vars(one), "task": one.task and one.task.__name__} for one in listed], indent=1) + "\n",
        )
    return 0


def find_claims(names: Sequence[str]) -> tuple["Claim", ...]:
    """The claims with these ids, and the users' own estimators as claims of "unbiased"."""
    from difflib import get_close_matches

    from llm_mdp.verify.claims import CLAIMS

    known = {claim.id: claim for claim in CLAIMS}
    found = []
    for name in names:
        if name in known:
            found.append(known[name])
        elif ":" in name:
            found.append(own_claim(name))
        else:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "an estimator of your own is written FILE.py:CLASS."
            raise UsageError(f"there is no claim {name!r}; {hint}")
    if len({claim.id for claim in found}) < len(found):
        raise UsageError("the same claim is named twice; name each once.")
    return tuple(found) or CLAIMS


def own_claim(name: str) -> "Claim":
    """A user's estimator, FILE.py:CLASS or MODULE:CLASS, as the claim that it is unbiased (or what its `expected`
    says)."""
    from llm_mdp.verify.claims import Claim, always

    estimator, attribute = load_estimator(name), name.rpartition(":")[2]
    statement = " ".join((type(estimator).__doc__ or "").strip().split("\n\n")[0].split())
    return Claim(
        attribute, "yours", "" if statement.startswith(f"{attribute}(") else statement, name,
        always(getattr(estimator, "expected", "unbiased")), "your estimator", lambda problem: estimator,
    )  # fmt: skip


def load_estimator(name: str) -> "Estimator":
    """A user's estimator, FILE.py:CLASS or MODULE:CLASS, checked."""
    from llm_mdp.verify.check import check_estimator

    place, _, attribute = name.rpartition(":")
    module = load_module(place)
    if not hasattr(module, attribute):
        classes = sorted(
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        )
        raise UsageError(f"{place} has no {attribute!r}; it defines {', '.join(classes) or 'no class'}.")
    kind = getattr(module, attribute)
    try:
        estimator = kind() if isinstance(kind, type) else kind
    except TypeError as error:
        raise UsageError(f"{name} could not be made without arguments: {error}") from error
    check_estimator(estimator)
    return estimator


def load_module(place: str) -> Any:
    """Import FILE.py or a module by its name."""
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"module {place!r} cannot be imported ({error}); a file is written FILE.py:CLASS."
            ) from error
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"there is no file {place}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{place} cannot be read as Python: {error}") from error
    return module


def find_instances(command: Verify) -> list["Instance"]:
    """The instances that a command line asks for."""
    from llm_mdp.exact.instances import random_instance, read_instance

    shape = (command.vocab, command.horizon, command.gamma)
    if command.instance is not None:
        if any(number is not None for number in shape):
            raise UsageError("--instance already says --vocab, --horizon and --gamma; leave them out.")
        return [with_policy(read_instance(command.instance), command.policy or "tabular", command.seed)]
    if any(number is not None for number in shape):
        vocab, horizon, gamma = (default if number is None else number for number, default in zip(shape, (3, 3, 1.0)))
        instance = random_instance(int(vocab), int(horizon), gamma=gamma, seed=command.seed)
        return [with_policy(instance, command.policy or "tabular", command.seed)]
    chosen = DEFAULT_INSTANCES[:1] if command.quick else DEFAULT_INSTANCES
    return [
        with_policy(random_instance(**options, seed=command.seed + number), command.policy or kind, command.seed)
        for number, (kind, options) in enumerate(chosen)
    ]


DEFAULT_INSTANCES: list[tuple[PolicyKind, dict[str, Any]]] = [
    ("tabular", {"vocab_size": 3, "horizon": 4, "gamma": 0.9}),
    ("tabular", {"vocab_size": 3, "horizon": 3}),
    ("tabular", {"vocab_size": 2, "horizon": 4, "eos": 1, "gamma": 0.7}),
    ("tabular", {"vocab_size": 4, "horizon": 3, "eos": 2, "n_prompts": 2}),
    ("ngram", {"vocab_size": 3, "horizon": 4, "n_prompts": 2}),
    ("transformer", {"vocab_size": 3, "horizon": 4, "gamma": 0.9, "n_prompts": 2}),
]
"""Short and long, discounted and not, the end token at every place, one prompt and two, every kind of policy."""


def with_policy(instance: "Instance", kind: PolicyKind, seed: int) -> "Instance":
    """The instance with a policy of this kind, named for reports."""
    import torch

    from llm_mdp.sampling.policies import NgramPolicy

    mdp = instance.mdp
    prompts = f" {len(mdp.prompts)} prompts" if len(mdp.prompts) > 1 else ""
    name = f"V={mdp.vocab_size} T={mdp.horizon} γ={mdp.gamma:g}{prompts}"
    if kind == "ngram":
        policy = NgramPolicy.random(mdp.vocab_size, 1, torch.Generator().manual_seed(seed))
        return replace(instance, policy=policy, name=name)
    if kind == "transformer":
        from llm_mdp_agents.lm.policy import tiny_transformer

        policy = tiny_transformer(mdp.vocab_size, mdp.prompt_tokens.shape[1] + mdp.horizon, seed)
        return replace(instance, policy=policy, name=name)
    return replace(instance, name=name)


def command_line() -> str:
    """The command as typed."""
    import shlex

    return shlex.join(["llm-mdp", *sys.argv[1:]])


def check_writable(path: Path | None) -> None:
    """Raise UsageError before any work starts if a result could not be written."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.absolute().parent}; make it first.")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UsageError(f"{path} cannot be written; choose another place.")


if __name__ == "__main__":
    main()
