"""What a bias costs: prices at equal KL."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from llm_mdp import Estimator, NgramPolicy, certify, random_instance
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify.claims import CLAIMS, Claim, always
from llm_mdp.verify.price import MISSED, TOO_LITTLE, has_room, price, prices
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.typical_price import HARMLESS

BY_ID = {claim.id: claim for claim in CLAIMS}
ROOMY = random_instance(3, 3, seed=1)


def own(estimator: Estimator, target: str = "reward") -> Claim:
    return Claim("own", "yours", "", "", always("report"), "", target=target, estimator=estimator)


def bandit(rewards: list[float], logits: list[float]) -> Problem:
    """One token that ends the response."""
    found = random_instance(len(rewards), 1)
    tree, prompts = found.mdp.tree, found.mdp.prompt_tokens
    table = torch.tensor(rewards, dtype=torch.float64).view(1, -1, 1)
    policy = TabularPolicy(tree, prompts, [torch.tensor(logits, dtype=torch.float64).view(1, -1, 1)])
    mdp = replace(found.mdp, token_reward=TableReward(tree, prompts, [table]))
    return Problem(replace(found, mdp=mdp, policy=policy), group_size=2)


@pytest.mark.parametrize(
    "row",
    [
        "rloo",
        "grpo-mean",
        "rloo-eq36",
        "gae-exact-0",
        "trepo",
        "zero-std-filtered",
        "mismatch-sequence",
        "kl-k1-reward",
    ],
)
def test_what_points_along_the_gradient_costs_nothing(row):
    assert abs(price(BY_ID[row], Problem(ROOMY)).value) < HARMLESS


@pytest.mark.parametrize("row", ["grpo", "token-mean", "length-normalised", "gae-wrong-0", "masked-truncated"])
def test_what_does_not_costs_something(row):
    found = price(BY_ID[row], Problem(ROOMY))
    assert found.value > 3 * HARMLESS
    assert found.J_start < found.J_best and found.J_row < found.J_best


@dataclass(frozen=True)
class Rewarded(Estimator):
    """Follows another reward of the response than it is given."""

    rewards: tuple[float, ...] = ()

    def advantages(self, evidence: Evidence):
        return torch.tensor(self.rewards, dtype=torch.float64)[evidence.rollouts.tokens[..., 0]][..., None]


def test_the_price_of_following_other_rewards_is_that_of_the_tilt_by_them():
    """One token: the row ends at π ∝ start exp(c/b), the gradient at start exp(RM/b), both with KL = κ."""
    true, wrong, logits = [0.0, 1.0, 3.0], (1.0, 2.0, 0.5), [0.3, 0.0, -0.4]
    found = price(own(Rewarded(rewards=wrong)), bandit(true, logits))

    def ends(rewards, kl=None, J=None):
        """J and KL of the tilt whose KL, or J, is as given; by halving."""
        low, high = -9.0, 9.0
        start = torch.tensor(logits, dtype=torch.float64).log_softmax(0)
        for _ in range(200):
            middle = (low + high) / 2
            tilted = (start + torch.tensor(rewards, dtype=torch.float64) / math.exp(middle)).log_softmax(0)
            chance = tilted.exp()
            reached = float(chance @ torch.tensor(true, dtype=torch.float64)), float(chance @ (tilted - start))
            low, high = (middle, high) if (reached[1] > kl if J is None else reached[0] > J) else (low, middle)
        return reached

    begin = float(torch.tensor(logits, dtype=torch.float64).softmax(0) @ torch.tensor(true, dtype=torch.float64))
    best, kappa = ends(true, J=(begin + 3.0) / 2)
    followed, _ = ends(wrong, kl=kappa)
    assert found.kappa == pytest.approx(kappa, rel=1e-6)
    assert found.J_row == pytest.approx(followed, abs=1e-4)
    assert found.value == pytest.approx((best - followed) / (best - begin), abs=HARMLESS)


@dataclass(frozen=True)
class Times(Rewarded):
    factor: float = 1.0

    def advantages(self, evidence: Evidence):
        return self.factor * super().advantages(evidence)


def test_a_constant_in_front_changes_nothing():
    one, other = (
        price(own(Times(rewards=(1.0, 2.0, 0.5), factor=factor)), bandit([0, 1, 3], [0.3, 0, -0.4]))
        for factor in (1.0, 1e-3)
    )
    assert one.value == pytest.approx(other.value, abs=HARMLESS)


def test_following_the_opposite_ends_below_the_start():
    found = price(own(Times(rewards=(0.0, 1.0, 3.0), factor=-1.0)), bandit([0, 1, 3], [0.3, 0, -0.4]))
    assert found.value > 1 and found.J_row < found.J_start


def test_a_critic_that_is_never_retrained_stays_as_it_is():
    """Other values of the instance, another price: they are kept while the policy moves."""
    other = replace(ROOMY, value=random_instance(3, 3, seed=8).value)
    one, two = (price(BY_ID["gae-wrong-0"], Problem(each)) for each in (ROOMY, other))
    assert abs(one.value - two.value) > 0.01


def test_a_penalty_without_a_pull_cannot_hold_the_policy():
    found = price(BY_ID["kl-k1-loss"], Problem(ROOMY))
    assert found.value is None and found.reason.startswith(MISSED)


@dataclass(frozen=True)
class Nothing(Estimator):
    def advantages(self, evidence: Evidence):
        return 0 * evidence.response_reward[..., None]


def test_what_has_no_signal_never_spends_the_budget():
    found = price(own(Nothing()), Problem(ROOMY))
    assert found.value is None and found.reason.startswith(f"{MISSED}: without a penalty it comes to rest")


@pytest.mark.slow
def test_many_at_once_are_priced_as_each_alone():
    problems = [Problem(random_instance(3, 2, seed=seed), group_size=2) for seed in range(4)]
    for row in ("grpo", "temperature-mismatch", "kl-k2-loss"):
        together = prices(BY_ID[row], problems)
        for one, problem in zip(together, problems):
            alone = price(BY_ID[row], problem)
            assert (one.value is None) == (alone.value is None)
            assert one.value is None or one.value == pytest.approx(alone.value, abs=1e-9)


def test_where_there_is_no_price_it_says_why():
    assert "statement" in price(BY_ID["remark-4-remax"], Problem(ROOMY)).reason
    assert "entropy" in price(BY_ID["entropy-token-loss"], Problem(ROOMY)).reason
    shared = replace(ROOMY, policy=NgramPolicy.random(3, 1, torch.Generator().manual_seed(0)))
    assert "tables alone" in price(BY_ID["grpo"], Problem(shared)).reason
    assert "--prompts" in price(BY_ID["grpo"], Problem(ROOMY, prompts=2)).reason
    rich = bandit([0.0, 0.9, 1.0], [0.0, 0.0, 9.0])
    assert not has_room(rich)
    assert price(BY_ID["reinforce"], rich).reason == TOO_LITTLE
    assert "too many" in price(BY_ID["rloo"], Problem(ROOMY, group_size=40)).reason


def test_a_certificate_knows_its_price():
    certificate = certify("token-mean", ROOMY)
    found, again = certificate.price(), price(BY_ID["token-mean"], Problem(ROOMY))
    assert found.value == pytest.approx(again.value, abs=1e-9)
    assert str(found).startswith(f"price {found.value:.3g}: with")
    assert str(certify("pass-at-k", ROOMY, "max of K").price()).startswith("no price: the row is compared with")
