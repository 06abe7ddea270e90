"""Instances on which group estimators are computed twice: rewards of whole responses, odd shapes, other policies."""

from collections.abc import Callable
from dataclasses import replace

import torch

from llm_mdp.exact.instance_files import instance_from_dict, instance_to_dict
from llm_mdp.exact.instances import Instance, node_table, random_instance
from llm_mdp.exact.tree_gradient import node_logits
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp_agents.lm.policy import tiny_transformer

Response = tuple[int, ...]


def with_rewards(
    instance: Instance, reward: Callable[[Response], float], *, always_right: int | None = None, **logits: list[float]
) -> Instance:
    """The same instance where a response has the reward reward(W), all of it on its last token.

    Args:
        always_right: a prompt at which every reward is 1.
        logits: of single nodes, "p" and the tokens of the prefix: p=[0, 9], p01=[0, 3].
    """
    content = instance_to_dict(instance)
    for node in content["nodes"]:
        prefix, reward_of = tuple(node["prefix"]), reward
        if always_right is not None and node["prompt"] == always_right:
            reward_of = _right
        for token in range(content["vocab_size"]):
            ends = token == content["eos"] or len(prefix) + 1 == content["horizon"]
            node["token_reward"][token] = reward_of((*prefix, token)) if ends else 0.0
        node["logits"] = logits.get("p" + "".join(map(str, prefix)), node["logits"])
    return instance_from_dict(content, instance.name)


def _right(W: Response) -> float:
    return 1.0


def right_or_wrong(W: Response) -> float:
    return float(sum(W) % 3 == 1)


def _ngram() -> Instance:
    instance = with_rewards(random_instance(3, 2, seed=5), right_or_wrong)
    policy = NgramPolicy.random(3, 1, torch.Generator().manual_seed(5))
    return replace(instance, policy=policy)


def _transformer() -> Instance:
    instance = with_rewards(random_instance(3, 2, seed=5), right_or_wrong)
    return replace(instance, policy=tiny_transformer(3, instance.mdp.prompt_tokens.shape[1] + 2, 5))


INSTANCES: dict[str, Callable[[], Instance]] = {
    "every reward another": lambda: random_instance(3, 2, gamma=0.9, seed=3),
    "right or wrong": lambda: with_rewards(random_instance(3, 2, seed=4), right_or_wrong),
    "two prompts": lambda: with_rewards(random_instance(2, 3, n_prompts=2, seed=6), right_or_wrong),
    "always right": lambda: with_rewards(random_instance(2, 3, seed=7), _right),
    "right once in a million": lambda: with_rewards(
        random_instance(2, 3, seed=8), lambda W: float(W == (1, 0)), p=[0.0, 0.0], p1=[-13.8, 0.0]
    ),
    "negative": lambda: with_rewards(random_instance(2, 3, seed=9), lambda W: -1.0 - sum(W) / 2),
    "rewards a billionth apart": lambda: with_rewards(
        random_instance(2, 3, seed=10), lambda W: 1e-9 * (sum(W) == 2) + (W[0] == 0)
    ),
    "ended and cut off alike": lambda: with_rewards(random_instance(2, 2, seed=11), lambda W: 1.0 - W[0] / 2),
    "one token": lambda: with_rewards(random_instance(4, 1, seed=12), right_or_wrong),
    "no end token": lambda: with_rewards(random_instance(2, 3, eos=None, seed=13), right_or_wrong),
    "an environment replies": lambda: random_instance(2, 4, environment_at=(1,), seed=14),
    "it replies, right or wrong": lambda: with_rewards(
        random_instance(2, 4, environment_at=(1, 3), seed=15), right_or_wrong
    ),
    "one prompt is always right": lambda: with_rewards(
        random_instance(2, 3, n_prompts=2, seed=18), right_or_wrong, always_right=0
    ),
    "a token that is never drawn": lambda: with_rewards(
        random_instance(3, 2, seed=19), right_or_wrong, p=[0.3, -900.0, 0.1], p2=[-900.0, 0.0, 0.5]
    ),
    "large rewards": lambda: with_rewards(random_instance(2, 3, seed=20), lambda W: 1e6 * right_or_wrong(W) - 3e5),
    "rewards equal but for rounding": lambda: with_rewards(
        random_instance(2, 3, seed=21), lambda W: [0.3, 0.1 + 0.2, 1.0][sum(W) % 3]
    ),
    "bigram policy": _ngram,
    "transformer policy": _transformer,
}

LARGER: dict[str, Callable[[], Instance]] = {
    "nine responses": lambda: with_rewards(random_instance(2, 8, seed=16), lambda W: float(len(W) % 3 == 1)),
    "fifteen responses": lambda: with_rewards(random_instance(3, 3, seed=17), right_or_wrong),
    "rarely right": lambda: with_rewards(random_instance(3, 3, seed=17), lambda W: float(W == (1, 2, 2))),
}
"""With groups of eight that are 12,870, and more of 16 than can be taken one by one."""


def jacobian(instance: Instance) -> torch.Tensor:
    """The derivative of all logits, node after node, by the parameters of the policy: (entries, parameters)."""
    parameters = [p for p in instance.policy.parameters() if p.requires_grad]  # pyright: ignore
    logits = node_table(instance, list(node_logits(instance.policy, instance.mdp))).flatten()
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True) for entry in logits]
    return torch.stack(
        [
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(row, parameters)])
            for row in rows
        ]
    ).double()
