"""A transformer goes through the very same checks, enumeration and ledger as a table."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llm_mdp.check import check_policy
from llm_mdp.exact import exact_gradient
from llm_mdp.instances import random_instance
from llm_mdp.ledger import exit_status, run_ledger
from llm_mdp.problem import Problem
from llm_mdp.tree import PAD, PrefixTree
from llm_mdp.verify import flatten_gradients

lm = pytest.importorskip("llm_mdp_agents.lm")

TOKENS = PrefixTree(3, 0, 3).leaves


def one_prompt(prompt: list[int], padding: int = 0) -> Tensor:
    return torch.tensor([[PAD] * padding + prompt], dtype=torch.int64).expand(len(TOKENS), -1)


@pytest.mark.parametrize("n_prompts", [1, 2])
@pytest.mark.parametrize("eos", [0, None])
def test_it_is_a_policy(n_prompts, eos):
    check_policy(lm.tiny_transformer(3, 4, seed=1), random_instance(3, 3, eos=eos, n_prompts=n_prompts).mdp)


@pytest.mark.parametrize("prompt", [[], [2], [1, 2, 0]])
def test_left_padding_changes_nothing(prompt):
    policy = lm.tiny_transformer(3, 9)
    plain, padded = (policy.logits(one_prompt(prompt, columns), TOKENS) for columns in (0, 3))
    alive = TOKENS != PAD
    torch.testing.assert_close(padded[alive], plain[alive], rtol=1e-10, atol=1e-10)


def test_the_prompt_and_its_order_matter():
    policy = lm.tiny_transformer(3, 9)
    one, other = (policy.logits(one_prompt(prompt), TOKENS)[:, 0] for prompt in ([1, 2], [2, 1]))
    assert float((one - other).detach().abs().min()) > 1e-6


def test_padding_after_the_end_changes_nothing():
    policy = lm.tiny_transformer(3, 9)
    wide = torch.nn.functional.pad(TOKENS, (0, 2), value=PAD)
    alive = TOKENS != PAD
    plain, padded = policy.logits(one_prompt([2]), TOKENS), policy.logits(one_prompt([2]), wide)[:, :3]
    torch.testing.assert_close(padded[alive], plain[alive], rtol=1e-10, atol=1e-10)


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    one, again, other = (lm.tiny_transformer(3, 4, seed=seed).logits(one_prompt([]), TOKENS) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again) and not torch.allclose(one, other)


def test_the_exact_gradient_is_that_of_finite_differences():
    mdp, policy = random_instance(3, 3, gamma=0.9, n_prompts=2).mdp, lm.tiny_transformer(3, 4)
    _, gradients = exact_gradient(policy, mdp)
    parameters = list(policy.parameters())
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def J(step: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions):
                parameter += step * direction
            value = exact_gradient(policy, mdp)[0]
            for parameter, direction in zip(parameters, directions):
                parameter -= step * direction
        return value

    slope = float(flatten_gradients(gradients, parameters) @ flatten_gradients(directions, parameters))
    h = 1e-4
    assert slope == pytest.approx((8 * (J(h) - J(-h)) - (J(2 * h) - J(-2 * h))) / (12 * h), rel=1e-6)
    assert abs(slope) > 1e-3


def test_the_ledger_of_a_transformer():
    """The same verification code, the same expectations: every computed verdict is the expected one."""
    instance = replace(random_instance(3, 3, gamma=0.9, seed=2), policy=lm.tiny_transformer(3, 3))
    document = run_ledger(Problem(instance))
    wrong = {key: (row["verdict"], row["expected"]) for key, row in document["claims"].items() if row["holds"] is not True}
    assert not wrong
    assert exit_status(document) == 0
    assert len(document["gradient"]) == sum(p.numel() for p in instance.policy.parameters())
