"""Names of what is made of responses that another policy drew, and of the objectives meant for them.

`…-stale`: another policy draws. Without it the policy itself does, and every ratio is 1 at the first update.
"""

from typing import Any

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.entry import GIVEN, ORACLE, Entry, Given, K, unbiased
from llm_mdp.estimators.objectives import Level
from llm_mdp.estimators.off_policy import SAPO, OffPolicy, Reweighted

ONE: dict[str, Any] = {"group_size": 1}


def _stale(given: Given) -> dict[str, Any]:
    return {"behaviour": given.behaviour, "baseline": given.expected_reward or 0.0}


def _reweighted(given: Given, level: Level, cap: float | None = None) -> Estimator:
    return Reweighted(level=level, cap=cap, **_stale(given))


def _cispo(given: Given, group_size: int, eps_high: float) -> Estimator:
    return Reweighted(group_size, baseline=given.expected_reward or 0.0, cap=1 + eps_high)


OFF_POLICY: tuple[Entry, ...] = (
    Entry(
        "mismatch-ignored", "Another policy draws, and nobody minds: the reward less its expectation.",
        lambda g: OffPolicy(**_stale(g)), **GIVEN,
    ),
    Entry(
        "mismatch-token", "Another policy draws; times the ratio of each token.",
        lambda g: _reweighted(g, "token"), **GIVEN,
    ),
    Entry(
        "mismatch-token-capped", "Another policy draws; times the ratio of each token, 2 at most.",
        lambda g: _reweighted(g, "token", 2.0), **GIVEN,
    ),
    Entry(
        "mismatch-sequence", "Another policy draws; times the ratio of the response.",
        lambda g: _reweighted(g, "sequence"), **ORACLE,
    ),
    Entry(
        "mismatch-sequence-capped", "Another policy draws; times the ratio of the response, 2 at most.",
        lambda g: _reweighted(g, "sequence", 2.0), **GIVEN,
    ),
    Entry(
        "gspo", "GRPO by length; the ratio of the response, to the power 1/length, is clipped to 1 - 3e-4 … 1 + 4e-4.",
        lambda g, group_size: Reweighted(
            group_size, scale_by_std=True, level="geometric", reduction="sequence_mean",
            clip_low=3e-4, clip_high=4e-4,
        ), K, label="GSPO",
    ),
    Entry(
        "gspo-stale", "Another policy draws; times the ratio of the response to the power 1/length.",
        lambda g: _reweighted(g, "geometric"), **GIVEN,
    ),
    Entry(
        "cispo", "The reward less its expectation; the ratio of each token weighs it, 6 at most (ε = 5).",
        lambda g, group_size: _cispo(g, group_size, 5.0), ONE, label="CISPO", proved=unbiased,
    ),
    Entry(
        "cispo-0.2", "The same, 1.2 at most (ε = 0.2).", lambda g, group_size: _cispo(g, group_size, 0.2), ONE,
        label="CISPO, 0.2", proved=unbiased,
    ),
    Entry(
        "cispo-stale", "CISPO (ε = 5) where another policy draws.", lambda g: _reweighted(g, "token", 6.0), **GIVEN,
    ),
    Entry(
        "cispo-0.2-stale", "CISPO (ε = 0.2) where another policy draws.",
        lambda g: _reweighted(g, "token", 1.2), **GIVEN,
    ),
    Entry(
        "sapo", "The reward less its expectation; a soft gate of the ratio in place of clipping.",
        lambda g, group_size: SAPO(group_size, baseline=g.expected_reward or 0.0), ONE,
        label="SAPO", proved=unbiased,
    ),
    Entry("sapo-stale", "SAPO where another policy draws.", lambda g: SAPO(**_stale(g)), **GIVEN),
)  # fmt: skip
