"""`llm-mdp verify`: the ledger on random instances, on one of a file, or of an estimator of your own."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from llm_mdp.cli.options import (
    check_numbers,
    check_seed,
    check_writable,
    command_line,
    for_people,
    names_model,
    say_written,
    write_json,
)
from llm_mdp.cli.parsing import parse
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.groups import check_group_size
from llm_mdp.exact.instance_files import read_instance, write_instance
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.exact.right_or_wrong import is_right_or_wrong
from llm_mdp.files import write_text
from llm_mdp.own import UsageError
from llm_mdp.report.console import terminal
from llm_mdp.report.terminal import print_report, progress_bar
from llm_mdp.sampling.policies import NgramPolicy, PolicyKind
from llm_mdp.sampling.tiny_transformer import TinyTransformer
from llm_mdp.verify.claims import Claim
from llm_mdp.verify.forecast import forecast
from llm_mdp.verify.group_sizes import Sizes
from llm_mdp.verify.ledger import exit_status, find_claims, run_ledger
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError

# Pages, prices, searches and diagnoses are imported where they are asked for: each takes as long as a claim.
DEFAULT_GROUP_SIZE = 3
"""K, where neither the user nor the user's own class says it."""
TRAINED = (8, 64)
"""K that people train with: the run without options adds them where rewards say right or wrong."""


@dataclass(frozen=True)
class VerifyArguments:
    """Check which estimators of the policy gradient are unbiased, merely proportional, or biased, and why.

    Without options: every claim of the ledger on several random token MDPs and policies. With --instance, or any of
    --vocab, --horizon, --gamma, --success: on that one. With --model FOLDER: on a language model, with options of its
    own (llm-mdp verify --model FOLDER --help).
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
    success: float | None = None
    """Right-or-wrong rewards for a random instance: about this probability of a right response, in (0, 1)."""
    seed: int = 0
    """Of random instances and of samples."""
    group_size: tuple[int, ...] = ()
    """K, responses to a prompt, of the group estimators (default: 3), and of your own (default: what the class has).
    Several: every figure is of the first, and the rows that compare responses are shown at each."""
    prompts: tuple[int, ...] = (1,)
    """P, prompts whose groups are in one update. Several: every figure is of the first, and as above."""
    method: Literal["auto", "groups", "classes"] = "auto"
    """How exact figures are computed: every group one by one, or responses in classes (at any K); auto: groups where
    they are few."""
    beta: float = 0.7
    """β of DPO, RTO and PRIME."""
    policy: PolicyKind | None = None
    """Kind of policy (default: the instance's table; in the run over several instances, all three kinds)."""
    sampled: int | None = None
    """Draw this many responses for every claim instead of enumerating all."""
    quick: bool = False
    """One instance instead of several."""
    json: Path | None = None
    """Write all results to this file; - is the standard output."""
    save_instance: Path | None = None
    """Write the instance in use to this file."""
    html: Path | None = None
    """Write a self-contained page to this file."""
    save_counter_example: Path | None = None
    """Write the smallest instance on which your own estimator is not unbiased to this file."""
    price: bool = False
    """Compute what following each estimator costs: the share of the reward lost at equal KL (seconds a row)."""
    adversary: Path | None = None
    """Search for the instance on which following this one estimator is worst, and write it to this file (minutes)."""


def verify(argv: Sequence[str]) -> int:
    """Run `llm-mdp verify`; the exit status is 1 if any verdict differs from the expected one."""
    if names_model(argv):
        from llm_mdp.cli.verify_model import verify_model

        return verify_model(names_first(argv))
    command = parse(VerifyArguments, names_first(argv), "verify")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # many small tensors: more threads only wait for one another
    check_seed(command.seed)
    if command.sampled is not None and command.sampled > MAX_SAMPLED:
        raise UsageError(f"--sampled is {command.sampled:,}; it must be at most {MAX_SAMPLED:,}.")
    for path in (command.json, command.save_instance, command.html, command.save_counter_example, command.adversary):
        check_writable(path)
    check_sizes(command)
    claims = find_claims(command.claims, command.group_size[0] if command.group_size else None)
    if command.adversary:
        from llm_mdp.cli.adversary import check_adversary

        check_adversary(claims, command.adversary)
    instances = find_instances(command)
    if command.save_instance and len(instances) > 1:
        raise UsageError(
            "--save-instance writes one instance, but this run has several; choose one with --vocab, --horizon, "
            "--gamma or --quick."
        )
    own = [claim for claim in claims if isinstance(claim.estimator, Estimator)]
    if command.save_counter_example and len(own) != 1:
        raise UsageError(
            f"--save-counter-example writes that of one estimator of your own, and {len(own)} are named; name one as "
            "FILE.py:CLASS."
        )
    group_size = command.group_size[0] if command.group_size else DEFAULT_GROUP_SIZE
    problems = [Problem(instance, group_size, command.beta, command.prompts[0]) for instance in instances]
    sizes = [sizes_on(problem, command) for problem in problems]
    for problem, its in zip(problems, sizes):
        its.check(problem)
    confidence = 1 - 0.01 / (len(claims) * len(problems))
    if command.sampled is None:
        announce(problems, claims, sizes)

    with progress_bar(terminal(stderr=True), len(claims) * len(problems)) as done:
        runs: list[dict[str, Any]] = [
            run_ledger(
                problem,
                claims,
                sampled=command.sampled,
                seed=command.seed,
                confidence=confidence,
                sizes=its,
                progress=done,
            )
            | {"command": command_line()}
            for problem, its in zip(problems, sizes)
        ]
    document = runs[0] if len(runs) == 1 else {"instances": runs}
    for claim in own:
        explain(claim, runs, instances, command)
    priced = []
    if command.price:
        from llm_mdp.cli.price import add_prices

        with progress_bar(terminal(stderr=True), len(claims) * len(problems)) as done:
            priced = add_prices(claims, problems, runs, done)
    if command.adversary:
        from llm_mdp.cli.adversary import find_adversary

        worst = find_adversary(claims[0], problems[0], command.adversary, command.seed)
        runs[0]["claims"][claims[0].id]["adversary"] = worst

    if command.save_instance:
        write_instance(instances[0], command.save_instance)
    write_json(command.json, document)
    if command.html:
        from llm_mdp.report.ledger_page import render_ledger

        write_text(command.html, render_ledger(document))
    console = for_people(command.json)
    print_report(document, console)
    if priced:
        print("", *priced, sep="\n", file=console.file)
    if command.adversary:
        print(f"\nworst case: {runs[0]['claims'][claims[0].id]['adversary']['line']}", file=console.file)
    say_written(console, command.json, command.html, command.save_instance)
    return exit_status(document)


def announce(problems: Sequence[Problem], claims: Sequence[Claim], sizes: Sequence[Sizes]) -> None:
    """Say what will take long, before it begins."""
    for problem, its in zip(problems, sizes):
        if (words := forecast(problem, claims, its)) is not None:
            print(f"llm-mdp: {words}", file=sys.stderr)


def names_first(argv: Sequence[str]) -> list[str]:
    """What stands after the numbers of --group-size and --prompts, and is no number, put before all: `--group-size 8
    rloo` names a row, too."""
    first, rest, numbers = [], [], False
    for word in argv:
        if word.startswith("-"):
            numbers = word in ("--group-size", "--group_size", "--prompts")
        (first if numbers and not (word.startswith("-") or word.isdecimal()) else rest).append(word)
    return [*first, *rest]


def check_sizes(command: VerifyArguments) -> None:
    """Raise UsageError for group sizes and numbers of prompts that are none, before any work starts."""
    for option, values, least in (("--group-size", command.group_size, 2), ("--prompts", command.prompts, 1)):
        check_numbers(option, values, least)
    for value in command.group_size:
        check_group_size(value)
    if not command.prompts:
        raise UsageError("--prompts is empty; give at least one number.")
    if command.sampled is not None and command.prompts != (1,):
        raise UsageError("--prompts is for exact figures, and --sampled draws single prompts; leave one of them out.")
    if command.sampled is not None and command.method != "auto":
        raise UsageError("--method is how exact figures are computed, and --sampled draws; leave one of them out.")


def sizes_on(problem: Problem, command: VerifyArguments) -> Sizes:
    """Which K and P an instance is checked at: what was asked for; if nothing was, and the instance is one of ours with
    right-or-wrong rewards, the sizes of training beside the small one of all rows."""
    if not command.group_size and is_ours(command) and is_right_or_wrong(problem.enumeration.response_reward):
        return Sizes((problem.group_size, *TRAINED), command.prompts[1:] and command.prompts)
    group_sizes, prompts = (many if len(many) > 1 else () for many in (command.group_size, command.prompts))
    return Sizes(group_sizes, prompts, command.method)


def is_ours(command: VerifyArguments) -> bool:
    """Is it a run on the instances that we chose, with nothing said of the method?"""
    said = (command.instance, *shape_of(command), command.sampled)
    return all(one is None for one in said) and command.method == "auto"


def explain(claim: Claim, runs: list[dict[str, Any]], instances: list[Instance], command: VerifyArguments) -> None:
    """Put into the row of an estimator of the user's own why it is not unbiased, where it first is not, and write its
    counter-example."""
    rows = zip((run["claims"][claim.id] for run in runs), instances)
    row, instance = next((pair for pair in rows if pair[0]["verdict"] in ("biased", "proportional")), (None, None))
    save, estimator = command.save_counter_example, claim.estimator
    if row is None:
        if save is not None:
            print(f"llm-mdp: {claim.id} was not found biased: {save} is not written.", file=sys.stderr)
        return
    assert isinstance(estimator, Estimator)
    from llm_mdp.verify.diagnosis import diagnose

    try:
        with progress_bar(terminal(stderr=True), 3) as done:
            diagnosis = diagnose(estimator, instance, progress=done)
    except (TooLarge, EstimatorError) as error:
        row["diagnosis"] = {"lines": [f"not diagnosed: {error}"]}
        return
    row["diagnosis"] = diagnosis.to_json()
    if (example := diagnosis.counter_example) is None:
        return
    as_it_is = example.group_size == estimator.group_size and not command.group_size
    size = [] if as_it_is else ["--group-size", str(example.group_size)]
    again = ["llm-mdp", "verify", claim.source, "--instance", str(save or "FILE.json"), *size]
    row["diagnosis"]["command"] = shlex.join(again)
    if save is None:
        row["diagnosis"]["lines"].append("--save-counter-example FILE.json writes it")
    else:
        write_instance(example.instance, save)
        row["diagnosis"]["lines"].append(f"it is in {save}: {shlex.join(again)}")


def shape_of(command: VerifyArguments) -> tuple[int | float | None, ...]:
    """What is said of a random instance."""
    return command.vocab, command.horizon, command.gamma, command.success


def find_instances(command: VerifyArguments) -> list[Instance]:
    """The instances that a command line asks for."""
    shape = shape_of(command)
    if command.instance is not None:
        if any(number is not None for number in shape):
            raise UsageError("--instance already says --vocab, --horizon, --gamma and --success; leave them out.")
        return [with_policy(read_instance(command.instance), command.policy or "tabular", command.seed)]
    if any(number is not None for number in shape):
        vocab, horizon, gamma = (
            default if number is None else number for number, default in zip(shape[:3], (3, 3, 1.0))
        )
        instance = random_instance(int(vocab), int(horizon), gamma=gamma, success=command.success, seed=command.seed)
        return [with_policy(instance, command.policy or "tabular", command.seed, command.success is not None)]
    chosen = DEFAULT_INSTANCES[:1] if command.quick else DEFAULT_INSTANCES
    return [
        with_policy(
            random_instance(**options, seed=command.seed + number),
            command.policy or kind,
            command.seed,
            "success" in options,
        )
        for number, (kind, options) in enumerate(chosen)
    ]


MAX_SAMPLED = 1_000_000_000
"""Responses for each claim: about an hour."""

DEFAULT_INSTANCES: list[tuple[PolicyKind, dict[str, Any]]] = [
    ("tabular", {"vocab_size": 3, "horizon": 4, "gamma": 0.9}),
    ("tabular", {"vocab_size": 3, "horizon": 3}),
    ("tabular", {"vocab_size": 2, "horizon": 4, "eos": 1, "gamma": 0.7}),
    ("tabular", {"vocab_size": 4, "horizon": 3, "eos": 2, "n_prompts": 2}),
    ("ngram", {"vocab_size": 3, "horizon": 4, "n_prompts": 2}),
    ("transformer", {"vocab_size": 3, "horizon": 4, "gamma": 0.9, "n_prompts": 2}),
    ("tabular", {"vocab_size": 3, "horizon": 4, "gamma": 0.9, "environment_at": (1,)}),
    ("tabular", {"vocab_size": 3, "horizon": 2, "success": 0.4}),
]
"""Short and long, discounted and not, the end token at every place, one prompt and two, every kind of policy, a
conversation of two turns, and rewards that say right or wrong."""


def with_policy(instance: Instance, kind: PolicyKind, seed: int, outcomes: bool = False) -> Instance:
    """The instance with a policy of this kind, named for reports.

    Args: outcomes: its rewards say right or wrong.
    """
    mdp = instance.mdp
    prompts = f" {len(mdp.prompts)} prompts" if len(mdp.prompts) > 1 else ""
    turns = " with replies" if mdp.environment is not None else ""
    rewards = " right or wrong" if outcomes else ""
    name = f"V={mdp.vocab_size} T={mdp.horizon} γ={mdp.gamma:g}{prompts}{turns}{rewards}"
    if kind == "ngram":
        policy = NgramPolicy.random(mdp.vocab_size, 1, torch.Generator().manual_seed(seed))
        return replace(instance, policy=policy, name=name)
    if kind == "transformer":
        policy = TinyTransformer(mdp.vocab_size, mdp.prompt_tokens.shape[1] + mdp.horizon, seed)
        return replace(instance, policy=policy, name=name)
    return replace(instance, name=name)
