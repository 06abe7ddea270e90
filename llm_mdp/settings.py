"""Settings: token MDPs and policies that differ along named axes, on which estimators are compared, and the measurements themselves.

A `Setting` is plain JSON; `make_world` makes what is measured on: a tree that is enumerated, or an n-gram chain of any length.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import torch

from llm_mdp.candidates import Known, Setup
from llm_mdp.enumeration import MAX_EDGES, Enumeration, TooLarge
from llm_mdp.estimators import Estimator
from llm_mdp.evidence import as_worlds
from llm_mdp.exact import exact_gradient, optimal_baseline
from llm_mdp.hidden_rewards import EndReward, HiddenReward, MarkovReward, NgramReward, PositionReward, TableReward
from llm_mdp.instances import Instance, random_instance, read_instance
from llm_mdp.mdp import TokenMDP, check_shape
from llm_mdp.ngram import expected_length, ngram_critic, ngram_score_sums, reward_moments, with_expected_length
from llm_mdp.policies import Critic, NgramPolicy, Policy, TabularPolicy, TabularValue, logp_of
from llm_mdp.problem import Problem
from llm_mdp.replay import Meter
from llm_mdp.sampling import PolicySampler
from llm_mdp.tree import PrefixTree
from llm_mdp.variance import (
    Estimates,
    Measurement,
    exact_measurement,
    joined_estimates,
    kept_estimates,
    sampled_measurement,
    tree_estimates,
)
from llm_mdp.verify import loss_weights

Rewards = Literal["dense", "sparse", "early", "outcome"]
REWARDS: tuple[Rewards, ...] = get_args(Rewards)
SPARSE = 0.1
"""Share of the (prefix, token) pairs that have a reward if rewards are sparse."""
WORLDS = 300_000
"""Groups of responses up to which a measurement is exact: a second or two."""
TOKENS = 1_000_000
"""Tokens of rollouts on a long chain that are in memory at one time."""


@dataclass(frozen=True)
class Setting:
    """One token MDP with a policy.

    Raises:
        ValueError: naming the option, its value and its range, before anything is made.
    """

    policy: Literal["tabular", "ngram", "transformer"] = "tabular"
    vocab_size: int = 4
    """V; token 0 ends a response."""
    horizon: int = 4
    """T, longest response."""
    rewards: Rewards = "dense"
    """dense: a random number for every token; sparse: for one in ten; early: in the first quarter only; outcome: 1 or 0 for a whole
    response, at its end."""
    success: float | None = None
    """Probability that the policy earns the outcome 1 (about, on a table); None: 0.5."""
    entropy: float | None = None
    """Mean entropy of the policy, nats a token; None: that of standard normal logits."""
    length: float | None = None
    """Expected response length of n-gram policies; None: as it comes, half the horizon beyond 16 tokens."""
    prompts: int = 1
    gamma: float = 1.0
    seed: int = 0
    instance: str | None = None
    """Path of an instance file, in place of all this."""
    name: str = ""
    """For people; changes nothing."""

    def __post_init__(self) -> None:
        if self.instance is not None:
            return
        check_shape(self.vocab_size, 0, self.horizon, self.gamma)
        if self.prompts < 1:
            raise ValueError(f"prompts is {self.prompts}; there must be at least 1.")
        tree = PrefixTree(self.vocab_size, 0, self.horizon)
        if self.policy != "ngram" and tree.n_nodes * self.vocab_size * self.prompts > MAX_EDGES:
            raise ValueError(
                f"a vocabulary of {self.vocab_size}, a horizon of {self.horizon} and {self.prompts} prompt(s) make more than {MAX_EDGES:,} "
                "(prefix, token) pairs, too many to enumerate; make one of them smaller, or take the policy ngram, which needs no tree."
            )
        if self.rewards not in REWARDS:
            raise ValueError(f"rewards is {self.rewards!r}; choose {', '.join(REWARDS)}.")
        if self.success is not None and (self.rewards != "outcome" or not 0 < self.success < 1):
            raise ValueError(f"success is {self.success} with {self.rewards} rewards; it is for outcome rewards, and must be in (0, 1).")
        if self.success is not None and self.policy == "ngram":
            raise ValueError("success cannot be chosen for n-gram policies; leave it out, or take --policy tabular.")
        if self.entropy is not None and not 0 < self.entropy < math.log(self.vocab_size):
            most = math.log(self.vocab_size)
            raise ValueError(f"entropy is {self.entropy}; over {self.vocab_size} tokens it must be between 0 and {most:.3f}.")
        if self.length is not None and self.policy != "ngram":
            raise ValueError(f"length is {self.length}; it can be chosen for n-gram policies only.")
        if self.policy == "ngram" and self.prompts > 1:
            raise ValueError(f"prompts is {self.prompts}; n-gram settings have one.")
        if self.entropy is not None and self.policy == "transformer":
            raise ValueError(f"entropy is {self.entropy}; it can be chosen for tables and n-grams only.")

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self.instance is not None:
            return f"the instance {self.instance}"
        what = {
            "dense": "a random reward for every token", "sparse": "a reward for one token in ten",
            "early": "rewards in the first quarter only", "outcome": "1 or 0 for a whole response",
        }  # fmt: skip
        kind = {"tabular": "table", "ngram": "n-gram policy", "transformer": "tiny transformer"}[self.policy]
        parts = [what[self.rewards]]
        parts += [f"success about {self.success:g}"] if self.success is not None else []
        parts += [f"{self.vocab_size} tokens", f"horizon {self.horizon}", kind]
        parts += [f"entropy {self.entropy:g}"] if self.entropy is not None else []
        parts += [f"{self.prompts} prompts"] if self.prompts > 1 else []
        parts += [f"γ = {self.gamma:g}"] if self.gamma < 1 else []
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        """As JSON; what changes nothing is left out, so that results are found again."""
        document = {key: value for key, value in asdict(self).items() if key != "name"}
        if self.instance is not None:
            return {"instance": self.instance}
        return document


class World(Protocol):
    """What estimators are measured on."""

    setup: Setup

    def facts(self) -> dict[str, Any]:
        """J, |∇J|, expected length: what there is to know, JSON-able."""
        ...

    def measure(self, estimator: Estimator, number: int, seed: int, known: Known | None = None) -> Measurement:
        """Exactly where it can be, else from `number` estimates.

        Args: known: see `variance.sampled_measurement`.
        """
        ...


class TreeWorld:
    """A small token MDP: everything is known."""

    def __init__(self, instance: Instance):
        self.instance = instance
        self.problem = Problem(instance)
        self.target = self.problem.target("reward")
        self.setup = Setup(instance.mdp.horizon, self.problem.gradient[0], self.critic, self.optimal_baseline)

    @property
    def enumeration(self) -> Enumeration:
        return self.problem.enumeration

    @cached_property
    def deviation(self) -> float:
        """Standard deviation of RM(W) given the prompt."""
        mdp, values = self.instance.mdp, self.enumeration.values
        return math.sqrt(float(mdp.prompt_probability @ values.variance[0][:, 0]))

    def critic(self, error: float) -> Critic:
        """U plus a normal number for every prefix, `error` standard deviations of RM large."""
        values, e = self.enumeration.values, self.enumeration
        noise = TabularValue.random(e.tree, e.prompt, torch.Generator().manual_seed(1), error * self.deviation)
        return TabularValue(e.tree, e.prompt, [level + wrong for level, wrong in zip(values.U, noise.levels)])

    @cached_property
    def optimal_baseline(self) -> Critic:
        """By the policy's own scores, state by state."""
        e = self.enumeration
        norms = e.scores.square().sum(-1).view(e.n_prompts, e.tree.n_nodes, e.tree.vocab_size)
        levels = [level.transpose(1, 2) for level in norms.split(e.tree.level_sizes, dim=1)]
        return TabularValue(e.tree, e.prompt, optimal_baseline(self.instance.mdp, e.values, levels))

    def facts(self) -> dict[str, Any]:
        e = self.enumeration
        length = float(self.instance.mdp.prompt_probability @ e.remaining[0][:, 0])
        success = float((e.mdp.prompt_probability[:, None] * e.probability)[e.response_reward > 0.5].sum())
        return {
            "J": self.problem.gradient[0], "grad_norm": float(self.target.norm()), "expected_length": length,
            "entropy": mean_entropy(e), "success": success, "target": "exact",
        }  # fmt: skip

    def measure(self, estimator: Estimator, number: int, seed: int, known: Known | None = None) -> Measurement:
        groups = self.enumeration.tree.n_leaves**estimator.group_size * self.enumeration.n_prompts
        if groups <= WORLDS:
            try:
                return exact_measurement(estimator, self.enumeration, self.target, self.problem.magnitude("reward"))
            except TooLarge:
                pass
        return sampled_measurement(tree_estimates(estimator, self.enumeration, number, seed), self.target, seed=seed, known=known)


def mean_entropy(enumeration: Enumeration) -> float:
    """Entropy of the policy, nats a token, over the prefixes that it visits."""
    values, probability = enumeration.values, enumeration.mdp.prompt_probability
    visits = [probability[:, None] * reach for reach in values.reach]
    entropy = sum(float((visit * -(logp.exp() * logp).sum(1)).sum()) for visit, logp in zip(visits, values.logp))
    return entropy / sum(float(visit.sum()) for visit in visits)


class NgramWorld:
    """An n-gram policy with an n-gram reward, at any horizon: the gradient is exact, covariances are sampled."""

    def __init__(self, policy: NgramPolicy, mdp: TokenMDP):
        self.policy, self.mdp = policy, mdp
        J, (gradient,) = exact_gradient(policy, mdp)
        self.target = gradient.flatten().detach()
        self.moments = reward_moments(policy, mdp)
        self.setup = Setup(mdp.horizon, J, lambda error: ngram_critic(policy, mdp, error * math.sqrt(self.moments[1]), seed=1))

    def facts(self) -> dict[str, Any]:
        length = expected_length(self.policy, self.mdp)
        return {
            "J": self.setup.J, "grad_norm": float(self.target.norm()), "expected_length": length, "entropy": None, "success": None,
            "target": "exact",
        }  # fmt: skip

    def measure(self, estimator: Estimator, number: int, seed: int, known: Known | None = None) -> Measurement:
        generator = torch.Generator().manual_seed(seed)
        rows = max(1, TOKENS // self.mdp.horizon // estimator.group_size)
        parts: list[Estimates] = []
        while (done := sum(len(part.square) for part in parts)) < number:
            parts.append(chain_estimates(estimator, self.policy, self.mdp, min(rows, number - done), generator))
        return sampled_measurement(joined_estimates(parts), self.target, seed=seed, known=known)


@torch.no_grad()
def chain_estimates(estimator: Estimator, policy: NgramPolicy, mdp: TokenMDP, number: int, generator: torch.Generator) -> Estimates:
    """Estimates by groups of one batch, each group weighed by itself."""
    sampler = Meter(PolicySampler(policy, mdp, generator, number))
    evidence = as_worlds(estimator.collect(sampler), estimator.group_size)
    rollouts = evidence.rollouts
    with torch.enable_grad():
        weights = loss_weights(estimator, evidence, logp_of(policy, rollouts.prompt, rollouts.tokens, rollouts.mask).detach())
    group = torch.arange(len(weights)).repeat_interleave(estimator.group_size)
    prompt, tokens, weights = (part.flatten(0, 1) for part in (rollouts.prompt, rollouts.tokens, weights))
    gradient = ngram_score_sums(policy, prompt, tokens, weights, group)
    return kept_estimates(gradient, *sampler.cost(estimator.group_size))


def make_world(setting: Setting, transformer: Callable[[TokenMDP, int], Policy] | None = None) -> TreeWorld | NgramWorld:
    """Make the token MDP and the policy.

    Args: transformer: makes the policy of that name from a token MDP and a seed.

    Raises:
        ValueError: if nobody makes transformers here.
    """
    if setting.instance is not None:
        return TreeWorld(read_instance(setting.instance))
    generator = torch.Generator().manual_seed(setting.seed)
    if setting.policy == "ngram":
        return NgramWorld(*_chain(setting, generator))
    shape = {"gamma": setting.gamma, "n_prompts": setting.prompts, "seed": setting.seed}
    instance = random_instance(setting.vocab_size, setting.horizon, **shape)
    mdp = instance.mdp
    if setting.policy == "transformer":
        if transformer is None:
            raise ValueError("a transformer comes from llm_mdp_agents; give make_world a function that makes it.")
        instance = replace(instance, policy=transformer(mdp, setting.seed))
    elif setting.entropy is not None:
        instance = replace(instance, policy=with_entropy(instance, setting.entropy))
    if setting.rewards == "sparse":
        instance = replace(instance, mdp=replace(mdp, token_reward=sparse_reward(instance, generator)))
    elif setting.rewards == "early":
        instance = replace(instance, mdp=replace(mdp, token_reward=early_reward(mdp.vocab_size, mdp.horizon, generator)))
    elif setting.rewards == "outcome":
        reward = outcome_reward(instance, 0.5 if setting.success is None else setting.success, generator)
        instance = replace(instance, mdp=replace(mdp, token_reward=reward))
    return TreeWorld(instance)


def sparse_reward(instance: Instance, generator: torch.Generator) -> HiddenReward:
    """A normal number for one (prefix, token) pair in ten, 0 for the others."""
    tree, prompts = instance.mdp.tree, instance.mdp.prompt_tokens
    shapes = [(len(prompts), tree.vocab_size, size) for size in tree.level_sizes]
    levels = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    chosen = [torch.rand(shape, generator=generator, dtype=torch.float64) < SPARSE for shape in shapes]
    return TableReward(tree, prompts, [torch.where(which, level, 0.0) for which, level in zip(chosen, levels)])


def outcome_reward(instance: Instance, success: float, generator: torch.Generator) -> HiddenReward:
    """1 / γᵗ⁻¹ for the last token of randomly chosen responses; RM is then 1 or 0. The policy is right with about this probability over all
    prompts; the first is the easiest, and the last a ninth as likely to be answered."""
    mdp, tree = instance.mdp, instance.mdp.tree
    e = Enumeration(mdp, instance.policy)
    levels = [torch.zeros(e.n_prompts, tree.vocab_size, size, dtype=torch.float64) for size in tree.level_sizes]
    last = e.length - 1
    every = torch.arange(tree.n_leaves)
    token, prefix = e.tokens[every, last], tree.prefix_index(e.tokens)[every, last]
    ease = torch.linspace(1.8, 0.2, e.n_prompts, dtype=torch.float64) if e.n_prompts > 1 else torch.ones(1, dtype=torch.float64)
    ease = ease / (mdp.prompt_probability @ ease)
    for prompt, probability in enumerate(e.probability):
        order = torch.randperm(tree.n_leaves, generator=generator)
        missing, chosen = min(success * float(ease[prompt]), 1.0), []
        for leaf, chance in zip(order.tolist(), probability[order].tolist()):
            if chance < 2 * missing:  # with it the sum is closer
                chosen.append(leaf)
                missing -= chance
        right = torch.tensor(chosen, dtype=torch.int64)
        for level in range(tree.horizon):
            here = right[last[right] == level]
            levels[level][prompt, token[here], prefix[here]] = mdp.gamma**-level
    return TableReward(tree, e.prompt, levels)


def early_reward(vocab_size: int, horizon: int, generator: torch.Generator) -> PositionReward:
    """A normal number for every token at every step of the first quarter, rounded up; 0 afterwards."""
    weights = torch.randn(horizon, vocab_size, generator=generator, dtype=torch.float64)
    weights[-(-horizon // 4) :] = 0.0
    return PositionReward(weights)


def with_entropy(instance: Instance, entropy: float) -> TabularPolicy:
    """The table with its logits multiplied by the number that gives this mean entropy (`mean_entropy`)."""
    policy = instance.policy
    assert isinstance(policy, TabularPolicy)

    def scaled(factor: float) -> TabularPolicy:
        return TabularPolicy(policy.tree, policy.prompts, [factor * level.detach() for level in policy.levels])

    factor = _bisected(lambda factor: mean_entropy(Enumeration(instance.mdp, scaled(factor))), entropy)
    return scaled(factor)


def _bisected(entropy_of: Callable[[float], float], entropy: float) -> float:
    """The factor of the logits at which an entropy that falls with it has this value."""
    low, high = 0.0, 1.0
    while entropy_of(high) > entropy:
        high *= 2
        if high > 1e6:
            raise ValueError(f"entropy is {entropy}, which this policy does not reach however large its logits; choose a larger one.")
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy_of(middle) > entropy else (low, middle)
    return (low + high) / 2


def _chain(setting: Setting, generator: torch.Generator) -> tuple[NgramPolicy, TokenMDP]:
    """A bigram policy and a bigram reward."""
    policy = NgramPolicy.random(setting.vocab_size, 1, generator)
    reward: MarkovReward = (table := NgramReward.random(setting.vocab_size, 1, generator))
    if setting.rewards == "sparse":
        chosen = torch.rand(table.table.shape, generator=generator, dtype=torch.float64) < SPARSE
        reward = NgramReward(torch.where(chosen, table.table, 0.0))
    elif setting.rewards == "early":
        reward = early_reward(setting.vocab_size, setting.horizon, generator)
    elif setting.rewards == "outcome":
        reward = EndReward(NgramReward((table.table > 0).double()))
    if setting.entropy is not None:
        logits = policy.table.detach()

        def entropy(factor: float) -> float:
            logp = (factor * logits).log_softmax(-1)
            return -float((logp.exp() * logp).sum(-1).mean())

        policy = NgramPolicy(_bisected(entropy, setting.entropy) * logits, 1)
    mdp = TokenMDP(setting.vocab_size, 0, setting.horizon, reward, setting.gamma)
    length = setting.horizon / 2 if setting.length is None and setting.horizon > 16 else setting.length
    return (policy if length is None else with_expected_length(policy, mdp, length)), mdp
