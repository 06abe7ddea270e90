"""Laws of sums over responses, and responses that add up to a given sum."""

from collections import Counter
from fractions import Fraction
from itertools import product
from math import comb, prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.verify.classes import convolution
from llm_mdp.verify.classes.convolution import Laws

VECTORS = [[0, 1], [1, 0], [1, 2], [0, 1]]
"""Four classes, the first and the last of which are one feature."""
CHANCES = [0.1, 0.2, 0.3, 0.4]


def laws(vectors=VECTORS, chances=CHANCES, size=4) -> Laws:
    return Laws(torch.tensor(vectors), torch.tensor(chances, dtype=torch.float64), size)


def by_sequences(vectors, chances, number: int) -> list[float]:
    """Probabilities of all sums of `number` classes, ascending; every sequence of classes counted by itself."""
    found: Counter = Counter()
    for sequence in product(range(len(vectors)), repeat=number):
        total = tuple(sum(vectors[c][d] for c in sequence) for d in range(len(vectors[0])))
        found[total] += prod(chances[c] for c in sequence)
    return sorted(found.values())


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("number", range(5))
def test_the_law_of_a_sum_is_that_of_all_sequences(number, dense, monkeypatch):
    monkeypatch.setattr(convolution, "DENSE", convolution.DENSE if dense else 0)
    found = laws().chances[number].sort().values
    torch.testing.assert_close(
        found, torch.tensor(by_sequences(VECTORS, CHANCES, number), dtype=torch.float64), rtol=1e-14, atol=0
    )


def test_a_hundred_kinds_have_codes_by_random_multipliers_and_the_same_law():
    vectors, chances = torch.eye(100, dtype=torch.int64), torch.arange(1, 101, dtype=torch.float64) / 5050
    found = Laws(vectors, chances, 3)
    assert found._check is not None
    expected = [2 * chances[i] * chances[j] if i < j else chances[i] ** 2 for i in range(100) for j in range(i, 100)]
    torch.testing.assert_close(found.chances[2].sort().values, torch.stack(expected).sort().values, rtol=1e-14, atol=0)


def test_two_states_with_one_code_are_seen(monkeypatch):
    """With multipliers that are all the same, states collide."""
    monkeypatch.setattr(
        torch,
        "randint",
        lambda room, shape, generator: torch.stack([torch.ones(shape[1]), torch.arange(shape[1])]).long(),
    )
    with pytest.raises(AssertionError, match="share a code"):
        Laws(2 * torch.eye(100, dtype=torch.int64), torch.full((100,), 0.01, dtype=torch.float64), 3)


@pytest.mark.parametrize("q", ["1e-4", "1/3", "1e-9"])
def test_rare_responses_lose_no_digits_in_large_groups(q):
    chance = Fraction(q)
    found = laws([[0], [1]], [float(1 - chance), float(chance)], 64)
    for number, each in zip(range(64), found.chances[63].tolist(), strict=False):
        exact = comb(63, number) * chance**number * (1 - chance) ** (63 - number)
        if exact > Fraction("1e-300"):
            assert abs(Fraction(each) / exact - 1) < 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_what_is_drawn_adds_up(seed, evenly):
    found, generator = laws(), torch.Generator().manual_seed(seed)
    state = torch.randint(len(found.codes[3]), (50,), generator=generator)
    for drawn in (found.draw(3, state, generator, evenly), found.some(3, state)):
        assert torch.equal(found.code[drawn].sum(1), found.codes[3][state])


def test_typical_draws_have_the_law_of_responses_given_their_sum():
    """Tokens 1, 2, 3 with chances .5, .3, .2: 4 tokens of two responses are (1, 3), (3, 1), (2, 2) with .1, .1, .09."""
    found, generator = laws([[1], [2], [3]], [0.5, 0.3, 0.2], 3), torch.Generator().manual_seed(0)
    number = 40_000
    four = found.find(2, found.code[0] + found.code[2]).expand(number)
    for evenly, share in ((False, 0.1 / 0.29), (True, 1 / 3)):
        first = found.draw(2, four, generator, evenly)[:, 0]
        for feature in (0, 2):
            seen = float((first == feature).double().mean())
            assert abs(seen - share) < 5 * (share * (1 - share) / number) ** 0.5


def test_what_is_not_there_is_not_found():
    found = laws()
    assert int(found.find(2, found.codes[2].max() + 1)) == -1
    assert torch.equal(found.find(2, found.codes[2]), torch.arange(len(found.codes[2])))


def test_too_many_states_are_said_before_any_work():
    with pytest.raises(TooLarge, match="at least 314,457,495 values"):
        Laws(torch.eye(40, dtype=torch.int64), torch.full((40,), 1 / 40, dtype=torch.float64), 9)


def test_states_of_all_sizes_together_are_limited(monkeypatch):
    monkeypatch.setattr(convolution, "MAX_STATES", 100)
    with pytest.raises(TooLarge, match="more than 100 values for groups of up to that size"):
        laws([[0], [1]], [0.5, 0.5], 20)
