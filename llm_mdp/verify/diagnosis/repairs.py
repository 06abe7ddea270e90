"""Repairs: each turns the weights of an estimator into others, by asking it again and never by knowing it."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.verify.diagnosis.black_box import BlackBox, Shown, Weights

Repair = Callable[[Weights], Weights]


def offset(weights: Weights, shown: Shown) -> Float[Tensor, "W K T"]:
    """What is left of weights that are affine in the rewards when all rewards are 0, without asking at 0, where a std
    is."""
    return 2 * weights(shown) - weights(Shown(shown.prompt, shown.leaf, 2 * shown.reward))


def without_factor(factor: Callable[[Shown], Float[Tensor, "W K T"]], whole: bool) -> Repair:
    """A / m. Unless `whole`, what does not depend on the rewards is left as it is."""

    def repair(weights: Weights) -> Weights:
        def repaired(shown: Shown) -> Tensor:
            kept = 0.0 if whole else offset(weights, shown)
            return (weights(shown) - kept) / factor(shown) + kept

        return repaired

    return repair


def filled(donor: Int[Tensor, "N T 2"]) -> Repair:
    """Places without weight get that of a donor, place donor[leaf, t, 1] of response donor[leaf, t, 0] with the same
    reward; a place that needs none is its own donor."""

    def repair(weights: Weights) -> Weights:
        def repaired(shown: Shown) -> Tensor:
            given = weights(shown).clone()
            for k in range(given.shape[1]):
                for t in range(given.shape[2]):
                    own = shown.leaf[:, k]
                    leaf, place = donor[own, t].unbind(-1)
                    asked = (leaf != own) | (place != t)
                    if not bool(asked.any()):
                        continue
                    part = Shown(shown.prompt[asked], shown.leaf[asked], shown.reward[asked])
                    borrowed = weights(part.with_response(k, leaf[asked], part.reward[:, k]))[:, k]
                    given[asked, k, t] = borrowed.gather(1, place[asked][:, None])[:, 0]
            return given

        return repaired

    return repair


def equalised(leaf: int) -> Repair:
    """The weights that the same rewards get when every response has the tokens of this one: those of its first
    token."""

    def repair(weights: Weights) -> Weights:
        def repaired(shown: Shown) -> Tensor:
            given = weights(Shown(shown.prompt, torch.full_like(shown.leaf, leaf), shown.reward))
            return given[..., :1].expand_as(given)

        return repaired

    return repair


def prefix_only(box: BlackBox) -> Repair:
    """What does not depend on the rewards is replaced by its expectation given the prefix before each token: over the
    policy's own continuations, the other responses as they are."""
    e = box.enumeration

    def repair(weights: Weights) -> Weights:
        def repaired(shown: Shown) -> Tensor:
            given = weights(shown)
            expected = torch.zeros_like(given)
            worlds, n = len(shown.prompt), e.tree.n_leaves
            every = torch.arange(n).repeat(worlds)
            for k in range(given.shape[1]):
                prompt, leaf, reward = (
                    part.repeat_interleave(n, 0) for part in (shown.prompt, shown.leaf, shown.reward)
                )
                other = Shown(prompt, leaf, reward).with_response(k, every, reward[:, k])
                below = (e.node[leaf[:, k]] == e.node[every]) & e.mask[every]
                chance = torch.where(below, e.probability[prompt, every][:, None], 0.0).unflatten(0, (worlds, n))
                values = offset(weights, other)[:, k].unflatten(0, (worlds, n))
                total = chance.sum(1)
                expected[:, k] = (chance * values).sum(1) / total.where(total > 0, torch.ones(()))
            return given - offset(weights, shown) + expected

        return repaired

    return repair


def times(number: float) -> Repair:
    """The weights times one number."""
    return lambda weights: lambda shown: number * weights(shown)


def signed(weights: Weights) -> Weights:
    """|A| with the sign of the reward less the mean of the others; of the reward itself, where there are none."""

    def repaired(shown: Shown) -> Tensor:
        reward, group = shown.reward, shown.reward.shape[-1]
        others = (reward.sum(-1, keepdim=True) - reward) / max(group - 1, 1)
        return weights(shown).abs() * (reward - others).sign()[..., None]

    return repaired


def unscaled(e: Enumeration, share: float) -> Repair:
    """The weights of a group times one number, so that they spread over the responses 1/share as far as the rewards
    do."""

    def repair(weights: Weights) -> Weights:
        def repaired(shown: Shown) -> Tensor:
            given = weights(shown)
            level = given.sum(-1) / e.length[shown.leaf]
            spread, rewards = spread_of(level), spread_of(shown.reward)
            # Rewards that differ by rounding are equal.
            alike = rewards <= 1e-12 * shown.reward.abs().amax(-1)
            factor = torch.where(alike, 0.0, rewards / spread.where(~alike, torch.ones(())))
            return given * factor[:, None, None] / share

        return repaired

    return repair


def spread_of(values: Float[Tensor, "W K"]) -> Float[Tensor, " W"]:
    """Largest less smallest."""
    return values.amax(-1) - values.amin(-1)


def unit_slope(weights: Weights) -> Weights:
    """A / (what A rises by when its own reward rises by 1)."""

    def repaired(shown: Shown) -> Tensor:
        given = weights(shown)
        slope = torch.ones_like(given)
        for k in range(given.shape[1]):
            raised = shown.with_response(k, shown.leaf[:, k], shown.reward[:, k] + 1)
            slope[:, k] = weights(raised)[:, k] - given[:, k]
        return given / torch.where(slope == 0, torch.ones(()), slope)

    return repaired


def leave_one_out(weights: Weights) -> Weights:
    """The reward whole, less the baseline that the estimator would have had if the response had earned what another one
    did, on average over the others."""

    def repaired(shown: Shown) -> Tensor:
        group = shown.reward.shape[-1]
        baseline = torch.zeros_like(weights(shown))
        for k in range(group):
            for other in range(group):
                if other != k:
                    earned = shown.reward[:, other]
                    given = weights(shown.with_response(k, shown.leaf[:, k], earned))[:, k]
                    baseline[:, k] += (earned[:, None] - given) / (group - 1)
        return shown.reward[..., None] - baseline

    return repaired
