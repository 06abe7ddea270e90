"""Verdicts on verl's options, derived again without verl: from weights that were worked out by hand.

The figures (scale, 1 - cosine) are those that verl 0.9.1 itself gave to the audit, in three digits;
`tests/audit/test_verl.py` compares the weights one by one where verl is installed.
"""

import pytest

from llm_mdp import RLOO
from llm_mdp.audit.adapter import loss_of
from llm_mdp.audit.problems import instances
from llm_mdp.exact.instances import random_instance
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from tests.audit.verl_by_hand import BETA, SUM, TARGETS, loss_by_hand

K = 3
PROBLEMS = {
    "dense": Problem(random_instance(2, 3, seed=1), group_size=K),
    "right-or-wrong": Problem(random_instance(2, 3, n_prompts=2, success=0.4, seed=5), group_size=K),
}
"""4 responses each, so that a certificate is one of 20 or 40 groups."""

GIVEN = {
    "adv_estimator=gae": (("biased", 0.8182, 0.073), ("biased", 0.333, 0.255)),
    "adv_estimator=gae,lam=0.95": (("biased", 0.8597, 0.0759), ("biased", 0.4808, 0.202)),
    "adv_estimator=gae,loss_agg_mode=token-mean": (("biased", 0.4481, 0.0942), ("biased", 0.2015, 0.299)),
    "adv_estimator=grpo": (("biased", 1.2003, 0.00498), ("proportional", 1.1547, 0)),
    "adv_estimator=grpo,loss_agg_mode=token-mean": (("biased", 0.7015, 0.0118), ("biased", 0.505, 0.00692)),
    "adv_estimator=grpo,norm_adv_by_std_in_grpo=False": (("proportional", 0.6667, 0), ("proportional", 0.6667, 0)),
    "adv_estimator=grpo_vectorized,norm_adv_by_std_in_grpo=False": (
        ("biased", 1.2003, 0.00498),
        ("proportional", 1.1547, 0),
    ),
    "adv_estimator=gdpo": (("biased", 1.3133, 0.0054), ("biased", 1.1832, 0.00296)),
    "adv_estimator=gdpo,norm_adv_by_std_in_grpo=False": (("biased", 1.3133, 0.0054), ("biased", 1.1832, 0.00296)),
    "adv_estimator=grpo_passk": (("biased", 0.5969, 0.0181), ("proportional", 0.5773, 0)),
    "adv_estimator=grpo_passk,norm_adv_by_std_in_grpo=False": (
        ("proportional", 0.3333, 0),
        ("proportional", 0.3333, 0),
    ),
    "adv_estimator=reinforce_plus_plus_baseline": (("biased", 1.3133, 0.0054), ("biased", 1.1832, 0.00296)),
    "adv_estimator=reinforce_plus_plus": (("biased", 1.3134, 0.0054), ("biased", 1.1832, 0.00296)),
    "adv_estimator=reinforce_plus_plus,gamma=0.9": (("biased", 1.488, 0.00231), ("biased", 1.7445, 0.189)),
    "adv_estimator=rloo": (("unbiased", 1, 0), ("unbiased", 1, 0)),
    "adv_estimator=remax": (("unbiased", 1, 0), ("unbiased", 1, 0)),
    "adv_estimator=opo": (("biased", 0.6318, 0.00159), ("biased", 0.614, 0.00327)),
    "adv_estimator=gpg": (("proportional", 0.6667, 0), ("biased", 1.7396, 0.0147)),
    "loss_mode=sapo": (("biased", 0.6186, 0.00825), ("biased", 0.4069, 0.0567)),
    "loss_mode=geo_mean": (("biased", 0.6186, 0.00825), ("biased", 0.4069, 0.0567)),
    "loss_agg_mode=token-mean": (("biased", 0.5789, 0.00183), ("biased", 0.4373, 0.00692)),
    "loss_agg_mode=token-sum": (("proportional", 3, 0), ("proportional", 3, 0)),
    "loss_agg_mode=seq-mean-token-mean": (("biased", 0.6186, 0.00825), ("biased", 0.4069, 0.0567)),
    f"loss_agg_mode={SUM}-norm": (("biased", 0.374, 0.00309), ("biased", 0.3384, 0.000914)),
    f"loss_agg_mode={SUM}-norm,loss_scale_factor=3": (("proportional", 0.3333, 0), ("proportional", 0.3333, 0)),
    f"adv_estimator=grpo,norm_adv_by_std_in_grpo=False,loss_agg_mode={SUM}-norm": (
        ("biased", 0.2493, 0.00309),
        ("biased", 0.2256, 0.000914),
    ),
    "kl_penalty=kl (k1)": (("unbiased", 1, 0), ("unbiased", 1, 0)),
    "kl_penalty=abs": (("biased", 0.9566, 0.00533), ("biased", 0.6443, 0.0557)),
    "kl_penalty=mse (k2)": (("biased", 1.1295, 0.0055), ("biased", 0.6618, 0.0227)),
    "kl_penalty=low_var_kl (k3)": (("biased", 1.13, 0.00572), ("biased", 0.3683, 0.218)),
    "kl_penalty=k1+": (("unbiased", 1, 0), ("unbiased", 1, 0)),
    "kl_penalty=k3+": (("biased", 1.13, 0.00572), ("biased", 0.3683, 0.218)),
    "kl_loss_type=kl (k1)": (("biased", 1.163, 0.00533), ("biased", 0.1103, 0.757)),
    "kl_loss_type=abs": (("biased", 0.4134, 0.13), ("biased", 0.7892, 0.0646)),
    "kl_loss_type=mse (k2)": (("biased", 1.0263, 3.06e-05), ("biased", 0.7939, 0.0474)),
    "kl_loss_type=low_var_kl (k3)": (("biased", 1.033, 3.47e-05), ("biased", 0.742, 0.054)),
    "kl_loss_type=k1+": (("biased", 1.0263, 3.06e-05), ("biased", 0.7939, 0.0474)),
    "kl_loss_type=k3+": (("biased", 1.0263, 3.06e-05), ("biased", 0.7939, 0.0474)),
}
"""(verdict, scale, 1 - cosine) that verl's own functions gave, on both."""


def certificate(name, problem, target=None):
    estimator, target = loss_of(loss_by_hand(name), problem), target or TARGETS[name]
    return exact_certificate(estimator, problem.enumeration, problem.target(target), problem.magnitude(target))


@pytest.mark.parametrize("name", GIVEN)
def test_weights_by_hand_have_the_certificates_that_verl_gave(name):
    for problem, (verdict, scale, error) in zip(PROBLEMS.values(), GIVEN[name]):
        found = certificate(name, problem)
        assert found.verdict == verdict
        assert found.scale == pytest.approx(scale, abs=1.5e-4)
        assert 1 - found.cosine == pytest.approx(error, rel=6e-3, abs=1e-12)


@pytest.mark.parametrize("kind", ["mse (k2)", "k1+", "k3+"])
def test_a_kl_said_to_be_unbiased_is_that_of_visited_prefixes_held_fixed(kind):
    for problem in PROBLEMS.values():
        assert (
            certificate(f"kl_loss_type={kind}", problem, f"reward - {BETA} kl at visited states").verdict == "unbiased"
        )


def test_k1_in_the_loss_is_no_penalty_at_all():
    for problem in PROBLEMS.values():
        assert certificate("kl_loss_type=kl (k1)", problem, "reward").verdict == "unbiased"


def test_token_mean_fades_with_the_responses_and_the_mean_by_length_stays():
    dense = instances()["dense"]
    errors = {"token_mean": [], "sequence_mean": []}
    for size in (2, 3, 4, 5):
        problem = Problem(dense, group_size=size)
        for name, found in errors.items():
            estimator = RLOO(group_size=size, reduction=name)
            certificate = exact_certificate(estimator, problem.enumeration, problem.target(), problem.magnitude())
            found.append(1 - certificate.cosine)
    assert errors["token_mean"] == pytest.approx([4.6e-3, 2.4e-3, 1.5e-3, 9.7e-4], rel=0.03)
    assert errors["sequence_mean"] == pytest.approx([0.031] * 4, rel=0.02)
