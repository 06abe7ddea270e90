"""GAE against the double loop of its definition, what it reduces to, and what must not change it."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.estimators.credit import terminal
from llm_mdp.estimators.returns import gae, interpolate, return_to_go, whiten
from tests.strategies import normal


def double(numbers: list) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def flags(numbers: list) -> Tensor:
    return torch.tensor(numbers, dtype=torch.bool)


def plain_gae(
    reward: list[float], value: list[float], mask: list[bool], boundary: list[bool], lam: float, gamma: float
) -> list[float]:
    """The definition: segments of policy tokens, their temporal differences, and a sum over all later ones for each."""
    chosen = [t for t in range(len(mask)) if mask[t]]
    starts = [t for t in chosen if boundary[t]]
    segments = [[t for t in chosen if start <= t < end] for start, end in zip(starts, [*starts[1:], len(mask)])]
    worth = [*(value[start] for start in starts), 0.0]
    delta = [sum(reward[t] for t in segment) + gamma * worth[s + 1] - worth[s] for s, segment in enumerate(segments)]
    advantage = [0.0] * len(mask)
    for s, segment in enumerate(segments):
        for t in segment:
            advantage[t] = sum((gamma * lam) ** (later - s) * delta[later] for later in range(s, len(segments)))
    return advantage


@st.composite
def cases(draw: st.DrawFn, interrupted: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token rewards, values, masks and boundaries of a batch in worlds, with numbers where they should not matter
    too."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.4, 0.8, 1.0]))
    mask[..., 0] |= ~mask.any(-1)
    if not interrupted:
        mask = mask.sort(dim=-1, descending=True).values
    first = mask & (mask.cumsum(-1) == 1)
    boundary = first | (torch.rand(shape, generator=generator) < 0.4)
    return normal(generator, *shape), normal(generator, *shape[:-1], shape[-1] + 1), mask, boundary


NUMBERS = st.sampled_from([0.0, 0.3, 0.95, 1.0])


@settings(deadline=None, max_examples=200)
@given(cases(), NUMBERS, NUMBERS, st.booleans())
def test_gae_is_the_double_loop_of_its_definition(case, lam, gamma, by_segment):
    reward, value, mask, boundary = case
    computed = gae(reward, value, mask, lam=lam, gamma=gamma, boundary=boundary if by_segment else None)
    assert computed.shape == mask.shape
    for world in range(mask.shape[0]):
        for row in range(mask.shape[1]):
            parts = [part[world, row].tolist() for part in (reward, value, mask, boundary if by_segment else mask)]
            assert computed[world, row].tolist() == pytest.approx(plain_gae(*parts, lam, gamma), abs=1e-12)


def test_gae_by_hand():
    """δ = 1 + 0.5·4 - 2 = 1, 3 + 0.5·6 - 4 = 2, 5 - 6 = -1;  γλ = ½·½."""
    reward, value = double([[1, 3, 5]]), double([[2, 4, 6, 99]])
    advantage = gae(reward, value, flags([[1, 1, 1]]), lam=0.5, gamma=0.5)
    assert advantage.tolist() == [[1 + 2 / 4 - 1 / 16, 2 - 1 / 4, -1]]


def test_gae_over_segments_by_hand():
    """Segments {0, 1} and {2, 3}: δ = (1 + 3) + 6 - 2 = 8 and (5 + 7) - 6 = 6; every token gets its segment's."""
    reward, value = double([[1, 3, 5, 7]]), double([[2, 40, 6, 80, 99]])
    segments = flags([[1, 0, 1, 0]])
    assert gae(reward, value, flags([[1, 1, 1, 1]]), lam=0.5, boundary=segments).tolist() == [[11, 11, 6, 6]]


def test_tokens_of_an_environment_are_passed_over():
    """With two tokens of an environment in the middle, the policy's tokens get what they get without them."""
    reward, value = double([[1, 3, 5]]), double([[2, 4, 6, 0]])
    plain = gae(reward, value, flags([[1, 1, 1]]), lam=0.7, gamma=0.9)[0].tolist()
    longer_reward, longer_value = double([[1, 50, 60, 3, 5]]), double([[2, 70, 80, 4, 6, 0]])
    interrupted = gae(longer_reward, longer_value, flags([[1, 0, 0, 1, 1]]), lam=0.7, gamma=0.9)[0].tolist()
    assert interrupted == pytest.approx([plain[0], 0, 0, plain[1], plain[2]])


@settings(deadline=None, max_examples=60)
@given(cases(), NUMBERS, st.integers(1, 3), st.booleans())
def test_padding_changes_nothing(case, lam, columns, by_segment):
    """Whatever the numbers on padding are."""
    reward, value, mask, boundary = case
    chosen = boundary if by_segment else None
    wide = [pad(part, (0, columns), value=filler) for part, filler in ((reward, 7.0), (value, -9.0), (mask, False))]
    wide_boundary = pad(boundary, (0, columns), value=True) if by_segment else None
    narrow = gae(reward, value, mask, lam=lam, boundary=chosen)
    padded = gae(*wide, lam=lam, boundary=wide_boundary)
    assert torch.equal(padded, pad(narrow, (0, columns)))
    assert torch.equal(return_to_go(wide[0], wide[2], 0.9), pad(return_to_go(reward, mask, 0.9), (0, columns)))


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(0, 2**32 - 1))
def test_at_lambda_one_any_value_is_a_baseline(case, seed):
    """The reward at the end, λ = 1: RM(W) - v(prefix) for tokens, RM(W) - v(start of the segment) for segments."""
    _, value, mask, boundary = case
    response_reward = normal(torch.Generator().manual_seed(seed), *mask.shape[:-1])
    token_reward = terminal(response_reward, mask)
    expected = torch.where(mask, response_reward[..., None] - value[..., :-1], 0.0)
    advantage = gae(token_reward, value, mask, lam=1.0)
    torch.testing.assert_close(advantage, expected, rtol=1e-12, atol=1e-12)
    starts = boundary & mask
    by_segment = gae(token_reward, value, mask, lam=1.0, boundary=boundary)
    torch.testing.assert_close(by_segment[starts], expected[starts], rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(cases(), NUMBERS, NUMBERS)
def test_segments_of_one_token_are_tokens(case, lam, gamma):
    reward, value, mask, _ = case
    everywhere = torch.ones_like(mask)
    by_segment = gae(reward, value, mask, lam=lam, gamma=gamma, boundary=everywhere)
    torch.testing.assert_close(by_segment, gae(reward, value, mask, lam=lam, gamma=gamma), rtol=1e-12, atol=1e-12)


def test_at_lambda_zero_segments_get_differences_of_values():
    value, mask = double([[5, 50, 2, 50, 8, 99]]), flags([[1, 1, 1, 1, 1]])
    token_reward = terminal(double([11]), mask)
    advantage = gae(token_reward, value, mask, lam=0.0, boundary=flags([[1, 0, 1, 0, 1]]))
    assert advantage.tolist() == [[2 - 5, 2 - 5, 8 - 2, 8 - 2, 11 - 8]]


def test_values_of_one_batch_serve_several_worlds_of_rewards():
    reward, value = double([[[1, 2]], [[3, 4]]]), double([[1, 1, 0]])
    mask = flags([[1, 1]])
    both = gae(reward, value, mask, lam=0.5)
    assert both.shape == (2, 1, 2)
    assert torch.equal(both[1], gae(reward[1], value, mask, lam=0.5))


@pytest.mark.parametrize(("name", "number"), [("lam", -0.1), ("lam", 1.5), ("gamma", 2.0), ("gamma", float("nan"))])
def test_numbers_out_of_range_are_refused(name, number):
    arguments = {"lam": 1.0, "gamma": 1.0} | {name: number}
    with pytest.raises(ValueError, match=rf"{name} is {number}; it must be in \[0, 1\]"):
        gae(double([[1]]), double([[0, 0]]), flags([[1]]), **arguments)


@pytest.mark.parametrize("boundary", [[[0, 1, 1]], [[0, 0, 0]]])
def test_a_first_token_outside_every_segment_is_refused(boundary):
    with pytest.raises(
        ValueError, match="first policy token of a response must begin a segment; add it to the boundary"
    ):
        gae(double([[1, 1, 1]]), double([[0, 0, 0, 0]]), flags([[1, 1, 1]]), lam=1.0, boundary=flags(boundary))


def test_a_boundary_before_the_first_policy_token_does_not_do():
    with pytest.raises(ValueError, match="first policy token of a response must begin a segment"):
        gae(double([[1, 1, 1]]), double([[0, 0, 0, 0]]), flags([[0, 1, 1]]), lam=1.0, boundary=flags([[1, 0, 1]]))


def test_return_to_go_by_hand():
    reward, mask = double([[1, 2, 4, 100], [3, 100, 5, 7]]), flags([[1, 1, 1, 0], [1, 0, 1, 1]])
    assert return_to_go(reward, mask).tolist() == [[7, 6, 4, 0], [15, 0, 12, 7]]
    assert return_to_go(reward, mask, gamma=0.5).tolist() == [[3, 4, 4, 0], [3 + 2.5 + 7 / 4, 0, 5 + 3.5, 7]]


def test_interpolate_by_hand():
    """Between boundaries a straight line, after the last one constant; numbers outside D (50, 60, …) are not looked
    at."""
    advantage = double([[4, 50, 60, 1, 70, 80], [2, 4, 50, 60, 70, 80]])
    boundary = flags([[1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    mask = flags([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
    expected = [[4, 3, 2, 1, 1, 0], [2, 4, 4, 0, 0, 0]]
    for row, by_hand in zip(interpolate(advantage, boundary, mask).tolist(), expected):
        assert row == pytest.approx(by_hand)


def test_interpolate_ignores_boundaries_on_padding():
    boundary, mask = flags([[1, 0, 1]]), flags([[1, 1, 0]])
    assert interpolate(double([[3, 0, 9]]), boundary, mask).tolist() == [[3, 3, 0]]


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(0, 3))
def test_whiten_policy_tokens_only(case, columns):
    numbers, _, mask, _ = case
    mask[..., 0] = True
    if mask.shape[-1] * mask.shape[-2] == 1:
        return
    mask[:, -1, -1] = True
    white = whiten(pad(numbers, (0, columns), value=1e6), pad(mask, (0, columns)))
    for world in range(len(mask)):
        chosen = numbers[world][mask[world]].tolist()
        mean, std = statistics.fmean(chosen), statistics.stdev(chosen)
        expected = [(number - mean) / (std + 1e-8) for number in chosen]
        assert white[world][pad(mask, (0, columns))[world]].tolist() == pytest.approx(expected)
        assert white[world][~pad(mask, (0, columns))[world]].abs().sum() == 0
