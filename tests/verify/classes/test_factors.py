"""A table of weights as a sum of products."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.verify.classes.factors import factorise


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(4, 9), st.integers(4, 30), st.integers(0, 10**6))
def test_a_table_comes_back_from_as_few_products_as_it_has_dimensions(rank, states, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(states, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, tokens, generator=generator, dtype=torch.float64)
    # Columns of very different size, as importance weights have.
    table = left @ right * 10.0 ** torch.randint(-6, 7, (tokens,), generator=generator)
    alpha, psi = factorise(table)
    assert alpha.shape[1] == rank
    size = table.abs().amax(0)
    assert float(((alpha @ psi - table) / size).abs().max()) < 1e-11


def test_equal_columns_are_one_product_and_exactly_so():
    column = torch.tensor([0.1, 0.0, -0.7], dtype=torch.float64)
    alpha, psi = factorise(torch.stack([column, column, torch.zeros(3).double(), column], dim=1))
    assert alpha.shape == (3, 1)
    assert torch.equal(alpha[:, 0], column)
    torch.testing.assert_close(psi[0], torch.tensor([1.0, 1.0, 0.0, 1.0]).double(), rtol=1e-15, atol=0)


def test_a_table_of_zeros_is_no_product():
    alpha, psi = factorise(torch.zeros(3, 5, dtype=torch.float64))
    assert (alpha.shape, psi.shape) == ((3, 0), (0, 5))
