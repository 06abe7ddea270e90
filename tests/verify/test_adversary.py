"""Many instances at once give what each gives alone; flows end where they must; a search beats its draws."""

from dataclasses import dataclass

import pytest
import torch

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instance_files import instance_from_dict, instance_to_dict
from llm_mdp.exact.instances import InstanceError, stream
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.verify.adversary.files import read_adversary, write_adversary
from llm_mdp.verify.adversary.flow import Manner, follow
from llm_mdp.verify.adversary.many import Many
from llm_mdp.verify.adversary.search import DRAWS, QUICK, Row, draw, paths, search
from llm_mdp.verify.adversary.shapes import Shape, instance_of, numbers_of, shape_of
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.following import Following
from llm_mdp.verify.problem import Problem

CLAIM = {claim.id: claim for claim in CLAIMS}
TABLE = Shape(vocab_size=3, order=None, prompts=((),))


def many(name: str, shape: Shape, number: int = 3) -> Many:
    claim = CLAIM[name]
    return Many(shape, draw(shape, number, stream(1, "test")), claim.build, 2, 0.7, claim.target)


def moved(one: Many) -> torch.Tensor:
    noise = torch.randn(one.numbers.start.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return one.numbers.start + noise


def alone(one: Many, index: int) -> Following:
    instance = instance_of(one.shape, one.numbers, index)
    return Following(one.build, Problem(instance, one.group_size, one.beta))


@pytest.mark.parametrize(
    ("name", "shape", "way"),
    [
        ("grpo", Shape(horizon=3), "fixed"),
        ("token-mean-loo", TABLE, "fixed"),
        ("gae-wrong-0", Shape(), "fixed"),
        ("zero-std-filtered", Shape(), "fixed"),
        ("trepo-eq31", Shape(horizon=3, gamma=0.5), "anew"),
        ("temperature-mismatch", Shape(), "anew"),
        ("mismatch-token", Shape(), "anew"),
        ("sapo-stale", TABLE, "anew"),
        ("ppo-second-epoch", Shape(), "anew"),
        ("turn-credit-reached", Shape(horizon=3, environment_at=(1,)), "fixed"),
    ],
)
def test_side_by_side_gives_what_each_gives_alone(name, shape, way):
    one = many(name, shape)
    assert one.way == way
    theta, every = moved(one), torch.arange(len(one))
    found = one.field(theta, every)
    for index in range(len(one)):
        said = alone(one, index).mean(theta[index])
        assert torch.allclose(found[index], said, rtol=1e-9, atol=1e-12)


@dataclass(frozen=True)
class SeesThePrompt(Estimator):
    """Weighs responses by the last token of their prompt, which side by side is another one."""

    def advantages(self, evidence):
        return evidence.response_reward[..., None] * (1.0 + evidence.rollouts.prompt[..., -1:].double())


def test_an_estimator_that_differs_in_company_is_followed_alone():
    shape = Shape()
    one = Many(shape, draw(shape, 3, stream(1, "test")), lambda problem: SeesThePrompt())
    assert one.way == "alone"
    theta = moved(one)
    assert torch.allclose(one.field(theta, torch.arange(3))[2], alone(one, 2).mean(theta[2]), rtol=1e-9, atol=1e-12)


@dataclass(frozen=True)
class DividesByTheReward(Estimator):
    """Has no finite derivative where a reward is zero; its weights move with the policy."""

    def advantages(self, evidence):
        return 1 / evidence.response_reward[..., None] + 0 * evidence.rollouts.logp + evidence.rollouts.logp.exp()


def test_one_instance_without_a_finite_loss_does_not_stop_the_others():
    shape = Shape()
    numbers = draw(shape, 9, stream(1, "test"))
    numbers.reward[:, :, :] = numbers.reward.abs() + 0.5
    numbers.reward[6] = 0.0
    one = Many(shape, numbers, lambda problem: DividesByTheReward())
    found = one.field(one.numbers.start, torch.arange(9)).isfinite().all(1)
    assert one.way == "anew"
    assert found.tolist() == [index != 6 for index in range(9)]


@pytest.mark.parametrize("target", ["reward", "kl", "entropy"])
def test_the_objective_is_what_the_gradient_is_of(target):
    shape = Shape(horizon=3, environment_at=(1,))
    one = Many(shape, draw(shape, 2, stream(3, "test")), CLAIM["reinforce"].build, target=target)
    theta, every, step = moved(one), torch.arange(2), 1e-5
    gradient = one.gradient(theta, every)
    for place in range(theta.shape[1]):
        ahead, behind = theta.clone(), theta.clone()
        ahead[:, place] += step
        behind[:, place] -= step
        slope = (one.figures(ahead, every).objective - one.figures(behind, every).objective) / (2 * step)
        assert torch.allclose(slope, gradient[:, place], rtol=1e-5, atol=1e-8)


def test_figures_are_those_of_the_enumeration():
    shape = Shape(horizon=3, gamma=0.5)
    one = Many(shape, draw(shape, 3, stream(4, "test")), CLAIM["rloo"].build)
    figures = one.figures(one.numbers.start, torch.arange(3))
    for index in range(3):
        problem = Problem(instance_of(shape, one.numbers, index))
        assert float(figures.J[index]) == pytest.approx(problem.gradient[0], rel=1e-12)
        assert float(figures.length[index]) == pytest.approx(problem.enumeration.expected_length, rel=1e-12)
    assert torch.allclose(figures.kl, torch.zeros(3, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("shape", [Shape(horizon=3), TABLE, Shape(horizon=3, environment_at=(1,))])
def test_instances_and_numbers_are_the_same_thing(shape):
    numbers = draw(shape, 2, stream(5, "test"))
    instance = instance_of(shape, numbers, 1)
    assert shape_of(instance) == shape
    again = instance_of(shape_of(instance), numbers_of(instance), 0)
    for one, other in zip(
        Enumeration(instance.mdp, instance.policy).logits, Enumeration(again.mdp, again.policy).logits
    ):
        assert torch.equal(one, other)
    assert torch.equal(numbers_of(instance).reward, numbers.reward[[1]])


# --- flows ------------------------------------------------------------------------------------------------------------


def test_a_flow_ends_where_its_field_does():
    rates = torch.tensor([[1.0, 30.0], [0.1, 0.2]], dtype=torch.float64)
    flow = follow(lambda theta, which: -rates[which] * theta, torch.ones(2, 2, dtype=torch.float64), Manner())
    assert bool(flow.rest.all())
    assert float(flow.end.abs().max()) < 2e-2


def test_a_flow_takes_as_long_as_it_does():
    until = torch.tensor([10.0, 1000.0], dtype=torch.float64)
    start = torch.zeros(2, 1, dtype=torch.float64)
    flow = follow(lambda theta, which: (-theta).exp(), start, Manner(tolerance=1e-4), until=until)
    assert torch.allclose(flow.time, until)
    assert torch.allclose(flow.end[:, 0], (1 + until).log(), atol=5e-3)


def test_the_trail_has_both_ends():
    flow = follow(lambda theta, which: -theta, torch.ones(1, 1, dtype=torch.float64), Manner(), record=True)
    assert float(flow.trail[0][1]) == 1.0
    assert torch.equal(flow.trail[-1][1], flow.end)


def test_a_flow_that_meets_no_numbers_says_that_it_is_not_at_rest():
    flow = follow(
        lambda theta, which: theta / (theta < 1), torch.full((1, 1), 0.5, dtype=torch.float64), Manner(steps=60)
    )
    assert not bool(flow.rest)
    assert float(flow.end) < 1


def test_a_flow_that_never_ends_is_left_before_its_numbers_run_out():
    """Beside one that ends early, and stays among those that are computed."""
    seen = []

    def field(theta, which):
        seen.append(float(theta.abs().max()))
        return torch.where(which[:, None] == 0, torch.ones_like(theta), -theta)

    flow = follow(field, torch.tensor([[0.0], [0.5], [0.4], [0.3]], dtype=torch.float64), Manner())
    assert flow.rest.tolist() == [False, True, True, True]
    assert float(flow.end[0]) > 100 and max(seen) < 700


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_beats_its_draws_and_is_repeatable():
    claim = CLAIM["token-mean-loo"]
    row = Row(claim.build, 2)
    once, again = (search(row, (Shape(),), draws=40, generations=1, seed=1) for _ in range(2))
    assert once.loss > once.worst_drawn > 0
    assert once.loss == again.loss and instance_to_dict(once.instance) == instance_to_dict(again.instance)
    assert all(
        round(number, 4) == number
        for node in instance_to_dict(once.instance)["nodes"]
        for number in (*node["logits"], *node["token_reward"])
    )


@pytest.mark.parametrize("name", ["rloo", "grpo-mean"])
def test_nothing_is_lost_with_what_is_unbiased_or_proportional(name):
    row = Row(CLAIM[name].build, 2)
    numbers = draw(Shape(), 60, stream(0, "test"))
    both = paths(Many(Shape(), numbers, row.build), QUICK)
    calm = both.exact.rest & both.row.rest
    assert int(calm.sum()) > 30
    assert float(both.loss[calm].abs().max()) < 5e-3


def test_a_thousand_random_draws_are_what_a_search_must_beat():
    assert DRAWS == 1000


@pytest.mark.slow
def test_a_file_says_what_the_search_found(tmp_path):
    row = Row(CLAIM["grpo"].build, 2)
    found = search(row, (Shape(),), draws=40, generations=2, seed=3)
    path = tmp_path / "grpo.json"
    said = write_adversary("grpo", row, found, path, "a command")
    read = read_adversary(path)
    assert isinstance(read.instance.policy, NgramPolicy)
    assert read.said == {key: value for key, value in said.items() if key != "paths"}
    problem = Problem(read.instance, 2)
    assert problem.gradient[0] == pytest.approx(said["J"]["start"], rel=1e-3, abs=1e-4)
    for path in said["paths"].values():
        assert path["time"] == sorted(path["time"]) and path["kl"][0] == 0


def test_a_file_without_a_search_is_refused_in_words(tmp_path):
    from llm_mdp.exact.instance_files import write_instance

    write_instance(instance_of(TABLE, draw(TABLE, 1, stream(0, "test")), 0), tmp_path / "plain.json")
    with pytest.raises(InstanceError, match="has no entry 'adversary'"):
        read_adversary(tmp_path / "plain.json")


# --- shared logits in instance files ----------------------------------------------------------------------------------


def shared(order: object = 1) -> dict:
    shape = Shape(horizon=3)
    return instance_to_dict(instance_of(shape, draw(shape, 1, stream(0, "test")), 0)) | {"order": order}


def test_nodes_with_the_same_last_token_share_their_logits():
    instance = instance_from_dict(shared())
    assert isinstance(instance.policy, NgramPolicy)
    assert torch.allclose(
        Problem(instance).target("reward"), Problem(instance_of(shape_of(instance), numbers_of(instance), 0)).target()
    )


def test_shared_logits_that_differ_are_refused_with_both_places():
    content = shared()
    content["nodes"][1]["logits"] = [0.25, 0.5]
    with pytest.raises(InstanceError, match=r"logits at .* and at .*; with order 1 these two are one parameter"):
        instance_from_dict(content)


@pytest.mark.parametrize("order", [-1, 1.5, True, "1", 99])
def test_an_order_that_is_none_is_refused(order):
    with pytest.raises(InstanceError, match=r"order is .*; it must be the number of last tokens"):
        instance_from_dict(shared(order))
