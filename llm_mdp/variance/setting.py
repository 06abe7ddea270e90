"""Settings: token MDPs and policies that differ along named axes, on which estimators are compared, and the
measurements themselves.

A `Setting` is plain JSON; `make_world` makes what is measured on: a tree that is enumerated, or an n-gram chain of any
length.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.estimators.algorithms import Estimator
from llm_mdp.exact.enumeration import MAX_EDGES, Enumeration, TooLarge
from llm_mdp.exact.instances import Instance, random_instance, read_instance
from llm_mdp.exact.ngram_gradient import (
    expected_length,
    ngram_critic,
    ngram_score_sums,
    reward_moments,
    with_expected_length,
)
from llm_mdp.exact.tree_gradient import exact_gradient, optimal_baseline
from llm_mdp.mdp.hidden_rewards import EndReward, HiddenReward, MarkovReward, NgramReward, PositionReward, TableReward
from llm_mdp.mdp.token_mdp import TokenMDP, check_shape
from llm_mdp.sampling.evidence import Evidence, as_worlds
from llm_mdp.sampling.policies import Critic, NgramPolicy, Policy, TabularPolicy, TabularValue, logp_of
from llm_mdp.sampling.sampler import NothingKept, PolicySampler
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.variance.grid import Known, Setup
from llm_mdp.variance.measurement import (
    Estimates,
    Measurement,
    exact_measurement,
    kept_estimates,
    sampled_measurement,
    tree_estimates,
)
from llm_mdp.verify.certificate import loss_weights
from llm_mdp.verify.problem import Problem

Rewards = Literal["dense", "sparse", "early", "outcome"]
REWARDS: tuple[Rewards, ...] = get_args(Rewards)
Kind = Literal["tabular", "ngram", "transformer"]
POLICIES: tuple[Kind, ...] = get_args(Kind)
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

    policy: Kind = "tabular"
    vocab_size: int = 4
    """V; token 0 ends a response."""
    horizon: int = 4
    """T, longest response."""
    rewards: Rewards = "dense"
    """dense: a random number for every token; sparse: for one in ten; early: in the first quarter only; outcome: 1 or 0
    for a whole response, at its end."""
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
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; choose {', '.join(POLICIES)}.")
        if self.prompts < 1:
            raise ValueError(f"prompts is {self.prompts}; there must be at least 1.")
        if self.policy != "ngram" and self.is_long:
            raise ValueError(
                f"a vocabulary of {self.vocab_size}, a horizon of {self.horizon} and {self.prompts} prompt(s) make "
                f"more than {MAX_EDGES:,} "
                "(prefix, token) pairs, too many to enumerate; make one of them smaller, or take the policy ngram, "
                "which needs no tree."
            )
        if self.rewards not in REWARDS:
            raise ValueError(f"rewards is {self.rewards!r}; choose {', '.join(REWARDS)}.")
        if self.success is not None and (self.rewards != "outcome" or not 0 < self.success < 1):
            raise ValueError(
                f"success is {self.success} with {self.rewards} rewards; it is for outcome rewards, and must be in (0, "
                f"1)."
            )
        if self.success is not None and self.policy == "ngram":
            raise ValueError("success cannot be chosen for n-gram policies; leave it out, or take --policy tabular.")
        if self.entropy is not None and not 0 < self.entropy < math.log(self.vocab_size):
            most = math.log(self.vocab_size)
            raise ValueError(
                f"entropy is {self.entropy}; over {self.vocab_size} tokens it must be between 0 and {most:.3f}."
            )
        if self.length is not None and self.policy != "ngram":
            raise ValueError(f"length is {self.length}; it can be chosen for n-gram policies only.")
        if self.length is not None and not 1 < self.length < self.horizon:
            raise ValueError(
                f"length is {self.length}; an expected length is above 1 and below the horizon of {self.horizon} "
                f"tokens."
            )
        if self.policy == "ngram" and self.prompts > 1:
            raise ValueError(f"prompts is {self.prompts}; n-gram settings have one.")
        if self.entropy is not None and self.policy == "transformer":
            raise ValueError(f"entropy is {self.entropy}; it can be chosen for tables and n-grams only.")

    @property
    def is_long(self) -> bool:
        """More (prefix, token) pairs than a score matrix may have? Counted no further than that."""
        nodes = level = self.prompts
        for _ in range(self.horizon - 1):
            level *= self.vocab_size - 1
            nodes += level
            if nodes * self.vocab_size > MAX_EDGES:
                return True
        return nodes * self.vocab_size > MAX_EDGES

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
        noise = TabularValue.random(e.tree, e.prompt, stream(0, "critic"), error * self.deviation)
        return TabularValue(e.tree, e.prompt, [level + wrong for level, wrong in zip(values.U, noise.levels)])

    @cached_property
    def optimal_baseline(self) -> Critic:
        """By the policy's own scores, state by state."""
        e = self.enumeration
        norms = e.scores.square().sum(-1).view(e.n_prompts, e.tree.n_nodes, e.tree.vocab_size)
        levels = [level.transpose(1, 2) for level in norms.split(e.tree.level_sizes, dim=1)]
        return TabularValue(e.tree, e.prompt, optimal_baseline(self.instance.mdp, e.values, levels))

    def facts(self) -> dict[str, Any]:
        """J, |∇J|, expected length: what there is to know, JSON-able."""
        e = self.enumeration
        outcomes = bool(torch.minimum(e.response_reward.abs(), (e.response_reward - 1).abs()).max() < 1e-9)
        return {
            "J": self.problem.gradient[0], "grad_norm": float(self.target.norm()), "expected_length": e.expected_length,
            "entropy": mean_entropy(e), "success": self.problem.gradient[0] if outcomes else None, "target": "exact",
        }  # fmt: skip

    def measure(self, estimator: Estimator, number: int, seed: int, known: Known | None = None) -> Measurement:
        """Exactly where it can be, else from `number` estimates.

        Args: known: see `variance.sampled_measurement`.
        """
        groups = self.enumeration.tree.n_leaves**estimator.group_size * self.enumeration.n_prompts
        if groups <= WORLDS:
            try:
                return exact_measurement(estimator, self.enumeration, self.target, self.problem.magnitude("reward"))
            except TooLarge:
                pass
        return sampled_measurement(
            tree_estimates(estimator, self.enumeration, number, seed), self.target, seed=seed, known=known
        )


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
        noise = stream(0, "critic").initial_seed()
        self.setup = Setup(
            mdp.horizon, J, lambda error: ngram_critic(policy, mdp, error * math.sqrt(self.moments[1]), seed=noise)
        )

    def facts(self) -> dict[str, Any]:
        length = expected_length(self.policy, self.mdp)
        return {
            "J": self.setup.J, "grad_norm": float(self.target.norm()), "expected_length": length,
            "entropy": chain_entropy(self.policy, self.mdp), "success": None, "target": "exact",
        }  # fmt: skip

    def measure(self, estimator: Estimator, number: int, seed: int, known: Known | None = None) -> Measurement:
        """From `number` estimates, see `TreeWorld.measure`."""
        estimates = chain_estimates(estimator, self.policy, self.mdp, number, torch.Generator().manual_seed(seed))
        return sampled_measurement(estimates, self.target, seed=seed, known=known)


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


def chain_entropy(policy: NgramPolicy, mdp: TokenMDP) -> float:
    """Entropy of the policy, nats a token, over the contexts that it visits: J for a reward of H(π(·|c)), over the
    expected length."""
    logp = policy.table.detach()[0].log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True).expand(-1, policy.vocab_size)
    paid = replace(mdp, token_reward=NgramReward(entropy, policy.order), gamma=1.0)
    return reward_moments(policy, paid)[0] / expected_length(policy, mdp)


def make_world(
    setting: Setting, transformer: Callable[[TokenMDP, int], Policy] | None = None
) -> TreeWorld | NgramWorld:
    """Make the token MDP and the policy.

    Args: transformer: makes the policy of that name from a token MDP and a seed.

    Raises:
        ValueError: if nobody makes transformers here.
    """
    if setting.instance is not None:
        return TreeWorld(read_instance(setting.instance))
    if setting.policy == "ngram":
        policy, mdp = chain_of(setting)
        return NgramWorld(policy, mdp) if setting.is_long else TreeWorld(_plain_instance(mdp, policy))
    generator = stream(setting.seed, "rewards")
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
        instance = replace(
            instance, mdp=replace(mdp, token_reward=early_reward(mdp.vocab_size, mdp.horizon, generator))
        )
    elif setting.rewards == "outcome":
        reward = outcome_reward(instance, 0.5 if setting.success is None else setting.success, generator)
        instance = replace(instance, mdp=replace(mdp, token_reward=reward))
    return TreeWorld(instance)


def _plain_instance(mdp: TokenMDP, policy: NgramPolicy) -> Instance:
    """Everything is known of a chain that is short; reference and critic are not asked for."""
    flat, zero = torch.Generator(), 0.0
    reference = TabularPolicy.random(mdp.tree, mdp.prompt_tokens, flat, zero)
    return Instance(mdp, policy, reference, TabularValue.random(mdp.tree, mdp.prompt_tokens, flat, zero))


def stream(seed: int, purpose: str) -> torch.Generator:
    """Random numbers of one purpose: of a seed, and unlike those that the same seed gives for another."""
    state = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def sparse_reward(instance: Instance, generator: torch.Generator) -> HiddenReward:
    """A normal number for one (prefix, token) pair in ten, 0 for the others."""
    tree, prompts = instance.mdp.tree, instance.mdp.prompt_tokens
    shapes = [(len(prompts), tree.vocab_size, size) for size in tree.level_sizes]
    levels = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    chosen = [torch.rand(shape, generator=generator, dtype=torch.float64) < SPARSE for shape in shapes]
    return TableReward(tree, prompts, [torch.where(which, level, 0.0) for which, level in zip(chosen, levels)])


def outcome_reward(instance: Instance, success: float, generator: torch.Generator) -> HiddenReward:
    """1 / γᵗ⁻¹ for the last token of randomly chosen responses; RM is then 1 or 0. The policy is right with about this
    probability over all prompts, the first of which is the easiest and the last the hardest."""
    mdp, tree = instance.mdp, instance.mdp.tree
    e = Enumeration(mdp, instance.policy)
    levels = [torch.zeros(e.n_prompts, tree.vocab_size, size, dtype=torch.float64) for size in tree.level_sizes]
    last = e.length - 1
    every = torch.arange(tree.n_leaves)
    token, prefix = e.tokens[every, last], tree.prefix_index(e.tokens)[every, last]
    for prompt, (probability, wanted) in enumerate(zip(e.probability, successes(success, mdp.prompt_probability))):
        right = _subset(probability, wanted, generator)
        for level in range(tree.horizon):
            here = right[last[right] == level]
            levels[level][prompt, token[here], prefix[here]] = mdp.gamma**-level
    return TableReward(tree, e.prompt, levels)


def successes(success: float, prompt_probability: Float[Tensor, " P"]) -> list[float]:
    """Probabilities of being right whose mean over prompts is `success`; the odds of the easiest are e³ = 20 times
    those of the hardest."""
    ease = (
        torch.linspace(1.5, -1.5, len(prompt_probability), dtype=torch.float64)
        if len(prompt_probability) > 1
        else torch.zeros(1)
    )
    low, high = -50.0, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if float(prompt_probability @ (middle + ease).sigmoid().double()) < success
            else (low, middle)
        )
    return (high + ease).sigmoid().tolist()


def _subset(probability: Float[Tensor, " N"], wanted: float, generator: torch.Generator) -> Int[Tensor, " R"]:
    """Randomly chosen responses whose probabilities sum to about `wanted`: in random order, all that fit; from the
    smaller side."""
    order = torch.randperm(len(probability), generator=generator)
    missing, chosen, others = min(wanted, 1 - wanted), [], []
    for leaf, chance in zip(order.tolist(), probability[order].tolist()):
        fits = chance <= missing
        missing -= chance * fits
        (chosen if fits else others).append(leaf)
    return torch.tensor(chosen if wanted <= 0.5 else others, dtype=torch.int64)


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
            raise ValueError(
                f"entropy is {entropy}, which this policy does not reach however large its logits; choose a larger one."
            )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy_of(middle) > entropy else (low, middle)
    return (low + high) / 2


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
    return scaled(_bisected(lambda factor: chain_entropy(scaled(factor), mdp), setting.entropy)), mdp
