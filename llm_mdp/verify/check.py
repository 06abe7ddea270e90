"""What a user's own policy or estimator must satisfy, and in words what is wrong when it does not."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import MAX_GROUP_SIZE, Groups, all_groups
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import ExactSampler, TreeBranches, TreeRollouts
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PAD
from llm_mdp.own import UsageError, load
from llm_mdp.sampling.evidence import Branches, Evidence, Rollouts, join, take_world
from llm_mdp.sampling.policies import Policy, logp_of
from llm_mdp.verify.weights import EstimatorError, check_worlds, loss_and_gradient, token_weights


class PolicyError(ValueError):
    """A policy is malformed; the message says what, and what to do."""


def check_estimator(estimator: Estimator, enumeration: Enumeration | None = None) -> None:
    """Raise EstimatorError, in one sentence, if an estimator could not be verified or trained with.

    Args:
        enumeration: what to try it on; by default a random instance with three tokens and horizon 3.
    """
    check_interface(estimator)
    if enumeration is None:
        instance = random_instance(3, 3, gamma=0.9)
        enumeration = Enumeration(instance.mdp, instance.policy)
    check_answers(estimator, estimator, enumeration)


def check_interface(estimator: Any) -> None:
    """Raise EstimatorError, in one sentence, if this is no estimator: a class, methods missing, no size of groups."""
    name = type(estimator).__name__
    if isinstance(estimator, type):
        raise EstimatorError(f"{estimator.__name__} is a class; give an object: {estimator.__name__}().")
    for method in ("collect", "advantages", "loss"):
        if not callable(getattr(estimator, method, None)):
            raise EstimatorError(f"{name} has no method `{method}`; subclass llm_mdp.Estimator, which brings it.")
    group_size = getattr(estimator, "group_size", None)
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 1:
        raise EstimatorError(f"{name}.group_size is {group_size!r}; it must be a whole number of at least 1.")

    if group_size > MAX_GROUP_SIZE:
        raise EstimatorError(f"{name}.group_size is {group_size:,}; it must be at most {MAX_GROUP_SIZE:,}.")


def load_estimator(name: str, group_size: int | None = None) -> Estimator:
    """A user's estimator, FILE.py:CLASS or MODULE:CLASS, checked.

    Args: group_size: instead of its own.

    Raises:
        UsageError: if there is none, or its group_size is no field.
        EstimatorError: if it could not be verified or trained with.
    """
    kind = load(name)
    if hasattr(kind, "make_estimator"):
        raise UsageError(
            f"{name} is an agent, which `llm-mdp train` takes; llm_mdp_agents.check.check_agent tries it, and the "
            "estimator that it makes can be certified by itself."
        )
    try:
        estimator = kind() if isinstance(kind, type) else kind
    except TypeError as error:
        raise UsageError(f"{name} could not be made without arguments: {error}") from error
    if not hasattr(estimator, "collect") and callable(estimator):
        raise UsageError(
            f"{name} is no estimator, an object of a subclass of llm_mdp.Estimator; `llm-mdp audit {name}` certifies "
            "functions."
        )
    if group_size is not None:
        own, estimator = estimator, with_group_size(estimator, group_size)
        if estimator is None:
            raise UsageError(
                f"{name} draws {getattr(own, 'group_size', '?')} responses to a prompt and cannot be given "
                f"{group_size}; leave --group-size out, or make group_size a field of a dataclass."
            )
    check_estimator(estimator)
    return estimator


def with_group_size(estimator: Any, size: int) -> Any | None:
    """The same estimator with groups of another size; None: its size is no field that takes this number."""
    try:
        changed = replace(estimator, group_size=size)
    except (TypeError, ValueError):
        return None
    return changed if changed.group_size == size else None


def check_answers(estimator: Any, twin: Any, enumeration: Enumeration) -> None:
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
    check_worlds(estimator, evidence, weights, enumeration, tried=10)
    check_prompts(estimator, evidence)
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


def _repair_of_shape(given: tuple[int, ...], tokens: tuple[int, ...]) -> str:
    """What to add to weights that are one a response, or as `groups` arranges them: (..., prompts, K)."""
    in_groups = given[:-2] == tokens[:-2] and math.prod(given[-2:]) == tokens[-2]
    return "add .flatten(-2)[..., None]" if in_groups else "add [..., None]"


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
        fits = np.broadcast_shapes(tuple(advantage.shape), shape) == shape
    except ValueError:
        fits = False
    if not fits or (advantage.dim() == len(shape) - 1 and shape[-1] != 1):
        raise EstimatorError(
            f"{name}.advantages has shape {tuple(advantage.shape)}, but tokens have shape (worlds, B, T) = {shape}; "
            f"one weight a response must end in a dimension of 1: {_repair_of_shape(tuple(advantage.shape), shape)}."
        )
    at_tokens = torch.where(evidence.rollouts.mask, advantage, 0.0)
    if not torch.isfinite(at_tokens).all():
        raise EstimatorError(
            f"{name}.advantages holds {at_tokens[~torch.isfinite(at_tokens)][0].item()}; look for a division by a zero "
            f"std or length."
        )
    if advantage.requires_grad:
        raise EstimatorError(f"{name}.advantages carries a gradient; advantages are constants, use .detach().")


def check_prompts(estimator: Any, evidence: Evidence) -> None:
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


BY_PROMPT = (
    "group rewards by prompt with llm_mdp.estimators.values.groups(reward, self.group_size), and .flatten(-2) "
    "afterwards"
)


def _as_in_training(evidence: Evidence) -> Evidence:
    """Without what only trees know of their rollouts and branches."""
    plain = {part.name: getattr(evidence.rollouts, part.name) for part in fields(Rollouts)}
    branches = evidence.branches and Branches(
        **{part.name: getattr(evidence.branches, part.name) for part in fields(Branches)}
    )
    return replace(evidence, rollouts=Rollouts(**plain), branches=branches)


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
    _, before = loss_and_gradient(estimator, rollouts.logp, evidence)
    _, after = loss_and_gradient(estimator, wider.logp, padded)
    if not torch.allclose(after[..., :-2], before, rtol=1e-9, atol=1e-12):
        raise EstimatorError(
            f"{type(estimator).__name__} depends on padding: its weights change when the batch is padded to a longer "
            f"width; "
            "count policy tokens with rollouts.mask, not with the width of a tensor."
        )


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
    answer = policy.logits(prompt, mdp.tree.leaves[:1].expand(len(prompt), -1))
    if isinstance(answer, Tensor) and answer.device.type != "cpu":
        raise PolicyError(
            f"{name}.logits answers on {answer.device}; its model may be there, but what comes out of a policy is on "
            f"the CPU: return logits.cpu()."
        )
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
