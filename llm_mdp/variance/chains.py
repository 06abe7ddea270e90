"""Long n-gram chains, where nothing is enumerated: policy and reward of a setting, and draws of estimates."""

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.instances import stream
from llm_mdp.exact.ngram_gradient import ngram_score_sums, with_expected_length
from llm_mdp.mdp.hidden_rewards import EndReward, MarkovReward, NgramReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.evidence import Evidence, as_worlds
from llm_mdp.sampling.policies import NgramPolicy, logp_of
from llm_mdp.sampling.sampler import NothingKept, PolicySampler
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.variance.entropy import bisected, chain_entropy
from llm_mdp.variance.rewards import SPARSE, early_reward
from llm_mdp.variance.sampled import Estimates, kept_estimates
from llm_mdp.variance.setting import Setting
from llm_mdp.verify.weights import loss_weights

TOKENS = 1_000_000
"""Tokens of rollouts on a long chain that are in memory at one time."""


def chain_of(setting: Setting) -> tuple[NgramPolicy, TokenMDP]:
    """A bigram policy and a bigram reward."""
    generator = stream(setting.seed, "chain")
    policy = NgramPolicy.random(setting.vocab_size, 1, generator)
    reward: MarkovReward = (table := NgramReward.random(setting.vocab_size, 1, generator))
    if setting.rewards == "sparse":
        chosen = torch.rand(table.table.shape, generator=generator, dtype=torch.float64) < SPARSE
        reward = NgramReward(torch.where(chosen, table.table, 0.0))
    elif setting.rewards == "early":
        reward = early_reward(setting.vocab_size, setting.horizon, generator)
    elif setting.rewards == "outcome":
        reward = EndReward(NgramReward((table.table > 0).double()), setting.gamma)
    mdp = TokenMDP(setting.vocab_size, 0, setting.horizon, reward, setting.gamma)
    length, logits = (
        setting.horizon / 2 if setting.length is None and setting.horizon > 16 else setting.length,
        policy.table.detach(),
    )

    def scaled(factor: float) -> NgramPolicy:
        policy = NgramPolicy(factor * logits, 1)
        return policy if length is None else with_expected_length(policy, mdp, length)

    if setting.entropy is None:
        return scaled(1.0), mdp
    return scaled(bisected(lambda factor: chain_entropy(scaled(factor), mdp), setting.entropy)), mdp


def chain_estimates(
    estimator: Estimator, policy: NgramPolicy, mdp: TokenMDP, number: int, generator: torch.Generator
) -> Estimates:
    """Draws on a chain of any length, every group weighed by itself, `TOKENS` tokens in memory at a time."""
    groups = max(1, TOKENS // mdp.horizon // estimator.group_size)
    parts, kept = [], []
    for start in range(0, number, groups):
        size = min(groups, number - start)
        sampler = Meter(PolicySampler(policy, mdp, generator, size))
        try:
            gradient = _chain_gradients(estimator, policy, estimator.collect(sampler))
        except NothingKept:
            gradient = torch.zeros(0, policy.table.numel(), dtype=torch.float64)
        keep = torch.ones(size, dtype=torch.bool) if sampler.groups is None else sampler.groups
        whole = torch.zeros(size, policy.table.numel(), dtype=torch.float64)
        whole[keep] = gradient
        parts.append((whole, *sampler.cost(estimator.group_size)))
        kept.append(keep)
    return kept_estimates(parts, kept)


@torch.no_grad()
def _chain_gradients(estimator: Estimator, policy: NgramPolicy, evidence: Evidence) -> Float[Tensor, "N d"]:
    """One a group."""
    evidence = as_worlds(evidence, estimator.group_size)
    rollouts = evidence.rollouts
    with torch.enable_grad():
        weights = loss_weights(
            estimator, evidence, logp_of(policy, rollouts.prompt, rollouts.tokens, rollouts.mask).detach()
        )
    group = torch.arange(len(weights)).repeat_interleave(estimator.group_size)
    prompt, tokens, weights = (part.flatten(0, 1) for part in (rollouts.prompt, rollouts.tokens, weights))
    return ngram_score_sums(policy, prompt, tokens, weights, group)
