"""The entropy of policies, nats a token, and tables that have the one asked for."""

from collections.abc import Callable
from dataclasses import replace

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import Instance
from llm_mdp.exact.ngram_gradient import expected_length, reward_moments
from llm_mdp.mdp.hidden_rewards import NgramReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy


def mean_entropy(enumeration: Enumeration) -> float:
    """Entropy of the policy, nats a token, over the prefixes that it visits."""
    values, probability = enumeration.values, enumeration.mdp.prompt_probability
    visits = [probability[:, None] * reach for reach in values.reach]
    entropy = sum(float((visit * -(logp.exp() * logp).sum(1)).sum()) for visit, logp in zip(visits, values.logp))
    return entropy / sum(float(visit.sum()) for visit in visits)


def chain_entropy(policy: NgramPolicy, mdp: TokenMDP) -> float:
    """Entropy of the policy, nats a token, over the contexts that it visits: J for a reward of H(π(·|c)), over the
    expected length."""
    logp = policy.table.detach()[0].log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True).expand(-1, policy.vocab_size)
    paid = replace(mdp, token_reward=NgramReward(entropy, policy.order), gamma=1.0)
    return reward_moments(policy, paid)[0] / expected_length(policy, mdp)


def with_entropy(instance: Instance, entropy: float) -> TabularPolicy:
    """The table with its logits multiplied by the number that gives this mean entropy (`mean_entropy`)."""
    policy = instance.policy
    assert isinstance(policy, TabularPolicy)

    def scaled(factor: float) -> TabularPolicy:
        return TabularPolicy(policy.tree, policy.prompts, [factor * level.detach() for level in policy.levels])

    factor = bisected(lambda factor: mean_entropy(Enumeration(instance.mdp, scaled(factor))), entropy)
    return scaled(factor)


def bisected(entropy_of: Callable[[float], float], entropy: float) -> float:
    """The factor of the logits at which an entropy that falls with it has this value."""
    low, high = 0.0, 1.0
    while entropy_of(high) > entropy:
        high *= 2
        if high > 1e6:
            raise ValueError(
                f"entropy is {entropy}, which this policy does not reach however large its logits; choose a larger one."
            )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy_of(middle) > entropy else (low, middle)
    return (low + high) / 2
