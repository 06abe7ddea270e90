"""`join`: the batches of several processes as one, row by row what they were."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from llm_mdp.evidence import Branches, Evidence, Rollouts, join, take_rows
from llm_mdp.tree import PAD

T = 3


def batch(rows: int, width: int, n_branches: int, seed: int, optional: bool) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    prompt, tokens = (torch.randint(5, (rows, columns), generator=generator) for columns in (width, T))
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    mask = torch.rand(rows, T, generator=generator) < 0.7
    rollouts = Rollouts(prompt, tokens, mask, normal(rows, T), torch.randint(3, (rows,), generator=generator))
    if not optional:
        return Evidence(rollouts, normal(rows))
    row, step = torch.randint(rows, (n_branches,), generator=generator), torch.randint(T, (n_branches,), generator=generator)
    branches = Branches(row, step, normal(n_branches), greedy=True)
    return Evidence(rollouts, normal(rows), normal(rows, T), normal(rows, T + 1), branches, normal(rows, T))


def assert_same(actual: Evidence, expected: Evidence) -> None:
    """Equal but for the width of the prompts."""
    for name in [f.name for f in fields(Rollouts)]:
        mine, theirs = getattr(actual.rollouts, name), getattr(expected.rollouts, name)
        if name == "prompt":
            extra = mine.shape[1] - theirs.shape[1]
            assert (mine[:, :extra] == PAD).all()
            mine = mine[:, extra:]
        assert_close(mine, theirs, rtol=0, atol=0)
    for owner, other in ((actual, expected), (actual.branches, expected.branches)):
        for f in fields(other) if other is not None else []:
            mine, theirs = getattr(owner, f.name), getattr(other, f.name)
            if isinstance(theirs, Tensor):
                assert_close(mine, theirs, rtol=0, atol=0)
            elif isinstance(theirs, bool) or theirs is None:
                assert mine == theirs


shape = st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 5), st.integers(0, 100))


@given(shapes=st.lists(shape, min_size=1, max_size=4), optional=st.booleans())
def test_every_part_can_be_taken_out_again(shapes, optional):
    parts = [batch(*each, optional) for each in shapes]
    whole, first = join(parts), 0
    assert len(whole.response_reward) == sum(rows for rows, *_ in shapes)
    for part in parts:
        rows = torch.arange(first, first + len(part.response_reward))
        assert_same(take_rows(whole, rows), part)
        first += len(part.response_reward)


def test_what_cannot_be_joined_is_said():
    part = batch(2, 1, 3, 0, optional=True)
    with pytest.raises(ValueError, match="no batch to join"):
        join([])
    with pytest.raises(ValueError, match="batch 1 has response_reward, token_reward, value, reference_logp, and batch 0"):
        join([part, replace(part, branches=None)])
    worlds = batch(2, 1, 0, 0, optional=False)
    with pytest.raises(ValueError, match="dimension of worlds"):
        join([replace(worlds, response_reward=worlds.response_reward.expand(4, -1))])
