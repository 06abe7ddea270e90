"""Verdicts on OpenRLHF, SkyRL, AReaL, ms-swift and tinker-cookbook, derived again without them, from what was worked
out by hand.

The figures (scale, 1 - cosine) are those that OpenRLHF 0.11.2, SkyRL 0.3.0, AReaL 1.0.4, ms-swift 4.6.0 and
tinker-cookbook 0.6.1 themselves gave to the audit.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from llm_mdp.audit.adapter import advantages_of, loss_of
from llm_mdp.exact.instances import random_instance
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.choice import moments_by
from llm_mdp.verify.geometry import geometry_of
from llm_mdp.verify.problem import Problem
from tests.audit.others_by_hand import ADVANTAGES, CORRECTED, LOSSES, divided_by_the_mean, one_token_out

K = 3
PROBLEMS = {
    "dense": Problem(random_instance(2, 3, seed=1), group_size=K),
    "right-or-wrong": Problem(random_instance(2, 3, n_prompts=2, success=0.4, seed=5), group_size=K),
}
"""4 responses each, so that a certificate is one of 20 or 40 groups."""

GIVEN = {
    ("openrlhf", "algo.kl.init_coef=0.3,algo.advantage.estimator=dr_grpo"): (
        "reward - 0.3 kl",
        (("biased", 0.6123, 0.00215), ("biased", 0.9632, 0.0114)),
    ),
    ("openrlhf", "algo.kl.init_coef=0.3,algo.advantage.estimator=dr_grpo (β = 0.45)"): (
        "reward - 0.45 kl",
        (("proportional", 0.6667, 0), ("proportional", 0.6667, 0)),
    ),
    (
        "openrlhf",
        CORRECTED,
    ): ("reward - 0.3 kl", (("biased", 1.026, 3.06e-05), ("biased", 0.7939, 0.0474))),
    (
        "openrlhf",
        f"{CORRECTED} (KL at visited states)",
    ): ("reward - 0.3 kl at visited states", (("unbiased", 1.0, 0), ("unbiased", 1.0, 0))),
    ("openrlhf", "algo.advantage.estimator=reinforce,actor.loss_agg_mode=token-mean,algo.kl.init_coef=0.0"): (
        "reward",
        (("biased", 1.465, 0.00604), ("biased", 1.279, 0.00369)),
    ),
    ("openrlhf", "algo.advantage.estimator=group_norm,actor.loss_agg_mode=token-mean,algo.kl.init_coef=0.0"): (
        "reward",
        (("biased", 1.2, 0.00498), ("proportional", 1.155, 0)),
    ),
    ("areal", "defaults"): ("reward", (("biased", 1.153, 0.000757), ("biased", 1.017, 0.0113))),
    ("areal", "kl_ctl=0.1 (without a reference, against an entropy bonus)"): (
        "reward + 0.1 entropy",
        (("unbiased", 1.0, 0), ("unbiased", 1.0, 0)),
    ),
    ("areal", "adv_norm=group mean, leave one out"): (
        "reward",
        (("biased", 0.7882, 0.00235), ("biased", 0.7192, 0.00506)),
    ),
    ("areal", "mask_no_eos_with_zero=True"): ("reward", (("biased", 0.57, 0.0918), ("biased", 0.1916, 0.48))),
    ("areal", "kl_ctl=0.3,reward_norm=group mean"): (
        "reward - 0.3 kl",
        (("biased", 0.6123, 0.00215), ("biased", 0.9632, 0.0114)),
    ),
    ("skyrl", "advantage_estimator=maxrl,loss_reduction=seq_mean_token_sum_norm"): (
        "reward",
        (("biased", -0.6641, 2.0), ("biased", 1.74, 0.0147)),
    ),
    ("openrlhf", "algo.advantage.estimator=rloo,actor.loss_agg_mode=token-mean,algo.kl.init_coef=0.0"): (
        "reward",
        (("biased", 0.5789, 0.00183), ("biased", 0.4373, 0.00692)),
    ),
    ("openrlhf", "actor.policy_loss_type=gspo,algo.advantage.estimator=rloo,algo.kl.init_coef=0.0"): (
        "reward",
        (("biased", 0.6186, 0.00825), ("biased", 0.4069, 0.0567)),
    ),
    (
        "openrlhf",
        "actor.loss_agg_mode=seq-mean-token-mean,algo.kl.estimator=k2,algo.kl.use_loss=True,algo.advantage.estimator=rloo,algo.kl.init_coef=0.3",
    ): ("reward - 0.3 kl", (("biased", 0.6415, 0.00934), ("biased", 0.3339, 0.0617))),
    ("skyrl", "advantage_batch_normalize=True,advantage_estimator=rloo,loss_reduction=seq_mean_token_sum_norm"): (
        "reward",
        (("biased", 0.4838, 0.00557), ("biased", 0.4347, 0.00136)),
    ),
    (
        "skyrl",
        "use_kl_loss=True,kl_estimator_type=k3,advantage_estimator=rloo,loss_reduction=seq_mean_token_sum_norm,kl_loss_coef=0.3",
    ): ("reward - 0.3 kl", (("biased", 0.3056, 0.00149), ("biased", 0.3594, 0.0131))),
    ("skyrl", "loss_reduction=token_mean_legacy,advantage_estimator=rloo"): (
        "reward",
        (("biased", 0.6186, 0.00825), ("biased", 0.4069, 0.0567)),
    ),
    ("tinker", "kl_penalty_coef=0.3"): ("reward - 0.3 kl", (("biased", 0.6707, 0.000281), ("biased", 0.6398, 0.057))),
    ("ms-swift", "loss_type=cispo,advantage_estimator=rloo,scale_rewards=none,beta=0.0"): (
        "reward",
        (("biased", 0.1158, 0.00183), ("biased", 0.08747, 0.00692)),
    ),
}
"""By library and setting: the target, and verdict, scale and 1 - cosine on both problems, in digits as shown."""


@pytest.mark.parametrize("setting", GIVEN, ids=" ".join)
def test_what_was_worked_out_by_hand_gives_the_librarys_figures(setting):
    target, given = GIVEN[setting]
    make, function = (advantages_of, ADVANTAGES[setting]) if setting in ADVANTAGES else (loss_of, LOSSES[setting])
    for problem, (verdict, scale, away) in zip(PROBLEMS.values(), given):
        found = exact_certificate(
            make(function, problem), problem.enumeration, problem.target(target), problem.magnitude(target)
        )
        assert found.verdict == verdict
        assert found.scale == pytest.approx(scale, rel=1e-3) and 1 - found.cosine == pytest.approx(
            away, rel=1e-2, abs=1e-9
        )


def test_every_setting_by_hand_has_figures():
    assert set(GIVEN) == set(ADVANTAGES) | set(LOSSES)


def test_a_token_that_pays_for_its_own_log_ratio_misses_what_it_does_to_later_ones():
    # Two tokens, each 0 or 1; the second's distribution and reference depend on the first. By finite differences the
    # first logit's share of KL(π ‖ ref) is its own KL's, and that of the chance of the prefixes: the missing part.
    first, seconds, ref_first, ref_seconds = 0.4, (0.9, -1.1), -0.3, (-0.5, 0.7)

    def chance(logit: float) -> tuple[float, float]:
        one = 1 / (1 + math.exp(-logit))
        return 1 - one, one

    def divergence(logit: float, reference: float) -> float:
        return sum(p * math.log(p / q) for p, q in zip(chance(logit), chance(reference)))

    later = [divergence(*each) for each in zip(seconds, ref_seconds)]

    def whole(logit: float) -> float:
        return divergence(logit, ref_first) + sum(p * kl for p, kl in zip(chance(logit), later))

    step = 1e-5
    slope = (whole(first + step) - whole(first - step)) / (2 * step)
    p, q = chance(first), chance(ref_first)
    scores = (-p[1], 1 - p[1])
    paid = sum(p[w] * scores[w] * math.log(p[w] / q[w]) for w in (0, 1))
    missing = sum(p[w] * scores[w] * later[w] for w in (0, 1))
    assert slope == pytest.approx(paid + missing, rel=1e-8)
    assert abs(missing) > 0.1 * abs(slope)


def test_a_penalty_after_the_groups_mean_counts_k_over_k_minus_1_as_much():
    # E (r - mean) S = (1 - 1/K) ∇J, and the penalty stays whole: ∇J and ∇KL as 2/3 to 0.3, that is 1 to 0.45.
    problem = PROBLEMS["dense"]
    by_hand = ADVANTAGES["areal", "kl_ctl=0.3,reward_norm=group mean"]
    mean = moments_by(advantages_of(by_hand, problem), problem.enumeration).mean
    assert torch.allclose(mean, (1 - 1 / K) * problem.target("reward") + 0.3 * problem.target("kl"), atol=1e-13)


def test_maxrl_on_rewards_of_0_and_1_is_a_truncated_series_of_the_log_likelihood():
    # E g = Σ_prompts (1 + (1 - p) + … + (1 - p)^(K - 2)) ∇p: more for prompts that are rarely solved.
    problem = PROBLEMS["right-or-wrong"]
    e = problem.enumeration
    mean = moments_by(advantages_of(divided_by_the_mean, problem), e).mean
    solved = (e.probability * e.response_reward).sum(-1)
    series = sum((1 - solved) ** power for power in range(K - 1))
    weights = series[:, None] * e.response_reward
    assert torch.allclose(mean, _gradient(problem, weights), rtol=1e-4, atol=1e-7)
    assert float(series.max() / series.min()) > 1.05


def _gradient(problem: Problem, weight: torch.Tensor) -> torch.Tensor:
    """∇ Σ P(prompt) P(response) weight, the weights held fixed."""
    e = problem.enumeration
    logp = e.edge_logp().clone().requires_grad_()
    chance = torch.where(e.mask, logp[e.edge], 0.0).sum(-1).exp()
    (slope,) = torch.autograd.grad((e.mdp.prompt_probability[:, None] * chance * weight).sum(), logp)
    return geometry_of(e).gradient(slope)


def test_one_token_out_keeps_a_responses_reward_in_its_own_baseline():
    # Two responses of 3 tokens and 1, rewards 1 and 0: the others of a token of the first are 2 of its own and 1.
    batch = SimpleNamespace(
        mask=torch.tensor([[True, True, True], [True, False, False]]),
        response_reward=torch.tensor([1.0, 0.0]),
        group_size=2,
    )
    weights = one_token_out(batch)[batch.mask]
    assert torch.allclose(weights, torch.tensor([1 / 3, 1 / 3, 1 / 3, -1.0]))
