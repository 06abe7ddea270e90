"""The catalogue: every estimator that has a name, once. `verify`, `variance`, `inspect` and `train` read it.

A name means one estimator, with the options that stand here; where a command chooses others (a group size, a clip, a
reduction), its output says so. A new estimator is its class, an entry here, and its claim in `verify/claims.py`.
"""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from llm_mdp.estimators.algorithms import GRPO, MARLHF, PPO, REINFORCE, RLOO, ReMax, TRePO, VinePPO, ramp
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import EveryNTokens, FractionsOfLength
from llm_mdp.estimators.entry import Entry, Given, NeedsExactValues, by_critic, proportional, unbiased
from llm_mdp.estimators.learned_credit import ABC, DPO, PRIME, R3HF, RTO
from llm_mdp.estimators.objectives import KL
from llm_mdp.estimators.practices import (
    KLEstimator,
    KLLoss,
    KLReward,
    MaskedTruncated,
    SecondEpoch,
    Tempered,
    ZeroStdFiltered,
)
from llm_mdp.estimators.theorems import (
    Lemma1,
    MixedRewards,
    ReturnToGo,
    Theorem1,
    Theorem2,
    Whitened,
    WithBaseline,
    WithGreedyBaseline,
)
from llm_mdp.mdp.hidden_rewards import ScaledReward
from llm_mdp.own import UsageError, did_you_mean


def _trepo(given: Given, group_size: int, boundary: Any, branches: int, lam: float) -> Estimator:
    temperatures = (1.0,) * branches
    return TRePO(group_size, boundary=boundary, temperatures=temperatures, lam=lam, group_baseline=group_size > 1)


def _trepo_paper(given: Given, boundary: Any, branches: int) -> Estimator:
    return TRePO(boundary=boundary, temperatures=ramp(branches), pooled=True, interpolated=True)


def _to_go(given: Given, weighted: bool) -> Estimator:
    assert given.token_reward is not None  # the sampler hands them out; where nobody knows them, this says so
    return ReturnToGo(gamma=given.gamma, weighted=weighted)


def _mixed(given: Given, merged: bool) -> Estimator:
    return MixedRewards(token_model=ScaledReward(0.5, given.token_reward), gamma=given.gamma, merged=merged)


def _kl(penalty: type[KLEstimator], given: Given, kind: KL) -> Estimator:
    return penalty(reference=given.reference, kind=kind)


def _rto(given: Given, paper: bool = False) -> Estimator:
    return RTO(dpo_policy=given.dpo_policy, reference=given.reference, beta=given.beta, paper=paper)


def _prime(given: Given, group_size: int) -> Estimator:
    model, reference = given.process_model, given.reference
    return PRIME(group_size, process_model=model, reference=reference, beta=given.beta, threshold=given.median)


K: dict[str, Any] = {"group_size": 4}
D: dict[str, Any] = {"boundary": EveryNTokens(2)}
VALUES: dict[str, Any] = {"lam": 0.95, "critic_error": 0.0}
GIVEN: dict[str, Any] = {"given_values": True}
ORACLE: dict[str, Any] = GIVEN | {"proved": unbiased}
GAE = tuple(f"gae-{critic}-{lam}" for critic in ("exact", "wrong") for lam in ("0", "0.95", "1"))

ENTRIES: tuple[Entry, ...] = (
    # --- what agents train with, in the paper's order ---------------------------------------------------------------
    Entry(
        "reinforce", "The reward of the response, on every token.", lambda g: REINFORCE(),
        label="REINFORCE", claims=("reinforce", "corollary-1"), proved=unbiased,
    ),
    Entry(
        "reinforce-mean", "The reward less its expectation, what a running mean becomes: one shared baseline.",
        lambda g: REINFORCE(baseline=g.expected_reward or 0.0), label="REINFORCE, mean",
        claims=("corollary-1",), proved=unbiased,
    ),
    Entry(
        "rloo", "The reward less the mean of the other responses.", lambda g, group_size: RLOO(group_size), K,
        label="RLOO", claims=("rloo", "rloo-eq36"), proved=unbiased,
    ),
    Entry(
        "rloo-eq36", "RLOO as printed: the response's own reward is in the sum.",
        lambda g, group_size: RLOO(group_size, paper=True), K, label="RLOO as printed",
    ),
    Entry(
        "remax", "The reward less that of the greedy response.", lambda g: ReMax(),
        label="ReMax", proved=unbiased,
    ),
    Entry(
        "grpo", "The reward less the mean of the group, divided by its standard deviation.",
        lambda g, group_size: GRPO(group_size), K, label="GRPO",
        claims=("grpo", "grpo-mean", "grpo-length", "dr-grpo", "token-mean", "zero-std-filtered", "masked-truncated"),
    ),
    Entry(
        "grpo-mean", "The reward less the mean of the group.",
        lambda g, group_size: GRPO(group_size, scale_by_std=False), K,
        label="GRPO without std", proved=proportional,
    ),
    Entry(
        "grpo-length", "GRPO, divided by the response's own length.",
        lambda g, group_size: GRPO(group_size, reduction="sequence_mean"), K,
        label="GRPO by length",
    ),
    Entry(
        "dr-grpo", "The reward less the mean of the group, divided by the horizon.",
        lambda g, group_size: GRPO(
            group_size, scale_by_std=False, reduction="constant", reduction_constant=g.horizon
        ), K, label="Dr. GRPO", proved=proportional,
    ),
    Entry(
        "ppo", "GAE(λ) over the exact value, off by σ: the critic that PPO hopes for.",
        lambda g, lam, critic_error: PPO(critic=g.critic(critic_error), lam=lam), VALUES,
        label="PPO, exact critic", claims=(*GAE, "ppo-second-epoch"), proved=by_critic, **GIVEN,
    ),
    Entry(
        "ma-rlhf", "GAE(λ) over macro actions of several tokens, with a critic off by σ.",
        lambda g, boundary, lam, critic_error: MARLHF(critic=g.critic(critic_error), lam=lam, boundary=boundary),
        D | VALUES, label="MA-RLHF", proved=by_critic, **GIVEN,
    ),
    Entry(
        "vineppo", "From segment to segment, the change of a value that fresh draws estimate.",
        lambda g, boundary, branches: VinePPO(boundary=boundary, temperatures=(1.0,) * branches),
        D | {"branches": 9}, label="VinePPO", proved=unbiased,
    ),
    Entry(
        "trepo", "The same with GAE(λ); from K = 2 on the prompt's value is the mean of the other responses.",
        _trepo, {"group_size": 1, "boundary": EveryNTokens(1), "branches": 4, "lam": 0.0}, label="TRePO",
        claims=(
            "trepo", "trepo-segment", "trepo-lambda", "trepo-eq31", "trepo-interpolated", "trepo-greedy-values",
            "trepo-own-length",
        ), proved=unbiased,
    ),
    Entry(
        "trepo-paper", "Algorithm 1 as printed: draws of later tokens pooled, interpolated, temperatures from 0.",
        _trepo_paper, D | {"branches": 4}, label="TRePO as printed",
        claims=("trepo-eq31", "trepo-interpolated", "trepo-greedy-values"),
    ),
    Entry("dpo", "Preference pairs, pushed apart.", lambda g: DPO(beta=g.beta), label="DPO", claims=("dpo-optimum",)),
    Entry(
        "rto", "Implicit rewards β log(π/ref) of a model trained by DPO, summed from each token on.", _rto,
        label="RTO", claims=("rto", "rto-eq41", "dpo-optimum"), **ORACLE,
    ),
    Entry("rto-eq41", "RTO as printed: ratios, not logarithms.", lambda g: _rto(g, True), **GIVEN),
    Entry(
        "abc", "Shares of the reward by attention, uniform here, all of them summed.", lambda g: ABC(),
        label="ABC", claims=("abc-full-sum", "abc-return-to-go"), proved=unbiased,
    ),
    Entry(
        "abc-return-to-go", "The same shares, summed from each token on.", lambda g: ABC(to_go=True),
        label="ABC, to go",
    ),
    Entry(
        "r3hf", "Differences of a score of partial responses, summed from each token on.",
        lambda g: R3HF(prefix_score=g.wrong_critic), label="R3HF", **ORACLE,
    ),
    Entry(
        "prime", "Process rewards implicit in a model of outcomes, and the outcome less that of the others.", _prime, K,
        label="PRIME", **GIVEN,
    ),
    # --- TRePO, part by part ----------------------------------------------------------------------------------------
    Entry(
        "trepo-eq31", "TRePO, values pooled over the draws of later steps.",
        lambda g: TRePO(temperatures=(1.0,), pooled=True),
    ),
    Entry(
        "trepo-interpolated", "TRePO, exact values, advantages interpolated between boundaries.",
        lambda g, boundary: TRePO(boundary=boundary, interpolated=True, critic=g.critic()), D, **GIVEN,
    ),
    Entry(
        "trepo-segment", "TRePO, exact values, one advantage for a segment.",
        lambda g, boundary: TRePO(boundary=boundary, critic=g.critic()), D, **ORACLE,
    ),
    Entry(
        "trepo-own-length", "TRePO, boundaries at fractions of the response's own length.",
        lambda g: TRePO(boundary=FractionsOfLength(2), critic=g.critic()), **GIVEN,
    ),
    Entry(
        "trepo-greedy-values", "TRePO, greedy draws on both sides.", lambda g: TRePO(temperatures=(0.0,)),
    ),
    Entry(
        "trepo-greedy-baseline", "The exact value less that of the greedily completed prefix.",
        lambda g: WithGreedyBaseline(critic=g.critic()), **ORACLE,
    ),
    # --- the paper's statements -------------------------------------------------------------------------------------
    Entry(
        "lemma-1", "γᵗ⁻¹ Q, exactly.", lambda g: Lemma1(critic=g.future_value, gamma=g.gamma), **ORACLE,
    ),
    Entry(
        "lemma-2", "γᵗ⁻¹ Q and any function of the prefix.",
        lambda g: Lemma1(critic=g.future_value, gamma=g.gamma, baseline=g.wrong_critic), **ORACLE,
    ),
    Entry(
        "theorem-1", "U(W₀,ₜ) itself, exactly.", lambda g: Theorem1(critic=g.critic()),
        label="Theorem 1", **ORACLE,
    ),
    Entry(
        "theorem-2", "U(W₀,ₜ) - U(W₀,ₜ₋₁), exactly: many draws everywhere.", lambda g: Theorem2(critic=g.critic()),
        label="Theorem 2", **ORACLE,
    ),
    Entry(
        "theorem-2-optimal", "U(W₀,ₜ) less the optimal baseline of the state, exactly.",
        lambda g: WithBaseline(critic=g.critic(), baseline=g.optimal_baseline), label="optimal baseline",
        claims=("theorem-2", "lemma-2"), **ORACLE,
    ),
    Entry(
        "value-baseline", "The reward less the exact value of the state.", lambda g: PPO(critic=g.critic(), lam=1.0),
        label="value baseline", claims=("gae-exact-1",), **ORACLE,
    ),
    Entry(
        "remark-2-return-to-go", "γᵗ⁻¹ Gₜ of the hidden token rewards.", lambda g: _to_go(g, True), **ORACLE,
    ),
    Entry(
        "remark-3-undiscounted", "Gₜ of the hidden token rewards, without γᵗ⁻¹.",
        lambda g: _to_go(g, False), **GIVEN,
    ),
    Entry(
        "remark-4-whitening", "The reward, normalised over all tokens of the batch.",
        lambda g, group_size: Whitened(group_size), K,
    ),
    Entry(
        "remark-5-merged", "Token- and response-level rewards in one sum.", lambda g: _mixed(g, True), **ORACLE,
    ),
    Entry(
        "remark-5-token-level", "γᵗ⁻¹ Gₜ of the token-level part, the rest whole.",
        lambda g: _mixed(g, False), **ORACLE,
    ),
    *(
        Entry(
            f"gae-wrong-{lam:g}", f"GAE({lam:g}) over a wrong value.",
            lambda g, lam=lam: PPO(critic=g.wrong_critic, lam=lam), claims=(f"gae-wrong-{lam:g}",), **GIVEN,
        )
        for lam in (0, 0.95, 1)
    ),
    Entry(
        "gae-discounted", "GAE(1) with γ = 0.9 on a reward that comes once.",
        lambda g: PPO(critic=g.critic(), lam=1.0, gamma=0.9), **GIVEN,
    ),
    # --- the field's habits -----------------------------------------------------------------------------------------
    Entry("kl-k1-reward", "A KL penalty, k1 in the reward.", lambda g: _kl(KLReward, g, "k1"), **GIVEN),
    Entry("kl-k1-loss", "A KL penalty, k1 in the loss.", lambda g: _kl(KLLoss, g, "k1"), **GIVEN),
    Entry("kl-k2-loss", "A KL penalty, k2 in the loss.", lambda g: _kl(KLLoss, g, "k2"), **GIVEN),
    Entry("kl-k3-loss", "A KL penalty, k3 in the loss.", lambda g: _kl(KLLoss, g, "k3"), **GIVEN),
    Entry("kl-k3-reward", "A KL penalty, k3 in the reward.", lambda g: _kl(KLReward, g, "k3"), **GIVEN),
    Entry(
        "length-normalised", "The reward, divided by the response's length.",
        lambda g: REINFORCE(reduction="sequence_mean"),
    ),
    Entry(
        "token-mean", "The reward, summed over the group and divided by its tokens.",
        lambda g, group_size: REINFORCE(group_size, reduction="token_mean"), K,
    ),
    Entry(
        "masked-truncated", "The reward, but nothing for responses that hit the length cap.",
        lambda g: MaskedTruncated(),
    ),
    Entry(
        "zero-std-filtered", "RLOO, groups of equal rewards left out of the average.",
        lambda g, group_size: ZeroStdFiltered(group_size), K,
    ),
    Entry(
        "temperature-mismatch", "Drawn at temperature 0.6, scored at 1.", lambda g: Tempered(temperature=0.6),
    ),
    Entry(
        "ppo-second-epoch", "The second update on the same responses, clipped.", lambda g: SecondEpoch(),
    ),
)  # fmt: skip

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
"""By name."""


def find_entry(name: str, among: Iterable[str] = CATALOGUE) -> Entry:
    """The entry of this name.

    Raises:
        UsageError: with the nearest name, if there is none.
    """
    if name not in CATALOGUE:
        hint = did_you_mean(name, CATALOGUE, f"choose among {', '.join(among)}, or write FILE.py:CLASS.")
        raise UsageError(f"there is no estimator {name!r}; {hint}")
    return CATALOGUE[name]


def describe(estimator: Estimator, name: str, given: Given) -> str:
    """The options of an estimator that are not those of its name: `reduction sequence_mean, clip_low 0.2`; empty if
    there are none. Models and critics are no options, nor is the horizon.

    Raises:
        UsageError: if there is no such name.
    """
    try:
        named = find_entry(name).make(given)
    except NeedsExactValues:  # made from values that agents learn; what else it has are the defaults of its class
        named = None
    differs = []
    for each in fields(estimator):
        value = getattr(estimator, each.name)
        usual = getattr(named, each.name, each.default)
        plain = isinstance(value, bool | int | float | str | tuple) and each.name not in (
            "horizon",
            "reduction_constant",
        )
        if plain and value != usual:
            differs.append(f"{each.name} {value}")
    return ", ".join(differs)
