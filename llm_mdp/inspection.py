"""Credit, token by token: what each estimator makes of the very same responses, beside the truth where it is known.

The code that trains is the code that is looked at: every estimator collects its own evidence and computes its own loss,
and what it does to a token is read off as the derivative of that loss. `SameRollouts` sees to it that all of them get
the same responses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.algorithms import (
    TRePO,
)
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import EveryNTokens
from llm_mdp.estimators.catalogue import find_entry
from llm_mdp.estimators.entry import Entry, Given, NeedsExactValues
from llm_mdp.estimators.returns import gae
from llm_mdp.estimators.theorems import Theorem2
from llm_mdp.estimators.values import branch_mean
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.ngram_gradient import ngram_critic
from llm_mdp.exact.tree_gradient import node_logits, tree_values
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.evidence import Evidence, Finish, Rollouts
from llm_mdp.sampling.policies import Critic, NgramPolicy, Policy, TabularValue
from llm_mdp.sampling.sampler import NothingKept, Sampler
from llm_mdp.sampling.shared_draws import SameRollouts
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import loss_weights

LARGEST_TREE = 2_000_000
"""Most numbers in a policy's logits over the tree for which exact values are computed."""


def token_weights(estimator: Estimator, sampler: SameRollouts) -> Float[Tensor, "B T"]:
    """-B ∂loss/∂logp of B responses, at the policy that drew them: what each token's score ∇log π is multiplied with.

    With reduction "sum" this is the advantage; with another one it holds the division by lengths too. 0 where the
    policy did not choose the token, and in groups that the estimator leaves out.

    Raises:
        ValueError: if the loss is no number of these log-probabilities, or its derivative is not finite.
    """
    weights = torch.zeros(sampler.recorded.tokens.shape, dtype=torch.float64)
    try:
        evidence = estimator.collect(sampler)
    except NothingKept:
        return weights
    derivative = loss_weights(estimator, evidence, evidence.rollouts.logp.detach())
    return weights.index_copy(0, sampler.rows, len(derivative) * derivative.double())


# --- which estimators -------------------------------------------------------------------------------------------------


SHOWN = ("reinforce", "rloo", "remax", "grpo", "dr-grpo", "trepo", "trepo-paper", "vineppo", "ppo")
"""What is shown if nobody says what, in this order."""


class Surroundings(Given):
    """What is known where responses are looked at, and how estimators draw there.

    Args:
        horizon: of the task.
        critic: the exact value; None: not known here.
        branches: M, draws from each boundary.
        every: tokens from boundary to boundary of TRePO; the segments of others are twice as long, as in the catalogue.
    """

    def __init__(self, horizon: int, critic: Critic | None = None, branches: int = 4, every: int = 1):
        super().__init__(horizon)
        self._critic, self.branches, self.every = critic, branches, every

    def critic(self, error: float = 0.0) -> Critic:
        return super().critic(error) if self._critic is None or error else self._critic

    def knows(self, entry: Entry) -> bool:
        """Can this estimator be made here?"""
        try:
            entry.make(self)
        except NeedsExactValues:
            return False
        return True

    def options(self, entry: Entry) -> dict[str, Any]:
        """Of the options that an entry has, those that are chosen here."""
        chosen: dict[str, Any] = {"branches": self.branches}
        if isinstance(boundary := entry.options.get("boundary"), EveryNTokens):
            chosen["boundary"] = EveryNTokens(boundary.n * self.every)
        return {name: value for name, value in chosen.items() if name in entry.options}


@dataclass(frozen=True)
class Subject:
    """An estimator to look at, with what is said about it."""

    name: str
    label: str
    words: str
    estimator: Estimator
    verdict: str | None = None
    """Is it unbiased, proportional or biased? Certified on one random token MDP; None: not certified."""


def named_subject(name: str, here: Surroundings) -> Subject:
    """The estimator of this name.

    Raises:
        UsageError: if there is none.
        NeedsExactValues: if it is made from what is not known here.
    """
    entry, problem = find_entry(name, SHOWN), Problem(random_instance(3, 4, gamma=0.9))
    few = {"branches": 2} if "branches" in entry.options else {}
    estimator, small = entry.make(here, **here.options(entry)), entry.make(problem.given, **few)
    return Subject(name, entry.label or name, entry.words, estimator, verdict(small, problem))


def own_subject(name: str, estimator: Estimator) -> Subject:
    """A user's own estimator, described by the first paragraph of its docstring."""
    label = name.rpartition(":")[2]
    words = " ".join((type(estimator).__doc__ or "").strip().split("\n\n")[0].split())
    generated = words.startswith(f"{type(estimator).__name__}(")
    return Subject(
        name,
        label,
        "" if generated else words,
        estimator,
        verdict(estimator, Problem(random_instance(3, 4, gamma=0.9))),
    )


def verdict(estimator: Estimator, problem: Problem) -> str | None:
    """The exact certificate's verdict; None if there are too many outcomes to enumerate."""
    grouped = with_group_size(estimator, problem.group_size)
    try:
        return exact_certificate(
            grouped, problem.enumeration, problem.target("reward"), problem.magnitude("reward")
        ).verdict
    except TooLarge:
        return None


def with_group_size(estimator: Estimator, group_size: int) -> Estimator:
    """The same estimator for groups of this size.

    Raises:
        ValueError: if it has no such option, or refuses the size.
    """
    if not is_dataclass(estimator) or "group_size" not in {each.name for each in fields(estimator) if each.init}:
        raise ValueError(
            f"{type(estimator).__name__} has no option group_size; make it a dataclass, as llm_mdp.Estimator is."
        )
    return replace(estimator, group_size=group_size)


# --- the truth --------------------------------------------------------------------------------------------------------


def exact_value(policy: Policy, mdp: TokenMDP) -> Critic | None:
    """U(p) = E[RM(W) | W starts with p] as a critic: from the tree if it is small, from the chain of contexts if policy
    and reward look back a few tokens only; None where it is not known."""
    tree = mdp.tree
    if len(mdp.prompts) * mdp.vocab_size * tree.n_nodes <= LARGEST_TREE // mdp.horizon:
        with torch.no_grad():
            values = tree_values(mdp, node_logits(policy, mdp), mdp.token_reward.levels(tree, mdp.prompt_tokens))
        return TabularValue(tree, mdp.prompt_tokens, values.U)
    try:
        return ngram_critic(policy, mdp) if isinstance(policy, NgramPolicy) else None
    except ValueError:  # the reward looks back too far
        return None


@dataclass(frozen=True)
class Truth:
    """What the weights of an estimator can be held against; all (B, T), None where it is not known."""

    hidden_reward: Float[Tensor, "B T"] | None = None
    """r(W₀,ₜ₋₁, wₜ)."""
    advantage: Float[Tensor, "B T"] | None = None
    """U(W₀,ₜ) - U(W₀,ₜ₋₁), the weight of least noise but for the baseline (Theorem 2)."""
    error: Float[Tensor, "B T"] | None = None
    """Standard error of an advantage that was estimated by draws."""
    draws: int | None = None

    def columns(self) -> list[dict[str, str]]:
        """Name and label of each part that is known."""
        by = "exact advantage" if self.draws is None else f"advantage by {self.draws} draws"
        parts = (("hidden_reward", "hidden token reward", self.hidden_reward), ("advantage", by, self.advantage))
        return [{"name": name, "label": label} for name, label, values in parts if values is not None]


def find_truth(sampler: SameRollouts, *, hidden: bool, critic: Critic | None, draws: int) -> Truth:
    """The truth about the recorded responses.

    Args:
        hidden: does the sampler know the hidden token rewards?
        critic: the exact U, if it is known.
        draws: without a critic, estimate the advantage by this many fresh responses from every prefix; 0: leave it
            unknown.
    """
    reward = sampler.hidden_reward(sampler.recorded) if hidden else None
    if critic is not None:
        return Truth(reward, token_weights(Theorem2(group_size=sampler.group_size, critic=critic), sampler))
    if draws == 0:
        return Truth(reward)
    estimator = TRePO(group_size=sampler.group_size, temperatures=(1.0,) * draws)
    evidence = estimator.collect(sampler)
    return Truth(reward, estimator.advantages(evidence), _error_of_draws(evidence, draws), draws)


def _error_of_draws(evidence: Evidence, draws: int) -> Float[Tensor, "B T"]:
    """Of Û(W₀,ₜ) - Û(W₀,ₜ₋₁), two independent means of `draws` rewards each; the last one is RM(W) itself, which has no
    error."""
    assert evidence.branches is not None
    rollouts, reward = evidence.rollouts, evidence.branches.reward
    centre = reward.mean()  # so that the squares keep their digits
    mean, square = (
        branch_mean(replace(evidence.branches, reward=(reward - centre) ** power), rollouts) for power in (1, 2)
    )
    variance = (square - mean**2).clamp(min=0) / (draws - 1)
    # Without reward, λ = 0, GAE is the next value minus this one.
    return (
        (gae(torch.zeros_like(rollouts.logp), variance, rollouts.mask, lam=0.0) + 2 * variance[..., :-1])
        .clamp(min=0)
        .sqrt()
    )


# --- the document -----------------------------------------------------------------------------------------------------


def inspect(
    sampler: Sampler,
    subjects: Sequence[Subject],
    group_size: int,
    decode: Callable[[list[int]], str],
    *,
    eos: int | None,
    hidden: bool = False,
    critic: Critic | None = None,
    draws: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Draw one batch of responses and let every estimator weigh their tokens.

    Args:
        sampler: draws group_size responses to each of its prompts, once.
        decode: token ids as text.
        hidden, critic, draws: what is known of the truth, see `find_truth`.
        progress: called with the name of each estimator when it is done.

    Returns:
        {"group_size", "eos", "estimators": […], "truth": […], "groups": [{"prompt", "responses": [{"reward", "finish",
        "tokens": […]}]}]}

    Raises:
        ValueError: if there is no estimator, one is named twice, a number is out of range, or an estimator cannot look
        at these responses.
    """
    if not subjects:
        raise ValueError(f"there is no estimator to look at; name at least one of {', '.join(SHOWN)}.")
    names = [subject.name for subject in subjects]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the estimator {repeated[0]!r} is named twice; name each once.")
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; at least 1 response to a prompt is needed.")
    if draws < 0 or draws == 1:
        raise ValueError(f"draws is {draws}; give at least 2, without which there is no standard error, or 0 for none.")
    estimators = [with_group_size(subject.estimator, group_size) for subject in subjects]
    rollouts = sampler.rollouts(group_size)
    reward = sampler.response_reward(rollouts)
    same = SameRollouts(sampler, rollouts, reward, group_size)
    truth = find_truth(same, hidden=hidden, critic=critic, draws=draws)
    weights = {}
    for name, estimator in zip(names, estimators):
        weights[name] = token_weights(estimator, SameRollouts(sampler, rollouts, reward, group_size))
        progress(name)
    described = [
        {
            "name": subject.name, "label": subject.label, "words": subject.words, "verdict": subject.verdict,
            "agreement": agreement(weights[subject.name], truth.advantage, rollouts),
        }
        for subject in subjects
    ]  # fmt: skip
    responses = [_response(row, rollouts, reward, weights, truth, decode) for row in range(len(reward))]
    groups = [
        {
            "prompt": decode([token for token in rollouts.prompt[start].tolist() if token >= 0]),
            "responses": responses[start:][:group_size],
        }
        for start in range(0, len(reward), group_size)
    ]
    return {"group_size": group_size, "eos": eos, "estimators": described, "truth": truth.columns(), "groups": groups}


def agreement(
    weights: Float[Tensor, "B T"], advantage: Float[Tensor, "B T"] | None, rollouts: Rollouts
) -> float | None:
    """Pearson's correlation of the weights with the advantage over all policy tokens; None where either is constant or
    unknown."""
    if advantage is None:
        return None
    pair = torch.stack([weights[rollouts.mask], advantage[rollouts.mask]])
    centred = pair - pair.mean(-1, keepdim=True)
    # What equal numbers differ from their mean by is rounding.
    if bool((centred.abs().amax(-1) <= 1e-12 * pair.abs().amax(-1)).any()):
        return None
    one, two = centred / centred.norm(dim=-1, keepdim=True)
    return float(one @ two)


def token_texts(decode: Callable[[list[int]], str], tokens: list[int]) -> list[str]:
    """The text that each token adds: joined, they are the text of all. A character of several tokens belongs to the one
    that completes it, and the others are empty; where the decoder rewrites earlier text, every token stands for
    itself."""
    texts, said = [], ""
    for end in range(1, len(tokens) + 1):
        whole = decode(tokens[:end])
        if end < len(tokens):
            whole = whole.rstrip("\ufffd")
        if not whole.startswith(said):
            return [decode([token]) for token in tokens]
        texts.append(whole[len(said) :])
        said = whole
    return texts


def _response(
    row: int,
    rollouts: Rollouts,
    reward: Tensor,
    weights: dict[str, Tensor],
    truth: Truth,
    decode: Callable[[list[int]], str],
) -> dict[str, Any]:
    """One response as JSON."""
    tokens, chosen = [token for token in rollouts.tokens[row].tolist() if token >= 0], rollouts.mask[row].tolist()

    def at(values: Tensor | None, step: int) -> float | None:
        return float(values[row, step]) if values is not None and chosen[step] else None

    return {
        "reward": float(reward[row]),
        "finish": Finish(int(rollouts.finish[row])).name.lower(),
        "tokens": [
            {
                "text": text,
                "id": token,
                "policy": chosen[step],
                "logp": at(rollouts.logp, step),
                "hidden_reward": at(truth.hidden_reward, step),
                "advantage": at(truth.advantage, step),
                "error": at(truth.error, step),
                "weights": {name: at(each, step) for name, each in weights.items()},
            }
            for step, (token, text) in enumerate(zip(tokens, token_texts(decode, tokens)))
        ],
    }
