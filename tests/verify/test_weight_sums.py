"""Quick ways against slow ones: sums over responses against sums over their tokens, known derivatives against autograd,
the guide table against binary search, draws counted by response against draws counted token by token."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.testing import assert_close

from llm_mdp.estimators.algorithms import GRPO, REINFORCE, RLOO, ReMax, TRePO
from llm_mdp.estimators.boundaries import EveryNTokens
from llm_mdp.estimators.practices import Tempered
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import Inverse, TreeBranches, TreeRollouts, TreeSampler, of_rows
from llm_mdp.sampling.evidence import Branches, Evidence, occurrence
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.verify import draws, moments, score_products, weight_sums
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.sampled import sampled_certificate
from llm_mdp.verify.weights import loss_weights, squared_norms, token_weights

INSTANCES = {
    "one prompt": random_instance(3, 3, seed=1),
    "two prompts": random_instance(2, 3, eos=1, gamma=0.9, n_prompts=2, seed=2),
    "replies": random_instance(2, 4, seed=3, environment_at=(2,)),
    "no end": random_instance(2, 5, eos=None, seed=4),
}
"""The last one is large enough for sparse scores."""
PROBLEMS = {name: Problem(instance) for name, instance in INSTANCES.items()}


@dataclass(frozen=True)
class SquareRoot(RLOO):
    """A loss of its own, whose weights are one a response all the same."""

    def loss(self, logp, evidence):
        return super().loss(2 * logp, evidence)


@dataclass(frozen=True)
class SometimesByToken(RLOO):
    """One weight a response but in groups of the largest rewards."""

    def advantages(self, evidence):
        advantage = super().advantages(evidence)
        rare = evidence.response_reward.sum(-1) > 1.5
        steps = torch.arange(evidence.rollouts.mask.shape[-1], dtype=torch.float64)
        return advantage + torch.where(rare[..., None, None], steps, 0.0)


@dataclass(frozen=True)
class WithoutLastToken(RLOO):
    """`collect` changes the mask, of some responses only: tokens after the first have no weight if `longer` is long."""

    longer: int = 1

    def collect(self, sampler):
        evidence = super().collect(sampler)
        mask, length = evidence.rollouts.mask, evidence.rollouts.length[..., None]
        last = (mask.cumsum(-1) == length) & (length > self.longer)
        return replace(evidence, rollouts=replace(evidence.rollouts, mask=mask & ~last))


@dataclass(frozen=True)
class Coarse(RLOO):
    def advantages(self, evidence):
        return super().advantages(evidence).float()


@dataclass(frozen=True, kw_only=True)
class LossAsField(RLOO):
    """No method of its own, and yet another loss."""

    loss: object


@dataclass(frozen=True)
class GoodGroups(RLOO):
    """Groups of low rewards are left out, whatever their weights."""

    def collect(self, sampler):
        evidence = super().collect(sampler)
        return sampler.keep(evidence, evidence.response_reward.unflatten(-1, (-1, self.group_size)).sum(-1) > -1.0)


@dataclass(frozen=True)
class GoodByToken(GoodGroups, SometimesByToken):
    pass


ESTIMATORS = {
    "rloo": RLOO(group_size=3),
    "grpo": GRPO(group_size=3),
    "grpo-length": GRPO(group_size=3, reduction="sequence_mean"),
    "token-mean": GRPO(group_size=2, reduction="token_mean"),
    "dr-grpo": GRPO(group_size=2, scale_by_std=False, reduction="constant", reduction_constant=7),
    "reinforce": REINFORCE(),
    "remax": ReMax(),
    "float32": Coarse(group_size=2),
    "own loss": SquareRoot(group_size=2),
    "loss as field": LossAsField(group_size=2, loss=RLOO(group_size=2).loss),
    "last token out": WithoutLastToken(group_size=2),
    "last of the longest out": WithoutLastToken(group_size=2, longer=2),
    "good groups": GoodGroups(group_size=2),
    "good by token": GoodByToken(group_size=2),
    "tempered": Tempered(group_size=2),
    "clipped": RLOO(group_size=2, clip_low=0.2),
    "by token": SometimesByToken(group_size=2),
    "trepo": TRePO(temperatures=(1.0,)),
}


class PlainSampler(TreeSampler):
    """The same draws, looked up for every entry, used or not."""

    def _worlds(self, group_size, leaf_logp):
        mdp, worlds = self.enumeration.mdp, len(self.weight)
        prompt = torch.zeros(worlds * self.prompts, dtype=torch.int64)
        if len(mdp.prompts) > 1:
            prompt = torch.multinomial(mdp.prompt_probability, len(prompt), replacement=True, generator=self.generator)
        prompt = prompt.view(worlds, self.prompts).repeat_interleave(group_size, dim=-1)
        first = torch.zeros_like(prompt)
        return prompt, self._draw(prompt, first, first + self.enumeration.tree.n_leaves, leaf_logp)

    def _draw(self, prompt, first, end, leaf_logp):
        """One leaf in [first, end) for every entry, with probability proportional to that of the response."""
        inverse = Inverse.of(leaf_logp, self.enumeration)
        low, high = (inverse.cumulative[prompt, each] for each in (first, end))
        place = torch.rand(prompt.shape, generator=self.generator, dtype=torch.float64).mul_(high - low).add_(low)
        return torch.minimum(torch.maximum(inverse(prompt, place), first), end - 1)

    def _branches(self, rollouts, row, step, drawn, temperature):
        if not temperature:
            return super()._branches(rollouts, row, step, drawn, temperature)
        e, prompt = self.enumeration, rollouts.which_prompt[:, row]
        # After the end of a response there is no prefix to continue; what is drawn there is not used.
        first = torch.where(drawn, e.first_leaf[rollouts.leaf][:, row, step], 0)
        end = torch.where(drawn, first + torch.tensor(e.tree.subtree_leaves)[step], e.tree.n_leaves)
        leaf = self._draw(prompt, first, end, e.leaf_logp(temperature))
        reward = torch.where(drawn, e.response_reward[prompt, leaf], 0.0)
        return Branches(row, step, reward, tokens=self._drawn_tokens(leaf, step, drawn))


@pytest.fixture
def slowly(monkeypatch):
    """Everything token by token, derivatives by autograd."""

    def switch():
        monkeypatch.setattr(weight_sums, "response_weights", lambda *_: None)
        monkeypatch.setattr(weight_sums.WholeResponses, "_weights", lambda *_: None)
        for module in (draws, score_products):
            monkeypatch.setattr(module, "node_gram", lambda _: None)
        monkeypatch.setattr(draws, "TreeSampler", PlainSampler)

    return switch


@pytest.mark.parametrize("where", PROBLEMS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_exact_figures_are_those_of_sums_over_tokens(name, where, slowly, monkeypatch):
    monkeypatch.setattr(moments, "IN_CACHE", 7)
    estimator, enumeration = ESTIMATORS[name], PROBLEMS[where].enumeration
    quick = exact_moments(estimator, enumeration)
    slowly()
    slow = exact_moments(estimator, enumeration)
    assert_close(quick.mean, slow.mean, rtol=0, atol=1e-13)
    for figure in ("trace_covariance", "root_mean_square", "tokens", "rewards", "weights", "kept", "with_signal"):
        assert getattr(quick, figure) == pytest.approx(getattr(slow, figure), rel=1e-12, abs=1e-13)
    assert (quick.branch_noise is None) == (slow.branch_noise is None)
    assert (quick.branch_noise or 0.0) == pytest.approx(slow.branch_noise or 0.0, rel=1e-11)


@dataclass(frozen=True)
class Uneven(TRePO):
    """The first branch from a place counts three times."""

    def advantages(self, evidence):
        branches = evidence.branches
        share = torch.where(occurrence(branches) == 0, 3.0, 1.0)
        return super().advantages(replace(evidence, branches=replace(branches, reward=branches.reward * share)))


BRANCHING = {
    "trepo": TRePO(temperatures=(1.0,) * 3),
    "group": TRePO(group_size=2, group_baseline=True, temperatures=(1.0, 1.0)),
    "ramp": TRePO(boundary=EveryNTokens(2), temperatures=(0.0, 0.5, 1.0)),
    "lambda": TRePO(lam=0.7, temperatures=(1.0, 1.0)),
    "pooled": TRePO(pooled=True, temperatures=(1.0, 1.0)),
    "clipped": TRePO(clip_low=0.2, temperatures=(1.0, 1.0)),
    "uneven": Uneven(temperatures=(1.0, 1.0)),
}


def noise_branch_by_branch(estimator, enumeration):
    """Every branch is moved by itself, and the weights are asked of autograd."""
    total = 0.0
    for sampler, evidence in moments._worlds(estimator, enumeration):
        branches, worlds = evidence.branches, sampler.weight.shape
        assert isinstance(branches, TreeBranches) and branches.variance is not None
        base, edge = (
            token_weights(estimator, evidence, enumeration, worlds),
            of_rows(enumeration.edge, evidence.rollouts),
        )
        for draw in range(len(branches.row)):
            moved = branches.reward.clone()
            moved[..., draw] += branches.variance[..., draw].sqrt()
            shifted = replace(evidence, branches=replace(branches, reward=moved))
            change = token_weights(estimator, shifted, enumeration, worlds) - base
            total += float(sampler.weight @ squared_norms(change, edge, enumeration.gram))
    return total


@pytest.mark.parametrize("where", PROBLEMS)
@pytest.mark.parametrize("name", BRANCHING)
def test_the_noise_of_branches_is_that_of_each(name, where):
    estimator, enumeration = BRANCHING[name], PROBLEMS[where].enumeration
    found = exact_moments(estimator, enumeration).branch_noise
    assert found is not None and found == pytest.approx(noise_branch_by_branch(estimator, enumeration), rel=1e-11)
    assert moments._by_place(estimator, enumeration) == (name != "uneven")


def test_batches_of_prompts_too(slowly):
    estimator, enumeration = ESTIMATORS["grpo-length"], PROBLEMS["two prompts"].enumeration
    quick = exact_moments(GRPO(group_size=2), enumeration, prompts=2)
    slowly()
    slow = exact_moments(GRPO(group_size=2), enumeration, prompts=2)
    assert_close(quick.mean, slow.mean, rtol=0, atol=1e-13)
    assert quick.trace_covariance == pytest.approx(slow.trace_covariance, rel=1e-12)
    assert estimator.reduction == "sequence_mean"


@pytest.mark.parametrize(
    "name", ["rloo", "grpo-length", "token-mean", "by token", "clipped", "trepo", "last token out", "float32"]
)
@pytest.mark.parametrize("where", ["one prompt", "two prompts", "no end"])
def test_sampled_figures_are_those_of_every_token(name, where, slowly, monkeypatch):
    """Of the same draws: what is measured is a part of the first chunk of several."""
    for constant, value in (("CHUNK", 200), ("MEASURED", 150), ("PAIRS", 200)):
        monkeypatch.setattr(draws, constant, value)
    problem, estimator = PROBLEMS[where], ESTIMATORS[name]
    given = (estimator, problem.enumeration, problem.target("reward"), 3_000 * estimator.group_size)
    quick = sampled_certificate(*given)
    slowly()
    slow = sampled_certificate(*given)
    assert quick.relative_bias == pytest.approx(slow.relative_bias, rel=1e-10)
    assert quick.scale == pytest.approx(slow.scale, rel=1e-12)
    assert quick.trace_covariance == pytest.approx(slow.trace_covariance, rel=1e-12)
    assert quick.bias_interval is not None
    assert quick.bias_interval == pytest.approx(slow.bias_interval, abs=1e-12)


def test_a_known_derivative_is_taken_only_where_autograd_gave_it():
    enumeration = PROBLEMS["one prompt"].enumeration
    taken = {}
    for name, estimator in ESTIMATORS.items():
        whole = weight_sums.WholeResponses(estimator, enumeration)
        sampler, evidence = next(moments._worlds(estimator, enumeration))
        weights, found = whole.either(evidence, sampler.weight.shape)
        assert weights is not None, "nothing was seen yet"
        again, known = whole.either(evidence, sampler.weight.shape)
        taken[name] = again is None
        if again is None:
            assert known is not None and found is not None
            assert_close(known, found, rtol=1e-14, atol=0)
    refused = {"own loss", "loss as field", "last token out", "last of the longest out", "clipped", "trepo"}
    assert {name for name, yes in taken.items() if not yes} == refused | {"by token", "good by token"}


def test_a_loss_that_writes_into_its_argument_changes_nothing_else():
    class Writes(RLOO):
        def loss(self, logp, evidence):
            with torch.no_grad():
                logp.clamp_(min=-0.1)
            return super().loss(logp, evidence)

    estimator, enumeration = Writes(group_size=3), PROBLEMS["one prompt"].enumeration
    _, evidence = next(moments._worlds(estimator, enumeration))
    logp = of_rows(enumeration.leaf_logp(), evidence.rollouts)
    before = logp.clone()
    loss_weights(estimator, evidence, logp)
    assert torch.equal(logp, before) and float(logp.min()) < -0.1


@pytest.mark.parametrize("name", ["rloo", "by token", "good groups", "good by token", "tempered", "last token out"])
def test_worlds_that_are_only_summed_count_like_those_that_are_measured(name, monkeypatch):
    problem, found = PROBLEMS["one prompt"], []
    monkeypatch.setattr(draws, "CHUNK", 200)
    for measured in (200, 1_000):
        monkeypatch.setattr(draws, "MEASURED", measured)
        found.append(draws.draw(ESTIMATORS[name], problem.enumeration, problem.target("reward"), 1_000, seed=0))
    few, every = found
    assert (few.kept, few.nonzero) == (every.kept, every.nonzero)
    assert (few.kept < 1) == name.startswith("good")
    assert_close(few.mean, every.mean, rtol=0, atol=1e-13)


@pytest.mark.parametrize("where", PROBLEMS)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.0])
def test_the_guide_table_finds_what_binary_search_finds(where, temperature):
    e = PROBLEMS[where].enumeration
    inverse = Inverse(e.leaf_logp(temperature), e)
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(20_000, generator=generator, dtype=torch.float64)
    ends = torch.cat([inverse.cumulative.flatten(), torch.tensor([0.0, 0.5, 1 - 2**-53, 1.0]).double()])
    place = torch.cat([place, ends, (ends * inverse.size).round() / inverse.size])
    prompt = torch.randint(e.n_prompts, place.shape, generator=generator)
    found = inverse(prompt, place)
    for number, row in enumerate(inverse.cumulative):
        here = prompt == number
        assert torch.equal(found[here], torch.searchsorted(row, place[here], right=True) - 1)
    assert (inverse.guide >= 0).double().mean() > 0.8


@pytest.mark.parametrize("where", PROBLEMS)
@pytest.mark.parametrize("temperatures", [(1.0,) * 3, (0.0, 0.5, 1.0, 0.5), (0.0,)])
def test_quick_draws_are_the_plain_ones(where, temperatures):
    """To the last bit, of branches from every second token of groups of two; many responses end before."""
    e, found = PROBLEMS[where].enumeration, []
    estimator = TRePO(group_size=2, boundary=EveryNTokens(2), temperatures=temperatures)
    for kind in (TreeSampler, PlainSampler):
        sampler = Meter(kind(e, 500, torch.Generator().manual_seed(4)))
        evidence = estimator.collect(sampler)
        rollouts, branches = evidence.rollouts, evidence.branches
        assert isinstance(rollouts, TreeRollouts) and branches is not None and branches.tokens is not None
        found.append(
            [rollouts.which_prompt, rollouts.leaf, *sampler.cost(2)]
            + [getattr(branches, name) for name in ("row", "step", "reward", "tokens")]
        )
    for quick, plain in zip(*found):
        assert quick.dtype == plain.dtype and torch.equal(quick, plain)
    assert (found[0][-1] > 0).any() and (found[0][-1] == 0).any() == (where != "no end")


@pytest.mark.parametrize("where", PROBLEMS)
def test_lengths_node_by_node_are_those_of_all_pairs(where, monkeypatch):
    monkeypatch.setattr(score_products, "AT_ONCE", 100)
    e, generator = Problem(INSTANCES[where]).enumeration, torch.Generator().manual_seed(0)
    e.__dict__["sparse_scores"] = e.scores.to_sparse().coalesce()
    table = score_products.node_gram(e)
    assert table is not None and score_products.node_gram(e) is table
    leaf, prompt = (torch.randint(number, (50, 3), generator=generator) for number in (e.tree.n_leaves, e.n_prompts))
    edge = of_rows(e.edge, TreeRollouts.of(e, e.leaf_logp(), prompt, leaf))
    weights = [torch.where(e.mask[leaf], torch.randn(edge.shape, generator=generator).double(), 0.0) for _ in range(2)]
    flat = [each.flatten(1) for each in weights]
    quick = score_products.squares_by_node(flat, edge.flatten(1), table, e.tree.horizon)
    for one, each in zip(quick, weights):
        assert_close(one, squared_norms(each, edge, e.gram), rtol=1e-12, atol=1e-13)
    assert_close(score_products.score_squares(e), e.gram.diagonal(), rtol=1e-12, atol=1e-13)


def test_scores_that_prefixes_share_have_no_table():
    instance = replace(INSTANCES["one prompt"], policy=NgramPolicy.random(3, 1, torch.Generator().manual_seed(0)))
    e = Problem(instance).enumeration
    assert score_products.node_gram(e) is None
    e.__dict__["sparse_scores"] = e.scores.to_sparse().coalesce()
    e.shared.clear()
    assert score_products.node_gram(e) is None


def test_what_nobody_asks_for_is_not_looked_up():
    e = PROBLEMS["replies"].enumeration
    leaf, prompt = torch.tensor([[1, 4]]), torch.zeros(1, 2, dtype=torch.int64)
    rollouts = TreeRollouts.of(e, e.leaf_logp(), prompt, leaf)
    assert torch.equal(rollouts.length, e.mask[leaf].sum(-1))
    assert not {"tokens", "mask", "logp", "finish", "prompt"} & set(vars(rollouts))
    assert torch.equal(rollouts.tokens, e.tokens[leaf]) and torch.equal(rollouts.mask, e.mask[leaf])
    assert torch.equal(rollouts.logp, e.leaf_logp()[prompt, leaf]) and torch.equal(rollouts.finish, e.finish[leaf])
    with pytest.raises(AttributeError, match="TreeRollouts has no 'nonsense'"):
        rollouts.nonsense  # noqa: B018
    assert isinstance(Evidence(rollouts, rollouts.length.double()), Evidence)


def test_figures_do_not_depend_on_how_many_responses_are_tabulated(monkeypatch):
    problem = PROBLEMS["two prompts"]
    given = (ESTIMATORS["grpo"], problem.enumeration, problem.target("reward"))
    quick = exact_certificate(*given)
    monkeypatch.setattr(weight_sums, "MOST", 3)
    slow = exact_certificate(*given)
    assert (quick.verdict, quick.trace_covariance) == (slow.verdict, pytest.approx(slow.trace_covariance, rel=1e-12))
