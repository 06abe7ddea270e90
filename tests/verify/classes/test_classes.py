"""Certificates by classes of responses: equal to groups one by one, refused where an estimator reads more, and at group
sizes at which there are no groups one by one."""

from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from math import comb

import pytest
import torch

from llm_mdp.estimators.algorithms import GRPO, PPO, REINFORCE, RLOO, TRePO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.off_policy import OffPolicy, Reweighted
from llm_mdp.estimators.practices import SecondEpoch, ZeroStdFiltered
from llm_mdp.estimators.values import leave_one_out
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.instances import random_instance
from llm_mdp.sampling.evidence import Evidence, take_rows
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.certify import certify
from llm_mdp.verify.choice import moments_by
from llm_mdp.verify.classes import sufficiency
from llm_mdp.verify.classes.calls import Refused
from llm_mdp.verify.classes.convolution import Laws
from llm_mdp.verify.classes.moments import class_moments
from llm_mdp.verify.classes.partition import partition
from llm_mdp.verify.classes.representatives import Representatives
from llm_mdp.verify.classes.summaries import SUMMARIES, rewards
from llm_mdp.verify.classes.trials import trials_of
from llm_mdp.verify.method import Method
from llm_mdp.verify.moments import Moments, exact_moments
from llm_mdp.verify.problem import Problem
from tests.verify.classes.cases import right_or_wrong, with_rewards

RIGHT_OR_WRONG = random_instance(3, 3, n_prompts=2, seed=5, success=0.4)
PROBLEM = Problem(RIGHT_OR_WRONG)
ENUMERATION = PROBLEM.enumeration
OTHER = PROBLEM.given.behaviour


def assert_equal(found: Moments, expected: Moments) -> None:
    """All figures to 1e-12."""
    assert float((found.mean - expected.mean).norm()) < 1e-12 * expected.root_mean_square
    for name in ("trace_covariance", "root_mean_square", "weights", "tokens", "rewards", "kept", "with_signal"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12), name


def method_of(found: Moments) -> Method:
    assert found.method is not None
    return found.method


@dataclass(frozen=True)
class DropsLong(RLOO):
    """Groups with more than six tokens are left out."""

    def collect(self, sampler):
        evidence = super().collect(sampler)
        return sampler.keep(evidence, evidence.rollouts.length.sum(-1, keepdim=True) <= 6)


@dataclass(frozen=True)
class OfTheLongest(RLOO):
    """Divided by the longest response of the group: of classes, the finest summary alone will do."""

    def advantages(self, evidence):
        longest = evidence.rollouts.length.amax(-1, keepdim=True)
        return super().advantages(evidence) / longest[..., None]


EQUAL = {
    "own reward": (REINFORCE(group_size=3), "nothing"),
    "rloo": (RLOO(3), "the number with each reward"),
    "tokens": (REINFORCE(group_size=3, reduction="token_mean"), "the tokens"),
    "token mean": (GRPO(3, reduction="token_mean"), "the number with each reward, and the tokens"),
    "longest": (OfTheLongest(3), "the number of each reward, length and finish"),
    "filtered": (ZeroStdFiltered(3), "the number with each reward"),
    "long ones dropped": (DropsLong(3), "the number with each reward, and the tokens"),
    "of another policy": (OffPolicy(group_size=3, behaviour=OTHER), "the number with each reward"),
    "own ratios": (Reweighted(group_size=3, behaviour=OTHER, level="token"), "the number with each reward"),
    "own values": (PPO(group_size=3, critic=PROBLEM.given.critic(0.3), lam=0.7), "nothing"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_classes_give_what_groups_give_by_the_cheapest_summary(name):
    estimator, summary = EQUAL[name]
    found = moments_by(estimator, ENUMERATION, "classes")
    method = method_of(found)
    assert (method.name, method.summary) == ("classes", summary)
    assert method.tries > 5_000
    assert_equal(found, exact_moments(estimator, ENUMERATION))


def test_shared_parameters_have_the_same_second_moment():
    policy = NgramPolicy.random(3, 1, torch.Generator().manual_seed(0))
    enumeration = Enumeration(RIGHT_OR_WRONG.mdp, policy)
    for estimator in (GRPO(2, reduction="token_mean"), ZeroStdFiltered(3)):
        assert_equal(class_moments(estimator, enumeration), exact_moments(estimator, enumeration))


@dataclass(frozen=True)
class Peeks(RLOO):
    """RLOO whose baseline holds a tenth of something of the others."""

    what: str = ""

    def advantages(self, evidence):
        return super().advantages(evidence) + 0.1 * self.seen(evidence)[..., None]

    def seen(self, evidence):
        rollouts, reward = evidence.rollouts, evidence.response_reward
        first = rollouts.tokens[..., 0]
        same = (rollouts.tokens[..., None, :, :] == rollouts.tokens[..., :, None, :]).all(-1)
        if self.what == "log-probabilities":
            return leave_one_out(rollouts.logp.sum(-1), self.group_size)
        if self.what == "first tokens":
            return leave_one_out((first == 1).double(), self.group_size)
        if self.what == "place":
            return torch.arange(reward.shape[-1]).double().expand(reward.shape)
        if self.what == "coincidence of two":
            return (same.sum(-1) > 1).double()
        if self.what == "coincidence of all":
            return same.all(-1).double()
        # One of 560 groups, by what their tokens are.
        number = (rollouts.tokens + 2) * torch.arange(1, 1 + rollouts.tokens.shape[-1]) ** 5
        return (number.sum((-2, -1), keepdim=True)[..., 0] % 500 == 204).double().expand(reward.shape)


@pytest.mark.parametrize(
    "what",
    ["log-probabilities", "first tokens", "place", "coincidence of two", "coincidence of all", "one group of 560"],
)
def test_what_reads_more_of_the_others_is_refused(what):
    with pytest.raises(Refused, match="more of the other responses than their rewards, lengths and finishes"):
        class_moments(Peeks(3, what=what), ENUMERATION)


@dataclass(frozen=True)
class OneCompany(RLOO):
    """The baseline is another one in one group out of thousands."""

    def advantages(self, evidence):
        leaf = evidence.rollouts.leaf.sort(-1).values  # pyright: ignore[reportAttributeAccessIssue]
        there = (leaf == torch.tensor([2, 4, 9, 11, 13])).all(-1, keepdim=True)
        return super().advantages(evidence) + 0.1 * there.double()[..., None]


def test_every_group_is_tried_where_they_are_few():
    with pytest.raises(Refused):
        class_moments(OneCompany(5), ENUMERATION)


@dataclass(frozen=True)
class OneRareResponse(RLOO):
    """The least probable response among the others changes the baseline."""

    leaf: int = 0

    def advantages(self, evidence):
        rare = (evidence.rollouts.leaf == self.leaf).any(-1, keepdim=True)  # pyright: ignore[reportAttributeAccessIssue]
        return super().advantages(evidence) + 0.1 * rare.double()[..., None]


def test_every_single_response_is_tried_in_company(monkeypatch):
    """Where so few groups are tried that it would not be met by chance."""
    monkeypatch.setattr(sufficiency, "tries", lambda subject: 6)
    monkeypatch.setattr(sufficiency, "FIRST", 2)
    e = Problem(random_instance(3, 8, seed=3, success=0.3)).enumeration
    rare = int(e.probability[0].argmin())
    assert float(e.probability[0, rare]) < 1e-5
    with pytest.raises(Refused):
        class_moments(OneRareResponse(3, leaf=rare), e)


def test_every_two_responses_meet_or_two_of_every_two_classes():
    (classes,) = (partition(ENUMERATION, 0, ENUMERATION.probability[0]),)
    laws = Laws(rewards(classes), classes.probability, 4)
    draw = Representatives(classes, laws, False, torch.Generator().manual_seed(0))
    number, kinds = len(classes.leaf), classes.size

    def met(group: torch.Tensor) -> set[tuple[int, ...]]:
        return {tuple(sorted(pair)) for row in group.tolist() for pair in combinations(row, 2)}

    assert len(met(draw.meetings(number * (number + 1) // 2))) == number * (number + 1) // 2 == 120
    some = draw.meetings(119)
    assert len(some) == kinds * (kinds + 1) // 2 < 120
    assert len(met(classes.kind[some])) == len(some)
    assert len(draw.meetings(len(some) - 1)) == 0
    # They are among the groups that a summary is tried on.
    trial = trials_of(classes, 4, 1000).of(SUMMARIES[1], laws, False)
    assert len(met(torch.cat([shown.group for shown in trial.company(120)]))) == 120


@pytest.mark.parametrize("group_size", [2, 8, 64])
def test_a_policy_so_peaked_that_most_responses_are_all_but_impossible(group_size):
    """1,111 responses, all but four of chances below 10^-26 and down to 10^-78: rounding must not be taken for a
    weight, nor a state that is all but impossible be left out of one that is not."""
    plain = with_rewards(random_instance(11, 3, seed=5), right_or_wrong)
    assert isinstance(plain.policy, TabularPolicy)
    far = torch.where(torch.arange(11) < 2, 0.0, -60.0)[:, None]
    levels = [level.detach() + far for level in plain.policy.levels]
    policy = TabularPolicy(plain.policy.tree, plain.policy.prompts, levels)
    problem = Problem(replace(plain, policy=policy), group_size=group_size)
    e, right = problem.enumeration, problem.gradient[0]
    assert e.tree.n_leaves == 1111 and float(e.probability.min()) < 1e-70 and 0.01 < right < 0.99
    target, size = problem.target("reward"), problem.magnitude("reward")
    rloo, grpo, filtered = (
        exact_certificate(estimator, e, target, size, method="classes")
        for estimator in (RLOO(group_size), GRPO(group_size), ZeroStdFiltered(group_size))
    )
    assert rloo.verdict == "unbiased" and grpo.verdict == "proportional"
    assert rloo.tokens == pytest.approx(group_size * e.expected_length, rel=1e-12)
    # A group is kept unless all are right or all wrong, and all that RLOO has is in those that are kept.
    assert filtered.kept == pytest.approx(1 - right**group_size - (1 - right) ** group_size, rel=1e-9)
    assert filtered.kept is not None and filtered.scale == pytest.approx(1 / filtered.kept, rel=1e-9)


@dataclass(frozen=True)
class BestHalf(Estimator):
    """Passes on some of the responses only."""

    group_size: int = 4

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        return take_rows(Evidence(rollouts, sampler.response_reward(rollouts)), torch.tensor([0, 1]))

    def advantages(self, evidence):
        return evidence.response_reward[..., None]


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (TRePO(group_size=2), "it draws branches at random"),
        (SecondEpoch(group_size=2), "it differentiates its loss at a policy that was updated first"),
        (BestHalf(), "it passes on other responses than it drew"),
    ],
)
def test_what_classes_cannot_show_is_refused_in_words(estimator, reason):
    with pytest.raises(Refused, match=reason):
        class_moments(estimator, ENUMERATION)
    with pytest.raises(TooLarge, match=rf"by classes of responses \w+ cannot be certified: {reason}"):
        moments_by(estimator, ENUMERATION, "classes")


def test_few_groups_go_one_by_one_as_ever_and_many_by_classes(monkeypatch):
    chosen = moments_by(RLOO(3), ENUMERATION)
    assert torch.equal(chosen.mean, exact_moments(RLOO(3), ENUMERATION).mean)
    assert method_of(chosen) == Method("groups", "", 2 * comb(17, 3), 0)
    monkeypatch.setattr("llm_mdp.verify.choice.FEW", 10)
    assert method_of(moments_by(GRPO(3), ENUMERATION)).name == "classes"
    # What is refused falls back, and says by what.
    fallen = moments_by(Peeks(3, what="place"), ENUMERATION)
    assert method_of(fallen).words == (
        "all 6,750 groups, one by one (not by classes: its weights depend on more of the other responses than their "
        "rewards, lengths and finishes)"
    )
    assert method_of(chosen).instead == ""
    assert torch.equal(fallen.mean, exact_moments(Peeks(3, what="place"), ENUMERATION).mean)


def test_what_remains_is_said_when_nothing_exact_does():
    remains = "take a smaller --group-size, a smaller instance or one with fewer different rewards, or --sampled N."
    with pytest.raises(TooLarge, match="groups of 20 out of 15 responses are too many to take one by one") as found:
        moments_by(Peeks(20, what="place"), ENUMERATION)
    assert "Peeks cannot be certified: its weights depend on more of the other responses" in str(found.value)
    assert str(found.value).endswith(remains)
    # Few enough without order, but this one sees the order.
    with pytest.raises(TooLarge, match=r"Peeks cannot be certified: .*\. One by one, 259,492,675,781,250 groups of 12"):
        moments_by(Peeks(12, what="place"), ENUMERATION)
    with pytest.raises(ValueError, match="method is 'class'; choose one of auto, groups, classes"):
        certify(RLOO(3), RIGHT_OR_WRONG, method="class")


@pytest.mark.parametrize("what", ["coarse", "mixes"])
def test_estimators_that_are_not_well_are_not_certified(what):
    class Coarse(RLOO):
        def loss(self, logp, evidence):
            return -(self.advantages(evidence).bfloat16() * logp).double().sum((-2, -1))

    class Mixes(RLOO):
        def advantages(self, evidence):
            return (evidence.response_reward - evidence.response_reward.mean())[..., None]

    kind, error, words = {
        "coarse": (Coarse, Refused, "it computes in bfloat16"),
        "mixes": (Mixes, ValueError, "Mixes mixes worlds"),
    }[what]
    with pytest.raises(error, match=words):
        class_moments(kind(8), ENUMERATION)


SIZES = (2, 4, 8, 16)


@pytest.fixture(scope="module")
def by_size():
    """Certificates on responses that are right or wrong, three of ten right, V = 4 and T = 4."""
    problem = Problem(random_instance(4, 4, seed=3, success=0.3))
    target, size = problem.target("reward"), problem.magnitude("reward")
    kinds = {
        "rloo": RLOO(2),
        "grpo": GRPO(2),
        "token mean": RLOO(2, reduction="token_mean"),
        "sequence mean": RLOO(2, reduction="sequence_mean"),
    }
    return {
        name: [exact_certificate(replace(kind, group_size=K), problem.enumeration, target, size) for K in SIZES]
        for name, kind in kinds.items()
    }


def test_at_real_group_sizes_biases_are_others_than_at_three(by_size):
    """REACH.md, §1: RLOO's scale is 1, GRPO's grows, the token mean's direction gets right and the sequence mean's does
    not."""
    assert all(each.verdict == "unbiased" for each in by_size["rloo"])
    scales = [each.scale for each in by_size["grpo"]]
    assert scales[0] < 1 < scales[2] and scales == sorted(scales)
    assert all(1 - each.cosine < 1e-12 for each in by_size["grpo"])
    error = [1 - each.cosine**2 for each in by_size["token mean"]]
    # sin falls like 1/K, or the squares by a factor of four.
    assert all(3 < before / after < 6 for before, after in pairwise(error))
    lengths = [each.cosine for each in by_size["sequence mean"]]
    assert lengths == pytest.approx([lengths[0]] * len(SIZES), rel=1e-12) and lengths[0] < 0.999
    noise = [each.tokens_to_signal for each in by_size["rloo"]]
    assert noise == sorted(noise, reverse=True)


@pytest.mark.slow
def test_sixty_four_responses_to_a_prompt():
    problem = Problem(random_instance(4, 4, seed=3, success=0.3))
    target, size = problem.target("reward"), problem.magnitude("reward")
    found = {
        type(each).__name__ + each.reduction: exact_certificate(each, problem.enumeration, target, size)
        for each in (RLOO(64), GRPO(64), RLOO(64, reduction="token_mean"), ZeroStdFiltered(64))
    }
    assert found["RLOOsum"].verdict == "unbiased"
    scale, cosine = found["GRPOsum"].scale, found["RLOOtoken_mean"].cosine
    assert found["GRPOsum"].verdict == "proportional" and scale is not None and scale > 2
    assert cosine is not None and 0 < 1 - cosine < 1e-4
    assert found["ZeroStdFilteredsum"].kept == pytest.approx(1, abs=1e-9)


def test_a_tree_of_thousands_of_responses_needs_no_score_matrix():
    problem = Problem(random_instance(3, 10, n_prompts=2, seed=3, success=0.3))
    e = problem.enumeration
    assert (e.tree.n_leaves, e.n_edges) == (2047, 6138)
    found = exact_certificate(RLOO(8), e, problem.target("reward"), problem.magnitude("reward"))
    assert found.verdict == "unbiased"
    assert found.tokens == pytest.approx(8 * e.expected_length, rel=1e-12)
    with pytest.raises(TooLarge, match="groups one by one need a matrix of 6,138 scores"):
        moments_by(Peeks(1 + 1, what="place"), e)


def test_groups_are_drawn_once_for_all_estimators_and_the_order_of_these_changes_nothing(monkeypatch):
    made: list[int] = []
    once = Laws.__init__
    monkeypatch.setattr(Laws, "__init__", lambda laws, *given: (made.append(1), once(laws, *given))[1])
    estimators = [RLOO(8), RLOO(8, reduction="token_mean"), GRPO(8)]

    def in_order(chosen: list[Estimator]) -> dict[str, Moments]:
        e = Problem(RIGHT_OR_WRONG).enumeration
        return {repr(each): class_moments(each, e) for each in chosen}

    found = in_order(estimators)
    for other in (in_order(estimators[::-1]), *(in_order([each]) for each in estimators)):
        for name, moments in other.items():
            assert_equal(moments, found[name])
            assert moments.method == found[name].method
    e = Problem(RIGHT_OR_WRONG).enumeration
    made.clear()
    class_moments(estimators[1], e)
    first = len(made)
    class_moments(estimators[1], e)
    class_moments(estimators[0], e)
    assert len(made) == first > 0, "nothing is left to be drawn for others"
    class_moments(replace(estimators[1], group_size=7), e)
    assert len(made) > first, "another K has laws of its own"
