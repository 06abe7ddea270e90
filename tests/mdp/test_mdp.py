"""TokenMDP: its arguments, its prompts, and RM(W) as the discounted sum of the hidden token rewards."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.mdp.hidden_rewards import LengthCost, PositionReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.mdp.tree import PAD
from tests.strategies import REWARDS, padded, plain_responses, token_mdps

GOOD = {
    "vocab_size": 3,
    "eos": 0,
    "horizon": 2,
    "token_reward": LengthCost(),
    "gamma": 0.9,
    "prompts": (Prompt((1,), 0.4), Prompt((2,), 0.6)),
}

BAD_ARGUMENTS = [
    ({"vocab_size": 1}, r"vocab_size is 1; .*at least 2"),
    ({"vocab_size": 3.0}, r"vocab_size is 3\.0; .*whole number"),
    ({"vocab_size": True}, r"vocab_size is True; .*whole number"),
    ({"vocab_size": "3"}, r"vocab_size is '3'; .*whole number"),
    ({"horizon": 0}, r"horizon is 0; .*at least 1"),
    ({"horizon": -2}, r"horizon is -2; .*at least 1"),
    ({"horizon": None}, r"horizon is None; .*whole number"),
    ({"eos": 3}, r"eos is 3, outside the vocabulary 0 … 2; .*None"),
    ({"eos": -1}, r"eos is -1, outside the vocabulary"),
    ({"eos": False}, r"eos is False, outside the vocabulary"),
    ({"eos": 1.0}, r"eos is 1\.0, outside the vocabulary"),
    ({"gamma": 0}, r"gamma is 0; .*\(0, 1\]"),
    ({"gamma": 1.1}, r"gamma is 1\.1; .*\(0, 1\]"),
    ({"gamma": math.nan}, r"gamma is nan; .*\(0, 1\]"),
    ({"gamma": True}, r"gamma is True; .*number in"),
    ({"gamma": "1"}, r"gamma is '1'; .*number in"),
    ({"prompts": ()}, r"prompts is empty; give at least one"),
    ({"prompts": (Prompt((3,)),)}, r"prompts\[0\] holds the token 3, outside the vocabulary 0 … 2"),
    ({"prompts": (Prompt((), 0.5), Prompt((1, -1), 0.5))}, r"prompts\[1\] holds the token -1"),
    ({"prompts": (Prompt((), 0.0), Prompt((1,), 1.0))}, r"prompts\[0\] has probability 0\.0; .*\(0, 1\]"),
    ({"prompts": (Prompt((), math.nan),)}, r"prompts\[0\] has probability nan"),
    ({"prompts": (Prompt((), "1"),)}, r"prompts\[0\] has probability '1'"),
    ({"prompts": (Prompt((1,), 0.5), Prompt((1,), 0.5))}, r"two prompts have the same tokens; merge"),
    ({"prompts": (Prompt((1,), 0.5), Prompt((2,), 0.4))}, r"probabilities sum to 0\.9; they must sum to 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named_with_their_value_and_range(change, message):
    TokenMDP(**GOOD)
    with pytest.raises(ValueError, match=message):
        TokenMDP(**GOOD | change)


def test_prompts_are_padded_on_the_left_and_keep_their_probabilities():
    mdp = TokenMDP(**GOOD | {"prompts": (Prompt((), 0.25), Prompt((2,), 0.25), Prompt((1, 0), 0.5))})
    assert mdp.prompt_tokens.tolist() == [[PAD, PAD], [PAD, 2], [1, 0]]
    assert mdp.prompt_probability.tolist() == [0.25, 0.25, 0.5]
    assert mdp.prompt_probability.dtype == torch.float64


def test_without_prompts_there_is_the_empty_one():
    mdp = TokenMDP(2, None, 1, LengthCost())
    assert (mdp.prompt_tokens.shape, mdp.prompt_probability.tolist(), mdp.gamma) == ((1, 0), [1.0], 1.0)


def test_response_reward_by_hand():
    weights = torch.tensor([[8.0, 1.0, 2.0], [16.0, 4.0, 6.0], [32.0, 12.0, 20.0]], dtype=torch.float64)
    mdp = TokenMDP(3, 0, 3, PositionReward(weights), gamma=0.5)
    tokens = torch.tensor([[1, 2, 1], [2, 0, PAD], [0, PAD, PAD]])
    reward = mdp.response_reward(mdp.prompt_tokens.expand(3, 0), tokens, tokens != PAD)
    assert reward.tolist() == [1 + 6 / 2 + 12 / 4, 2 + 16 / 2, 8]


@settings(deadline=None, max_examples=60)
@given(token_mdps(rewards=tuple(REWARDS), gammas=(1.0, 0.9, 0.25)), st.data())
def test_response_reward_is_the_discounted_sum_of_the_hidden_rewards(mdp, data):
    tokens = padded(plain_responses(mdp.tree), mdp.horizon)
    prompt = mdp.prompt_tokens[data.draw(st.integers(0, len(mdp.prompts) - 1))].expand(len(tokens), -1)
    hidden = mdp.hidden_reward(prompt, tokens, tokens != PAD)
    assert hidden.dtype == torch.float64
    for row, observed in enumerate(mdp.response_reward(prompt, tokens, tokens != PAD).tolist()):
        total, weight = 0.0, 1.0
        for token, reward in zip(tokens[row].tolist(), hidden[row].tolist()):
            total += weight * reward if token != PAD else 0.0
            weight *= mdp.gamma
        assert observed == pytest.approx(total, rel=1e-12, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(token_mdps(rewards=tuple(REWARDS)))
def test_rewards_do_not_depend_on_how_rows_are_batched(mdp):
    """Worlds and groups are leading dimensions; one response alone gets the reward that it gets among all."""
    tokens = padded(plain_responses(mdp.tree), mdp.horizon)
    worlds = tokens[None, :, None].expand(len(mdp.prompts), -1, -1, -1)
    together = mdp.hidden_reward(mdp.prompt_tokens[:, None, None], worlds, worlds != PAD)
    assert together.shape == (len(mdp.prompts), len(tokens), 1, mdp.horizon)
    for p, prompt in enumerate(mdp.prompt_tokens):
        for row in (0, len(tokens) // 2, len(tokens) - 1):
            alone = mdp.hidden_reward(prompt, tokens[row], tokens[row] != PAD)
            torch.testing.assert_close(together[p, row, 0], alone, rtol=1e-13, atol=0)
