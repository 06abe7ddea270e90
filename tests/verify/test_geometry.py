"""Inner products of scores: in closed form for tables, as the matrix of scores has them."""

import pytest
import torch

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import random_instance
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.verify.geometry import ScoreGeometry, TableGeometry, geometry_of


@pytest.fixture(params=["two prompts", "with an environment", "no end token"])
def enumeration(request) -> Enumeration:
    options = {
        "two prompts": {"n_prompts": 2},
        "with an environment": {"environment_at": (1,)},
        "no end token": {"eos": None},
    }[request.param]
    instance = random_instance(3, 3, seed=4, **options)
    return Enumeration(instance.mdp, instance.policy)


def policy_tokens(e: Enumeration) -> torch.Tensor:
    """1 for the edges whose tokens the policy draws."""
    own = torch.zeros(e.n_edges, dtype=torch.float64)
    own[e.edge[:, e.mask].flatten()] = 1
    return own


def test_a_table_has_the_inner_products_of_its_scores(enumeration):
    e, generator = enumeration, torch.Generator().manual_seed(1)
    table, scores = TableGeometry(e), ScoreGeometry(e)
    weights = torch.randn(5, e.n_edges, generator=generator, dtype=torch.float64) * policy_tokens(e)
    torch.testing.assert_close(table.gradient(weights[0]), scores.gradient(weights[0]), rtol=0, atol=1e-13)
    of_prompt = weights.view(5, e.n_prompts, -1)[:, -1]
    prompt = e.n_prompts - 1
    torch.testing.assert_close(
        table.products(prompt, of_prompt), scores.products(prompt, of_prompt), rtol=0, atol=1e-12
    )
    n = e.tree.n_leaves
    own = torch.randn(2, n, e.tree.horizon, generator=generator, dtype=torch.float64) * e.mask
    chance = torch.rand(n, generator=generator, dtype=torch.float64)
    edge = e.edge[prompt]
    torch.testing.assert_close(table.within(chance, edge, own), scores.within(chance, edge, own), rtol=0, atol=1e-12)
    torch.testing.assert_close(table.sizes(), scores.sizes(), rtol=0, atol=1e-13)
    assert table.rank() == scores.rank()


def test_only_tables_over_the_same_tree_are_taken_for_tables():
    instance = random_instance(3, 3, seed=4)
    assert isinstance(geometry_of(Enumeration(instance.mdp, instance.policy)), TableGeometry)
    shared = NgramPolicy.random(3, 1, torch.Generator().manual_seed(0))
    assert isinstance(geometry_of(Enumeration(instance.mdp, shared)), ScoreGeometry)
