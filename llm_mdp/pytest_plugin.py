"""The pytest plugin: a fixture `assert_unbiased`, no import needed.

    def test_my_advantages(assert_unbiased):
        assert_unbiased(my_advantages, group_size=4)

It is `llm_mdp.testing.assert_unbiased`, and the figures of every certificate go into the report of --junitxml as
properties of the test. pytest loads this file at every start, so it imports nothing of ours (nor torch) by itself.
"""

from collections.abc import Callable

import pytest


@pytest.fixture
def assert_unbiased(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`llm_mdp.testing.assert_unbiased`, with figures for --junitxml."""
    from llm_mdp.testing import assert_unbiased

    def asserted(estimator, **options) -> None:
        __tracebackhide__ = True
        assert_unbiased(estimator, report=lambda name, found: record_property(name, str(found)), **options)

    return asserted
