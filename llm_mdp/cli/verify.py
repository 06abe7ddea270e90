"""`llm-mdp verify`: the ledger on random instances, on one of a file, or of an estimator of your own."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from llm_mdp.cli.options import check_seed, check_writable, command_line
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instance_files import read_instance, write_instance
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.files import write_text
from llm_mdp.own import UsageError
from llm_mdp.report.console import terminal
from llm_mdp.report.ledger_page import render_ledger
from llm_mdp.report.terminal import print_report, progress_bar
from llm_mdp.sampling.policies import NgramPolicy, PolicyKind
from llm_mdp.verify.claims import Claim
from llm_mdp.verify.diagnosis import diagnose
from llm_mdp.verify.ledger import exit_status, find_claims, run_ledger
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError

DEFAULT_GROUP_SIZE = 3
"""K, where neither the user nor the user's own class says it."""


@dataclass(frozen=True)
class VerifyArguments:
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
    group_size: int | None = None
    """K, responses to a prompt, of the group estimators (default: 3), and of your own (default: what the class has)."""
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
    save_counter_example: Path | None = None
    """Write the smallest instance on which your own estimator is not unbiased to this file."""


def verify(argv: Sequence[str]) -> int:
    """Run `llm-mdp verify`; the exit status is 1 if any verdict differs from the expected one."""
    command = tyro.cli(VerifyArguments, args=argv, prog="llm-mdp verify")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # many small tensors: more threads only wait for one another
    check_seed(command.seed)
    if command.sampled is not None and command.sampled > MAX_SAMPLED:
        raise UsageError(f"--sampled is {command.sampled:,}; it must be at most {MAX_SAMPLED:,}.")
    for path in (command.json, command.save_instance, command.html, command.save_counter_example):
        check_writable(path)
    claims = find_claims(command.claims, command.group_size)
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
    group_size = DEFAULT_GROUP_SIZE if command.group_size is None else command.group_size
    problems = [Problem(instance, group_size, command.beta) for instance in instances]
    confidence = 1 - 0.01 / (len(claims) * len(problems))

    with progress_bar(terminal(stderr=True), len(claims) * len(problems)) as done:
        runs = [
            run_ledger(
                problem, claims, sampled=command.sampled, seed=command.seed, confidence=confidence, progress=done
            )
            | {"command": command_line()}
            for problem in problems
        ]
    document = runs[0] if len(runs) == 1 else {"instances": runs}
    for claim in own:
        explain(claim, runs, instances, command)

    if command.save_instance:
        write_instance(instances[0], command.save_instance)
    if command.json:
        write_text(command.json, json.dumps(document, indent=1, allow_nan=False) + "\n")
    if command.html:
        write_text(command.html, render_ledger(document))
    print_report(document, terminal())
    return exit_status(document)


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
    try:
        with progress_bar(terminal(stderr=True), 3) as done:
            diagnosis = diagnose(estimator, instance, progress=done)
    except (TooLarge, EstimatorError) as error:
        row["diagnosis"] = {"lines": [f"not diagnosed: {error}"]}
        return
    row["diagnosis"] = diagnosis.to_json()
    if (example := diagnosis.counter_example) is None:
        return
    as_it_is = example.group_size == estimator.group_size and command.group_size is None
    size = [] if as_it_is else ["--group-size", str(example.group_size)]
    again = ["llm-mdp", "verify", claim.source, "--instance", str(save or "FILE.json"), *size]
    row["diagnosis"]["command"] = shlex.join(again)
    if save is None:
        row["diagnosis"]["lines"].append("--save-counter-example FILE.json writes it")
    else:
        write_instance(example.instance, save)
        row["diagnosis"]["lines"].append(f"it is in {save}: {shlex.join(again)}")


def find_instances(command: VerifyArguments) -> list[Instance]:
    """The instances that a command line asks for."""
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
]
"""Short and long, discounted and not, the end token at every place, one prompt and two, every kind of policy, and a
conversation of two turns."""


def with_policy(instance: Instance, kind: PolicyKind, seed: int) -> Instance:
    """The instance with a policy of this kind, named for reports."""
    mdp = instance.mdp
    prompts = f" {len(mdp.prompts)} prompts" if len(mdp.prompts) > 1 else ""
    turns = " with replies" if mdp.environment is not None else ""
    name = f"V={mdp.vocab_size} T={mdp.horizon} γ={mdp.gamma:g}{prompts}{turns}"
    if kind == "ngram":
        policy = NgramPolicy.random(mdp.vocab_size, 1, torch.Generator().manual_seed(seed))
        return replace(instance, policy=policy, name=name)
    if kind == "transformer":
        from llm_mdp_agents.lm.policy import tiny_transformer

        policy = tiny_transformer(mdp.vocab_size, mdp.prompt_tokens.shape[1] + mdp.horizon, seed)
        return replace(instance, policy=policy, name=name)
    return replace(instance, name=name)
