"""Names of what agents train with, in the paper's order, and of TRePO's parts."""

from typing import Any

from llm_mdp.estimators.algorithms import GRPO, MARLHF, PPO, REINFORCE, RLOO, ReMax, TRePO, VinePPO, ramp
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import EveryNTokens, FractionsOfLength
from llm_mdp.estimators.entry import GIVEN, ORACLE, Entry, Given, K, by_critic, proportional, unbiased
from llm_mdp.estimators.learned_credit import ABC, DPO, PRIME, R3HF, RTO
from llm_mdp.estimators.theorems import WithGreedyBaseline
from llm_mdp.estimators.trepo_readings import InterpolatedValues, PooledDraws, RandomStep

D: dict[str, Any] = {"boundary": EveryNTokens(2)}
VALUES: dict[str, Any] = {"lam": 0.95, "critic_error": 0.0}
GAE = tuple(f"gae-{critic}-{lam}" for critic in ("exact", "wrong") for lam in ("0", "0.95", "1"))


def _trepo(given: Given, group_size: int, boundary: Any, branches: int, lam: float) -> Estimator:
    temperatures = (1.0,) * branches
    return TRePO(group_size, boundary=boundary, temperatures=temperatures, lam=lam, group_baseline=group_size > 1)


def _trepo_paper(given: Given, boundary: Any, branches: int) -> Estimator:
    return TRePO(boundary=boundary, temperatures=ramp(branches), pooled=True, interpolated=True)


def _rto(given: Given, paper: bool = False) -> Estimator:
    return RTO(dpo_policy=given.dpo_policy, reference=given.reference, beta=given.beta, paper=paper)


def _prime(given: Given, group_size: int) -> Estimator:
    model, reference = given.process_model, given.reference
    return PRIME(group_size, process_model=model, reference=reference, beta=given.beta, threshold=given.median)


ALGORITHMS: tuple[Entry, ...] = (
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
        claims=(
            *(f"trepo-algorithm-1-m{branches}" for branches in (1, 2, 4)),
            "trepo-eq31", "trepo-interpolated", "trepo-greedy-ramp",
        ),
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
        "trepo-eq31-without-w", "TRePO, values pooled over the draws of later steps, the response itself left out.",
        lambda g: PooledDraws(temperatures=(1.0,)),
    ),
    Entry(
        "trepo-interpolated", "TRePO, exact values, advantages interpolated between boundaries.",
        lambda g, boundary: TRePO(boundary=boundary, interpolated=True, critic=g.critic()), D, **GIVEN,
    ),
    Entry(
        "trepo-interpolated-values", "TRePO, exact values, interpolated between boundaries.",
        lambda g, boundary: InterpolatedValues(boundary=boundary, critic=g.critic()), D, **GIVEN,
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
        "trepo-random-step", "TRePO, exact values, a boundary drawn from all steps in advance.",
        lambda g: RandomStep(critic=g.critic(), horizon=g.horizon), **ORACLE,
    ),
    Entry(
        "trepo-random-step-of-response", "TRePO, exact values, a boundary drawn from the response's own steps.",
        lambda g: RandomStep(critic=g.critic(), horizon=g.horizon, of_response=True), **GIVEN,
    ),
    Entry(
        "trepo-greedy-values", "TRePO, greedy draws on both sides.", lambda g: TRePO(temperatures=(0.0,)),
    ),
    Entry(
        "trepo-greedy-ramp", "TRePO, temperatures 0, 1/3, 2/3 and 1 on both sides.",
        lambda g: TRePO(temperatures=ramp(4)),
    ),
    Entry(
        "trepo-greedy-baseline", "The exact value less that of the greedily completed prefix.",
        lambda g: WithGreedyBaseline(critic=g.critic()), **ORACLE,
    ),
)  # fmt: skip
