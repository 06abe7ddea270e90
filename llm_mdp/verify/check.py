"""What a user's own policy, estimator or agent must satisfy, and in words what is wrong when it does not."""

import copy
import random
from dataclasses import fields, is_dataclass, replace
from numbers import Real
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_mdp.estimators.algorithms import Estimator
from llm_mdp.exact.enumeration import Enumeration, ExactSampler, Groups, TreeBranches, TreeRollouts, all_groups, of_rows
from llm_mdp.exact.instances import random_instance
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PAD
from llm_mdp.own import UsageError, load
from llm_mdp.sampling.evidence import Branches, Evidence, Rollouts, join, take_world
from llm_mdp.sampling.policies import Policy, logp_of
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.verify.certificate import token_weights
from llm_mdp.verify.claims import CLAIMS


class EstimatorError(ValueError):
    """An estimator is malformed; the message says what, and what to do."""


class PolicyError(ValueError):
    """A policy is malformed; the message says what, and what to do."""


class AgentError(ValueError):
    """An agent is malformed; the message says what, and what to do."""


def check_estimator(estimator: Estimator, enumeration: Enumeration | None = None) -> None:
    """Raise EstimatorError, in one sentence, if an estimator could not be verified or trained with.

    Args:
        enumeration: what to try it on; by default a random instance with three tokens and horizon 3.
    """
    name = type(estimator).__name__
    if isinstance(estimator, type):
        raise EstimatorError(f"{estimator.__name__} is a class; give an object: {estimator.__name__}().")
    for method in ("collect", "advantages", "loss"):
        if not callable(getattr(estimator, method, None)):
            raise EstimatorError(
                f"{name} has no method `{method}`; subclass llm_mdp.estimators.algorithms.Estimator, which brings it."
            )
    group_size = getattr(estimator, "group_size", None)
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 1:
        raise EstimatorError(f"{name}.group_size is {group_size!r}; it must be a whole number of at least 1.")

    if enumeration is None:
        instance = random_instance(3, 3, gamma=0.9)
        enumeration = Enumeration(instance.mdp, instance.policy)
    _check_answers(estimator, estimator, enumeration)


def load_estimator(name: str) -> Estimator:
    """A user's estimator, FILE.py:CLASS or MODULE:CLASS, checked.

    Raises:
        UsageError: if there is none.
        EstimatorError: if it could not be verified or trained with.
    """
    kind = load(name)
    try:
        estimator = kind() if isinstance(kind, type) else kind
    except TypeError as error:
        raise UsageError(f"{name} could not be made without arguments: {error}") from error
    check_estimator(estimator)
    return estimator


def _check_answers(estimator: Any, twin: Any, enumeration: Enumeration) -> None:
    """What comes out of an estimator or agent on a few hundred worlds.

    Args: twin: what must give the same answers again: itself, or a copy where answers change its state.
    """
    name = type(estimator).__name__
    evidence, weight = _collect(estimator, enumeration)
    again, _ = _collect(twin, enumeration)
    _check_advantages(estimator, evidence)
    try:
        weights = token_weights(estimator, evidence, enumeration, weight)
    except (ValueError, RuntimeError) as error:
        raise EstimatorError(f"{name}.loss: {error}") from error
    if not torch.equal(weights, token_weights(twin, again, enumeration, weight)):
        raise EstimatorError(
            f"{name} gave two answers to the same samples; draw all randomness from the sampler inside `collect`."
        )
    _check_worlds(estimator, evidence, weights, enumeration)
    _check_prompts(estimator, evidence)
    _check_padding(estimator, evidence)


def _collect(estimator: Estimator, enumeration: Enumeration) -> tuple[Evidence, tuple[int, ...]]:
    """Evidence of a few hundred worlds."""
    name = type(estimator).__name__
    sampler = ExactSampler(enumeration, _some_groups(enumeration, estimator.group_size))
    evidence = estimator.collect(sampler)
    if not isinstance(evidence, Evidence):
        raise EstimatorError(
            f"{name}.collect returned {type(evidence).__name__}; return an llm_mdp.sampling.evidence.Evidence."
        )
    if not isinstance(evidence.rollouts, TreeRollouts):
        raise EstimatorError(
            f"{name}.collect made its own rollouts; pass on what sampler.rollouts(group_size) returned."
        )
    return evidence, tuple(sampler.weight.shape)


def _some_groups(enumeration: Enumeration, group_size: int, most: int = 300) -> Groups:
    """All groups of responses to the first prompt if they are few, else some to every prompt at random (the same ones
    every time)."""
    leaves = enumeration.tree.n_leaves
    if leaves**group_size <= most:
        return next(iter(all_groups(enumeration, group_size)))
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(enumeration.n_prompts, (most,), generator=generator)
    leaf = torch.randint(leaves, (most, group_size), generator=generator)
    return Groups(prompt, leaf, torch.ones(most, dtype=torch.float64))


def _check_advantages(estimator: Estimator, evidence: Evidence) -> None:
    name, shape = type(estimator).__name__, tuple(evidence.rollouts.mask.shape)
    if type(getattr(estimator, "estimator", estimator)).loss is not Estimator.loss:
        return
    advantage = estimator.advantages(evidence)
    if not isinstance(advantage, Tensor):
        raise EstimatorError(
            f"{name}.advantages returned {type(advantage).__name__}; return a tensor of shape (..., B, T)."
        )
    if not advantage.is_floating_point():
        raise EstimatorError(f"{name}.advantages returned dtype {advantage.dtype}; return floating-point numbers.")
    try:
        fits = torch.broadcast_shapes(tuple(advantage.shape), shape) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits or (advantage.dim() == len(shape) - 1 and shape[-1] != 1):
        raise EstimatorError(
            f"{name}.advantages has shape {tuple(advantage.shape)}, but tokens have shape (worlds, B, T) = {shape}; "
            "one weight a response must end in a dimension of 1: add [..., None]."
        )
    at_tokens = torch.where(evidence.rollouts.mask, advantage, 0.0)
    if not torch.isfinite(at_tokens).all():
        raise EstimatorError(
            f"{name}.advantages holds {at_tokens[~torch.isfinite(at_tokens)][0].item()}; look for a division by a zero "
            f"std or length."
        )
    if advantage.requires_grad:
        raise EstimatorError(f"{name}.advantages carries a gradient; advantages are constants, use .detach().")


def _check_worlds(estimator: Estimator, evidence: Evidence, weights: Tensor, enumeration: Enumeration) -> None:
    """Each world alone must give what it gives among the others."""
    logp = of_rows(enumeration.leaf_logp(), evidence.rollouts)
    for world in range(0, len(weights), max(1, len(weights) // 10)):
        alone = take_world(evidence, world)
        loss, gradient = _loss_and_gradient(estimator, logp[world], alone)
        if loss.dim() != 0 or not torch.allclose(-gradient, weights[world], rtol=1e-9, atol=1e-12):
            raise EstimatorError(
                f"{type(estimator).__name__} mixes worlds: evidence may have leading dimensions that must not meet, so "
                f"reduce over "
                "the last ones only, e.g. response_reward.mean(-1, keepdim=True) instead of response_reward.mean()."
            )


def _check_prompts(estimator: Any, evidence: Evidence) -> None:
    """The responses to one prompt must have the same advantages alone and beside those to another: training has many in
    a batch."""
    core = getattr(estimator, "estimator", estimator)
    if type(core).loss is not Estimator.loss or getattr(core, "whole_batch", False):
        return
    parts = [_as_in_training(take_world(evidence, world)) for world in (0, evidence.response_reward.shape[-2] // 2)]
    shape, name = parts[0].rollouts.tokens.shape, type(estimator).__name__
    try:
        together = estimator.advantages(join(parts)).expand(2 * shape[0], shape[1])
    except AssertionError:  # a statement about exact values, which only trees have
        return
    except (RuntimeError, ValueError, IndexError) as error:
        raise EstimatorError(f"{name}.advantages fails on a batch of two prompts ({error}); {BY_PROMPT}.") from error
    apart = torch.cat([estimator.advantages(part).expand(shape) for part in parts])
    if not torch.allclose(together, apart, rtol=1e-9, atol=1e-12):
        raise EstimatorError(
            f"{name} mixes prompts: the advantages of a prompt's responses change when another is in the batch; "
            f"{BY_PROMPT}, or set "
            "`whole_batch = True` on the class if that is meant."
        )


BY_PROMPT = "group rewards by prompt with llm_mdp.estimators.values.groups(reward, self.group_size), and .flatten(-2) afterwards"


def _as_in_training(evidence: Evidence) -> Evidence:
    """Without what only trees know of their rollouts and branches."""
    plain = {part.name: getattr(evidence.rollouts, part.name) for part in fields(Rollouts)}
    branches = evidence.branches and Branches(
        **{part.name: getattr(evidence.branches, part.name) for part in fields(Branches)}
    )
    return replace(evidence, rollouts=Rollouts(**plain), branches=branches)


def _loss_and_gradient(estimator: Estimator, logp: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """The loss at these log-probabilities and its derivative by them, 0 where mask is False."""
    logp = logp.clone().requires_grad_()
    loss = estimator.loss(logp, evidence)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    return loss.detach(), torch.where(evidence.rollouts.mask, gradient, 0.0)


def _check_padding(estimator: Estimator, evidence: Evidence) -> None:
    """Two more columns of padding must change nothing."""
    if isinstance(evidence.branches, TreeBranches) or getattr(estimator, "reduction", "sum") == "constant":
        return
    rollouts = evidence.rollouts
    wider = replace(
        rollouts,
        tokens=pad(rollouts.tokens, (0, 2), value=PAD),
        mask=pad(rollouts.mask, (0, 2)),
        logp=pad(rollouts.logp, (0, 2)),
    )
    names = ("token_reward", "value", "reference_logp")
    optional = {name: pad(part, (0, 2)) for name in names if (part := getattr(evidence, name)) is not None}
    padded = replace(evidence, rollouts=wider, **optional)
    _, before = _loss_and_gradient(estimator, rollouts.logp, evidence)
    _, after = _loss_and_gradient(estimator, wider.logp, padded)
    if not torch.allclose(after[..., :-2], before, rtol=1e-9, atol=1e-12):
        raise EstimatorError(
            f"{type(estimator).__name__} depends on padding: its weights change when the batch is padded to a longer "
            f"width; "
            "count policy tokens with rollouts.mask, not with the width of a tensor."
        )


METHODS = ("collect", "advantages", "loss", "make_estimator", "prepare", "fit")
ATTRIBUTES = {
    "name": str,
    "paper": str,
    "claims": tuple,
    "config": object,
    "policy": nn.Module,
    "behaviour": nn.Module,
    "models": dict,
    "optimizers": dict,
    "numbers": dict,
    "generator": torch.Generator,
}
"""What a trainer asks of an agent."""


def check_agent(agent: Any, config: Any = None, seed: int = 0) -> None:
    """Raise AgentError, in one sentence, if an agent could not be verified, trained or resumed.

    Args:
        agent: a class, tried on a random instance with three tokens and horizon 3, or an object on a task with an `mdp`
            small enough to enumerate. An object stays as it was: copies are tried.
        config: options to make a class with; by default `agent.Config()`.
        seed: of what is drawn.
    """
    if isinstance(agent, type):
        agent = _made(agent, config, seed)
    name = type(agent).__name__
    _check_form(agent)
    mdp = getattr(getattr(agent, "task", None), "mdp", None)
    if not isinstance(mdp, TokenMDP):
        raise AgentError(
            f"{name}.task has no token MDP; make the agent on one, such as llm_mdp_envs.tasks.synthetic.Tabular, to "
            f"check it."
        )
    _check_training(copy.deepcopy(agent), mdp, seed)
    try:
        _check_answers(copy.deepcopy(agent), copy.deepcopy(agent), Enumeration(mdp, agent.behaviour))
    except EstimatorError as error:
        raise AgentError(str(error)) from error


def _made(agent: type, config: Any, seed: int) -> Any:
    """An object of the class on a small instance."""
    options = getattr(agent, "Config", None)
    if options is None:
        raise AgentError(
            f"{agent.__name__} has no `Config`; write a frozen dataclass of its options and set `Config` to it."
        )
    instance = random_instance(3, 3, gamma=0.9, n_prompts=2, seed=seed)
    mdp = instance.mdp
    # What `llm_mdp_envs.tasks.synthetic.TokenMDPTask` says of itself; the core does not import environments.
    task = SimpleNamespace(
        mdp=mdp,
        vocab_size=mdp.vocab_size,
        eos=mdp.eos,
        horizon=mdp.horizon,
        prompt_length=mdp.prompt_tokens.shape[1],
        end_of_turn=None,
    )
    try:
        return agent(options() if config is None else config, instance.policy, task, seed)
    except (TypeError, NotImplementedError) as error:
        raise AgentError(f"{agent.__name__}(config, policy, task, seed) fails: {error}") from error


def _check_form(agent: Any) -> None:
    name = type(agent).__name__
    for method in METHODS:
        if not callable(getattr(agent, method, None)):
            raise AgentError(f"{name} has no method `{method}`; subclass llm_mdp_agents.base.Agent, which brings it.")
    for attribute, kind in ATTRIBUTES.items():
        value = getattr(agent, attribute, None)
        if value is None:
            raise AgentError(
                f"{name} has no `{attribute}`; set it, or subclass llm_mdp_agents.base.Agent, which brings most of "
                f"them."
            )
        if not isinstance(value, kind):
            raise AgentError(f"{name}.{attribute} is of type {type(value).__name__}; it must be a {kind.__name__}.")
    config = agent.config
    if not is_dataclass(config) or not config.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
        raise AgentError(
            f"{type(config).__name__} is not a frozen dataclass; put @dataclass(frozen=True) above the options of "
            f"{name}."
        )
    known = {claim.id for claim in CLAIMS}
    for claim in agent.claims:
        if claim not in known:
            raise AgentError(
                f"{name}.claims has {claim!r}, which is no row of the ledger; `llm-mdp verify` lists their ids."
            )
    group_size = getattr(agent, "group_size", None)
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 1:
        raise AgentError(f"{name}.group_size is {group_size!r}; it must be a whole number of at least 1.")
    for model in agent.optimizers:
        if model not in agent.models:
            raise AgentError(
                f"{name}.optimizers has {model!r}, but there is no such model; both go by the same name (`add_model`)."
            )


def _check_training(agent: Any, mdp: TokenMDP, seed: int) -> None:
    """Two batches as in training: randomness from generators only, the policy left to the trainer, metrics that can be
    logged."""
    name, twin = type(agent).__name__, copy.deepcopy(agent)
    before, state = _weights_of(agent.policy), _global_randomness()
    batches = []
    for one in (agent, twin):
        sampler = PolicySampler(one.behaviour, mdp, torch.Generator().manual_seed(seed), prompts_per_batch=32)
        one.prepare(sampler)
        _check_untouched(f"{name}.prepare", one.policy, before)
        for _ in range(2):
            evidence = one.collect(sampler)
            if not isinstance(evidence, Evidence):
                raise AgentError(
                    f"{name}.collect returned {type(evidence).__name__}; return an llm_mdp.sampling.evidence.Evidence."
                )
            _check_untouched(f"{name}.collect", one.policy, before)
            metrics = one.fit(evidence)
            if not isinstance(metrics, dict) or not all(isinstance(value, Real) for value in metrics.values()):
                raise AgentError(
                    f"{name}.fit returned {metrics!r}; return a dict of numbers to log, {{}} if there are none."
                )
            _check_untouched(f"{name}.fit", one.policy, before)
            batches.append(evidence)
    for which, now in _global_randomness().items():
        if now != state[which]:
            raise AgentError(
                f"{name} draws from the global generator of {which}; draw from the sampler, or from the agent's own "
                f"`generator`."
            )
    half = len(batches) // 2
    for one, other in zip(batches[:half], batches[half:]):
        if not torch.equal(one.rollouts.tokens, other.rollouts.tokens) or not torch.equal(
            one.response_reward, other.response_reward
        ):
            raise AgentError(
                f"{name} collects other evidence for the same seeds; draw from the sampler and the agent's own "
                f"`generator`."
            )
    for number, value in agent.numbers.items():
        if isinstance(value, Tensor) or not isinstance(value, Real):
            raise AgentError(
                f"{name}.numbers[{number!r}] is of type {type(value).__name__}; checkpoints hold plain numbers: "
                f"float(…)."
            )


def _check_untouched(place: str, policy: nn.Module, before: dict[str, Tensor]) -> None:
    for parameter, value in policy.state_dict().items():
        if not torch.equal(value, before[parameter]):
            raise AgentError(
                f"{place} changes the policy ({parameter}); the trainer alone updates it, by the gradient of `loss`."
            )


def _weights_of(policy: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def _global_randomness() -> dict[str, Any]:
    """The states of the generators that belong to nobody."""
    numbers = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (numbers["key"].tolist(), numbers["pos"]),
        "random": random.getstate(),
    }


def check_policy(policy: Policy, mdp: TokenMDP, seed: int = 0) -> None:
    """Raise PolicyError, in one sentence, if a policy cannot be verified on a token MDP or trained on it."""
    name = type(policy).__name__
    if isinstance(policy, type):
        raise PolicyError(f"{policy.__name__} is a class; give an object: {policy.__name__}(…).")
    if not isinstance(policy, nn.Module) or not list(policy.parameters()):
        raise PolicyError(f"{name} is not a torch.nn.Module with parameters; there is nothing to take a gradient by.")
    for method in ("logits", "sample"):
        if not callable(getattr(policy, method, None)):
            raise PolicyError(
                f"{name} has no method `{method}`; subclass llm_mdp.sampling.policies.PolicyModule, which brings "
                f"`sample`."
            )
    generator = torch.Generator().manual_seed(seed)
    prompt = mdp.prompt_tokens
    drawn = policy.sample(prompt, 8, eos=mdp.eos, horizon=mdp.horizon, generator=generator)
    rows = prompt.repeat_interleave(8, dim=0)
    logits = policy.logits(rows, drawn.tokens)
    expected = (*drawn.tokens.shape, mdp.vocab_size)
    if tuple(logits.shape) != expected:
        raise PolicyError(
            f"{name}.logits has shape {tuple(logits.shape)}; for tokens of shape {tuple(drawn.tokens.shape)} it must "
            f"be {expected}."
        )
    alive = drawn.mask
    if not torch.isfinite(logits[alive].logsumexp(-1)).all():
        raise PolicyError(
            f"{name}.logits holds numbers that are not finite; every state needs at least one possible token."
        )
    if not logits.requires_grad:
        raise PolicyError(f"{name}.logits has no gradient; do not detach, and do not compute it under torch.no_grad().")
    for step in range(mdp.horizon):
        changed = drawn.tokens.clone()
        changed[:, step:] = mdp.tree.continuing[-1]
        moved = (policy.logits(rows, changed)[:, step] - logits[:, step]).detach()
        if float(moved[alive[:, step]].abs().max() if alive[:, step].any() else 0) > 1e-6:
            raise PolicyError(
                f"{name}.logits looks ahead: entry t must depend on the prompt and tokens[:t] only, but step {step} "
                f"sees later tokens."
            )
    scored = logp_of(policy, rows, drawn.tokens, drawn.mask)
    if not torch.allclose(scored.to(drawn.logp.dtype), drawn.logp, atol=1e-5):
        raise PolicyError(
            f"{name}.sample reports log-probabilities that differ from those of its logits; score what was sampled."
        )
    again = policy.sample(prompt, 8, eos=mdp.eos, horizon=mdp.horizon, generator=torch.Generator().manual_seed(seed))
    if not torch.equal(again.tokens, drawn.tokens):
        raise PolicyError(
            f"{name}.sample gives other responses for the same seed; use the generator it is given and no other."
        )
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for step in range(mdp.horizon):
        if bool((drawn.mask[:, step] & ended).any()) or bool((~drawn.mask[:, step] & ~ended).any()):
            raise PolicyError(
                f"{name}.sample has a wrong mask at step {step}: True up to the end token, it included, and False "
                f"after it."
            )
        ended = ended | (drawn.tokens[:, step] == (PAD if mdp.eos is None else mdp.eos))
