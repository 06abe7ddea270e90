"""`llm-mdp verify … --model FOLDER`: certificates on a language model that is restricted to a few tokens."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

import llm_mdp
from llm_mdp.cli.options import (
    check_numbers,
    check_seed,
    check_writable,
    command_line,
    env_arguments,
    for_people,
    say_written,
    write_json,
)
from llm_mdp.cli.parsing import parse
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.groups import check_group_size
from llm_mdp.own import UsageError
from llm_mdp.report.console import terminal
from llm_mdp.report.model_terminal import print_model_report
from llm_mdp.report.terminal import progress_bar
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp.verify.certificate import UNBIASED
from llm_mdp.verify.claims import Claim
from llm_mdp.verify.ledger import claims_nothing, exit_status, find_claims, holds
from llm_mdp.verify.signal import tokens_to_signal
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.lm.spread import LEAST_PROBES
from llm_mdp_agents.lm.tree_certificate import ModelCertificate, ModelCertifier
from llm_mdp_agents.lm.tree_problem import ModelProblem, model_problem
from llm_mdp_agents.lm.vocabulary import tokens_named
from llm_mdp_agents.resolve import ModelConfig, build_policy, find_task, is_named, registered
from llm_mdp_envs.adapters.named import named_reward
from llm_mdp_envs.adapters.trl import TRLReward
from llm_mdp_envs.registry import face_of, task_class
from llm_mdp_envs.task import Question, Task

DEFAULT_GROUP_SIZE = 8
"""K, where neither the user nor the user's own class says it."""
ROWS = ("rloo", "grpo", "dr-grpo", "token-mean-loo", "length-normalised-loo")
"""What is certified where nothing is named."""
MOST_DRAWS = 1_000
"""Questions that are drawn for one that was not asked yet."""


@dataclass(frozen=True)
class VerifyModelArguments:
    """Certificates of estimators on a language model, in all its parameters: its policy restricted to a few tokens, on
    real prompts, with the rewards of a task or of your own.

    The verdict is decided at the logits, in float64: unbiased and proportional hold for every parametrisation.
    """

    claims: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[ID | FILE.py:CLASS ...]")] = ()
    """Ids of claims about an estimator (default: rloo, grpo, dr-grpo, token-mean-loo, length-normalised-loo), or
    estimators of your own."""
    model: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """A Hugging Face name or folder, or a .gguf file: a causal language model with full attention."""
    tokens: str = "digits"
    """The only tokens that the policy may draw, with commas between them: texts such as 7, numbers such as id:32, eos;
    digits: the ten digits and eos."""
    env: str | None = None
    """Id of the environment that asks and scores, in words."""
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, such as digits=1."""
    questions: int = 1
    """Different questions of the environment, drawn by --seed and asked equally often."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """In place of an environment: what is asked, in the tokenizer's chat template if it has one. Again for each prompt;
    so are --answer and --begin."""
    answer: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The right answer to a --prompt: a response is worth 1 if it says this and nothing else, otherwise 0."""
    reward: str | None = None
    """FILE.py:FUNCTION, f(prompts, completions, **columns) -> list of numbers, that scores responses to --prompt; an
    --answer is its column answer."""
    begin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """How the answer to a --prompt begins, written for the policy, such as "5 + 4 = "."""
    chat: bool | None = None
    """Put each --prompt into the chat template (default: if there is one)."""
    horizon: int = 3
    """T, the longest response in tokens."""
    group_size: tuple[int, ...] = ()
    """K, responses to a prompt, of the group estimators (default: 8), and of your own (default: what the class has).
    Several: every row at each."""
    method: Literal["auto", "groups", "classes"] = "auto"
    """How expectations over groups are taken: one by one, or responses in classes; auto: groups where they are few."""
    probes: int = LEAST_PROBES
    """Random probes of tr Cov for every row, one backward pass each, beside some 4 that are not random; 0: none."""
    beta: float = 0.7
    """β of DPO, RTO and PRIME."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Of the model's weights and of its gradients."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto: cuda, if there is one."""
    attention: str = "auto"
    """Kernel of the attention: sdpa or eager; auto: the model's own choice."""
    seed: int = 0
    """Of the questions and of the probes."""
    json: Path | None = None
    """Write all results to this file; - is the standard output."""


def verify_model(argv: Sequence[str]) -> int:
    """Run `llm-mdp verify … --model`; the exit status is 1 if any verdict differs from the expected one."""
    command = parse(VerifyModelArguments, argv, "verify", called="verify --model")
    check(command)
    sizes = command.group_size or (DEFAULT_GROUP_SIZE,)
    claims = [estimator_claims(command, size) for size in sizes]
    started = time.monotonic()
    with progress_bar(terminal(stderr=True), 2 + sum(map(len, claims))) as done:
        done("reading the model")
        asked = read(command)
        document = describe(command, asked)
        certifier = ModelCertifier(asked)
        true = certifier.true_gradient()
        done("the true gradient")
        document |= {"grad_norm": norm_of(true), "parameters": certifier.space.size}
        document |= {"resolution": certifier.resolution()}
        rows: dict[str, dict[str, Any]] = {}
        for size, some in zip(sizes, claims):
            for claim in some:
                row = claim_row(claim, certifier, size, command)
                first = rows.setdefault(claim.id, row)
                if len(sizes) > 1:
                    first.setdefault("by_group_size", {})[str(size)] = {name: row[name] for name in FIGURES}
                done(claim.id)
    document |= {"claims": rows, "seconds": time.monotonic() - started, "command": command_line()}
    write_json(command.json, document)
    console = for_people(command.json)
    print_model_report(document, console)
    say_written(console, command.json)
    return exit_status(document)


FIGURES = (
    "verdict", "expected", "holds", "relative_bias", "scale", "cosine", "one_minus_cosine", "trace_covariance",
    "trace_covariance_interval", "tokens", "tokens_to_signal", "tokens_to_signal_interval", "kept", "with_signal",
    "method",
)  # fmt: skip
"""What a row has at every group size."""


def check(command: VerifyModelArguments) -> None:
    """Raise UsageError for what cannot be done, before the model is read."""
    check_seed(command.seed)
    check_writable(command.json)
    if not is_named(command.model) or not command.model or command.model.endswith(".json"):
        raise UsageError(f"--model is {command.model!r}; give the folder or the name of a language model, or a .gguf.")
    if (command.env is None) == (not command.prompt):
        raise UsageError("give either an environment (--env ID) or prompts (--prompt TEXT …), which say what is asked.")
    if command.env is not None and (command.answer or command.reward or command.begin or command.chat is not None):
        raise UsageError("--answer, --reward, --begin and --chat belong to --prompt; the environment has its own.")
    if command.prompt and (command.questions != 1 or command.env_args):
        raise UsageError("--questions and --env-args belong to --env; leave them out.")
    if command.questions < 1:
        raise UsageError(f"--questions is {command.questions}; ask at least 1.")
    if command.prompt and not command.answer and command.reward is None:
        raise UsageError("nothing says what a response is worth: give --answer TEXT or --reward FILE.py:FUNCTION.")
    for name in ("answer", "begin"):
        if (given := len(getattr(command, name))) not in (0, len(command.prompt)):
            raise UsageError(f"there are {len(command.prompt)} prompts and {given} of --{name}; give one a prompt.")
    if command.horizon < 1:
        raise UsageError(f"--horizon is {command.horizon}; it must be at least 1.")
    check_numbers("--group-size", command.group_size, 2)
    for size in command.group_size:
        check_group_size(size)
    if command.probes and command.probes < LEAST_PROBES:
        raise UsageError(f"--probes is {command.probes}; give at least {LEAST_PROBES}, or 0 to leave tr Cov out.")


def estimator_claims(command: VerifyModelArguments, group_size: int) -> tuple[Claim, ...]:
    """The rows that are about an estimator.

    Raises:
        UsageError: if one is a statement about something else.
    """
    claims = find_claims(command.claims or ROWS, group_size if command.group_size else None)
    for claim in claims:
        if claim.figure is not None:
            raise UsageError(f"{claim.id} is a statement and no estimator; on a model, name estimators.")
    return claims


def read(command: VerifyModelArguments) -> ModelProblem:
    """The model on its questions.

    Raises:
        UsageError: if all responses are worth the same.
    """
    config = ModelConfig(model=command.model, dtype=command.dtype, device=command.device, attention=command.attention)
    task = task_of(command, config)
    tokens = tokens_named(task, command.tokens)
    policy = build_policy(config, task, command.seed)
    assert isinstance(policy, LanguageModelPolicy)
    policy.token_subset = TokenSubset(tokens, policy.vocab_size)
    sizes = command.group_size or (DEFAULT_GROUP_SIZE,)
    questions = questions_of(task, command)
    asked = model_problem(policy, task, questions, command.horizon, group_size=sizes[0], beta=command.beta)
    reward = asked.problem.enumeration.response_reward
    if bool((reward == reward[:, :1]).all()):
        raise UsageError(
            f"every response to a prompt is worth the same ({float(reward[0, 0]):g}), so there is nothing to learn: "
            f"can the right answer be written in {command.horizon} of these tokens? See --tokens and --horizon."
        )
    return asked


def task_of(command: VerifyModelArguments, config: ModelConfig) -> Task:
    """The environment that asks, in words; of prompts of the user's, one made of them."""
    if command.env is not None:
        given = env_arguments(command.env_args)
        entry = registered().get(command.env)
        if entry is not None and face_of(task_class(entry.task), {"text": True}) is not task_class(entry.task):
            given = {"text": True} | given
        return find_task(command.env, given, config)
    from llm_mdp_agents.lm.vocabulary import tokenizer_for_words

    tokenizer = tokenizer_for_words(command.model)
    chat = bool(getattr(tokenizer, "chat_template", None)) if command.chat is None else command.chat
    answers, begins = (given or ("",) * len(command.prompt) for given in (command.answer, command.begin))
    rows = [
        {"prompt": prompt, "answer": answer, "begin": begin}
        for prompt, answer, begin in zip(command.prompt, answers, begins)
    ]
    begun = dict(zip(command.prompt, begins))
    function: Callable = says_it if command.reward is None else named_reward(command.reward)[0]
    return TRLReward(
        function, rows, tokenizer=tokenizer, chat=chat, horizon=command.horizon, answer_prefix=lambda text: begun[text]
    )


def says_it(completions: list[str], answer: list[str], begin: list[str]) -> list[float]:
    """1 for a response that says the answer and nothing else, spaces around it aside."""
    said = [text.removeprefix(begun).strip() for text, begun in zip(completions, begin)]
    return [float(text == right.strip()) for text, right in zip(said, answer)]


def questions_of(task: Task, command: VerifyModelArguments) -> list[Question]:
    """Every prompt of the user's, or different questions of the environment.

    Raises:
        UsageError: if it has not so many.
    """
    if command.prompt:
        return [task.question_at(number) for number in range(task.listed())]
    generator, found = np.random.default_rng(command.seed), {}
    for _ in range(MOST_DRAWS):
        question = task.question(generator)
        found.setdefault(question.prompt, question)
        if len(found) == command.questions:
            return list(found.values())
    raise UsageError(f"--questions is {command.questions}, and {command.env} asked {len(found)} different ones.")


def describe(command: VerifyModelArguments, asked: ModelProblem) -> dict[str, Any]:
    """What the certificates are about."""
    packed, e = asked.packed, asked.problem.enumeration
    policy = packed.policy
    return {
        "name": Path(command.model).name,
        "model": command.model,
        "policy": policy.kind,
        "mode": "exact",
        "dtype": command.dtype,
        "device": str(policy.device),
        "tokens": [{"id": token, "text": asked.words[place]} for place, token in enumerate(packed.tokens)],
        "eos": packed.eos,
        "questions": list(asked.questions),
        "horizon": packed.tree.horizon,
        "responses": packed.tree.n_leaves * e.n_prompts,
        "covered": asked.covered_by_step(),
        "J": asked.problem.gradient[0],
        "group_size": asked.problem.group_size,
        "beta": command.beta,
        "seed": command.seed,
        "version": llm_mdp.__version__,
    }


def norm_of(gradient: list[torch.Tensor]) -> float:
    return float(torch.stack([each.norm(dtype=torch.float64).cpu() for each in gradient]).norm())


def claim_row(
    claim: Claim, certifier: ModelCertifier, group_size: int, command: VerifyModelArguments
) -> dict[str, Any]:
    """One row, its figures in the model's parameters; those of the table of logits beside them."""
    problem = certifier.asked.at_group_size(group_size)
    row: dict[str, Any] = dict.fromkeys(FIGURES) | {
        "group": claim.group,
        **claims_nothing(claim),
        "verdict": "not computed",
        "expected": claim.expected(problem),
        "group_size": None,
        "logits": None,
        "only_here": None,
        "statement": claim.statement,
        "source": claim.source,
        "target": claim.target,
        "reason": claim.reason,
        "repair": claim.repair,
    }
    try:
        estimator = claim.build(problem)
        row |= {"group_size": estimator.group_size}
        found = certifier.certify(estimator, claim.target, method=command.method)
    except (TooLarge, NothingKept) as error:
        return row | {"reason": f"not computed: {error}"}
    row |= figures_of(found) | {"holds": holds(found.certificate, row["expected"])}
    if command.probes and found.figures is not None:
        row |= spread_of(estimator, found, certifier, command)
    return row


def figures_of(found: ModelCertificate) -> dict[str, Any]:
    """Verdict and figures."""
    certificate, inside = found.certificate, found.figures
    known = {
        "verdict": certificate.verdict,
        "logits": {each.name: getattr(certificate, each.name) for each in fields(certificate) if each.name in LOGITS},
        "only_here": found.across if certificate.verdict == "proportional" and found.across > UNBIASED else None,
        "tokens": certificate.tokens,
        "kept": certificate.kept,
        "with_signal": certificate.with_signal,
        "method": None if certificate.method is None else certificate.method.words,
    }
    if certificate.reason is not None:
        known |= {"undecided": certificate.reason}
    if inside is not None:
        known |= {name: getattr(inside, name) for name in ("relative_bias", "scale", "cosine", "one_minus_cosine")}
    return known


LOGITS = ("relative_bias", "scale", "cosine", "trace_covariance", "tokens_to_signal")
"""What is shown of a certificate at the logits."""


def spread_of(
    estimator: Any, found: ModelCertificate, certifier: ModelCertifier, command: VerifyModelArguments
) -> dict[str, Any]:
    """tr Cov in the parameters with its interval, and tokens to signal; of what cannot be had, why."""
    generator = torch.Generator().manual_seed(command.seed)
    try:
        spread = certifier.spread(estimator, command.probes, generator)
    except TooLarge as error:
        return {"spread": f"not computed: {error}"}
    said = {
        "trace_covariance": spread.trace,
        "trace_covariance_interval": list(spread.interval),
        "confidence": spread.confidence,
        "directions": spread.exact,
        "probes": spread.probes,
    }
    tokens, inside = found.certificate.tokens, found.figures
    if tokens is None or inside is None or not inside.square:
        return said
    noise = [tokens_to_signal(trace, tokens, inside.square) for trace in (spread.trace, *spread.interval)]
    return said | {"tokens_to_signal": noise[0], "tokens_to_signal_interval": noise[1:]}
