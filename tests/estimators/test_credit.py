"""Token rewards: where they land, what they sum to."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.estimators import credit
from llm_mdp.estimators.returns import return_to_go
from tests.strategies import normal

MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
"""A full response, one interrupted by an environment and padded, one of one token, one that an environment began."""
REWARD = torch.tensor([2.0, -3.0, 0.5, 1.0], dtype=torch.float64)


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    """(B, T), at least one policy token a row, anywhere."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    row = st.lists(st.booleans(), min_size=width, max_size=width).filter(any)
    return torch.tensor([draw(row) for _ in range(rows)])


def test_terminal_rewards_the_last_policy_token():
    assert credit.terminal(REWARD, MASK).tolist() == [[0, 0, 0, 2.0], [0, 0, -3.0, 0], [0.5, 0, 0, 0], [0, 0, 1.0, 0]]


@settings(deadline=None, max_examples=60)
@given(masks(), st.integers(0, 2**32 - 1))
def test_prefix_differences_telescope_to_the_response_reward_minus_the_score_of_the_prefix(mask, seed):
    """For responses without interruption, as the last score is RM(W) itself, whatever the scores are from the end
    on."""
    mask = mask.sort(dim=-1, descending=True).values
    generator = torch.Generator().manual_seed(seed)
    score, reward = normal(generator, len(mask), mask.shape[1] + 1), normal(generator, len(mask))
    to_go = return_to_go(credit.prefix_difference(score, reward, mask), mask)
    expected = torch.where(mask, reward[:, None] - score[:, :-1], 0.0)
    torch.testing.assert_close(to_go, expected, rtol=1e-12, atol=1e-12)


def test_prefix_difference_by_hand():
    score = torch.tensor([[1.0, 4.0, 9.0, 99.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    token_reward = credit.prefix_difference(score, torch.tensor([6.0], dtype=torch.float64), mask)
    assert token_reward.tolist() == [[3.0, 2.0, 0.0]]


@settings(deadline=None, max_examples=60)
@given(masks(), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_attention_shares_sum_to_the_response_reward(mask, beta, seed):
    generator = torch.Generator().manual_seed(seed)
    reward, attention = normal(generator, len(mask)), normal(generator, *mask.shape).exp()
    shares = credit.attention_shares(reward, attention, mask, beta)
    torch.testing.assert_close(shares.sum(-1), reward, rtol=1e-12, atol=1e-12)
    assert shares[~mask].abs().sum() == 0


def test_attention_shares_by_hand():
    """Attention on padding (7) is left out before the shares are taken; 1 - β of the reward stays on the last token."""
    attention = torch.tensor([[1.0, 3.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    reward = torch.tensor([8.0], dtype=torch.float64)
    assert credit.attention_shares(reward, attention, mask).tolist() == [[2.0, 6.0, 0.0]]
    assert credit.attention_shares(reward, attention, mask, beta=0.5).tolist() == [[1.0, 7.0, 0.0]]


def test_implicit_rewards_and_ratios_by_hand():
    logp = torch.log(torch.tensor([[0.5, 0.2, 0.9]], dtype=torch.float64))
    reference = torch.log(torch.tensor([[0.25, 0.4, 0.3]], dtype=torch.float64))
    mask = torch.tensor([[True, True, False]])
    implicit = credit.implicit(logp, reference, mask, beta=3.0)
    assert implicit[0].tolist() == pytest.approx([3 * math.log(2), -3 * math.log(2), 0.0])
    assert credit.probability_ratio(logp, reference, mask)[0].tolist() == pytest.approx([2.0, 0.5, 0.0])


def test_worlds_do_not_meet():
    reward = torch.stack([REWARD, 10 * REWARD])
    mask = torch.stack([MASK, MASK.flip(0)])
    both = credit.terminal(reward, mask)
    assert torch.equal(both[1], credit.terminal(10 * REWARD, MASK.flip(0)))
    attention = torch.ones(2, 4, 4, dtype=torch.float64)
    assert torch.equal(
        credit.attention_shares(reward, attention, mask)[1],
        credit.attention_shares(10 * REWARD, attention[1], MASK.flip(0)),
    )
