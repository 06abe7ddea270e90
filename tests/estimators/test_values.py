"""Baselines of groups against loops over prompts; values from branches by hand."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp.estimators import values
from llm_mdp.sampling.evidence import Branches, Rollouts
from tests.strategies import normal


def plain_baselines(reward: list[float], group_size: int) -> dict[str, list[float]]:
    """Each baseline of each response, prompt by prompt."""
    found: dict[str, list[float]] = {"group_mean": [], "group_std": [], "leave_one_out": [], "paper_leave_one_out": []}
    for start in range(0, len(reward), group_size):
        group = reward[start : start + group_size]
        for k in range(group_size):
            found["group_mean"].append(statistics.fmean(group))
            found["group_std"].append(statistics.stdev(group))
            found["leave_one_out"].append(statistics.fmean(other for j, other in enumerate(group) if j != k))
            found["paper_leave_one_out"].append(sum(group) / (group_size - 1))
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(2, 4), st.sampled_from([(), (2,), (2, 3)]), st.integers(0, 2**32 - 1))
def test_group_baselines_are_loops_over_prompts(prompts, group_size, worlds, seed):
    reward = normal(torch.Generator().manual_seed(seed), *worlds, prompts * group_size)
    for name in ("group_mean", "group_std", "leave_one_out", "paper_leave_one_out"):
        computed = getattr(values, name)(reward, group_size)
        assert computed.shape == reward.shape
        for row, expected in zip(computed.reshape(-1, reward.shape[-1]), reward.reshape(-1, reward.shape[-1])):
            assert row.tolist() == pytest.approx(plain_baselines(expected.tolist(), group_size)[name], abs=1e-12)


@pytest.mark.parametrize(
    "baseline", [values.group_mean, values.group_std, values.leave_one_out, values.paper_leave_one_out]
)
@pytest.mark.parametrize("group_size", [1, 0])
def test_a_group_of_one_is_refused(baseline, group_size):
    with pytest.raises(ValueError, match=rf"group_size is {group_size}; a group baseline needs at least 2 responses"):
        baseline(torch.zeros(4), group_size)


def test_half_a_group_is_refused():
    with pytest.raises(ValueError, match="5 rows are not a whole number of groups of 2"):
        values.leave_one_out(torch.zeros(5), 2)


# --- branches ---

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
ROW = torch.tensor([0, 0, 0, 0, 1, 1, 1])
STEP = torch.tensor([0, 2, 2, 0, 1, 1, 0])
REWARD = torch.tensor([1.0, 4.0, 6.0, 3.0, 10.0, 30.0, 7.0], dtype=torch.float64)


def rollouts(mask: Tensor) -> Rollouts:
    nothing = torch.zeros(mask.shape, dtype=torch.float64)
    return Rollouts(mask[..., :0].long(), mask.long(), mask, nothing, mask[..., 0].long())


def test_branch_mean_by_hand():
    """Two draws at steps 0 and 2 of the first row, in any order; two at step 1 and one at step 0 of the second."""
    value = values.branch_mean(Branches(ROW, STEP, REWARD), rollouts(MASK))
    assert value.tolist() == [[2, 0, 5, 0], [7, 20, 0, 0]]


def test_branch_mean_is_zero_from_the_end_on():
    """A branch that an exact sampler lists for other worlds, where this world's response had ended, counts for
    nothing."""
    branches = Branches(torch.tensor([0, 1]), torch.tensor([2, 2]), torch.tensor([4.0, 8.0], dtype=torch.float64))
    assert values.branch_mean(branches, rollouts(MASK)).tolist() == [[0, 0, 4, 0], [0, 0, 0, 0]]


def test_branch_mean_of_worlds():
    worlds = Branches(ROW, STEP, torch.stack([REWARD, 10 * REWARD]))
    mask = MASK.expand(2, 2, 3)
    assert values.branch_mean(worlds, rollouts(mask)).tolist() == [
        [[2, 0, 5, 0], [7, 20, 0, 0]],
        [[20, 0, 50, 0], [70, 200, 0, 0]],
    ]


def test_pooled_branches_by_hand():
    """Ūₜ averages the draws of step t and later, and RM(W): rows with rewards 2 and 100."""
    boundary = torch.tensor([[1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    reward = torch.tensor([2.0, 100.0], dtype=torch.float64)
    value = values.pooled_branches(Branches(ROW, STEP, REWARD), reward, rollouts(MASK), boundary)
    first = [(1 + 3 + 4 + 6 + 2) / 5, (4 + 6 + 2) / 3, (4 + 6 + 2) / 3, 2]
    second = [(7 + 10 + 30 + 100) / 4, (10 + 30 + 100) / 3, 100, 100]
    for row, expected in zip(value.tolist(), (first, second)):
        assert row == pytest.approx(expected)


def test_pooled_branches_leave_out_draws_where_a_world_has_no_boundary():
    """Boundaries may depend on the world's tokens: draws listed for other worlds at step 2 are not pooled in this
    one."""
    boundary = torch.tensor([[1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    reward = torch.tensor([2.0, 100.0], dtype=torch.float64)
    value = values.pooled_branches(Branches(ROW, STEP, REWARD), reward, rollouts(MASK), boundary)
    assert value[0].tolist() == pytest.approx([(1 + 3 + 2) / 3, 2, 2, 2])
    assert value[1].tolist() == pytest.approx([(7 + 100) / 2, 100, 100, 100])
