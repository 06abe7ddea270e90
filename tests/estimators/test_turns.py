"""Turns and their rewards, by hand."""

import pytest
import torch

from llm_mdp.estimators.boundaries import EveryTurn
from llm_mdp.estimators.turns import TurnRewards, turn_index
from llm_mdp.sampling.evidence import Evidence, Rollouts

P = -1
TOKENS = torch.tensor([[1, 2, 9, 3, 4, 9], [1, 9, 2, P, P, P], [5, P, P, P, P, P]])
MASK = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
REWARD = torch.tensor([[1.0, 2, 4, 8, 16, 32], [3, 5, 7, 0, 0, 0], [11, 0, 0, 0, 0, 0]], dtype=torch.float64)
ROLLOUTS = Rollouts(
    torch.zeros(3, 1, dtype=torch.int64), TOKENS, MASK, torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3)
)


def weights(**options) -> list[list[float]]:
    """The weights of the policy's tokens, response by response."""
    evidence = Evidence(ROLLOUTS, REWARD.sum(-1), token_reward=REWARD)
    found = TurnRewards(group_size=3, **options).advantages(evidence)
    return [row[own].tolist() for row, own in zip(found, MASK)]


def test_a_turn_begins_where_the_policy_goes_on():
    first = EveryTurn()(ROLLOUTS).nonzero().tolist()
    assert first == [[0, 0], [0, 3], [1, 0], [1, 2], [2, 0]]
    assert turn_index(ROLLOUTS)[:2, :3].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert turn_index(ROLLOUTS)[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_turn_is_compared_with_the_responses_that_reached_it():
    """Turns are worth 7 and 56; 8 and 7; 11. The third response ended after its first turn."""
    one, two = (7 + 8 + 11) / 3, (56 + 7) / 2
    assert weights() == [
        pytest.approx([7 - one] * 2 + [56 - two] * 2),
        pytest.approx([8 - one, 7 - two]),
        pytest.approx([11 - one]),
    ]


def test_to_go_sums_later_turns_that_were_reached():
    one, two = (7 + 8 + 11) / 3, (56 + 7) / 2
    assert weights(to_go=True) == [
        pytest.approx([7 - one + 56 - two] * 2 + [56 - two] * 2),
        pytest.approx([8 - one + 7 - two, 7 - two]),
        pytest.approx([11 - one]),
    ]


def test_others_count_with_nothing_where_they_ended_before():
    assert weights(others=True) == [
        pytest.approx([63 - (15 + 11) / 2] * 2 + [56 - 7 / 2] * 2),
        pytest.approx([15 - (63 + 11) / 2, 7 - 56 / 2]),
        pytest.approx([11 - (63 + 15) / 2]),
    ]


def test_rewards_are_discounted_by_their_step():
    """At γ = 1/2 the turns are worth 1 + 1 + 1 and 1 + 1 + 1; 3 + 2.5 and 1.75; 11."""
    assert weights(gamma=0.5, others=True)[2] == pytest.approx([11 - (6 + 7.25) / 2])
