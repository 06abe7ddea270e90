"""Numbers as people write them."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs.tasks.numbers import NUMBER, Number, last_number, plain, read_number, ungroup


def read(text: str) -> Number | None:
    found = NUMBER.fullmatch(plain(text))
    assert found is not None
    return read_number(found)


@pytest.mark.parametrize(
    ("digits", "expected"),
    [
        *[("18", "18"), ("018", "018"), ("1.5", "1.5"), (".5", "0.5"), ("1,5", "1.5"), ("0,125", "0.125")],
        *[("1,234", "1234"), ("1,234.50", "1234.50"), ("1.234,50", "1234.50"), ("1.234.567", "1234567")],
        *[("12,34,567", "1234567"), ("1 234 567", "1234567"), ("1'234.5", "1234.5"), ("1_000", "1000")],
        *[("1,2,3", None), ("1.2.3", None), ("1234,567,8", None), ("1,23,45", None), ("9" * 1001, None)],
    ],
)
def test_separators(digits, expected):
    assert ungroup(digits) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("2 1/2", "5/2"), ("2½", "5/2"), ("2\\frac{1}{2}", "5/2"), ("3e8", "300000000"), ("1.5E-3", "3/2000")],
        *[("18th", "18"), ("18k", "18000"), ("1.5M", "1500000"), ("٣٤", "34"), ("１２", "12"), ("1{,}234", "1234")],
    ],
)
def test_numbers(text, value):
    number = read(text)
    assert number is not None and number.value == Fraction(value)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        *[("70%", "70", True), ("70%", "0.7", True), ("70%", "0.7%", False), ("70", "0.7", False)],
        *[("50 cents", "0.5", True), ("2 dozen", "24", True), ("5 million", "5000000", True), ("18k", "18", False)],
        *[("101_2", "101", True), ("101_2", "101_3", False), ("0.333333", "0.33333333", True)],
        *[("0.33333", "0.33333333", False), ("1.6e-19", "9.1e-31", False), ("1.602176e-19", "1.6021766e-19", True)],
        *[("1234567", "1234567.4", False), ("1234.56", "1234.57", False), ("1e9", "1000000000", True)],
    ],
)
def test_equality(one, other, equal):
    first, second = read(one), read(other)
    assert first is not None and second is not None
    assert first.equals(second) is equal and second.equals(first) is equal


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("x=-5", "-5"), ("−5", "-5"), ("-.5", "-0.5"), (".5", "0.5"), ("5.", "5"), ("It is 5,", "5"), ("$5", "5")],
        *[("-$5", "-5"), ("5%", "5"), ("3/4", "3/4"), ("-1/2", "-1/2"), ("1,234", "1234"), ("1 234", "1234")],
        *[("1,2,3", "3"), ("5, 6", "6"), ("1,5", "1.5"), ("1.234,5", "1234.5"), ("1e3", "1000"), ("1.5e-3", "0.0015")],
        *[("10-5", "5"), ("10 - 5", "5"), ("\\boxed{-5}", "-5"), ("(-3)", "-3"), ("$-5$", "-5"), ("1 + 2 = 3", "3")],
        *[("1, 2 and -1,234.50.", "-1234.50"), ("-5 degrees", "-5"), ("no 2x", "2"), ("３", "3"), ("½", "1/2")],
        *[("none", None), ("x2", None), ("", None), ("v1.5", None)],
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == number


@settings(max_examples=20, deadline=None)
@given(st.integers(-(10**12), 10**12), st.sampled_from(["{:,}", "{:_}", "{}", "{:.1f}", "{}.0"]))
def test_the_last_number_is_the_number(number, written):
    text = last_number(f"1 and 2 are wrong, it is {written.format(number)}.")
    assert text is not None and Fraction(text) == number


@pytest.mark.parametrize("text", ["1", "1,", "1 ", "1.", "-", "1/", "1e", "½", "e1", "１", "1'", "1_", ".1", "-1"])
def test_the_last_number_takes_linear_time(text):
    began = time.process_time()
    last_number(text * (200_000 // len(text)))
    assert time.process_time() - began < 10
