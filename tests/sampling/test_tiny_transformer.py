"""The small transformer of `llm-mdp verify` is GPT-2's."""

import pytest
import torch

from llm_mdp.sampling.tiny_transformer import TinyTransformer


@pytest.mark.parametrize(("vocab_size", "length", "seed"), [(3, 5, 0), (4, 6, 3)])
def test_it_is_transformers_gpt2_with_the_same_seed(vocab_size, length, seed):
    pytest.importorskip("transformers")
    from llm_mdp_agents.lm.policy import tiny_transformer

    before = torch.random.get_rng_state()
    ours, theirs = TinyTransformer(vocab_size, length, seed), tiny_transformer(vocab_size, length, seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two in pairs)
    prompt = torch.tensor([[0, 1], [2, 1], [-1, 1], [-1, -1]])
    tokens = torch.tensor([[0, 1, 2], [2, -1, -1], [1, 1, -1], [2, 0, 1]])
    # A token's logits are defined where the one before it is there.
    there = torch.cat([torch.ones(4, 1, dtype=torch.bool), tokens[:, :-1] >= 0], dim=1)
    one, two = ours.logits(prompt, tokens)[there], theirs.logits(prompt, tokens)[there]
    assert torch.allclose(one, two, rtol=0, atol=1e-13)
    weight = torch.randn(one.shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((weight * logits).sum(), list(policy.parameters()))
        for logits, policy in ((one, ours), (two, theirs))
    ]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*gradients))


def test_it_answers_for_every_shape_and_samples():
    policy = TinyTransformer(3, 5)
    prompt, tokens = torch.tensor([[0, 1]]), torch.tensor([[[0, 1, 2]], [[1, 1, 1]]])
    every = policy.logits(prompt, tokens)
    assert every.shape == (2, 1, 3, 3)
    row, step = torch.tensor([0, 1]), torch.tensor([2, 0])
    flat = tokens[:, 0]
    assert torch.allclose(policy.next_logits(prompt.expand(2, -1), flat, row, step), every[:, 0][row, step], atol=1e-13)
    drawn = policy.sample(prompt, 4, eos=0, horizon=3, generator=torch.Generator().manual_seed(0))
    assert drawn.tokens.shape == (4, 3)
