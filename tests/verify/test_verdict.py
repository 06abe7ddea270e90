"""When a verdict may be said: rounding, overflow, the precision of the estimator, and expressions as targets."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp import GRPO, RLOO, Estimator, EstimatorError, TooLarge, certify, groups, random_instance
from llm_mdp.exact.instances import Instance
from llm_mdp.sampling.policies import TabularPolicy, TabularValue
from llm_mdp.verify.certificate import judge
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.ledger import claim_row
from llm_mdp.verify.moments import Moments, exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.targets import TERMS, parse_target

BY_ID = {claim.id: claim for claim in CLAIMS}


def peaked(gap: float) -> Instance:
    """The first token is ahead of the others by `gap` nats in the policy, and the last one in the reference."""
    instance = random_instance(3, 3)

    def logits(ahead: int) -> TabularPolicy:
        levels = [torch.zeros_like(level) for level in instance.policy.levels]
        for level in levels:
            level[:, ahead] = gap
        return TabularPolicy(instance.mdp.tree, instance.mdp.prompt_tokens, levels)

    return replace(instance, policy=logits(0), reference=logits(2))


def row(id: str, instance: Instance) -> dict:
    return claim_row(BY_ID[id], Problem(instance), sampled=None, seed=0, confidence=0.99)


@pytest.mark.parametrize("id", ["kl-k3-loss", "kl-k3-reward", "kl-k2-loss", "kl-k1-reward"])
@pytest.mark.parametrize("gap", [10.0, 30.0, 60.0, 90.0, 300.0])
def test_a_target_below_rounding_decides_nothing(id, gap):
    """k3 has terms of exp(gap): from some gap on what is summed is 1e10 times the target and more."""
    found = row(id, peaked(gap))
    assert found["verdict"] in (
        ("unbiased", "undecided") if id == "kl-k1-reward" else ("biased", "proportional", "undecided")
    )
    if gap >= 60 and id in ("kl-k3-loss", "kl-k3-reward"):
        assert found["verdict"] == "undecided" and found["holds"] is not False
        assert found["undecided"].startswith(("rounding: the true gradient, ", "overflow: "))


@pytest.mark.parametrize("size", [1e100, 1e160, 1e308])
@pytest.mark.parametrize("id", ["gae-wrong-0", "gae-wrong-0.95", "gae-wrong-1"])
def test_an_overflowing_critic_decides_nothing(id, size):
    instance = random_instance(3, 3)
    value = TabularValue(
        instance.mdp.tree, instance.mdp.prompt_tokens, [size * v.sign() for v in instance.value.levels]
    )
    found = row(id, replace(instance, value=value))
    assert found["verdict"] == "undecided" and found["undecided"].startswith(("rounding: ", "overflow: "))
    assert all(found[name] is None or math.isfinite(found[name]) for name in ("relative_bias", "trace_covariance"))


TRUE = {(1.0, 0.0): "unbiased", (0.5, 0.0): "proportional", (1.0, 0.1): "biased", (-1.0, 0.0): "biased"}


@given(
    case=st.sampled_from(sorted(TRUE)), size=st.floats(-30, 30), noise=st.floats(-1, 25), seed=st.integers(0, 999)
)  # fmt: skip
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_verdict_is_said_below_the_rounding(case, size, noise, seed):
    """E g is known up to 1e-14 of the size of its terms. However large these are, what is said is true, and it is said
    where they are not a thousand times the target."""
    scale, turned = case
    error = torch.randn(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rms = 10.0 ** (noise + size)
    mean = 10.0**size * torch.tensor([scale, turned], dtype=torch.float64) + 1e-14 * rms * error / error.norm()
    said = judge(Moments(mean, rms**2, rms), 10.0**size * torch.tensor([1.0, 0.0], dtype=torch.float64)).verdict
    assert said == TRUE[case] or (said == "undecided" and noise > 3)


def test_a_verdict_is_never_inf_or_nan():
    for value in (math.inf, math.nan):
        bad = torch.tensor([value, 0.0], dtype=torch.float64)
        good = torch.tensor([1.0, 0.0], dtype=torch.float64)
        for mean, target, rms in ((bad, good, 1.0), (good, bad, 1.0), (good, good, value)):
            found = judge(Moments(mean, 1.0, rms), target)
            assert found.verdict == "undecided" and "too large" in found.reason


# --- precision --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InFloat32(Estimator):
    """RLOO in the precision of training."""

    group_size: int = 3
    factor: float = 1.0
    dtype: torch.dtype = torch.float32

    def advantages(self, evidence):
        reward = groups(evidence.response_reward.to(self.dtype), self.group_size)
        others = (reward.sum(-1, keepdim=True) - reward) / (self.group_size - 1)
        return self.factor * (reward - others).flatten(-2)[..., None]


def test_an_estimator_is_judged_by_the_precision_that_it_computes_in():
    found = certify(InFloat32())
    assert found.verdict == "unbiased" and found.precision == "float32"
    assert found.relative_bias > 1e-9, "float64 would call this proportional or biased"
    assert found.statement.startswith("float32: bias below ") and float(found.statement.split()[-1]) < 1e-6
    assert float(found.statement.split()[-1]) >= found.relative_bias
    assert certify(InFloat32(factor=0.3)).verdict == "proportional"
    assert certify(InFloat32(factor=1 + 1e-3)).verdict == "proportional"
    assert certify(InFloat32(dtype=torch.float64)).precision == "float64"
    assert certify(InFloat32(dtype=torch.bfloat16)).verdict == "undecided"


def test_a_count_in_float32_costs_an_exact_estimator_nothing():
    @dataclass(frozen=True)
    class Counts(Estimator):
        def advantages(self, evidence):
            return (evidence.response_reward * evidence.rollouts.mask.float().sum(-1).clamp(max=1))[..., None]

    found = certify(Counts())
    assert found.verdict == "unbiased" and found.precision == "float64" and found.relative_bias < 1e-12


def test_a_biased_estimator_in_float32_is_still_biased():
    @dataclass(frozen=True)
    class GRPO32(Estimator):
        group_size: int = 3

        def advantages(self, evidence):
            reward = groups(evidence.response_reward.float(), self.group_size)
            return ((reward - reward.mean(-1, keepdim=True)) / (reward.std(-1, keepdim=True) + 1e-4)).flatten(-2)[
                ..., None
            ]

    assert certify(GRPO32(), random_instance(2, 2)).verdict in ("biased", "undecided")


def test_statements_say_what_the_figures_say():
    grpo = certify(GRPO(group_size=3))
    assert "true gradient is" not in grpo.statement and f"{grpo.relative_bias:.4g}" in grpo.statement
    assert certify(RLOO(group_size=2)).statement == "unbiased: relative bias below 1e-09, scale 1, cosine 1"


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_equal_rewards_have_no_advantage_however_large(size):
    """The mean of three equal rewards of 1e6 / 3 is not quite that number; divided by a std of 0 it was 1e-6."""
    reward = torch.full((4,), size / 3, dtype=torch.float64)
    for number in range(2, 5):
        from llm_mdp.estimators.values import group_mean, group_std

        assert torch.equal(group_mean(reward[:number], number), reward[:number])
        assert not group_std(reward[:number], number).any()


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "factors"),
    [
        ("reward", {"reward": 1}),
        ("kl", {"kl": -1}),
        ("- kl", {"kl": -1}),
        ("reward - 0.3 kl", {"reward": 1, "kl": -0.3}),
        ("reward-.3*kl + 2 entropy", {"reward": 1, "kl": -0.3, "entropy": 2}),
        ("max of K", {"max of K": 1}),
        ("kl at visited states", {"kl at visited states": -1}),
        ("reward - 1e-1 length", {"reward": 1, "length": -0.1}),
    ],
)
def test_an_expression_is_a_sum_of_terms(expression, factors):
    assert parse_target(expression) == factors


@pytest.mark.parametrize("expression", ["", "rewards", "reward kl", "kl2", "reward -", "0.3", "reward - nan kl"])
def test_what_is_no_expression_is_refused(expression):
    with pytest.raises(ValueError, match=r"^target is .*; choose among reward, kl, "):
        parse_target(expression)


@pytest.mark.parametrize("term", TERMS)
@given(seed=st.integers(0, 10**6), n_prompts=st.integers(1, 2))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_each_term_is_the_derivative_of_what_it_says(term, seed, n_prompts):
    """By finite differences of the sum over all responses, written out again from the words; the visited prefixes of
    `kl at visited states` stay those of the policy."""
    instance = random_instance(2, 3, n_prompts=n_prompts, seed=seed)
    p = Problem(instance)

    def value(policy: TabularPolicy) -> float:
        e = Problem(replace(instance, policy=policy)).enumeration
        reference = Problem(replace(instance, policy=instance.reference)).enumeration
        here = p.enumeration.probability if term == "kl at visited states" else e.probability
        total = 0.0
        for prompt, weight in enumerate(e.mdp.prompt_probability.tolist()):
            for leaf in range(e.tree.n_leaves):
                chance, reward = float(e.probability[prompt, leaf]), float(e.response_reward[prompt, leaf])
                length = int(e.length[leaf])
                each = {
                    "reward": reward,
                    "kl": math.log(chance) - math.log(float(reference.probability[prompt, leaf])),
                    "entropy": -math.log(chance),
                    "length": length,
                    "overlong": min(max((length - 1) / 2, 0), 1),
                }
                if term in each:
                    total += weight * chance * each[term]
                elif term == "kl at visited states":
                    for step in range(length):
                        pi, ref = (x.edge_logp().view(e.n_prompts, -1, 2) for x in (e, reference))
                        node = e.node[leaf, step]
                        kl = float((pi[prompt, node].exp() * (pi[prompt, node] - ref[prompt, node])).sum())
                        total += weight * float(here[prompt, leaf]) * kl
                else:
                    for a in range(e.tree.n_leaves):
                        for b in range(e.tree.n_leaves):
                            best = max(reward, *(float(e.response_reward[prompt, x]) for x in (a, b)))
                            total += weight * chance * float(e.probability[prompt, a] * e.probability[prompt, b]) * best
        return total

    gradient = p.target(f"1 {term}")
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(len(gradient), generator=generator, dtype=torch.float64)
    step, ends = 1e-4, []
    for sign in (1, -1):
        pieces = direction.split([level.numel() for level in instance.policy.levels])
        levels = [
            level.detach() + sign * step * piece.view_as(level) for level, piece in zip(instance.policy.levels, pieces)
        ]
        ends.append(value(TabularPolicy(instance.mdp.tree, instance.mdp.prompt_tokens, levels)))
    assert float(gradient @ direction) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)


def test_a_sum_is_the_sum_of_its_terms():
    p = Problem(random_instance(3, 3, gamma=0.9))
    torch.testing.assert_close(
        p.target("reward - 0.3 kl"), p.target("reward") + 0.3 * p.target("kl"), rtol=1e-12, atol=1e-14
    )
    assert exact_moments(RLOO(3), p.enumeration).mean == pytest.approx(p.target("reward"))


# --- upper bounds -----------------------------------------------------------------------------------------------------


def test_a_group_too_large_is_refused_before_any_work():
    with pytest.raises(TooLarge, match=r"^group_size is 1,000,000; it must be at most 10,000\.$"):
        Problem(random_instance(3, 3), group_size=1_000_000)
    with pytest.raises(EstimatorError, match=r"^RLOO\.group_size is 1,000,000; it must be at most 10,000\.$"):
        certify(RLOO(group_size=1_000_000))
    with pytest.raises(TooLarge, match=r"^about 10\^\d+ groups of 9000 out of 15 responses are too many"):
        exact_moments(RLOO(group_size=9000), Problem(random_instance(3, 3)).enumeration)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_is_a_positive_number(beta):
    with pytest.raises(ValueError, match=r"^--beta is .*; it must be above 0 and finite\.$"):
        Problem(random_instance(3, 3), beta=beta)
