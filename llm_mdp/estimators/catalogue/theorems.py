"""Names of the paper's statements, with exact values in place of what a trainer would have to estimate."""

from llm_mdp.estimators.algorithms import PPO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.entry import GIVEN, ORACLE, Entry, Given, K
from llm_mdp.estimators.theorems import (
    Lemma1,
    MixedRewards,
    ReturnToGo,
    TerminalDiscounted,
    Theorem1,
    Theorem2,
    Whitened,
    WithBaseline,
)
from llm_mdp.mdp.hidden_rewards import ScaledReward


def _to_go(given: Given, weighted: bool) -> Estimator:
    assert given.token_reward is not None  # the sampler hands them out; where nobody knows them, this says so
    return ReturnToGo(gamma=given.gamma, weighted=weighted)


def _mixed(given: Given, merged: bool) -> Estimator:
    return MixedRewards(token_model=ScaledReward(0.5, given.token_reward), gamma=given.gamma, merged=merged)


THEOREMS: tuple[Entry, ...] = (
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
        lambda g, group_size: Whitened(group_size), K, claims=("remark-4-whitening", "remark-4-batch"),
    ),
    Entry(
        "remark-4-batch-responses", "The reward, normalised over all responses of the batch.",
        lambda g, group_size: Whitened(group_size, over="responses"), K,
    ),
    Entry(
        "trajectory-gamma", "γᵀ⁻¹ RM on the last token, on every token.", lambda g: TerminalDiscounted(gamma=g.gamma),
    ),
    Entry(
        "trajectory-gamma-discounted", "γᵀ⁻¹ RM on the last token, as γᵗ⁻¹ Gₜ.",
        lambda g: TerminalDiscounted(gamma=g.gamma, discounted=True),
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
)  # fmt: skip
