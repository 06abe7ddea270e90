"""Certificates of batches of several prompts against the independent program that writes every batch down."""

import pytest

from llm_mdp.verify.method import METHODS
from tests.verify.classes.test_second_opinion import ROWS, check, drawn_agrees


@pytest.mark.parametrize("group_size, prompts", [(2, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.slow
def test_batches_written_down(row, group_size, prompts):
    check("two prompts", row, group_size, prompts, methods=METHODS)


@pytest.mark.parametrize("row", ["token-mean-loo", "reinforce++"])
def test_a_batch_written_down(row):
    check("two prompts", row, 2, 2)


@pytest.mark.parametrize(
    "row, group_size, prompts",
    [
        ("rloo", 8, 8),
        ("zero-std-filtered", 8, 8),
        ("token-mean-loo", 8, 8),
        ("remark-4-batch", 4, 8),
        ("reinforce++", 4, 4),
    ],
)
@pytest.mark.slow
def test_drawn_batches_agree(row, group_size, prompts):
    drawn_agrees("two prompts", row, group_size, prompts)
