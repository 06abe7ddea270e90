"""The number that a text states. What it says of whole answers stands in docs/grading.md; here are its calculations."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs.tasks.stated import MOST_PARENTHESES, MOST_TEXT, evaluate, stated_number


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=6),
    st.lists(st.sampled_from("+-*/"), min_size=5, max_size=5),
)
def test_calculations_agree_with_python(numbers, signs):
    signs = signs[: len(numbers) - 1]
    terms = [str(numbers[0]), *(f"{sign}Fraction({number})" for sign, number in zip(signs, numbers[1:]))]
    value = evaluate([Fraction(number) for number in numbers], signs)
    assert value == eval("Fraction(0) + " + "".join(terms), {"Fraction": Fraction})
    text = str(numbers[0]) + "".join(f" {sign} {number}" for sign, number in zip(signs, numbers[1:]))
    stated = stated_number(f"It is {text} eggs")
    assert stated is not None and stated.value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            ("2 * (3 + 4)", 14),
            ("(2 + 3) * (4 - 1)", 15),
            ("-(2 + 3)", -5),
            ("2^3^2", 512),
            ("-2^2", -4),
            ("(-2)^2", 4),
        ],
        *[("6 / -2", -3), ("2^-1", Fraction(1, 2)), ("10% * 50", 5), ("3 bags * 6 eggs", 18), ("1/0", None)],
        *[("9^9^9", None), ("0^-1", None), ("2^(1/2)", None), ("((((1))))", 1), ("(1", 1)],
    ],
)
def test_calculations(text, value):
    stated = stated_number(text)
    assert (stated and stated.value) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("eighteen", 18), ("Twenty-three eggs", 23), ("four hundred and five", 405), ("a hundred", 100)],
        *[("two thousand three hundred forty-five", 2345), ("minus seven", -7), ("zero", 0)],
        *[("one or two", None), ("twenty eighteen", None), ("not two", None), ("nothing", None)],
    ],
)
def test_numbers_in_words(text, value):
    stated = stated_number(text)
    assert (stated and stated.value) == value


def test_long_texts_state_nothing():
    assert stated_number("18" + " " * MOST_TEXT + "eggs") is None and stated_number("1" * (MOST_TEXT + 1)) is None
    assert stated_number("(" * (MOST_PARENTHESES + 1) + "18" + ")" * (MOST_PARENTHESES + 1)) is None
    assert stated_number("1e99999999") is None and stated_number("") is None
