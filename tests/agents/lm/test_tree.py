"""A tree read in packed rows says what every prefix says alone, and has its gradient; what cannot be packed is
refused."""

import pytest
import torch

from llm_mdp.mdp.tree import PAD

pytest.importorskip("transformers")

from llm_mdp_agents.lm.loading import load_policy
from llm_mdp_agents.lm.precision import kept_double
from llm_mdp_agents.lm.tree import PackedTree

SIZES = {
    "vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3, "n_positions": 64,
    "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
TOKENS, EOS = (3, 5, 11, 20), 5
PROMPTS = torch.tensor([[PAD, PAD, 7, 2], [4, 4, 9, 1]])


def policy_of(kind: str, dtype: str = "float64", **options):
    return load_policy({"model_type": kind, **SIZES, **options}, dtype=dtype, token_subset=TOKENS)


def alone(policy, prompt, written) -> torch.Tensor:
    """log-probabilities over the subset after one text, which the model reads by itself."""
    text = torch.tensor([[token for token in (*prompt.tolist(), *written) if token != PAD]])
    with kept_double(policy.causal_lm.dtype):
        return policy.causal_lm(input_ids=text).logits[0, -1, list(TOKENS)].log_softmax(-1)


def prefixes(tree) -> list[list[int]]:
    """Every prefix in the model's tokens, in the order of the tree."""
    return [
        [TOKENS[w] for w in prefix] for level in range(tree.horizon) for prefix in tree.level_prefixes(level).tolist()
    ]


@pytest.mark.parametrize(
    ("kind", "dtype", "within"),
    [
        ("llama", "float64", 1e-10), ("llama", "float32", 1e-4), ("gpt2", "float64", 1e-10),
        ("gpt_neox", "float64", 1e-10), ("qwen3", "float64", 1e-10), ("granite", "float64", 1e-10),
        ("gemma", "float32", 1e-4),
    ],
)  # fmt: skip
def test_every_prefix_says_what_it_says_alone(kind, dtype, within):
    policy = policy_of(kind, dtype, **({"logits_scaling": 4.0} if kind == "granite" else {}))
    packed = PackedTree(policy, PROMPTS, EOS, 3)
    with torch.no_grad():
        found = packed.logp()
        expected = torch.stack([torch.stack([alone(policy, p, w) for w in prefixes(packed.tree)]) for p in PROMPTS])
    assert found.logp.shape == (2, 1 + 3 + 9, 4)
    torch.testing.assert_close(found.logp, expected.to(found.logp.dtype), rtol=0, atol=within)


def test_the_gradient_is_that_of_reading_each_prefix_alone():
    policy = policy_of("llama")
    packed = PackedTree(policy, PROMPTS, EOS, 3)
    weights = torch.randn(2, 13, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = list(policy.parameters())
    found = torch.autograd.grad((packed.logp().logp * weights).sum(), parameters)
    each = [weights[p, m] @ alone(policy, PROMPTS[p], w) for p in range(2) for m, w in enumerate(prefixes(packed.tree))]
    expected = torch.autograd.grad(torch.stack(each).sum(), parameters)
    size = torch.cat([g.flatten() for g in expected]).norm()
    assert torch.cat([(g - h).flatten() for g, h in zip(found, expected)]).norm() < 1e-10 * size


def test_a_tree_in_several_rows_is_the_same():
    policy = policy_of("llama")
    with torch.no_grad():
        whole = PackedTree(policy, PROMPTS, EOS, 4).logp()
        split = PackedTree(policy, PROMPTS, EOS, 4, most_nodes=7)
        assert len(split.rows) == 2 * 6
        found = split.logp()
    torch.testing.assert_close(found.logp, whole.logp, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.covered, whole.covered, rtol=0, atol=1e-10)


def test_the_share_that_the_subset_covers_is_that_of_all_tokens():
    policy = policy_of("llama")
    with torch.no_grad():
        covered = PackedTree(policy, PROMPTS, None, 2).logp().covered
        text = torch.tensor([[*PROMPTS[1].tolist(), TOKENS[2]]])
        with kept_double(torch.float64):
            whole = policy.causal_lm(input_ids=text).logits[0, -1].softmax(-1)
    assert float(covered[1, 1 + 2]) == pytest.approx(float(whole[list(TOKENS)].sum()), abs=1e-12)


def test_the_tree_is_what_the_policy_samples_from():
    """The subset is the policy's own mask: its plain logits, masked, are the tree's."""
    policy = policy_of("gpt2")
    with torch.no_grad():
        found = PackedTree(policy, PROMPTS, EOS, 2).logp().logp
        plain = policy.logits(PROMPTS, torch.full((2, 1), PAD))[:, 0].log_softmax(-1)
    torch.testing.assert_close(found[:, 0], plain[:, list(TOKENS)], rtol=0, atol=1e-10)
    assert bool((plain.exp().sum(-1) - 1).abs().max() < 1e-12)


def test_llama_in_float64_has_the_gradient_of_finite_differences():
    """Hugging Face rounds the norms of a float64 Llama to float32; here it does not."""
    policy = policy_of("llama")
    packed, weight = PackedTree(policy, PROMPTS[1:], EOS, 2), policy.causal_lm.model.layers[0].mlp.up_proj.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(packed.logp().logp[0, 1, 0], [weight])
    said = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight += step * direction
            said.append(packed.logp().logp[0, 1, 0])
    slope = float(said[0] - said[1]) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mistral", {"sliding_window": 4}),
        ("bloom", {}),
        ("mamba", {"state_size": 8}),
    ],
)
def test_models_that_do_not_attend_to_everything_are_refused(kind, options):
    policy = policy_of(kind, "float32", **options)
    with pytest.raises(ValueError, match=r"does not attend to all .* use a model with full attention"):
        PackedTree(policy, PROMPTS, EOS, 3)


def test_bad_arguments_are_named():
    policy = policy_of("llama")
    with pytest.raises(ValueError, match="eos is 4, which is not among the tokens of the subset"):
        PackedTree(policy, PROMPTS, 4, 3)
    with pytest.raises(ValueError, match="up to 70 tokens"):
        PackedTree(policy_of("gpt2"), PROMPTS, EOS, 67)
    policy.token_subset = None
    with pytest.raises(ValueError, match="the policy may draw every token; restrict it"):
        PackedTree(policy, PROMPTS, EOS, 3)


def test_a_policy_takes_its_tokens_by_its_constructor():
    from llm_mdp_agents.lm.policy import LanguageModelPolicy

    model = policy_of("gpt2").model
    policy = LanguageModelPolicy(model, 24, None, tokens=TOKENS)
    rollouts = policy.sample(PROMPTS, 20, eos=EOS, horizon=4, generator=torch.Generator().manual_seed(0))
    assert set(rollouts.tokens.flatten().tolist()) - {PAD} <= set(TOKENS)
    with pytest.raises(ValueError, match="token 24, outside the vocabulary"):
        LanguageModelPolicy(model, 24, None, tokens=[3, 24])
